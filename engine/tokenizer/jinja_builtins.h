// The filters, tests, methods and global functions of the template language, looked up by name.
// Pure functions over a Runtime; the tables are constant.
#pragma once

#include <array>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "engine/tokenizer/jinja_value.h"

namespace headroom::jinja {

// Null when there is none of that name.
Builtin find_filter(std::string_view name);
Builtin find_sequence_filter(std::string_view name);  // the part of find_filter that works on lists
Builtin find_test(std::string_view name);
inline constexpr std::string_view kGlobalNames[] = {"range", "dict", "namespace", "raise_exception", "strftime_now"};
// The global function of that name. REQUIRES: name is one of kGlobalNames.
Value make_global(Runtime& runtime, std::string_view name);

// The method `name` of a string, list, tuple or dict, bound to it. Methods that would change the object, and names
// with an underscore, are undefined as in Jinja's sandbox. nullopt: no such method.
std::optional<Value> find_method(Runtime& runtime, const Value& object, std::string_view name);

Value call_method(Runtime& runtime, const Value& object, std::string_view name, const Arguments& arguments);

// text % arguments, and text.format(…).
Value format_percent(Runtime& runtime, const Text& format, const Value& arguments);
Value format_braces(Runtime& runtime, const Text& format, const Arguments& arguments);

// tojson: json.dumps(value, ensure_ascii=False, …).
Value to_json(Runtime& runtime, const Value& value, const Arguments& arguments);

// Text helpers that filters and methods share.
Value strip_text(Runtime& runtime, const Text& text, bool left, bool right, const Text* set);
Value replace_text(Runtime& runtime, const Text& text, const Text& old_text, const Text& new_text, int64_t count);
// HTML's special characters as entities; a value that was made by this, or by the filter safe, stays as it is.
Value escape_html(Runtime& runtime, const Value& value);
Value join_values(Runtime& runtime, const Text& separator, const std::vector<Value>& items);
enum class Case { kUpper, kLower, kTitle, kCapitalize, kSwap };
Value change_case(Runtime& runtime, const Text& text, Case target);
// Linear in the sum of the sizes, whatever the texts.
size_t find_bytes(std::string_view text, std::string_view part, size_t from);
size_t find_last_bytes(std::string_view text, std::string_view part);
// Byte ranges of the lines, without their ends, as str.splitlines; `keep_ends` includes them.
std::vector<ByteRange> split_lines(const Text& text, bool keep_ends);
// The value at the end of a path such as "function.name" or 0; `path` none or undefined: the value itself.
Value follow_path(Runtime& runtime, Value value, const Value& path);
std::vector<Value> sort_values(Runtime& runtime, const std::vector<Value>& items, const std::vector<Value>& keys,
                               bool reverse);

// The arguments of a call, matched to parameter names as Python does it.
class Parameters {
 public:
  static constexpr size_t kParametersMax = 6;
  // REQUIRES: at most kParametersMax names.
  Parameters(std::string_view function, const Arguments& arguments, std::initializer_list<std::string_view> names,
             size_t required = 0);

  bool has(size_t index) const { return values_[index] != nullptr; }
  const Value& operator[](size_t index) const;  // undefined when it was not given
  const Value& or_default(size_t index, const Value& default_value) const {
    return values_[index] ? *values_[index] : default_value;
  }
  // Typed, with an error that names the parameter.
  int64_t integer(size_t index, int64_t default_value) const;
  bool boolean(size_t index, bool default_value) const;
  const Text& text(size_t index) const;          // REQUIRES: has(index)
  const Text* text_or_none(size_t index) const;  // null when it is absent or none

 private:
  [[noreturn]] void fail(const std::string& problem) const;

  std::string_view function_;
  std::array<std::string_view, kParametersMax> names_{};
  std::array<const Value*, kParametersMax> values_{};
};

}  // namespace headroom::jinja
