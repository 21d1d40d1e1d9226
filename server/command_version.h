// `headroom version`: the program, and the libraries and the compiler that it was built with.
#pragma once

#include <string>
#include <vector>

namespace headroom {

// --json: one component for each library, in the format CycloneDX 1.5, for tools that look for known faults.
int run_version(const std::vector<std::string>& arguments);

}  // namespace headroom
