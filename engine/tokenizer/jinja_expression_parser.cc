#include "engine/tokenizer/jinja_expression_parser.h"

#include <algorithm>
#include <optional>

#include "engine/tokenizer/jinja_builtins.h"
#include "engine/tokenizer/jinja_parser.h"

namespace headroom::jinja {

// ---- the token stream, names ----

ExpressionParser::ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {
  for (const char* name : kPredefinedNames) intern(name);
}

Token& ExpressionParser::take() {
  Token& token = tokens_[position_];
  skip();
  return token;
}

const Token& ExpressionParser::expect(TokenKind kind, const char* what) {
  if (current().kind != kind) {
    fail(std::string(what) + " is expected" +
         (current().text.empty() ? "" : " before '" + current().text.substr(0, 40) + "'"));
  }
  return take();
}

bool ExpressionParser::skip_name(std::string_view name) {
  if (!at_name(name)) return false;
  skip();
  return true;
}
void ExpressionParser::expect_name(std::string_view name) {
  if (!skip_name(name)) fail("'" + std::string(name) + "' is expected");
}
bool ExpressionParser::skip_operator(std::string_view text) {
  if (!at_operator(text)) return false;
  skip();
  return true;
}
void ExpressionParser::expect_operator(std::string_view text) {
  if (!skip_operator(text)) fail("'" + std::string(text) + "' is expected");
}

NameId ExpressionParser::intern(const std::string& name) {
  const auto [entry, is_new] = name_ids_.try_emplace(name, static_cast<NameId>(names_.size()));
  if (is_new) names_.push_back(name);
  return entry->second;
}

void ExpressionParser::take_names(Template* result) {
  result->names = std::move(names_);
  result->name_ids = std::move(name_ids_);
}

bool ExpressionParser::is_constant_name(std::string_view name) {
  return name == "true" || name == "True" || name == "false" || name == "False" || name == "none" || name == "None";
}

void ExpressionParser::note_unknown(const std::string& problem) {
  if (conditional_depth_ == 0) unknown_.emplace_back(line(), problem);
}

void ExpressionParser::fail_if_unknown() const {
  if (!unknown_.empty()) throw SyntaxError(unknown_.front());
}

void ExpressionParser::contain(Expression* parent, const ExpressionPtr& child) const {
  if (!child) return;
  parent->depth = std::max(parent->depth, child->depth + 1);
  if (parent->depth > kExpressionDepthMax) {
    fail("an expression nests deeper than " + std::to_string(kExpressionDepthMax) + " levels");
  }
}

// ---- operators, loosest first ----

ExpressionPtr ExpressionParser::parse_expression() {
  const Nesting nesting(this, &expression_depth_, kExpressionDepthMax);
  const size_t unknown_before = unknown_.size();
  ExpressionPtr left = parse_or();
  while (at_name("if")) {
    auto node = std::make_unique<Conditional>(line());
    skip();
    node->then = std::move(left);
    node->condition = parse_or();
    if (skip_name("else")) node->otherwise = parse_expression();
    contain(node.get(), node->then);
    contain(node.get(), node->condition);
    contain(node.get(), node->otherwise);
    left = std::move(node);
    unknown_.erase(unknown_.begin() + static_cast<ptrdiff_t>(unknown_before), unknown_.end());
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_or() {
  ExpressionPtr left = parse_and();
  while (at_name("or")) {
    auto node = std::make_unique<Logic>(line());
    skip();
    node->left = std::move(left);
    node->right = parse_and();
    contain(node.get(), node->left);
    contain(node.get(), node->right);
    left = std::move(node);
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_and() {
  ExpressionPtr left = parse_not();
  while (at_name("and")) {
    auto node = std::make_unique<Logic>(line());
    skip();
    node->is_and = true;
    node->left = std::move(left);
    node->right = parse_not();
    contain(node.get(), node->left);
    contain(node.get(), node->right);
    left = std::move(node);
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_not() {
  if (!at_name("not")) return parse_compare();
  const Nesting nesting(this, &expression_depth_, kExpressionDepthMax);
  auto node = std::make_unique<Unary>(line());
  skip();
  node->op = UnaryOperator::kNot;
  node->operand = parse_not();
  contain(node.get(), node->operand);
  return node;
}

ExpressionPtr ExpressionParser::parse_compare() {
  const int begin = line();
  ExpressionPtr first = parse_sum();
  auto node = std::make_unique<Compare>(begin);
  const auto next_operator = [&]() -> std::optional<CompareOperator> {
    if (skip_operator("==")) return CompareOperator::kEqual;
    if (skip_operator("!=")) return CompareOperator::kNotEqual;
    if (skip_operator("<=")) return CompareOperator::kLessEqual;
    if (skip_operator(">=")) return CompareOperator::kGreaterEqual;
    if (skip_operator("<")) return CompareOperator::kLess;
    if (skip_operator(">")) return CompareOperator::kGreater;
    if (skip_name("in")) return CompareOperator::kIn;
    if (at_name("not") && following().kind == TokenKind::kName && following().text == "in") {
      skip();
      skip();
      return CompareOperator::kNotIn;
    }
    return std::nullopt;
  };
  while (const std::optional<CompareOperator> op = next_operator()) {
    node->rest.emplace_back(*op, parse_sum());
    contain(node.get(), node->rest.back().second);
  }
  if (node->rest.empty()) return first;
  contain(node.get(), first);
  node->first = std::move(first);
  return node;
}

ExpressionPtr ExpressionParser::binary(int begin, BinaryOperator op, ExpressionPtr left, ExpressionPtr right) {
  auto node = std::make_unique<Binary>(begin);
  node->op = op;
  contain(node.get(), left);
  contain(node.get(), right);
  node->left = std::move(left);
  node->right = std::move(right);
  return node;
}

ExpressionPtr ExpressionParser::parse_sum() {
  ExpressionPtr left = parse_concat();
  while (at_operator("+") || at_operator("-")) {
    const int begin = line();
    const BinaryOperator op = take().text == "+" ? BinaryOperator::kAdd : BinaryOperator::kSubtract;
    left = binary(begin, op, std::move(left), parse_concat());
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_concat() {
  const int begin = line();
  ExpressionPtr first = parse_product();
  if (!at_operator("~")) return first;
  auto node = std::make_unique<Concat>(begin);
  contain(node.get(), first);
  node->parts.push_back(std::move(first));
  while (skip_operator("~")) {
    node->parts.push_back(parse_product());
    contain(node.get(), node->parts.back());
  }
  return node;
}

ExpressionPtr ExpressionParser::parse_product() {
  ExpressionPtr left = parse_power();
  while (at_operator("*") || at_operator("/") || at_operator("//") || at_operator("%")) {
    const int begin = line();
    const std::string symbol = take().text;
    const BinaryOperator op = symbol == "*"    ? BinaryOperator::kMultiply
                              : symbol == "/"  ? BinaryOperator::kDivide
                              : symbol == "//" ? BinaryOperator::kFloorDivide
                                               : BinaryOperator::kModulo;
    left = binary(begin, op, std::move(left), parse_power());
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_power() {
  ExpressionPtr left = parse_unary(true);
  while (at_operator("**")) {
    const int begin = line();
    skip();
    left = binary(begin, BinaryOperator::kPower, std::move(left), parse_unary(true));
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_unary(bool with_filters) {
  const Nesting nesting(this, &expression_depth_, kExpressionDepthMax);
  ExpressionPtr node;
  if (at_operator("-") || at_operator("+")) {
    auto sign = std::make_unique<Unary>(line());
    sign->op = take().text == "-" ? UnaryOperator::kNegate : UnaryOperator::kPlus;
    sign->operand = parse_unary(false);
    contain(sign.get(), sign->operand);
    node = std::move(sign);
  } else {
    node = parse_primary();
  }
  node = parse_postfix(std::move(node));
  return with_filters ? parse_postfix_and_filters(std::move(node)) : std::move(node);
}

// ---- primaries ----

ExpressionPtr ExpressionParser::parse_primary() {
  const int begin = line();
  switch (current().kind) {
    case TokenKind::kName:
      return parse_name();
    case TokenKind::kString:
      return parse_string();
    case TokenKind::kInteger:
      return std::make_unique<Literal>(begin, Value::integer(take().integer));
    case TokenKind::kReal:
      return std::make_unique<Literal>(begin, Value::real(take().real));
    default:
      break;
  }
  if (at_operator("(")) return parse_parenthesized();
  if (at_operator("[")) return parse_list();
  if (at_operator("{")) return parse_dict();
  fail(current().text.empty() ? "an expression is expected" : "unexpected '" + current().text.substr(0, 40) + "'");
}

ExpressionPtr ExpressionParser::parse_name() {
  const int begin = line();
  const std::string name = take().text;
  if (name == "true" || name == "True") return std::make_unique<Literal>(begin, Value::boolean(true));
  if (name == "false" || name == "False") return std::make_unique<Literal>(begin, Value::boolean(false));
  if (is_constant_name(name)) return std::make_unique<Literal>(begin, Value::none());
  auto node = std::make_unique<Name>(begin);
  node->name = intern(name);
  for (MacroStatement* macro : open_macros_) {
    macro->uses_caller |= node->name == kCallerName;
    macro->uses_varargs |= node->name == kVarargsName;
    macro->uses_kwargs |= node->name == kKwargsName;
  }
  return node;
}

ExpressionPtr ExpressionParser::parse_string() {
  const int begin = line();
  std::string text;
  while (current().kind == TokenKind::kString) text += take().text;
  return std::make_unique<Literal>(begin, Value::literal(text));
}

bool ExpressionParser::at_tuple_end() const {
  return current().kind == TokenKind::kPrintEnd || current().kind == TokenKind::kBlockEnd || at_operator(")") ||
         at_name("recursive");
}

ExpressionPtr ExpressionParser::parse_tuple(bool with_conditional) {
  const int begin = line();
  const auto parse_item = [&] { return with_conditional ? parse_expression() : parse_or(); };
  ExpressionPtr first = parse_item();
  if (!at_operator(",")) return first;
  auto node = std::make_unique<SequenceDisplay>(begin);
  node->type = SequenceKind::kTuple;
  contain(node.get(), first);
  node->items.push_back(std::move(first));
  while (skip_operator(",") && !at_tuple_end()) {
    node->items.push_back(parse_item());
    contain(node.get(), node->items.back());
  }
  return node;
}

ExpressionPtr ExpressionParser::parse_parenthesized() {
  const int begin = line();
  skip();
  if (skip_operator(")")) {
    auto empty = std::make_unique<SequenceDisplay>(begin);
    empty->type = SequenceKind::kTuple;
    return empty;
  }
  ExpressionPtr node = parse_tuple();
  expect_operator(")");
  return node;
}

ExpressionPtr ExpressionParser::parse_list() {
  auto node = std::make_unique<SequenceDisplay>(line());
  skip();
  while (!at_operator("]")) {
    node->items.push_back(parse_expression());
    contain(node.get(), node->items.back());
    if (!at_operator("]")) expect_operator(",");
  }
  skip();
  return node;
}

ExpressionPtr ExpressionParser::parse_dict() {
  auto node = std::make_unique<DictDisplay>(line());
  skip();
  while (!at_operator("}")) {
    ExpressionPtr key = parse_expression();
    expect_operator(":");
    ExpressionPtr value = parse_expression();
    contain(node.get(), key);
    contain(node.get(), value);
    node->entries.emplace_back(std::move(key), std::move(value));
    if (!at_operator("}")) expect_operator(",");
  }
  skip();
  return node;
}

// ---- what follows a primary ----

ExpressionPtr ExpressionParser::parse_postfix(ExpressionPtr node) {
  while (true) {
    if (at_operator(".")) {
      node = parse_attribute(std::move(node));
    } else if (at_operator("[")) {
      node = parse_subscript(std::move(node));
    } else if (at_operator("(")) {
      node = parse_call(std::move(node));
    } else {
      return node;
    }
  }
}

ExpressionPtr ExpressionParser::parse_postfix_and_filters(ExpressionPtr node) {
  while (true) {
    if (at_operator("|")) {
      node = parse_filters(std::move(node));
    } else if (at_name("is")) {
      node = parse_test(std::move(node));
    } else if (at_operator("(")) {
      node = parse_call(std::move(node));
    } else {
      return node;
    }
  }
}

ExpressionPtr ExpressionParser::parse_attribute(ExpressionPtr object) {
  const int begin = line();
  skip();
  if (current().kind == TokenKind::kInteger) {
    auto node = std::make_unique<ItemOf>(begin);
    contain(node.get(), object);
    node->object = std::move(object);
    node->key = std::make_unique<Literal>(begin, Value::integer(take().integer));
    return node;
  }
  auto node = std::make_unique<AttributeOf>(begin);
  contain(node.get(), object);
  node->object = std::move(object);
  node->name = expect(TokenKind::kName, "an attribute name").text;
  return node;
}

ExpressionPtr ExpressionParser::parse_subscript(ExpressionPtr object) {
  const int begin = line();
  skip();
  ExpressionPtr start;
  if (!at_operator(":")) start = parse_expression();
  if (skip_operator("]")) {
    auto node = std::make_unique<ItemOf>(begin);
    contain(node.get(), object);
    contain(node.get(), start);
    node->object = std::move(object);
    node->key = std::move(start);
    return node;
  }
  auto node = std::make_unique<SliceOf>(begin);
  node->start = std::move(start);
  expect_operator(":");
  if (!at_operator(":") && !at_operator("]")) node->stop = parse_expression();
  if (skip_operator(":") && !at_operator("]")) node->step = parse_expression();
  expect_operator("]");
  for (const ExpressionPtr* child : {&object, &node->start, &node->stop, &node->step}) contain(node.get(), *child);
  node->object = std::move(object);
  return node;
}

ExpressionPtr ExpressionParser::parse_call(ExpressionPtr callee) {
  auto node = std::make_unique<Call>(line());
  contain(node.get(), callee);
  node->callee = std::move(callee);
  node->arguments = parse_arguments(node.get());
  return node;
}

ArgumentList ExpressionParser::parse_arguments(Expression* owner) {
  ArgumentList list;
  expect_operator("(");
  while (!at_operator(")")) {
    ExpressionPtr value;
    if (skip_operator("**")) {
      if (list.spread_named) fail("only one ** argument is allowed");
      list.spread_named = parse_expression();
      contain(owner, list.spread_named);
    } else if (skip_operator("*")) {
      if (list.spread || list.spread_named) fail("only one * argument is allowed, before **");
      list.spread = parse_expression();
      contain(owner, list.spread);
    } else if (current().kind == TokenKind::kName && following().kind == TokenKind::kOperator &&
               following().text == "=") {
      if (list.spread_named) fail("a named argument follows **");
      std::string name = take().text;
      skip();
      list.named.emplace_back(std::move(name), parse_expression());
      contain(owner, list.named.back().second);
    } else {
      if (!list.named.empty() || list.spread || list.spread_named) fail("a positional argument follows a named one");
      list.positional.push_back(parse_expression());
      contain(owner, list.positional.back());
    }
    if (!at_operator(")")) expect_operator(",");
  }
  skip();
  return list;
}

ExpressionPtr ExpressionParser::parse_filters(ExpressionPtr input) {
  while (skip_operator("|")) input = parse_filter(std::move(input));
  return input;
}

ExpressionPtr ExpressionParser::parse_filter(ExpressionPtr input) {
  auto node = std::make_unique<FilterCall>(line());
  node->name = expect(TokenKind::kName, "the name of a filter").text;
  node->filter = find_filter(node->name);
  if (!node->filter) note_unknown("there is no filter named '" + node->name + "'");
  contain(node.get(), input);
  node->input = std::move(input);
  if (at_operator("(")) node->arguments = parse_arguments(node.get());
  return node;
}

ExpressionPtr ExpressionParser::parse_test(ExpressionPtr input) {
  auto node = std::make_unique<TestCall>(line());
  skip();
  node->negated = skip_name("not");
  node->name = expect(TokenKind::kName, "the name of a test").text;
  node->test = find_test(node->name);
  if (!node->test) note_unknown("there is no test named '" + node->name + "'");
  contain(node.get(), input);
  node->input = std::move(input);
  const TokenKind next = current().kind;
  const bool takes_argument = (next == TokenKind::kName && !at_name("else") && !at_name("or") && !at_name("and")) ||
                              next == TokenKind::kString || next == TokenKind::kInteger || next == TokenKind::kReal ||
                              at_operator("[") || at_operator("{");
  if (at_operator("(")) {
    node->arguments = parse_arguments(node.get());
  } else if (takes_argument) {
    if (at_name("is")) fail("tests cannot be chained with 'is'");
    const Nesting nesting(this, &expression_depth_, kExpressionDepthMax);
    node->arguments.positional.push_back(parse_postfix(parse_primary()));
    contain(node.get(), node->arguments.positional.back());
  }
  return node;
}

}  // namespace headroom::jinja
