#include "engine/tokenizer/jinja_limits.h"

namespace headroom::jinja {

void Budget::fail_operations() const {
  throw Error("the chat template needs more than " + std::to_string(limits_.operations_max) + " operations");
}
void Budget::fail_memory() const {
  throw Error("the chat template needs more than " + std::to_string(limits_.live_bytes_max) + " bytes of memory");
}
void Budget::fail_depth() const {
  throw Error("the chat template, or the data given to it, nests deeper than " + std::to_string(limits_.depth_max) +
              " levels");
}
void Budget::fail_size() const {
  throw Error("the chat template makes a text of more than " + std::to_string(limits_.output_bytes_max) + " bytes");
}

}  // namespace headroom::jinja
