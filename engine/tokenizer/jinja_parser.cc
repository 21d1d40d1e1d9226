#include "engine/tokenizer/jinja_parser.h"

#include <algorithm>
#include <initializer_list>
#include <map>
#include <optional>

#include "engine/tokenizer/jinja_builtins.h"
#include "engine/tokenizer/jinja_expression_parser.h"

namespace headroom::jinja {
namespace {

// Statements. Expressions, names and the token stream are in ExpressionParser.
class Parser : public ExpressionParser {
 public:
  explicit Parser(std::vector<Token> tokens) : ExpressionParser(std::move(tokens)) {}

  Template run() {
    Template result;
    result.body = parse_body({});
    fail_if_unknown();
    take_names(&result);
    return result;
  }

 private:
  // Statements up to one of the tags of `ends`, which is left as the current token behind its `{%`.
  Body parse_body(std::initializer_list<std::string_view> ends) {
    const Nesting nesting(this, &block_depth_, kBlockDepthMax);
    Body body;
    while (true) {
      switch (current().kind) {
        case TokenKind::kData:
          body.push_back(parse_text());
          break;
        case TokenKind::kPrintBegin:
          body.push_back(parse_print());
          break;
        case TokenKind::kBlockBegin: {
          skip();
          if (std::any_of(ends.begin(), ends.end(), [&](std::string_view end) { return at_name(end); })) return body;
          body.push_back(parse_statement());
          expect(TokenKind::kBlockEnd, "'%}'");
          break;
        }
        default:
          if (ends.size() > 0)
            fail("unexpected end of the template: '" + std::string(*(ends.end() - 1)) + "' is missing");
          return body;
      }
    }
  }

  Body parse_block(std::initializer_list<std::string_view> ends) {
    skip_operator(":");
    expect(TokenKind::kBlockEnd, "'%}'");
    return parse_body(ends);
  }

  Body parse_whole_block(std::string_view end) {
    Body body = parse_block({end});
    skip();
    return body;
  }

  // A body in which the loops around it cannot be left.
  Body parse_detached_block(std::string_view end) {
    const int outer = std::exchange(loop_depth_, 0);
    Body body = parse_whole_block(end);
    loop_depth_ = outer;
    return body;
  }

  StatementPtr parse_text() {
    auto statement = std::make_unique<TextStatement>(line());
    statement->text = take().text;
    return statement;
  }

  StatementPtr parse_print() {
    auto statement = std::make_unique<PrintStatement>(line());
    skip();
    statement->value = parse_tuple();
    expect(TokenKind::kPrintEnd, "'}}'");
    return statement;
  }

  StatementPtr parse_statement() {
    using Rule = StatementPtr (Parser::*)();
    static const std::map<std::string_view, Rule> kRules = {
        {"for", &Parser::parse_for},         {"if", &Parser::parse_if},
        {"set", &Parser::parse_set},         {"macro", &Parser::parse_macro},
        {"call", &Parser::parse_call_block}, {"filter", &Parser::parse_filter_block},
        {"with", &Parser::parse_with},       {"generation", &Parser::parse_generation},
        {"break", &Parser::parse_break},     {"continue", &Parser::parse_continue},
        {"print", &Parser::parse_print_tag},
    };
    if (current().kind != TokenKind::kName) fail("a tag name is expected");
    const auto rule = kRules.find(current().text);
    if (rule == kRules.end()) fail("unknown tag '" + current().text + "'");
    return (this->*rule->second)();
  }

  StatementPtr parse_for() {
    auto statement = std::make_unique<ForStatement>(line());
    skip();
    statement->target = parse_target(false);
    expect_name("in");
    statement->iterable = parse_tuple(false);
    if (skip_name("if")) statement->condition = parse_expression();
    statement->recursive = skip_name("recursive");
    ++loop_depth_;
    statement->body = parse_block({"else", "endfor"});
    --loop_depth_;
    if (skip_name("else")) {
      statement->otherwise = parse_whole_block("endfor");
    } else {
      skip();
    }
    return statement;
  }

  StatementPtr parse_if() {
    auto statement = std::make_unique<IfStatement>(line());
    ++conditional_depth_;
    do {
      skip();
      ExpressionPtr condition = parse_tuple(false);
      statement->branches.emplace_back(std::move(condition), parse_block({"elif", "else", "endif"}));
    } while (at_name("elif"));
    if (skip_name("else")) {
      statement->otherwise = parse_whole_block("endif");
    } else {
      skip();
    }
    --conditional_depth_;
    return statement;
  }

  StatementPtr parse_set() {
    const int begin = line();
    skip();
    Target target = parse_target(true);
    if (skip_operator("=")) {
      auto statement = std::make_unique<SetStatement>(begin);
      statement->target = std::move(target);
      statement->value = parse_tuple();
      return statement;
    }
    auto statement = std::make_unique<SetBlock>(begin);
    statement->target = std::move(target);
    if (at_operator("|")) statement->filter = parse_filters(std::make_unique<BlockText>(begin));
    statement->body = parse_whole_block("endset");
    return statement;
  }

  void parse_parameters(MacroStatement* macro) {
    expect_operator("(");
    while (!at_operator(")")) {
      if (!macro->parameters.empty()) expect_operator(",");
      Parameter parameter;
      parameter.spelling = expect(TokenKind::kName, "a parameter name").text;
      parameter.name = intern(parameter.spelling);
      if (skip_operator("=")) {
        parameter.default_value = parse_expression();
      } else if (!macro->parameters.empty() && macro->parameters.back().default_value) {
        fail("a parameter without a default follows one that has a default");
      }
      macro->parameters.push_back(std::move(parameter));
    }
    skip();
  }

  void parse_macro_body(MacroStatement* macro, std::string_view end) {
    open_macros_.push_back(macro);
    macro->body = parse_detached_block(end);
    open_macros_.pop_back();
  }

  StatementPtr parse_macro() {
    auto statement = std::make_unique<MacroStatement>(line());
    skip();
    statement->spelling = expect(TokenKind::kName, "the name of the macro").text;
    statement->name = intern(statement->spelling);
    parse_parameters(statement.get());
    parse_macro_body(statement.get(), "endmacro");
    return statement;
  }

  StatementPtr parse_call_block() {
    auto statement = std::make_unique<CallBlock>(line());
    skip();
    statement->caller.spelling = "caller";
    statement->caller.name = kCallerName;
    if (at_operator("(")) parse_parameters(&statement->caller);
    statement->call = parse_expression();
    if (statement->call->kind != ExpressionKind::kCall) fail("{% call %} needs a call");
    parse_macro_body(&statement->caller, "endcall");
    return statement;
  }

  StatementPtr parse_filter_block() {
    auto statement = std::make_unique<FilterBlock>(line());
    skip();
    statement->filter = parse_filters(parse_filter(std::make_unique<BlockText>(line())));
    statement->body = parse_whole_block("endfilter");
    return statement;
  }

  StatementPtr parse_with() {
    auto statement = std::make_unique<WithStatement>(line());
    skip();
    while (current().kind != TokenKind::kBlockEnd) {
      if (!statement->bindings.empty()) expect_operator(",");
      Target target = parse_target(false);
      expect_operator("=");
      statement->bindings.emplace_back(std::move(target), parse_expression());
    }
    statement->body = parse_whole_block("endwith");
    return statement;
  }

  StatementPtr parse_generation() {
    auto statement = std::make_unique<ScopedBlock>(line());
    skip();
    statement->body = parse_detached_block("endgeneration");
    return statement;
  }

  StatementPtr parse_print_tag() {
    auto statement = std::make_unique<PrintStatement>(line());
    skip();
    auto values = std::make_unique<Concat>(line());
    do {
      values->parts.push_back(parse_expression());
    } while (skip_operator(","));
    statement->value = std::move(values);
    return statement;
  }

  StatementPtr parse_break() { return parse_jump<BreakStatement>("break"); }
  StatementPtr parse_continue() { return parse_jump<ContinueStatement>("continue"); }
  template <class Jump>
  StatementPtr parse_jump(const std::string& tag) {
    if (loop_depth_ == 0) fail("{% " + tag + " %} outside of a loop");
    auto statement = std::make_unique<Jump>(line());
    skip();
    return statement;
  }

  // A name, name.attribute (`with_namespace`), or several of them.
  Target parse_target(bool with_namespace) {
    Target tuple;
    tuple.is_tuple = true;
    bool has_comma = false;
    do {
      if (!tuple.parts.empty() && current().kind != TokenKind::kName && !at_operator("(")) break;
      tuple.parts.push_back(parse_single_target(with_namespace));
      if (at_operator(",")) has_comma = true;
    } while (skip_operator(",") && !at_name("in"));
    return has_comma ? std::move(tuple) : std::move(tuple.parts.front());
  }

  Target parse_single_target(bool with_namespace) {
    const Nesting nesting(this, &block_depth_, kBlockDepthMax);
    if (skip_operator("(")) {
      Target inner = parse_target(with_namespace);
      expect_operator(")");
      return inner;
    }
    Target target;
    const Token& token = expect(TokenKind::kName, "a name to assign to");
    if (is_constant_name(token.text)) fail("cannot assign to '" + token.text + "'");
    target.name = intern(token.text);
    if (with_namespace && skip_operator(".")) target.attribute = expect(TokenKind::kName, "an attribute name").text;
    return target;
  }

  int block_depth_ = 0;
  int loop_depth_ = 0;
};

}  // namespace

Template parse_template(std::string_view source) {
  if (source.size() > kSourceBytesMax) {
    throw SyntaxError(1, "the template is larger than " + std::to_string(kSourceBytesMax) + " bytes");
  }
  return Parser(tokenize(source)).run();
}

}  // namespace headroom::jinja
