// The expressions of the template language: the base of the statement parser in jinja_parser.cc. Precedence, from
// loosest: if/else, or, and, not, comparison, + -, ~, * / // %, **, sign, postfix, filter and test.
// One parser per template, used by one thread. Throws SyntaxError.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tokenizer/jinja_ast.h"
#include "engine/tokenizer/jinja_lexer.h"

namespace headroom::jinja {

class ExpressionParser {
 protected:
  explicit ExpressionParser(std::vector<Token> tokens);
  ~ExpressionParser() = default;

  // ---- the token stream ----
  const Token& current() const { return tokens_[position_]; }
  const Token& following() const { return tokens_[position_ + (position_ + 1 < tokens_.size() ? 1 : 0)]; }
  int line() const { return current().line; }
  void skip() { position_ += position_ + 1 < tokens_.size() ? 1 : 0; }
  Token& take();
  const Token& expect(TokenKind kind, const char* what);
  bool at_name(std::string_view name) const { return current().kind == TokenKind::kName && current().text == name; }
  bool skip_name(std::string_view name);
  void expect_name(std::string_view name);
  bool at_operator(std::string_view text) const {
    return current().kind == TokenKind::kOperator && current().text == text;
  }
  bool skip_operator(std::string_view text);
  void expect_operator(std::string_view text);
  [[noreturn]] void fail(const std::string& problem) const { throw SyntaxError(line(), problem); }

  // Counts one level of recursion, for as long as it lives.
  class Nesting {
   public:
    Nesting(const ExpressionParser* parser, int* depth, int depth_max) : depth_(depth) {
      if (*depth >= depth_max) parser->fail("the template nests deeper than " + std::to_string(depth_max) + " levels");
      ++*depth_;
    }
    ~Nesting() { --*depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    int* depth_;
  };

  // ---- names ----
  NameId intern(const std::string& name);
  void take_names(Template* result);
  static bool is_constant_name(std::string_view name);

  // ---- expressions ----
  ExpressionPtr parse_expression();
  // An expression, or several with commas between them: a tuple.
  ExpressionPtr parse_tuple(bool with_conditional = true);
  ExpressionPtr parse_filters(ExpressionPtr input);  // | name | name …
  ExpressionPtr parse_filter(ExpressionPtr input);   // name(arguments)

  // An unknown filter or test is an error, but inside of an if only when it is reached.
  void fail_if_unknown() const;
  int conditional_depth_ = 0;
  std::vector<MacroStatement*> open_macros_;

 private:
  ExpressionPtr parse_or();
  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  ExpressionPtr parse_compare();
  ExpressionPtr parse_sum();
  ExpressionPtr parse_concat();
  ExpressionPtr parse_product();
  ExpressionPtr parse_power();
  ExpressionPtr parse_unary(bool with_filters);
  ExpressionPtr parse_primary();
  ExpressionPtr parse_name();
  ExpressionPtr parse_string();
  ExpressionPtr parse_list();
  ExpressionPtr parse_dict();
  ExpressionPtr parse_parenthesized();
  ExpressionPtr parse_postfix(ExpressionPtr node);
  ExpressionPtr parse_postfix_and_filters(ExpressionPtr node);
  ExpressionPtr parse_attribute(ExpressionPtr object);
  ExpressionPtr parse_subscript(ExpressionPtr object);
  ExpressionPtr parse_call(ExpressionPtr callee);
  ExpressionPtr parse_test(ExpressionPtr input);
  ArgumentList parse_arguments(Expression* owner);
  ExpressionPtr binary(int line, BinaryOperator op, ExpressionPtr left, ExpressionPtr right);
  bool at_tuple_end() const;
  void note_unknown(const std::string& problem);

  // Notes that `child` is below `parent`, and bounds the depth of the tree.
  void contain(Expression* parent, const ExpressionPtr& child) const;

  std::vector<Token> tokens_;
  size_t position_ = 0;
  int expression_depth_ = 0;
  std::vector<SyntaxError> unknown_;
  std::vector<std::string> names_;
  std::map<std::string, NameId, std::less<>> name_ids_;
};

}  // namespace headroom::jinja
