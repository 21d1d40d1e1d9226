// Log lines to stderr, as text or as one JSON object each. Nothing of a prompt, an answer or a key is ever logged.
// A log that nobody reads, or a disk without room, costs lines, which are counted, and never a request.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

namespace headroom {

void set_up_logging(const std::string& level, const std::string& format);

// Shows how far long work is, from its second second on: a bar when stderr is a terminal, a line every few seconds otherwise.
// One thread. The result may be called with (done, total) as often as you like.
std::function<void(size_t done, size_t total)> make_progress(const std::string& what);

}  // namespace headroom
