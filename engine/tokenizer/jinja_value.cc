#include "engine/tokenizer/jinja_value.h"

#include <algorithm>
#include <limits>

#include "engine/tokenizer/jinja_ast.h"
#include "engine/tokenizer/utf8.h"
#include "kernels/check.h"

namespace headroom::jinja {
namespace {

constexpr int64_t kEntriesPerOperation = 8;    // looked at in a linear search
constexpr int64_t kKeyBytesPerOperation = 64;  // compared several times on the way through an index

int deepest(const std::vector<Value>& items) {
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, nesting(item));
  return depth;
}

bool are_same_sequence_type(SequenceKind a, SequenceKind b) { return a == b && a != SequenceKind::kGenerator; }

[[noreturn]] void fail_order(const Value& a, const Value& b) {
  throw Error("'<' not supported between instances of '" + type_name(a) + "' and '" + type_name(b) + "'");
}

}  // namespace

// ---- scalars ----

Value Value::boolean(bool value, bool from_user) {
  Value result(Kind::kBoolean, from_user);
  result.integer_ = value ? 1 : 0;
  return result;
}
Value Value::integer(int64_t value, bool from_user) {
  Value result(Kind::kInteger, from_user);
  result.integer_ = value;
  return result;
}
Value Value::real(double value, bool from_user) {
  Value result(Kind::kReal, from_user);
  result.real_ = value;
  return result;
}
Value Value::object(Kind kind, std::shared_ptr<Object> object) {
  Value result(kind, false);
  result.object_ = std::move(object);
  return result;
}
Value Value::literal(std::string_view bytes) {
  Text text;
  text.append(bytes, false);
  return object(Kind::kString, std::make_shared<StringObject>(nullptr, std::move(text)));
}

// ---- objects ----

SequenceObject::SequenceObject(Budget* budget, SequenceKind sequence_kind, std::vector<Value> values, bool user)
    : charge(budget, sizeof(SequenceObject) + values.size() * sizeof(Value)),
      kind(sequence_kind),
      from_user(user),
      depth(1 + deepest(values)),
      items(std::move(values)) {
  if (budget && depth > budget->limits().depth_max) budget->fail_depth();
}

std::optional<size_t> DictObject::position(std::string_view key) const {
  budget_->spend(static_cast<int64_t>(key.size()) / kKeyBytesPerOperation);
  if (entries_.size() >= kIndexedFrom) {
    const auto found = index_.find(key);
    return found == index_.end() ? std::nullopt : std::optional<size_t>(found->second);
  }
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].first.is_string() && entries_[i].first.text().bytes == key) return i;
  }
  return std::nullopt;
}

std::optional<size_t> DictObject::position(const Value& key) const {
  if (key.is_string()) return position(key.text().bytes);
  for (size_t i = 0; i < entries_.size(); ++i) {
    budget_->spend(1);
    if (!entries_[i].first.is_string() && equals(*budget_, entries_[i].first, key)) return i;
  }
  return std::nullopt;
}

const Value* DictObject::find(std::string_view key) const {
  const std::optional<size_t> place = position(key);
  return place ? &entries_[*place].second : nullptr;
}
const Value* DictObject::find(const Value& key) const {
  const std::optional<size_t> place = position(key);
  return place ? &entries_[*place].second : nullptr;
}

void DictObject::set(Value key, Value value) {
  depth_ = std::max(depth_, 1 + std::max(nesting(key), nesting(value)));
  if (depth_ > budget_->limits().depth_max) budget_->fail_depth();
  if (const std::optional<size_t> place = position(key)) {
    entries_[*place].second = std::move(value);
    return;
  }
  charge_.grow(kEntryBytes);
  entries_.emplace_back(std::move(key), std::move(value));
  if (entries_.size() < kIndexedFrom) return;
  const size_t first = entries_.size() == kIndexedFrom ? 0 : entries_.size() - 1;
  for (size_t i = first; i < entries_.size(); ++i) {
    if (entries_[i].first.is_string()) index_.emplace(entries_[i].first.text().bytes, i);
  }
}

const Value* NamespaceObject::find(std::string_view name) const {
  budget->spend(static_cast<int64_t>(attributes.size()) / kEntriesPerOperation);
  for (const auto& [key, value] : attributes) {
    if (key == name) return &value;
  }
  return nullptr;
}

void NamespaceObject::set(std::string_view name, Value value) {
  budget->spend(static_cast<int64_t>(attributes.size()) / kEntriesPerOperation);
  for (auto& [key, present] : attributes) {
    if (key != name) continue;
    present = std::move(value);
    return;
  }
  charge.grow(sizeof(std::pair<std::string, Value>) + name.size());
  attributes.emplace_back(name, std::move(value));
}

// ---- loops ----

std::optional<Value> LoopObject::draw() {
  while (source && position < source->items.size()) {
    const Value& item = source->items[position++];
    if (!condition || condition(item)) return item;
  }
  return std::nullopt;
}

const Value* LoopObject::peek() {
  if (ahead_begin == ahead.size()) {
    ahead.clear();
    ahead_begin = 0;
    std::optional<Value> item = draw();
    if (!item) return nullptr;
    ahead.push_back(std::move(*item));
  }
  return &ahead[ahead_begin];
}

bool LoopObject::next() {
  if (!peek()) return false;
  previous = std::move(current);
  current = std::move(ahead[ahead_begin++]);
  ++index0;
  return true;
}

int64_t LoopObject::length() {
  if (known_length) return *known_length;
  while (std::optional<Value> item = draw()) {
    charge.grow(sizeof(Value));
    ahead.push_back(std::move(*item));
  }
  known_length = index0 + 1 + static_cast<int64_t>(ahead.size() - ahead_begin);
  return *known_length;
}

void LoopObject::end() {
  source.reset();
  condition = nullptr;
  ahead.clear();
  ahead_begin = 0;
  current = {};
  previous = {};
  changed.reset();
  scope.reset();
}

// ---- runtime ----

Runtime::~Runtime() {
  // In order of creation: an object can only be reached from later ones once its own references are gone.
  for (const auto& object : namespaces_) object->attributes.clear();
  for (const auto& object : macros_) object->scope.reset();
}

Value Runtime::undefined(std::string why) {
  return Value::object(Kind::kUndefined, std::make_shared<UndefinedObject>(&budget_, std::move(why)));
}

Value Runtime::string(Text text, bool is_markup) {
  if (text.bytes.size() > budget_.limits().output_bytes_max) budget_.fail_size();
  return Value::object(Kind::kString, std::make_shared<StringObject>(&budget_, std::move(text), is_markup));
}

Value Runtime::string(std::string_view bytes, bool is_user) {
  budget_.spend_copy(bytes.size());
  if (bytes.size() > budget_.limits().output_bytes_max) budget_.fail_size();
  Text text;
  text.append(bytes, is_user);
  return string(std::move(text));
}

Value Runtime::substring(const Text& source, ByteRange range) {
  budget_.spend_copy(range.end - range.begin);
  Text text;
  text.append(source, range.begin, range.end);
  return string(std::move(text));
}

Value Runtime::sequence(SequenceKind kind, std::vector<Value> items, bool from_user) {
  budget_.spend(1 + static_cast<int64_t>(items.size()));
  return Value::object(Kind::kSequence, std::make_shared<SequenceObject>(&budget_, kind, std::move(items), from_user));
}

std::shared_ptr<DictObject> Runtime::new_dict(bool from_user) {
  return std::make_shared<DictObject>(&budget_, from_user);
}

Value Runtime::function(std::string_view name, Builtin call, Value receiver) {
  if (nesting(receiver) >= budget_.limits().depth_max) budget_.fail_depth();
  return Value::object(Kind::kFunction, std::make_shared<FunctionObject>(&budget_, name, call, std::move(receiver)));
}

std::shared_ptr<NamespaceObject> Runtime::new_namespace() {
  namespaces_.push_back(std::make_shared<NamespaceObject>(&budget_));
  return namespaces_.back();
}

Value Runtime::macro(const MacroStatement& statement, std::shared_ptr<Scope> scope) {
  macros_.push_back(std::make_shared<MacroObject>(&budget_, statement, std::move(scope)));
  return Value::object(Kind::kMacro, macros_.back());
}

// ---- properties ----

int nesting(const Value& value) {
  switch (value.kind()) {
    case Kind::kSequence:
      return value.as<SequenceObject>().depth;
    case Kind::kDict:
      return value.as<DictObject>().depth();
    case Kind::kFunction:
      return 1 + nesting(value.as<FunctionObject>().receiver);
    default:
      return 0;
  }
}

bool is_truthy(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBoolean:
    case Kind::kInteger:
      return value.as_integer() != 0;
    case Kind::kReal:
      return value.as_real() != 0;
    case Kind::kString:
      return !value.text().bytes.empty();
    case Kind::kSequence: {
      const auto& sequence = value.as<SequenceObject>();
      return sequence.kind == SequenceKind::kGenerator || !sequence.items.empty();
    }
    case Kind::kDict:
      return !value.as<DictObject>().entries().empty();
    default:
      return true;
  }
}

bool is_iterable(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kString:
    case Kind::kSequence:
    case Kind::kDict:
    case Kind::kLoop:
      return true;
    default:
      return false;
  }
}

bool is_hashable(const Value& value) {
  if (value.is(Kind::kDict)) return false;
  if (!value.is(Kind::kSequence)) return true;
  const auto& sequence = value.as<SequenceObject>();
  switch (sequence.kind) {
    case SequenceKind::kList:
    case SequenceKind::kDictKeys:
    case SequenceKind::kDictItems:
      return false;
    case SequenceKind::kTuple:
      return std::all_of(sequence.items.begin(), sequence.items.end(), is_hashable);
    default:
      return true;
  }
}

std::string type_name(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBoolean:
      return "bool";
    case Kind::kInteger:
      return "int";
    case Kind::kReal:
      return "float";
    case Kind::kString:
      return "str";
    case Kind::kDict:
      return "dict";
    case Kind::kNamespace:
      return "Namespace";
    case Kind::kMacro:
      return "Macro";
    case Kind::kFunction:
      return "builtin_function_or_method";
    case Kind::kLoop:
      return "LoopContext";
    case Kind::kSequence:
      break;
  }
  switch (value.as<SequenceObject>().kind) {
    case SequenceKind::kList:
      return "list";
    case SequenceKind::kTuple:
      return "tuple";
    case SequenceKind::kRange:
      return "range";
    case SequenceKind::kGenerator:
      return "generator";
    case SequenceKind::kDictKeys:
      return "dict_keys";
    case SequenceKind::kDictValues:
      return "dict_values";
    case SequenceKind::kDictItems:
      return "dict_items";
  }
  CHECK(false) << "a value without a type";
}

int64_t length(Runtime& runtime, const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      runtime.budget().spend_scan(value.text().bytes.size());
      return static_cast<int64_t>(character_count(value.text().bytes));
    case Kind::kSequence:
      if (value.as<SequenceObject>().kind == SequenceKind::kGenerator) break;
      return static_cast<int64_t>(value.as<SequenceObject>().items.size());
    case Kind::kDict:
      return static_cast<int64_t>(value.as<DictObject>().entries().size());
    case Kind::kLoop:
      return value.as<LoopObject>().length();
    default:
      break;
  }
  throw Error("object of type '" + type_name(value) + "' has no len()");
}

Items iterate(Runtime& runtime, const Value& value) {
  std::vector<Value> items;
  switch (value.kind()) {
    case Kind::kUndefined:
      break;
    case Kind::kSequence: {
      auto sequence = value.share<SequenceObject>();
      if (sequence->kind != SequenceKind::kGenerator) return Items(std::move(sequence));
      items.assign(sequence->items.begin() + static_cast<ptrdiff_t>(sequence->taken), sequence->items.end());
      sequence->taken = sequence->items.size();
      break;
    }
    case Kind::kDict:
      for (const auto& entry : value.as<DictObject>().entries()) items.push_back(entry.first);
      break;
    case Kind::kString: {
      const Text& text = value.text();
      for (size_t position = 0; position < text.bytes.size();) {
        const size_t begin = position;
        next_character(text.bytes, &position);
        items.push_back(runtime.substring(text, {begin, position}));
      }
      break;
    }
    default:
      throw Error("'" + type_name(value) + "' object is not iterable");
  }
  return Items(runtime.list(std::move(items)).share<SequenceObject>());
}

// ---- comparison ----

bool equals(Budget& budget, const Value& a, const Value& b) {
  const FrameGuard frame(budget);
  budget.spend(1);
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.as_integer() == b.as_integer();
    const auto exact = [](const Value& value) {
      return value.is_integral() ? static_cast<long double>(value.as_integer())
                                 : static_cast<long double>(value.as_real());
    };
    return exact(a) == exact(b);
  }
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      budget.spend_copy(std::min(a.text().bytes.size(), b.text().bytes.size()));
      return a.text().bytes == b.text().bytes;
    case Kind::kSequence: {
      const auto& x = a.as<SequenceObject>();
      const auto& y = b.as<SequenceObject>();
      if (&x == &y) return true;
      if (!are_same_sequence_type(x.kind, y.kind) || x.items.size() != y.items.size()) return false;
      for (size_t i = 0; i < x.items.size(); ++i) {
        if (!equals(budget, x.items[i], y.items[i])) return false;
      }
      return true;
    }
    case Kind::kDict: {
      const auto& x = a.as<DictObject>();
      const auto& y = b.as<DictObject>();
      if (&x == &y) return true;
      if (x.entries().size() != y.entries().size()) return false;
      for (const auto& [key, value] : x.entries()) {
        const Value* other = y.find(key);
        if (!other || !equals(budget, value, *other)) return false;
      }
      return true;
    }
    default:
      return a.identity() == b.identity();
  }
}

bool less(Budget& budget, const Value& a, const Value& b) {
  const FrameGuard frame(budget);
  budget.spend(1);
  require_defined(a);
  require_defined(b);
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.as_integer() < b.as_integer();
    return a.as_real() < b.as_real();
  }
  if (a.is_string() && b.is_string()) {
    budget.spend_copy(std::min(a.text().bytes.size(), b.text().bytes.size()));
    return a.text().bytes < b.text().bytes;  // the order of UTF-8 is that of code points
  }
  if (!a.is(Kind::kSequence) || !b.is(Kind::kSequence)) fail_order(a, b);
  const auto& x = a.as<SequenceObject>();
  const auto& y = b.as<SequenceObject>();
  if (x.kind != y.kind || (x.kind != SequenceKind::kList && x.kind != SequenceKind::kTuple)) fail_order(a, b);
  for (size_t i = 0; i < std::min(x.items.size(), y.items.size()); ++i) {
    if (!equals(budget, x.items[i], y.items[i])) return less(budget, x.items[i], y.items[i]);
  }
  return x.items.size() < y.items.size();
}

void fail_undefined(const Value& value) {
  throw Error(value.identity() ? value.as<UndefinedObject>().message : "the value is undefined");
}

}  // namespace headroom::jinja
