// The global functions: range, dict, namespace, raise_exception, strftime_now.
#include <algorithm>
#include <array>
#include <ctime>
#include <iterator>

#include "engine/tokenizer/jinja_builtins.h"
#include "kernels/check.h"

namespace headroom::jinja {
namespace {

constexpr int64_t kRangeMax = 100'000;  // the bound of Jinja's sandbox

Value make_range(Runtime& runtime, const Value&, const Arguments& arguments) {
  const Parameters parameters("range", arguments, {"start", "stop", "step"}, 1);
  const bool has_stop = parameters.has(1);
  const int64_t start = has_stop ? parameters.integer(0, 0) : 0;
  const int64_t stop = has_stop ? parameters.integer(1, 0) : parameters.integer(0, 0);
  const int64_t step = parameters.integer(2, 1);
  if (step == 0) throw Error("range() arg 3 must not be zero");
  const bool is_user = parameters[0].from_user() || parameters[1].from_user() || parameters[2].from_user();
  std::vector<Value> items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<int64_t>(items.size()) == kRangeMax) {
      throw Error("range is too big: at most " + std::to_string(kRangeMax) + " items are allowed");
    }
    items.push_back(Value::integer(i, is_user));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  Value result = runtime.sequence(SequenceKind::kRange, std::move(items), is_user);
  result.as<SequenceObject>().range = {start, stop, step};
  return result;
}

// Copies what dict(…) and namespace(…) are given: a mapping or pairs, then keywords.
template <class Set>
void for_each_entry(Runtime& runtime, const Arguments& arguments, Set set) {
  if (arguments.positional.size() > 1) throw Error("at most one positional argument is expected");
  if (!arguments.positional.empty()) {
    const Value& source = arguments.positional[0];
    if (source.is(Kind::kDict)) {
      for (const auto& [key, value] : source.as<DictObject>().entries()) set(key, value);
    } else {
      for (const Value& pair : iterate(runtime, source)) {
        const Items parts = iterate(runtime, pair);
        if (parts.size() != 2) throw Error("a dict needs pairs of a key and a value");
        set(parts[0], parts[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.named) set(runtime.keyword(name), value);
}

Value make_dict(Runtime& runtime, const Value&, const Arguments& arguments) {
  const auto dict = runtime.new_dict();
  for_each_entry(runtime, arguments, [&](const Value& key, const Value& value) {
    if (!is_hashable(key)) throw Error("unhashable type: '" + type_name(key) + "'");
    dict->set(key, value);
  });
  return runtime.dict(dict);
}

Value make_namespace(Runtime& runtime, const Value&, const Arguments& arguments) {
  const auto object = runtime.new_namespace();
  for_each_entry(runtime, arguments, [&](const Value& key, const Value& value) {
    if (!key.is_string()) throw Error("the attributes of a namespace need names");
    const std::string& name = key.text().bytes;
    if (!name.empty() && name[0] == '_') throw Error("a namespace cannot hold a name that begins with an underscore");
    object->set(name, value);
  });
  return Value::object(Kind::kNamespace, object);
}

Value raise_exception(Runtime& runtime, const Value&, const Arguments& arguments) {
  const Parameters parameters("raise_exception", arguments, {"message"}, 1);
  constexpr size_t kMessageBytesMax = 4096;
  const Value message = to_string(runtime, parameters[0]);
  const std::string_view bytes = message.text().bytes;
  throw RaisedByTemplate(std::string(bytes.substr(0, std::min(bytes.size(), kMessageBytesMax))));
}

Value strftime_now(Runtime& runtime, const Value&, const Arguments& arguments) {
  const Parameters parameters("strftime_now", arguments, {"format"}, 1);
  if (!runtime.now_unix_seconds()) throw Error("strftime_now() is not available: the time is not known");
  const Text& format = parameters.text(0);
  constexpr size_t kFormatBytesMax = 1024;
  if (format.bytes.size() > kFormatBytesMax) throw Error("strftime_now: the format is too long");
  const std::time_t now = static_cast<std::time_t>(*runtime.now_unix_seconds());
  std::tm calendar{};
  if (!gmtime_r(&now, &calendar)) throw Error("strftime_now: the time is out of range");
  std::array<char, 8 * kFormatBytesMax> buffer;
  // A mark at the end tells an empty result from one that did not fit.
  const size_t size = std::strftime(buffer.data(), buffer.size(), (format.bytes + "|").c_str(), &calendar);
  if (size == 0) throw Error("strftime_now: the result is too long");
  return runtime.string(std::string_view(buffer.data(), size - 1), format.has_user());
}

}  // namespace

Value make_global(Runtime& runtime, std::string_view name) {
  static constexpr Builtin kFunctions[] = {make_range, make_dict, make_namespace, raise_exception, strftime_now};
  static_assert(std::size(kFunctions) == std::size(kGlobalNames));
  const auto place = std::find(std::begin(kGlobalNames), std::end(kGlobalNames), name);
  CHECK(place != std::end(kGlobalNames)) << name;
  return runtime.function(*place, kFunctions[place - std::begin(kGlobalNames)]);
}

}  // namespace headroom::jinja
