// The expressions of the interpreter.
#include <algorithm>
#include <cmath>

#include "engine/tokenizer/jinja_builtins.h"
#include "engine/tokenizer/jinja_interpreter.h"
#include "engine/tokenizer/jinja_operators.h"
#include "kernels/check.h"

namespace headroom::jinja {

// Each kind has its own function, so that the frame of this one, which every level of nesting repeats, stays small.
Value Interpreter::evaluate(const Expression& expression, const ScopePtr& scope) {
  const FrameGuard frame(budget_);
  budget_.spend(1);
  line_ = expression.line;
  switch (expression.kind) {
    case ExpressionKind::kLiteral:
      return static_cast<const Literal&>(expression).value;
    case ExpressionKind::kName:
      return evaluate_name(static_cast<const Name&>(expression), scope);
    case ExpressionKind::kSequence:
      return evaluate_sequence(static_cast<const SequenceDisplay&>(expression), scope);
    case ExpressionKind::kDict:
      return evaluate_dict(static_cast<const DictDisplay&>(expression), scope);
    case ExpressionKind::kUnary:
      return evaluate_unary(static_cast<const Unary&>(expression), scope);
    case ExpressionKind::kBinary:
      return evaluate_binary(static_cast<const Binary&>(expression), scope);
    case ExpressionKind::kLogic:
      return evaluate_logic(static_cast<const Logic&>(expression), scope);
    case ExpressionKind::kConcat:
      return evaluate_concat(static_cast<const Concat&>(expression), scope);
    case ExpressionKind::kCompare:
      return evaluate_compare(static_cast<const Compare&>(expression), scope);
    case ExpressionKind::kConditional:
      return evaluate_conditional(static_cast<const Conditional&>(expression), scope);
    case ExpressionKind::kAttribute:
      return evaluate_attribute(static_cast<const AttributeOf&>(expression), scope);
    case ExpressionKind::kItem:
      return evaluate_item(static_cast<const ItemOf&>(expression), scope);
    case ExpressionKind::kSlice:
      return evaluate_slice(static_cast<const SliceOf&>(expression), scope);
    case ExpressionKind::kCall:
      return evaluate_call(static_cast<const Call&>(expression), scope);
    case ExpressionKind::kFilter:
      return evaluate_filter(static_cast<const FilterCall&>(expression), scope);
    case ExpressionKind::kTest:
      return evaluate_test(static_cast<const TestCall&>(expression), scope);
    case ExpressionKind::kBlockText:
      return block_text_;
  }
  CHECK(false) << "an expression of no kind";
}

Value Interpreter::evaluate_name(const Name& node, const ScopePtr& scope) {
  for (const Scope* holder = scope.get(); holder; holder = holder->parent.get()) {
    budget_.spend(holder->search_operations());
    if (const Value* value = holder->find_here(node.name)) return *value;
  }
  return runtime_.undefined("'" + spelling(node.name) + "' is undefined");
}

Value Interpreter::evaluate_sequence(const SequenceDisplay& node, const ScopePtr& scope) {
  std::vector<Value> items;
  items.reserve(node.items.size());
  for (const ExpressionPtr& item : node.items) items.push_back(evaluate(*item, scope));
  return runtime_.sequence(node.type, std::move(items));
}

Value Interpreter::evaluate_dict(const DictDisplay& node, const ScopePtr& scope) {
  const auto dict = runtime_.new_dict();
  for (const auto& [key_node, value_node] : node.entries) {
    Value key = evaluate(*key_node, scope);
    if (!is_hashable(key)) throw Error("unhashable type: '" + type_name(key) + "'");
    dict->set(std::move(key), evaluate(*value_node, scope));
  }
  return runtime_.dict(dict);
}

Value Interpreter::evaluate_unary(const Unary& node, const ScopePtr& scope) {
  const Value operand = evaluate(*node.operand, scope);
  return apply_unary(node.op, operand);
}

Value Interpreter::evaluate_binary(const Binary& node, const ScopePtr& scope) {
  const Value left = evaluate(*node.left, scope);
  const Value right = evaluate(*node.right, scope);
  line_ = node.line;
  return apply_binary(runtime_, node.op, left, right);
}

Value Interpreter::evaluate_logic(const Logic& node, const ScopePtr& scope) {
  Value left = evaluate(*node.left, scope);
  if (is_truthy(left) != node.is_and) return left;
  return evaluate(*node.right, scope);
}

Value Interpreter::evaluate_concat(const Concat& node, const ScopePtr& scope) {
  TextBuilder text(budget_);
  for (const ExpressionPtr& part : node.parts) append_string(text, evaluate(*part, scope));
  return runtime_.string(text);
}

Value Interpreter::evaluate_compare(const Compare& node, const ScopePtr& scope) {
  Value left = evaluate(*node.first, scope);
  for (const auto& [op, right_node] : node.rest) {
    Value right = evaluate(*right_node, scope);
    line_ = node.line;
    if (!compare(runtime_, op, left, right)) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

Value Interpreter::evaluate_conditional(const Conditional& node, const ScopePtr& scope) {
  if (is_truthy(evaluate(*node.condition, scope))) return evaluate(*node.then, scope);
  if (node.otherwise) return evaluate(*node.otherwise, scope);
  return runtime_.undefined("the inline if-expression on line " + std::to_string(node.line) +
                            " evaluated to false and no else section was defined.");
}

Value Interpreter::evaluate_attribute(const AttributeOf& node, const ScopePtr& scope) {
  const Value object = evaluate(*node.object, scope);
  line_ = node.line;
  return get_attribute(runtime_, object, node.name);
}

Value Interpreter::evaluate_item(const ItemOf& node, const ScopePtr& scope) {
  const Value object = evaluate(*node.object, scope);
  const Value key = evaluate(*node.key, scope);
  line_ = node.line;
  return get_item(runtime_, object, key);
}

Value Interpreter::evaluate_optional(const ExpressionPtr& node, const ScopePtr& scope) {
  return node ? evaluate(*node, scope) : Value::none();
}

Value Interpreter::evaluate_slice(const SliceOf& node, const ScopePtr& scope) {
  const Value object = evaluate(*node.object, scope);
  const Value start = evaluate_optional(node.start, scope);
  const Value stop = evaluate_optional(node.stop, scope);
  const Value step = evaluate_optional(node.step, scope);
  line_ = node.line;
  return get_slice(runtime_, object, start, stop, step);
}

Arguments Interpreter::evaluate_arguments(const ArgumentList& list, const ScopePtr& scope) {
  Arguments arguments;
  for (const ExpressionPtr& value : list.positional) arguments.positional.push_back(evaluate(*value, scope));
  if (list.spread) {
    const Items items = iterate(runtime_, evaluate(*list.spread, scope));
    budget_.spend(static_cast<int64_t>(items.size()));
    arguments.positional.insert(arguments.positional.end(), items.begin(), items.end());
  }
  for (const auto& [name, value] : list.named) arguments.named.emplace_back(name, evaluate(*value, scope));
  if (list.spread_named) {
    const Value spread = evaluate(*list.spread_named, scope);
    if (!spread.is(Kind::kDict)) throw Error("the argument after ** must be a mapping, not " + type_name(spread));
    for (const auto& [key, value] : spread.as<DictObject>().entries()) {
      if (!key.is_string()) throw Error("keywords must be strings");
      budget_.spend_copy(key.text().bytes.size());
      arguments.named.emplace_back(key.text().bytes, value);
    }
  }
  return arguments;
}

Value Interpreter::evaluate_call(const Call& node, const ScopePtr& scope) {
  const Value callee = evaluate(*node.callee, scope);
  Arguments arguments = evaluate_arguments(node.arguments, scope);
  const Charge held(&budget_, arguments.positional.size() * sizeof(Value));
  line_ = node.line;
  return call(callee, std::move(arguments));
}

Value Interpreter::evaluate_filter(const FilterCall& node, const ScopePtr& scope) {
  const Value input = evaluate(*node.input, scope);
  if (!node.filter) throw Error("there is no filter named '" + node.name + "'");
  const Arguments arguments = evaluate_arguments(node.arguments, scope);
  line_ = node.line;
  return node.filter(runtime_, input, arguments);
}

Value Interpreter::evaluate_test(const TestCall& node, const ScopePtr& scope) {
  const Value input = evaluate(*node.input, scope);
  if (!node.test) throw Error("there is no test named '" + node.name + "'");
  const Arguments arguments = evaluate_arguments(node.arguments, scope);
  line_ = node.line;
  return Value::boolean(is_truthy(node.test(runtime_, input, arguments)) != node.negated);
}

}  // namespace headroom::jinja
