// `headroom plan`: what a deployment takes and what fits, from the shape of a model alone.
#pragma once

#include <string>
#include <vector>

namespace headroom {

// Returns the exit status. Throws std::runtime_error, one line, for bad options or files.
int run_plan(const std::vector<std::string>& arguments);

}  // namespace headroom
