// The tests behind `is`. Each returns a boolean.
#include <algorithm>
#include <map>

#include "engine/tokenizer/jinja_builtins.h"
#include "engine/tokenizer/jinja_operators.h"
#include "engine/tokenizer/jinja_unicode.h"
#include "engine/tokenizer/utf8.h"

namespace headroom::jinja {
namespace {

Value yes_no(bool value) { return Value::boolean(value); }

Value test_defined(Runtime&, const Value& self, const Arguments&) { return yes_no(!self.is_undefined()); }
Value test_undefined(Runtime&, const Value& self, const Arguments&) { return yes_no(self.is_undefined()); }
Value test_none(Runtime&, const Value& self, const Arguments&) { return yes_no(self.is_none()); }
Value test_boolean(Runtime&, const Value& self, const Arguments&) { return yes_no(self.is(Kind::kBoolean)); }
Value test_true(Runtime&, const Value& self, const Arguments&) {
  return yes_no(self.is(Kind::kBoolean) && self.is_true());
}
Value test_false(Runtime&, const Value& self, const Arguments&) {
  return yes_no(self.is(Kind::kBoolean) && !self.is_true());
}
Value test_integer(Runtime&, const Value& self, const Arguments&) { return yes_no(self.is(Kind::kInteger)); }
Value test_float(Runtime&, const Value& self, const Arguments&) { return yes_no(self.is(Kind::kReal)); }
Value test_number(Runtime&, const Value& self, const Arguments&) { return yes_no(self.is_number()); }
Value test_string(Runtime&, const Value& self, const Arguments&) { return yes_no(self.is_string()); }
Value test_mapping(Runtime&, const Value& self, const Arguments&) { return yes_no(self.is(Kind::kDict)); }
Value test_iterable(Runtime&, const Value& self, const Arguments&) { return yes_no(is_iterable(self)); }
Value test_callable(Runtime&, const Value& self, const Arguments&) {
  return yes_no(self.is(Kind::kFunction) || self.is(Kind::kMacro) || self.is(Kind::kLoop) || self.is_undefined());
}
Value test_sequence(Runtime&, const Value& self, const Arguments&) {
  if (self.is(Kind::kSequence)) return yes_no(self.as<SequenceObject>().kind <= SequenceKind::kRange);
  return yes_no(self.is_string() || self.is(Kind::kDict) || self.is_undefined());
}

template <bool kOdd>
Value test_parity(Runtime& runtime, const Value& self, const Arguments&) {
  const Value rest = apply_binary(runtime, BinaryOperator::kModulo, self, Value::integer(2));
  return yes_no(equals(runtime.budget(), rest, Value::integer(kOdd ? 1 : 0)));
}

Value test_divisibleby(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("divisibleby", arguments, {"num"}, 1);
  const Value rest = apply_binary(runtime, BinaryOperator::kModulo, self, parameters[0]);
  return yes_no(equals(runtime.budget(), rest, Value::integer(0)));
}

template <CompareOperator kOperator>
Value test_compare(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("the comparison", arguments, {"other"}, 1);
  return yes_no(compare(runtime, kOperator, self, parameters[0]));
}

Value test_sameas(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("sameas", arguments, {"other"}, 1);
  const Value& other = parameters[0];
  if (self.kind() != other.kind()) return yes_no(false);
  if (self.identity() || other.identity()) return yes_no(self.identity() == other.identity());
  return yes_no(equals(runtime.budget(), self, other));
}

// True when there is a letter of the wanted case and none of the other.
template <bool kUpper>
Value test_case(Runtime& runtime, const Value& self, const Arguments&) {
  const Value text = to_string(runtime, self);
  runtime.budget().spend_scan(4 * text.text().bytes.size());
  bool has_wanted = false;
  for (size_t position = 0; position < text.text().bytes.size();) {
    const char32_t character = next_character(text.text().bytes, &position);
    if (!is_cased(character)) continue;
    if (!(kUpper ? is_uppercase(character) : is_lowercase(character))) return yes_no(false);
    has_wanted = true;
  }
  return yes_no(has_wanted);
}

Value test_filter(Runtime&, const Value& self, const Arguments&) {
  return yes_no(self.is_string() && find_filter(self.text().bytes));
}
Value test_test(Runtime&, const Value& self, const Arguments&) {
  return yes_no(self.is_string() && find_test(self.text().bytes));
}
Value test_escaped(Runtime&, const Value& self, const Arguments&) { return yes_no(self.is_markup()); }

}  // namespace

Builtin find_test(std::string_view name) {
  static const std::map<std::string_view, Builtin> kTests = {
      {"!=", test_compare<CompareOperator::kNotEqual>},
      {"<", test_compare<CompareOperator::kLess>},
      {"<=", test_compare<CompareOperator::kLessEqual>},
      {"==", test_compare<CompareOperator::kEqual>},
      {">", test_compare<CompareOperator::kGreater>},
      {">=", test_compare<CompareOperator::kGreaterEqual>},
      {"boolean", test_boolean},
      {"callable", test_callable},
      {"defined", test_defined},
      {"divisibleby", test_divisibleby},
      {"eq", test_compare<CompareOperator::kEqual>},
      {"equalto", test_compare<CompareOperator::kEqual>},
      {"escaped", test_escaped},
      {"even", test_parity<false>},
      {"false", test_false},
      {"filter", test_filter},
      {"float", test_float},
      {"ge", test_compare<CompareOperator::kGreaterEqual>},
      {"greaterthan", test_compare<CompareOperator::kGreater>},
      {"gt", test_compare<CompareOperator::kGreater>},
      {"in", test_compare<CompareOperator::kIn>},
      {"integer", test_integer},
      {"iterable", test_iterable},
      {"le", test_compare<CompareOperator::kLessEqual>},
      {"lessthan", test_compare<CompareOperator::kLess>},
      {"lower", test_case<false>},
      {"lt", test_compare<CompareOperator::kLess>},
      {"mapping", test_mapping},
      {"ne", test_compare<CompareOperator::kNotEqual>},
      {"none", test_none},
      {"number", test_number},
      {"odd", test_parity<true>},
      {"sameas", test_sameas},
      {"sequence", test_sequence},
      {"string", test_string},
      {"test", test_test},
      {"true", test_true},
      {"undefined", test_undefined},
      {"upper", test_case<true>},
  };
  const auto found = kTests.find(name);
  return found == kTests.end() ? nullptr : found->second;
}

}  // namespace headroom::jinja
