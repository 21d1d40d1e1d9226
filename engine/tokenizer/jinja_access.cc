// x.name, x[key] and x[start:stop:step].
#include <algorithm>
#include <limits>

#include "engine/tokenizer/jinja_builtins.h"
#include "engine/tokenizer/jinja_value.h"
#include "engine/tokenizer/utf8.h"
#include "kernels/check.h"

namespace headroom::jinja {
namespace {

Value loop_cycle(Runtime&, const Value& self, const Arguments& arguments) {
  if (arguments.positional.empty()) throw Error("no items for cycling given");
  return arguments.positional[static_cast<size_t>(self.as<LoopObject>().index0) % arguments.positional.size()];
}

Value loop_changed(Runtime& runtime, const Value& self, const Arguments& arguments) {
  auto& loop = self.as<LoopObject>();
  const std::vector<Value>& now = arguments.positional;
  const bool is_same =
      loop.changed && std::equal(now.begin(), now.end(), loop.changed->begin(), loop.changed->end(),
                                 [&](const Value& a, const Value& b) { return equals(runtime.budget(), a, b); });
  if (!is_same) {
    loop.charge.grow(now.size() * sizeof(Value));
    loop.changed = now;
  }
  return Value::boolean(!is_same);
}

std::optional<Value> loop_attribute(Runtime& runtime, const Value& object, std::string_view name) {
  auto& loop = object.as<LoopObject>();
  if (name == "index") return Value::integer(loop.index0 + 1);
  if (name == "index0") return Value::integer(loop.index0);
  if (name == "first") return Value::boolean(loop.index0 == 0);
  if (name == "last") return Value::boolean(loop.peek() == nullptr);
  if (name == "length") return Value::integer(loop.length());
  if (name == "revindex") return Value::integer(loop.length() - loop.index0);
  if (name == "revindex0") return Value::integer(loop.length() - loop.index0 - 1);
  if (name == "depth") return Value::integer(loop.depth0 + 1);
  if (name == "depth0") return Value::integer(loop.depth0);
  if (name == "cycle") return runtime.function("cycle", loop_cycle, object);
  if (name == "changed") return runtime.function("changed", loop_changed, object);
  if (name == "previtem") return loop.index0 == 0 ? runtime.undefined("there is no previous item") : loop.previous;
  if (name == "nextitem") {
    const Value* next = loop.peek();
    return next ? *next : runtime.undefined("there is no next item");
  }
  return std::nullopt;
}

Value no_attribute(Runtime& runtime, const Value& object, std::string_view name) {
  return runtime.undefined("'" + (object.is_none() ? "None" : type_name(object) + " object") + "' has no attribute '" +
                           std::string(name) + "'");
}

// What getattr(object, name) finds in Python.
std::optional<Value> python_attribute(Runtime& runtime, const Value& object, std::string_view name) {
  switch (object.kind()) {
    case Kind::kNamespace: {
      const Value* value = object.as<NamespaceObject>().find(name);
      return value ? std::optional<Value>(*value) : std::nullopt;
    }
    case Kind::kLoop:
      return loop_attribute(runtime, object, name);
    default:
      return find_method(runtime, object, name);
  }
}

// object[key], or nullopt where Python raises.
std::optional<Value> python_item(Runtime& runtime, const Value& object, const Value& key) {
  if (object.is(Kind::kDict)) {
    if (!is_hashable(key)) return std::nullopt;
    const Value* value = object.as<DictObject>().find(key);
    return value ? std::optional<Value>(*value) : std::nullopt;
  }
  if (!key.is_integral()) return std::nullopt;
  if (!object.is_string() && !object.is(Kind::kSequence)) return std::nullopt;
  if (object.is(Kind::kSequence)) {
    const auto& sequence = object.as<SequenceObject>();
    if (sequence.kind != SequenceKind::kList && sequence.kind != SequenceKind::kTuple &&
        sequence.kind != SequenceKind::kRange) {
      return std::nullopt;
    }
  }
  const int64_t count = length(runtime, object);
  const int64_t index = key.as_integer() < 0 ? key.as_integer() + count : key.as_integer();
  if (index < 0 || index >= count) return std::nullopt;
  if (!object.is_string()) return object.as<SequenceObject>().items[static_cast<size_t>(index)];
  const Text& text = object.text();
  const size_t begin = character_offset(text.bytes, static_cast<size_t>(index));
  size_t end = begin;
  next_character(text.bytes, &end);
  return runtime.substring(text, {begin, end});
}

// Python's slice.indices: the first index, the end, and the step.
struct SliceIndices {
  int64_t start, stop, step;
};
int64_t slice_bound(const Value& value, int64_t default_value, int64_t count, int64_t low, int64_t high) {
  if (value.is_none()) return default_value;
  require_defined(value);
  if (!value.is_integral()) throw Error("slice indices must be integers or None, not " + type_name(value));
  const int64_t index = value.as_integer() < 0 ? value.as_integer() + count : value.as_integer();
  return std::clamp(index, low, high);
}
SliceIndices slice_indices(const Value& start, const Value& stop, const Value& step, int64_t count) {
  const int64_t by =
      slice_bound(step, 1, 0, std::numeric_limits<int64_t>::min() + 1, std::numeric_limits<int64_t>::max());
  if (by == 0) throw Error("slice step cannot be zero");
  const int64_t low = by < 0 ? -1 : 0;
  const int64_t high = by < 0 ? count - 1 : count;
  return {slice_bound(start, by < 0 ? high : low, count, low, high),
          slice_bound(stop, by < 0 ? low : high, count, low, high), by};
}

Value slice_string(Runtime& runtime, const Text& text, const SliceIndices& slice, int64_t count) {
  runtime.budget().spend_scan(2 * text.bytes.size());
  if (slice.step == 1) {
    if (slice.start >= slice.stop) return runtime.string("", false);
    const size_t begin = character_offset(text.bytes, static_cast<size_t>(slice.start));
    const std::string_view rest = std::string_view(text.bytes).substr(begin);
    return runtime.substring(text,
                             {begin, begin + character_offset(rest, static_cast<size_t>(slice.stop - slice.start))});
  }
  std::vector<size_t> offsets;  // where each character begins
  const Charge working(&runtime.budget(), static_cast<size_t>(count + 1) * sizeof(size_t));
  offsets.reserve(static_cast<size_t>(count) + 1);
  for (size_t position = 0; position < text.bytes.size(); next_character(text.bytes, &position))
    offsets.push_back(position);
  offsets.push_back(text.bytes.size());
  TextBuilder result(runtime.budget());
  int64_t i = slice.start;
  while (slice.step > 0 ? i < slice.stop : i > slice.stop) {
    result.append(text, offsets[static_cast<size_t>(i)], offsets[static_cast<size_t>(i) + 1]);
    if (__builtin_add_overflow(i, slice.step, &i)) break;
  }
  return runtime.string(result);
}

}  // namespace

Value get_attribute(Runtime& runtime, const Value& object, std::string_view name) {
  require_defined(object);
  if (std::optional<Value> value = python_attribute(runtime, object, name)) return *value;
  if (object.is(Kind::kDict)) {
    if (const Value* value = object.as<DictObject>().find(name)) return *value;
  }
  return no_attribute(runtime, object, name);
}

Value get_item(Runtime& runtime, const Value& object, const Value& key) {
  require_defined(object);
  if (std::optional<Value> value = python_item(runtime, object, key)) return *value;
  if (key.is_string()) {
    if (std::optional<Value> value = python_attribute(runtime, object, key.text().bytes)) return *value;
    return no_attribute(runtime, object, key.text().bytes.substr(0, 200));
  }
  return runtime.undefined(type_name(object) + " object has no such element");
}

Value get_slice(Runtime& runtime, const Value& object, const Value& start, const Value& stop, const Value& step) {
  require_defined(object);
  const bool is_sequence = object.is(Kind::kSequence) && object.as<SequenceObject>().kind <= SequenceKind::kRange;
  if (!object.is_string() && !is_sequence) throw Error("'" + type_name(object) + "' object is not subscriptable");
  const int64_t count = length(runtime, object);
  const SliceIndices slice = slice_indices(start, stop, step, count);
  if (object.is_string()) return slice_string(runtime, object.text(), slice, count);
  const auto& sequence = object.as<SequenceObject>();
  std::vector<Value> items;
  int64_t i = slice.start;
  while (slice.step > 0 ? i < slice.stop : i > slice.stop) {
    items.push_back(sequence.items[static_cast<size_t>(i)]);
    if (__builtin_add_overflow(i, slice.step, &i)) break;
  }
  Value result = runtime.sequence(sequence.kind, std::move(items), sequence.from_user);
  if (sequence.kind == SequenceKind::kRange) {
    const auto [first, last, by] = sequence.range;
    result.as<SequenceObject>().range = {first + slice.start * by, first + slice.stop * by, by * slice.step};
  }
  return result;
}

}  // namespace headroom::jinja
