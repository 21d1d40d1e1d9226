// Cuts a template into tokens, with the white space rules of the environment that chat templates are written for:
// trim_blocks, lstrip_blocks, and one newline at the end of the template dropped.
// Pure function, any thread. Throws SyntaxError.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace headroom::jinja {

// What is wrong with the template and in which line: the text reads "line 3: …".
class SyntaxError : public std::runtime_error {
 public:
  SyntaxError(int line, const std::string& problem)
      : std::runtime_error("line " + std::to_string(line) + ": " + problem) {}
};

enum class TokenKind : uint8_t {
  kData,
  kPrintBegin,
  kPrintEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kReal,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  int line = 1;
  std::string text;  // data; name; the operator; the string without quotes and escapes
  int64_t integer = 0;
  double real = 0;
};

// The last token is kEnd.
std::vector<Token> tokenize(std::string_view source);

}  // namespace headroom::jinja
