// `headroom convert`: the same model with another number of KV heads, as a new directory.
#pragma once

#include <string>
#include <vector>

namespace headroom {

// Returns the exit status. Throws std::runtime_error, one line, for bad options or files.
int run_convert(const std::vector<std::string>& arguments);

}  // namespace headroom
