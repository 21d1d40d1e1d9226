#include "engine/tokenizer/jinja_operators.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/tokenizer/jinja_builtins.h"
#include "kernels/check.h"

namespace headroom::jinja {
namespace {

const char* symbol(BinaryOperator op) {
  switch (op) {
    case BinaryOperator::kAdd:
      return "+";
    case BinaryOperator::kSubtract:
      return "-";
    case BinaryOperator::kMultiply:
      return "*";
    case BinaryOperator::kDivide:
      return "/";
    case BinaryOperator::kFloorDivide:
      return "//";
    case BinaryOperator::kModulo:
      return "%";
    case BinaryOperator::kPower:
      return "**";
  }
  CHECK(false) << "an operator without a symbol";
}

[[noreturn]] void fail_overflow() { throw Error("an integer is out of range"); }
[[noreturn]] void fail_division() { throw Error("division by zero"); }

int64_t floor_divide(int64_t a, int64_t b) {
  if (b == 0) fail_division();
  if (a == std::numeric_limits<int64_t>::min() && b == -1) fail_overflow();
  const int64_t quotient = a / b;
  return quotient - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
}

int64_t modulo(int64_t a, int64_t b) {
  if (b == 0) fail_division();
  if (b == -1) return 0;
  const int64_t remainder = a % b;
  return remainder + (remainder != 0 && (remainder < 0) != (b < 0) ? b : 0);
}

int64_t power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) fail_overflow();
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) fail_overflow();
  }
  return result;
}

double real_modulo(double a, double b) {
  if (b == 0) fail_division();
  const double remainder = std::fmod(a, b);
  return remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder;
}

Value integer_operation(BinaryOperator op, int64_t a, int64_t b, bool from_user) {
  int64_t result = 0;
  bool overflows = false;
  switch (op) {
    case BinaryOperator::kAdd:
      overflows = __builtin_add_overflow(a, b, &result);
      break;
    case BinaryOperator::kSubtract:
      overflows = __builtin_sub_overflow(a, b, &result);
      break;
    case BinaryOperator::kMultiply:
      overflows = __builtin_mul_overflow(a, b, &result);
      break;
    case BinaryOperator::kDivide:
      if (b == 0) fail_division();
      return Value::real(static_cast<double>(a) / static_cast<double>(b), from_user);
    case BinaryOperator::kFloorDivide:
      result = floor_divide(a, b);
      break;
    case BinaryOperator::kModulo:
      result = modulo(a, b);
      break;
    case BinaryOperator::kPower:
      if (b < 0) {
        if (a == 0) fail_division();
        return Value::real(std::pow(static_cast<double>(a), static_cast<double>(b)), from_user);
      }
      result = power(a, b);
      break;
  }
  if (overflows) fail_overflow();
  return Value::integer(result, from_user);
}

Value real_operation(BinaryOperator op, double a, double b, bool from_user) {
  switch (op) {
    case BinaryOperator::kAdd:
      return Value::real(a + b, from_user);
    case BinaryOperator::kSubtract:
      return Value::real(a - b, from_user);
    case BinaryOperator::kMultiply:
      return Value::real(a * b, from_user);
    case BinaryOperator::kDivide:
      if (b == 0) fail_division();
      return Value::real(a / b, from_user);
    case BinaryOperator::kFloorDivide:
      if (b == 0) fail_division();
      return Value::real(std::floor(a / b), from_user);
    case BinaryOperator::kModulo:
      return Value::real(real_modulo(a, b), from_user);
    case BinaryOperator::kPower: {
      if (a == 0 && b < 0) fail_division();
      const double result = std::pow(a, b);
      if (std::isnan(result) && !std::isnan(a) && !std::isnan(b)) throw Error("a negative number has no such power");
      if (std::isinf(result) && !std::isinf(a) && !std::isinf(b)) throw Error("the result of ** is out of range");
      return Value::real(result, from_user);
    }
  }
  CHECK(false) << "an operator without a meaning";
}

Value repeat(Runtime& runtime, const Value& value, int64_t times) {
  times = std::max<int64_t>(times, 0);
  if (value.is_string()) {
    TextBuilder text(runtime.budget());
    if (value.text().bytes.empty()) times = 0;
    for (int64_t i = 0; i < times; ++i) text.append(value.text());
    return runtime.string(text);
  }
  const auto& sequence = value.as<SequenceObject>();
  if (sequence.items.empty()) times = 0;
  Charge growing(&runtime.budget(), 0);
  std::vector<Value> items;
  for (int64_t i = 0; i < times; ++i) {
    runtime.budget().spend(static_cast<int64_t>(sequence.items.size()));
    growing.grow(sequence.items.size() * sizeof(Value));
    items.insert(items.end(), sequence.items.begin(), sequence.items.end());
  }
  return runtime.sequence(sequence.kind, std::move(items));
}

bool is_list_or_tuple(const Value& value) {
  if (!value.is(Kind::kSequence)) return false;
  const SequenceKind kind = value.as<SequenceObject>().kind;
  return kind == SequenceKind::kList || kind == SequenceKind::kTuple;
}

Value add_sequences(Runtime& runtime, const Value& left, const Value& right) {
  const auto& a = left.as<SequenceObject>();
  const auto& b = right.as<SequenceObject>();
  Charge growing(&runtime.budget(), (a.items.size() + b.items.size()) * sizeof(Value));
  std::vector<Value> items = a.items;
  items.insert(items.end(), b.items.begin(), b.items.end());
  return runtime.sequence(a.kind, std::move(items));
}

}  // namespace

Value apply_unary(UnaryOperator op, const Value& operand) {
  if (op == UnaryOperator::kNot) return Value::boolean(!is_truthy(operand));
  require_defined(operand);
  const bool negates = op == UnaryOperator::kNegate;
  if (operand.is_integral()) {
    const int64_t value = operand.as_integer();
    if (negates && value == std::numeric_limits<int64_t>::min()) fail_overflow();
    return Value::integer(negates ? -value : value, operand.from_user());
  }
  if (operand.is(Kind::kReal))
    return Value::real(negates ? -operand.as_real() : operand.as_real(), operand.from_user());
  throw Error(std::string("bad operand type for unary ") + (negates ? "-" : "+") + ": '" + type_name(operand) + "'");
}

Value apply_binary(Runtime& runtime, BinaryOperator op, const Value& left, const Value& right) {
  if (op == BinaryOperator::kModulo && left.is_string()) return format_percent(runtime, left.text(), right);
  require_defined(left);
  require_defined(right);
  if (left.is_number() && right.is_number()) {
    const bool from_user = left.from_user() || right.from_user();
    if (left.is_integral() && right.is_integral()) {
      return integer_operation(op, left.as_integer(), right.as_integer(), from_user);
    }
    return real_operation(op, left.as_real(), right.as_real(), from_user);
  }
  if (op == BinaryOperator::kAdd && left.is_string() && right.is_string()) {
    const bool is_markup = left.is_markup() || right.is_markup();
    TextBuilder text(runtime.budget());
    text.append(is_markup ? escape_html(runtime, left).text() : left.text());
    text.append(is_markup ? escape_html(runtime, right).text() : right.text());
    return runtime.string(text.take(), is_markup);
  }
  if (op == BinaryOperator::kAdd && is_list_or_tuple(left) && is_list_or_tuple(right) &&
      left.as<SequenceObject>().kind == right.as<SequenceObject>().kind) {
    return add_sequences(runtime, left, right);
  }
  if (op == BinaryOperator::kMultiply) {
    const auto repeats = [](const Value& value) { return value.is_string() || is_list_or_tuple(value); };
    if (repeats(left) && right.is_integral()) return repeat(runtime, left, right.as_integer());
    if (repeats(right) && left.is_integral()) return repeat(runtime, right, left.as_integer());
  }
  throw Error(std::string("unsupported operand type(s) for ") + symbol(op) + ": '" + type_name(left) + "' and '" +
              type_name(right) + "'");
}

bool contains(Runtime& runtime, const Value& container, const Value& item) {
  Budget& budget = runtime.budget();
  if (container.is_string()) {
    if (!item.is_string()) throw Error("'in <string>' requires string as left operand, not " + type_name(item));
    budget.spend_scan(container.text().bytes.size());
    return container.text().bytes.find(item.text().bytes) != std::string::npos;
  }
  if (container.is(Kind::kDict)) {
    if (!is_hashable(item)) throw Error("unhashable type: '" + type_name(item) + "'");
    return container.as<DictObject>().find(item) != nullptr;
  }
  if (!is_iterable(container)) throw Error("argument of type '" + type_name(container) + "' is not iterable");
  const Items items = iterate(runtime, container);
  return std::any_of(items.begin(), items.end(),
                     [&](const Value& candidate) { return equals(budget, candidate, item); });
}

bool compare(Runtime& runtime, CompareOperator op, const Value& left, const Value& right) {
  Budget& budget = runtime.budget();
  switch (op) {
    case CompareOperator::kEqual:
      return equals(budget, left, right);
    case CompareOperator::kNotEqual:
      return !equals(budget, left, right);
    case CompareOperator::kLess:
      return less(budget, left, right);
    case CompareOperator::kGreater:
      return less(budget, right, left);
    case CompareOperator::kLessEqual:
      return less(budget, left, right) || equals(budget, left, right);
    case CompareOperator::kGreaterEqual:
      return less(budget, right, left) || equals(budget, left, right);
    case CompareOperator::kIn:
      return contains(runtime, right, left);
    case CompareOperator::kNotIn:
      return !contains(runtime, right, left);
  }
  CHECK(false) << "a comparison without a meaning";
}

}  // namespace headroom::jinja
