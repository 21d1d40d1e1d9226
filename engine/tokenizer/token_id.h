// The type of a token's id. A header of its own, so that control code (scheduler, prefix cache) can name tokens without
// seeing a tokenizer.
#pragma once

#include <cstdint>

namespace headroom {

using TokenId = int32_t;

}  // namespace headroom
