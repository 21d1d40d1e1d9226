// The syntax tree of a template. Built by the parser, never changed afterwards, shared by all threads that render.
// Its depth is bounded by the parser, so walking and destroying it by recursion is safe.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/tokenizer/jinja_value.h"

namespace headroom::jinja {

enum class NameId : int32_t {};  // an index into Template::names

enum class ExpressionKind : uint8_t {
  kLiteral,
  kName,
  kSequence,
  kDict,
  kUnary,
  kBinary,
  kLogic,
  kConcat,
  kCompare,
  kConditional,
  kAttribute,
  kItem,
  kSlice,
  kCall,
  kFilter,
  kTest,
  kBlockText,
};

struct Expression {
  Expression(ExpressionKind expression_kind, int source_line) : kind(expression_kind), line(source_line) {}
  virtual ~Expression() = default;
  const ExpressionKind kind;
  const int line;
  int depth = 1;
};
using ExpressionPtr = std::unique_ptr<Expression>;

template <ExpressionKind kKind>
struct ExpressionOf : Expression {
  explicit ExpressionOf(int source_line) : Expression(kKind, source_line) {}
};

struct Literal final : ExpressionOf<ExpressionKind::kLiteral> {
  Literal(int source_line, Value constant) : ExpressionOf(source_line), value(std::move(constant)) {}
  const Value value;
};
struct Name final : ExpressionOf<ExpressionKind::kName> {
  using ExpressionOf::ExpressionOf;
  NameId name{};
};
struct SequenceDisplay final : ExpressionOf<ExpressionKind::kSequence> {
  using ExpressionOf::ExpressionOf;
  SequenceKind type = SequenceKind::kList;
  std::vector<ExpressionPtr> items;
};
struct DictDisplay final : ExpressionOf<ExpressionKind::kDict> {
  using ExpressionOf::ExpressionOf;
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> entries;
};
enum class UnaryOperator : uint8_t { kNegate, kPlus, kNot };
struct Unary final : ExpressionOf<ExpressionKind::kUnary> {
  using ExpressionOf::ExpressionOf;
  UnaryOperator op{};
  ExpressionPtr operand;
};
enum class BinaryOperator : uint8_t { kAdd, kSubtract, kMultiply, kDivide, kFloorDivide, kModulo, kPower };
struct Binary final : ExpressionOf<ExpressionKind::kBinary> {
  using ExpressionOf::ExpressionOf;
  BinaryOperator op{};
  ExpressionPtr left, right;
};
struct Logic final : ExpressionOf<ExpressionKind::kLogic> {  // and, or: the value of the operand that decides
  using ExpressionOf::ExpressionOf;
  bool is_and = false;
  ExpressionPtr left, right;
};
struct Concat final : ExpressionOf<ExpressionKind::kConcat> {  // a ~ b ~ c
  using ExpressionOf::ExpressionOf;
  std::vector<ExpressionPtr> parts;
};
enum class CompareOperator : uint8_t { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual, kIn, kNotIn };
struct Compare final : ExpressionOf<ExpressionKind::kCompare> {  // a < b < c
  using ExpressionOf::ExpressionOf;
  ExpressionPtr first;
  std::vector<std::pair<CompareOperator, ExpressionPtr>> rest;
};
struct Conditional final : ExpressionOf<ExpressionKind::kConditional> {
  using ExpressionOf::ExpressionOf;
  ExpressionPtr condition, then, otherwise;  // otherwise may be null
};
struct AttributeOf final : ExpressionOf<ExpressionKind::kAttribute> {
  using ExpressionOf::ExpressionOf;
  ExpressionPtr object;
  std::string name;
};
struct ItemOf final : ExpressionOf<ExpressionKind::kItem> {
  using ExpressionOf::ExpressionOf;
  ExpressionPtr object, key;
};
struct SliceOf final : ExpressionOf<ExpressionKind::kSlice> {
  using ExpressionOf::ExpressionOf;
  ExpressionPtr object, start, stop, step;  // the last three may be null
};
struct ArgumentList {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  ExpressionPtr spread, spread_named;  // *list and **dict, or null
};
struct Call final : ExpressionOf<ExpressionKind::kCall> {
  using ExpressionOf::ExpressionOf;
  ExpressionPtr callee;
  ArgumentList arguments;
};
struct FilterCall final : ExpressionOf<ExpressionKind::kFilter> {
  using ExpressionOf::ExpressionOf;
  ExpressionPtr input;
  std::string name;
  Builtin filter = nullptr;  // null: unknown, an error only when it is reached
  ArgumentList arguments;
};
struct TestCall final : ExpressionOf<ExpressionKind::kTest> {
  using ExpressionOf::ExpressionOf;
  ExpressionPtr input;
  std::string name;
  Builtin test = nullptr;  // as above
  bool negated = false;
  ArgumentList arguments;
};
// The text of the enclosing {% filter %} or {% set %} block, which flows into its filters.
struct BlockText final : ExpressionOf<ExpressionKind::kBlockText> {
  using ExpressionOf::ExpressionOf;
};

enum class StatementKind : uint8_t {
  kText,
  kPrint,
  kFor,
  kIf,
  kSet,
  kSetBlock,
  kMacro,
  kCallBlock,
  kFilterBlock,
  kWith,
  kScopedBlock,
  kBreak,
  kContinue,
};

struct Statement {
  Statement(StatementKind statement_kind, int source_line) : kind(statement_kind), line(source_line) {}
  virtual ~Statement() = default;
  const StatementKind kind;
  const int line;
};
using StatementPtr = std::unique_ptr<Statement>;
using Body = std::vector<StatementPtr>;

template <StatementKind kKind>
struct StatementOf : Statement {
  explicit StatementOf(int source_line) : Statement(kKind, source_line) {}
};

// Where a value is stored: a name, an attribute of a namespace, or several of these (is_tuple).
struct Target {
  bool is_tuple = false;
  NameId name{};
  std::string attribute;  // not empty: name.attribute = value
  std::vector<Target> parts;
};

struct TextStatement final : StatementOf<StatementKind::kText> {
  using StatementOf::StatementOf;
  std::string text;
};
struct PrintStatement final : StatementOf<StatementKind::kPrint> {
  using StatementOf::StatementOf;
  ExpressionPtr value;
};
struct ForStatement final : StatementOf<StatementKind::kFor> {
  using StatementOf::StatementOf;
  Target target;
  ExpressionPtr iterable, condition;  // condition may be null
  bool recursive = false;
  Body body, otherwise;
};
struct IfStatement final : StatementOf<StatementKind::kIf> {
  using StatementOf::StatementOf;
  std::vector<std::pair<ExpressionPtr, Body>> branches;  // if, elif, elif, …
  Body otherwise;
};
struct SetStatement final : StatementOf<StatementKind::kSet> {
  using StatementOf::StatementOf;
  Target target;
  ExpressionPtr value;
};
struct SetBlock final : StatementOf<StatementKind::kSetBlock> {
  using StatementOf::StatementOf;
  Target target;
  ExpressionPtr filter;  // over BlockText, or null
  Body body;
};
struct Parameter {
  NameId name{};
  std::string spelling;
  ExpressionPtr default_value;  // may be null
};
struct MacroStatement final : StatementOf<StatementKind::kMacro> {
  using StatementOf::StatementOf;
  std::string spelling;
  NameId name{};
  std::vector<Parameter> parameters;
  bool uses_caller = false, uses_varargs = false, uses_kwargs = false;
  Body body;
};
struct CallBlock final : StatementOf<StatementKind::kCallBlock> {
  using StatementOf::StatementOf;
  ExpressionPtr call;        // a Call
  MacroStatement caller{0};  // the body as a macro
};
struct FilterBlock final : StatementOf<StatementKind::kFilterBlock> {
  using StatementOf::StatementOf;
  ExpressionPtr filter;  // over BlockText
  Body body;
};
struct WithStatement final : StatementOf<StatementKind::kWith> {
  using StatementOf::StatementOf;
  std::vector<std::pair<Target, ExpressionPtr>> bindings;
  Body body;
};
struct ScopedBlock final : StatementOf<StatementKind::kScopedBlock> {  // {% generation %}
  using StatementOf::StatementOf;
  Body body;
};
struct BreakStatement final : StatementOf<StatementKind::kBreak> {
  using StatementOf::StatementOf;
};
struct ContinueStatement final : StatementOf<StatementKind::kContinue> {
  using StatementOf::StatementOf;
};

struct Template {
  Body body;
  std::vector<std::string> names;  // by NameId
  std::map<std::string, NameId, std::less<>> name_ids;
};

// Names that the interpreter itself defines have fixed ids, in this order.
inline constexpr const char* kPredefinedNames[] = {"loop", "caller", "varargs", "kwargs"};
inline constexpr NameId kLoopName{0}, kCallerName{1}, kVarargsName{2}, kKwargsName{3};

}  // namespace headroom::jinja
