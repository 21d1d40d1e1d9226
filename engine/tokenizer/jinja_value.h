// Values of the template language, with Python's semantics: what a template computes with. Strings, lists and objects
// never change once made. Namespaces and macros can hold references in a circle, so the Runtime that made them keeps
// them and cuts the circles when it dies; a loop is cut when it ends. No chain of references is longer than
// JinjaLimits::depth_max without passing through one of these, so that destroying a value cannot exhaust the stack.
// A Runtime and its values belong to one rendering, hence to one thread. Literals of a parsed template are values
// without a Runtime; they are immutable and may be shared by threads.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/tokenizer/jinja_limits.h"
#include "engine/tokenizer/jinja_text.h"

namespace headroom::jinja {

class Runtime;
class Value;
struct Arguments;
struct Scope;
struct ForStatement;
struct MacroStatement;

enum class Kind : uint8_t {
  kUndefined,
  kNone,
  kBoolean,
  kInteger,
  kReal,
  kString,
  kSequence,
  kDict,
  kNamespace,
  kMacro,
  kFunction,
  kLoop,
};
enum class SequenceKind : uint8_t { kList, kTuple, kRange, kGenerator, kDictKeys, kDictValues, kDictItems };

struct Object {
  virtual ~Object() = default;
};

struct StringObject final : Object {
  StringObject(Budget* budget, Text value, bool markup = false)
      : charge(budget, sizeof(StringObject) + value.bytes.size() + value.user.size() * sizeof(ByteRange)),
        text(std::move(value)),
        is_markup(markup) {}
  Charge charge;
  const Text text;
  const bool is_markup;  // made by the filters safe and escape: what is added to it is escaped for HTML
};

// Why a value is missing: printed as nothing, an error when it is used for anything else.
struct UndefinedObject final : Object {
  UndefinedObject(Budget* budget, std::string why)
      : charge(budget, sizeof(UndefinedObject) + why.size()), message(std::move(why)) {}
  Charge charge;
  const std::string message;
};

class Value {
 public:
  Value() = default;  // undefined
  static Value none(bool from_user = false) { return Value(Kind::kNone, from_user); }
  static Value boolean(bool value, bool from_user = false);
  static Value integer(int64_t value, bool from_user = false);
  static Value real(double value, bool from_user = false);
  static Value object(Kind kind, std::shared_ptr<Object> object);
  static Value literal(std::string_view text);  // a string of the template, charged to no budget

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  bool is_undefined() const { return kind_ == Kind::kUndefined; }
  bool is_none() const { return kind_ == Kind::kNone; }
  bool is_string() const { return kind_ == Kind::kString; }
  bool is_integral() const { return kind_ == Kind::kInteger || kind_ == Kind::kBoolean; }  // bool is an int in Python
  bool is_number() const { return is_integral() || kind_ == Kind::kReal; }
  bool is_true() const { return kind_ == Kind::kBoolean && integer_ != 0; }
  // Scalars: came from the request. Other kinds carry their origin in the object.
  bool from_user() const { return from_user_; }

  int64_t as_integer() const { return integer_; }                                             // REQUIRES: is_integral
  double as_real() const { return is_integral() ? static_cast<double>(integer_) : real_; }    // REQUIRES: is_number
  const Text& text() const { return static_cast<const StringObject*>(object_.get())->text; }  // REQUIRES: is_string
  bool is_markup() const { return is_string() && static_cast<const StringObject*>(object_.get())->is_markup; }
  template <class T>
  T& as() const {
    return static_cast<T&>(*object_);
  }
  template <class T>
  std::shared_ptr<T> share() const {
    return std::static_pointer_cast<T>(object_);
  }
  const Object* identity() const { return object_.get(); }

 private:
  Value(Kind kind, bool from_user) : kind_(kind), from_user_(from_user) {}

  Kind kind_ = Kind::kUndefined;
  bool from_user_ = false;
  union {
    int64_t integer_ = 0;
    double real_;
  };
  std::shared_ptr<Object> object_;
};

struct SequenceObject final : Object {
  SequenceObject(Budget* budget, SequenceKind sequence_kind, std::vector<Value> values, bool user);
  Charge charge;
  const SequenceKind kind;
  const bool from_user;  // its punctuation counts as user text when it is printed
  int depth;             // nesting, bounded by JinjaLimits::depth_max
  const std::vector<Value> items;
  size_t taken = 0;                       // generators: how many items were consumed
  std::array<int64_t, 3> range{0, 0, 1};  // ranges: start, stop, step
};

class DictObject final : public Object {
 public:
  DictObject(Budget* budget, bool user) : charge_(budget, sizeof(DictObject)), budget_(budget), from_user_(user) {}

  // A key that is present keeps its place and gets the new value, as in Python. Only while the dict is being made.
  void set(Value key, Value value);
  const Value* find(std::string_view key) const;
  const Value* find(const Value& key) const;  // REQUIRES: is_hashable(key)

  const std::vector<std::pair<Value, Value>>& entries() const { return entries_; }
  bool from_user() const { return from_user_; }
  int depth() const { return depth_; }

 private:
  static constexpr size_t kIndexedFrom = 8;                      // fewer entries are found faster by looking at each
  static constexpr size_t kEntryBytes = 2 * sizeof(Value) + 96;  // with its node of the index

  std::optional<size_t> position(std::string_view key) const;
  std::optional<size_t> position(const Value& key) const;

  Charge charge_;
  Budget* budget_;
  bool from_user_;
  int depth_ = 1;
  std::vector<std::pair<Value, Value>> entries_;
  std::map<std::string_view, size_t> index_;  // of string keys, once there are kIndexedFrom entries
};

struct NamespaceObject final : Object {
  explicit NamespaceObject(Budget* object_budget)
      : budget(object_budget), charge(object_budget, sizeof(NamespaceObject)) {}
  const Value* find(std::string_view name) const;
  void set(std::string_view name, Value value);
  Budget* const budget;
  Charge charge;
  std::vector<std::pair<std::string, Value>> attributes;
};

struct MacroObject final : Object {
  MacroObject(Budget* budget, const MacroStatement& definition, std::shared_ptr<Scope> defined_in)
      : charge(budget, sizeof(MacroObject)), statement(definition), scope(std::move(defined_in)) {}
  Charge charge;
  const MacroStatement& statement;
  std::shared_ptr<Scope> scope;
};

// The variable `loop`. Items are drawn one at a time, because the condition of `for … if …` may depend on what the
// body has done so far.
struct LoopObject final : Object {
  explicit LoopObject(Budget* budget) : charge(budget, sizeof(LoopObject)) {}
  bool next();  // moves to the next item; false at the end
  void end();   // lets go of all that it holds
  const Value* peek();
  int64_t length();

  Charge charge;
  std::shared_ptr<SequenceObject> source;
  size_t position = 0;
  std::function<bool(const Value&)> condition;  // empty: every item
  std::vector<Value> ahead;                     // drawn but not yet visited; from ahead_begin
  size_t ahead_begin = 0;
  std::optional<int64_t> known_length;
  int64_t index0 = -1;
  int64_t depth0 = 0;
  Value current;
  Value previous;
  std::optional<std::vector<Value>> changed;
  const ForStatement* statement = nullptr;  // of a recursive loop
  std::shared_ptr<Scope> scope;

 private:
  std::optional<Value> draw();
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};
// A filter, a test, a method or a global function. `self` is the filtered value or the receiver.
using Builtin = Value (*)(Runtime&, const Value& self, const Arguments&);

struct FunctionObject final : Object {
  FunctionObject(Budget* budget, std::string_view function_name, Builtin function, Value self)
      : charge(budget, sizeof(FunctionObject)), name(function_name), call(function), receiver(std::move(self)) {}
  Charge charge;
  const std::string_view name;  // of a static table
  const Builtin call;
  const Value receiver;
};

class Runtime {
 public:
  Runtime(const JinjaLimits& limits, std::optional<int64_t> now_unix_seconds)
      : budget_(limits), now_unix_seconds_(now_unix_seconds) {}
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  Budget& budget() { return budget_; }
  std::optional<int64_t> now_unix_seconds() const { return now_unix_seconds_; }

  Value undefined(std::string why);
  Value string(Text text, bool is_markup = false);
  Value string(std::string_view bytes, bool is_user);
  Value string(TextBuilder& builder) { return string(builder.take()); }
  // The name of a named argument as a value. It may have come from the request: f(**message).
  Value keyword(std::string_view name) { return string(name, true); }
  Value substring(const Text& text, ByteRange range);
  Value sequence(SequenceKind kind, std::vector<Value> items, bool from_user = false);
  Value list(std::vector<Value> items) { return sequence(SequenceKind::kList, std::move(items)); }
  Value tuple(std::vector<Value> items) { return sequence(SequenceKind::kTuple, std::move(items)); }
  Value generator(std::vector<Value> items) { return sequence(SequenceKind::kGenerator, std::move(items)); }
  std::shared_ptr<DictObject> new_dict(bool from_user = false);
  Value dict(std::shared_ptr<DictObject> dict) { return Value::object(Kind::kDict, std::move(dict)); }
  Value function(std::string_view name, Builtin call, Value receiver = {});
  std::shared_ptr<NamespaceObject> new_namespace();
  Value macro(const MacroStatement& statement, std::shared_ptr<Scope> scope);

 private:
  Budget budget_;  // first: it outlives the values below
  std::optional<int64_t> now_unix_seconds_;
  std::vector<std::shared_ptr<NamespaceObject>> namespaces_;
  std::vector<std::shared_ptr<MacroObject>> macros_;
};

// The items of a value that can be iterated. Keeps the list alive, so it may be the range of a for loop.
class Items {
 public:
  explicit Items(std::shared_ptr<SequenceObject> sequence) : sequence_(std::move(sequence)) {}
  size_t size() const { return sequence_->items.size(); }
  bool empty() const { return sequence_->items.empty(); }
  const Value& operator[](size_t index) const { return sequence_->items[index]; }
  auto begin() const { return sequence_->items.begin(); }
  auto end() const { return sequence_->items.end(); }
  const std::vector<Value>& list() const& { return sequence_->items; }
  const std::vector<Value>& list() && = delete;  // would not outlive this
  std::shared_ptr<SequenceObject> share() const { return sequence_; }

 private:
  std::shared_ptr<SequenceObject> sequence_;
};
// Does not copy the items of a list. Consumes a generator.
Items iterate(Runtime& runtime, const Value& value);
bool is_iterable(const Value& value);

bool is_truthy(const Value& value);
bool is_hashable(const Value& value);
int nesting(const Value& value);  // 0 for scalars and strings
bool equals(Budget& budget, const Value& a, const Value& b);
// Python's a < b; an error when the types have no order.
bool less(Budget& budget, const Value& a, const Value& b);
std::string type_name(const Value& value);
int64_t length(Runtime& runtime, const Value& value);

// x.name, x[key] and x[a:b:c] with the rules of Jinja's sandbox.
Value get_attribute(Runtime& runtime, const Value& object, std::string_view name);
Value get_item(Runtime& runtime, const Value& object, const Value& key);
Value get_slice(Runtime& runtime, const Value& object, const Value& start, const Value& stop, const Value& step);

// str(value), and the same for a value that is a string already without a copy.
Value to_string(Runtime& runtime, const Value& value);
void append_string(TextBuilder& out, const Value& value);
void append_repr(TextBuilder& out, const Value& value);
std::string format_real(double value);  // repr(float)

[[noreturn]] void fail_undefined(const Value& value);
// Throws when a value that has to be used is undefined.
inline void require_defined(const Value& value) {
  if (value.is_undefined()) fail_undefined(value);
}

}  // namespace headroom::jinja
