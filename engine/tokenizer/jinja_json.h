// The request's JSON as values of the template language.
#pragma once

#include <nlohmann/json.hpp>

#include "engine/tokenizer/jinja_value.h"

namespace headroom::jinja {

// All of it is user text. Throws Error for what the language cannot hold: too deep, an integer beyond 64 bits, bytes
// that are not UTF-8.
Value from_json(Runtime& runtime, const nlohmann::ordered_json& json);

}  // namespace headroom::jinja
