// `headroom report`: measures the six analyses of a model and writes them as one HTML file.
#pragma once

#include <string>
#include <vector>

namespace headroom {

// Returns the exit status of the process. Throws std::runtime_error, one line that says what to do.
int run_report(const std::vector<std::string>& arguments);

}  // namespace headroom
