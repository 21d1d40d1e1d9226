// `headroom health`: asks a running server whether it is ready, for health checks in images that hold nothing but this program.
#pragma once

#include <string>
#include <vector>

namespace headroom {

// Returns 0 when /readyz answers 200, else 1 with the reason on stderr. Throws std::runtime_error, one line, for bad options.
int run_health(const std::vector<std::string>& arguments);

}  // namespace headroom
