#include "engine/tokenizer/jinja_builtins.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "engine/tokenizer/jinja_unicode.h"
#include "engine/tokenizer/utf8.h"
#include "kernels/check.h"

namespace headroom::jinja {

// ---- parameters ----

Parameters::Parameters(std::string_view function, const Arguments& arguments,
                       std::initializer_list<std::string_view> names, size_t required)
    : function_(function) {
  CHECK_LE(names.size(), kParametersMax);
  std::copy(names.begin(), names.end(), names_.begin());
  if (arguments.positional.size() > names.size()) {
    fail("takes at most " + std::to_string(names.size()) + " arguments (" +
         std::to_string(arguments.positional.size()) + " given)");
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) values_[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    const auto place = std::find(names.begin(), names.end(), name);
    if (place == names.end()) fail("got an unexpected keyword argument '" + name.substr(0, 100) + "'");
    const auto index = static_cast<size_t>(place - names.begin());
    if (values_[index]) fail("got multiple values for argument '" + name + "'");
    values_[index] = &value;
  }
  for (size_t i = 0; i < required; ++i) {
    if (!values_[i]) fail("misses the argument '" + std::string(names_[i]) + "'");
  }
}

void Parameters::fail(const std::string& problem) const { throw Error(std::string(function_) + "() " + problem); }

const Value& Parameters::operator[](size_t index) const {
  static const Value kUndefined{};
  return values_[index] ? *values_[index] : kUndefined;
}

int64_t Parameters::integer(size_t index, int64_t default_value) const {
  if (!values_[index]) return default_value;
  if (!values_[index]->is_integral()) fail("needs an integer for '" + std::string(names_[index]) + "'");
  return values_[index]->as_integer();
}

bool Parameters::boolean(size_t index, bool default_value) const {
  return values_[index] ? is_truthy(*values_[index]) : default_value;
}

const Text& Parameters::text(size_t index) const {
  if (!values_[index]->is_string()) {
    fail("needs a string for '" + std::string(names_[index]) + "', not " + type_name(*values_[index]));
  }
  return values_[index]->text();
}

const Text* Parameters::text_or_none(size_t index) const {
  return values_[index] && !values_[index]->is_none() ? &text(index) : nullptr;
}

// ---- texts ----

size_t find_bytes(std::string_view text, std::string_view part, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  if (part.empty()) return from;
  if (part.size() == 1) return text.find(part[0], from);
  // std::string_view::find compares anew at each position: quadratic for "aaa…ab" in "aaa…". memmem is linear.
  const void* found = memmem(text.data() + from, text.size() - from, part.data(), part.size());
  return found ? static_cast<size_t>(static_cast<const char*>(found) - text.data()) : std::string_view::npos;
}

size_t find_last_bytes(std::string_view text, std::string_view part) {
  const std::string reversed_text(text.rbegin(), text.rend());
  const std::string reversed_part(part.rbegin(), part.rend());
  const size_t found = find_bytes(reversed_text, reversed_part, 0);
  return found == std::string::npos ? found : text.size() - part.size() - found;
}

Value strip_text(Runtime& runtime, const Text& text, bool left, bool right, const Text* set) {
  runtime.budget().spend_scan(text.bytes.size() * (1 + (set ? set->bytes.size() / 8 : 0)));
  if (!set) return runtime.substring(text, strip_range(text.bytes, left, right, nullptr));
  const std::string_view characters = set->bytes;
  return runtime.substring(text, strip_range(text.bytes, left, right, &characters));
}

Value replace_text(Runtime& runtime, const Text& text, const Text& old_text, const Text& new_text, int64_t count) {
  TextBuilder out(runtime.budget());
  runtime.budget().spend_scan(text.bytes.size());
  if (count < 0) count = std::numeric_limits<int64_t>::max();
  size_t copied = 0;
  if (old_text.bytes.empty()) {  // before every character, and at the end
    for (size_t position = 0; count > 0; --count) {
      out.append(text, copied, position);
      copied = position;
      out.append(new_text);
      if (position == text.bytes.size()) break;
      next_character(text.bytes, &position);
    }
  } else {
    for (; count > 0; --count) {
      const size_t found = find_bytes(text.bytes, old_text.bytes, copied);
      if (found == std::string::npos) break;
      out.append(text, copied, found);
      out.append(new_text);
      copied = found + old_text.bytes.size();
    }
  }
  out.append(text, copied, text.bytes.size());
  return runtime.string(out);
}

Value escape_html(Runtime& runtime, const Value& value) {
  if (value.is_markup()) return value;
  const Value printed = to_string(runtime, value);
  const Text& text = printed.text();
  runtime.budget().spend_scan(text.bytes.size());
  TextBuilder out(runtime.budget());
  size_t copied = 0;
  for (size_t i = 0; i < text.bytes.size(); ++i) {
    const char c = text.bytes[i];
    const std::string_view escaped = c == '&'    ? "&amp;"
                                     : c == '<'  ? "&lt;"
                                     : c == '>'  ? "&gt;"
                                     : c == '"'  ? "&#34;"
                                     : c == '\'' ? "&#39;"
                                                 : "";
    if (escaped.empty()) continue;
    out.append(text, copied, i);
    out.append(escaped, text.is_user(i));
    copied = i + 1;
  }
  out.append(text, copied, text.bytes.size());
  return runtime.string(out.take(), true);
}

Value join_values(Runtime& runtime, const Text& separator, const std::vector<Value>& items) {
  TextBuilder out(runtime.budget());
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.append(separator);
    append_string(out, items[i]);
  }
  return runtime.string(out);
}

namespace {

// Unicode's Final_Sigma: a cased letter before it and none after it, characters that do not count skipped.
bool is_final_sigma(std::string_view text, size_t begin, size_t end) {
  bool cased_before = false;
  for (size_t position = begin; position > 0;) {
    position = previous_boundary(text, position);
    size_t next = position;
    const char32_t character = next_character(text, &next);
    if (is_case_ignorable(character)) continue;
    cased_before = is_cased(character);
    break;
  }
  if (!cased_before) return false;
  for (size_t position = end; position < text.size();) {
    const char32_t character = next_character(text, &position);
    if (!is_case_ignorable(character)) return !is_cased(character);
  }
  return true;
}

}  // namespace

Value change_case(Runtime& runtime, const Text& text, Case target) {
  constexpr char32_t kCapitalSigma = 0x3A3;
  constexpr size_t kScansPerCase = 8;  // looking up the properties of a character costs more than a comparison
  runtime.budget().spend_scan(kScansPerCase * text.bytes.size());
  TextBuilder out(runtime.budget());
  bool in_word = false;
  std::string mapped;
  for (size_t position = 0; position < text.bytes.size();) {
    const size_t begin = position;
    const char32_t character = next_character(text.bytes, &position);
    const auto lower = [&] {
      runtime.budget().spend(character == kCapitalSigma ? 4 : 0);
      append_lower(character, character == kCapitalSigma && is_final_sigma(text.bytes, begin, position), &mapped);
    };
    mapped.clear();
    switch (target) {
      case Case::kUpper:
        append_upper(character, &mapped);
        break;
      case Case::kLower:
        lower();
        break;
      case Case::kTitle:
        in_word ? lower() : append_title(character, &mapped);
        break;
      case Case::kCapitalize:
        begin > 0 ? lower() : append_title(character, &mapped);
        break;
      case Case::kSwap:
        is_uppercase(character) ? lower() : append_upper(character, &mapped);
        break;
    }
    in_word = is_cased(character);
    out.append(mapped, text.is_user(begin));
  }
  return runtime.string(out);
}

std::vector<ByteRange> split_lines(const Text& text, bool keep_ends) {
  std::vector<ByteRange> lines;
  size_t line_begin = 0;
  for (size_t position = 0; position < text.bytes.size();) {
    const size_t begin = position;
    const char32_t character = next_character(text.bytes, &position);
    if (!is_line_break(character)) continue;
    if (character == '\r' && position < text.bytes.size() && text.bytes[position] == '\n') ++position;
    lines.push_back({line_begin, keep_ends ? position : begin});
    line_begin = position;
  }
  if (line_begin < text.bytes.size()) lines.push_back({line_begin, text.bytes.size()});
  return lines;
}

// ---- lists ----

Value follow_path(Runtime& runtime, Value value, const Value& path) {
  if (path.is_none() || path.is_undefined()) return value;
  if (!path.is_string()) return get_item(runtime, value, path);
  const std::string& names = path.text().bytes;
  for (size_t begin = 0; begin <= names.size();) {
    const size_t end = std::min(names.find('.', begin), names.size());
    const std::string part = names.substr(begin, end - begin);
    constexpr size_t kIndexDigitsMax = 18;
    const bool is_index = !part.empty() && part.size() <= kIndexDigitsMax &&
                          std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    value = get_item(runtime, value, is_index ? Value::integer(std::stoll(part)) : runtime.string(part, false));
    begin = end + 1;
  }
  return value;
}

std::vector<Value> sort_values(Runtime& runtime, const std::vector<Value>& items, const std::vector<Value>& keys,
                               bool reverse) {
  std::vector<size_t> order(items.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return reverse ? less(runtime.budget(), keys[b], keys[a]) : less(runtime.budget(), keys[a], keys[b]);
  });
  std::vector<Value> sorted;
  sorted.reserve(items.size());
  for (const size_t place : order) sorted.push_back(items[place]);
  return sorted;
}

}  // namespace headroom::jinja
