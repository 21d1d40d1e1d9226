// A Report as one HTML file: no script, nothing fetched, light or dark as the reader's system is, readable on a phone.
// Pure function.
#pragma once

#include <string>

#include "server/report.h"

namespace headroom {

std::string report_html(const Report& report);

}  // namespace headroom
