// `headroom bench`: prefill and decode speed of a model, or of a shape with random weights, against the limits of this machine
// measured in the same run.
#pragma once

#include <string>
#include <vector>

namespace headroom {

// Returns the exit status. Throws std::runtime_error, one line, for bad options or files.
int run_bench(const std::vector<std::string>& arguments);

}  // namespace headroom
