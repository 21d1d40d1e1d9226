// Arithmetic and comparison with Python's rules, over 64-bit integers: a result that does not fit is an error.
// Functions over one Runtime.
#pragma once

#include "engine/tokenizer/jinja_ast.h"
#include "engine/tokenizer/jinja_value.h"

namespace headroom::jinja {

Value apply_unary(UnaryOperator op, const Value& operand);
Value apply_binary(Runtime& runtime, BinaryOperator op, const Value& left, const Value& right);
bool compare(Runtime& runtime, CompareOperator op, const Value& left, const Value& right);
bool contains(Runtime& runtime, const Value& container, const Value& item);  // item in container

}  // namespace headroom::jinja
