// `headroom serve`: listens, loads, answers, and drains on SIGTERM or SIGINT.
#pragma once

#include <string>
#include <vector>

#include "kernels/device.h"

namespace headroom {

// Returns the exit status of the process. Throws std::runtime_error, one line that says what to do, when it cannot start.
int run_serve(const std::vector<std::string>& arguments, const BackendChooser& choose = choose_backend);

}  // namespace headroom
