// Builds the syntax tree of a template. Nesting is bounded (kBlockDepthMax, kExpressionDepthMax), so a hostile template
// is an error and not a stack overflow.
// Pure function, any thread. Throws SyntaxError.
#pragma once

#include <string_view>

#include "engine/tokenizer/jinja_ast.h"

namespace headroom::jinja {

inline constexpr int kBlockDepthMax = 60;        // nested for, if, macro …
inline constexpr int kExpressionDepthMax = 200;  // nested brackets, and the length of chains such as a + b + c
inline constexpr size_t kSourceBytesMax = 1 << 20;

Template parse_template(std::string_view source);

}  // namespace headroom::jinja
