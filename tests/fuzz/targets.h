// What is fuzzed: everything that reads bytes from a client or a model file. Each target takes any bytes, and aborts when what it was
// given back is not what the format promises; it allocates in proportion to its input.
#pragma once

#include <span>
#include <string_view>

namespace headroom::fuzz {

struct Target {
  std::string_view name;  // of its folder in tests/fuzz/corpus
  bool (*run)(std::string_view input);  // whether it was taken: a corpus that is refused as a whole tests little
};

std::span<const Target> targets();

}  // namespace headroom::fuzz
