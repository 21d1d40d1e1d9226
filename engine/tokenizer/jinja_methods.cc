// Methods of strings, lists, tuples and dicts.
#include <algorithm>
#include <functional>
#include <map>

#include "engine/tokenizer/jinja_builtins.h"
#include "engine/tokenizer/jinja_unicode.h"
#include "engine/tokenizer/utf8.h"

namespace headroom::jinja {
namespace {

using Values = std::vector<Value>;

// ---- strings ----

template <Case kTarget>
Value string_case(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters none("the method", arguments, {});
  return change_case(runtime, self.text(), kTarget);
}

template <bool kLeft, bool kRight>
Value string_strip(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("strip", arguments, {"chars"});
  return strip_text(runtime, self.text(), kLeft, kRight, parameters.text_or_none(0));
}

Value string_replace(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("replace", arguments, {"old", "new", "count"}, 2);
  return replace_text(runtime, self.text(), parameters.text(0), parameters.text(1), parameters.integer(2, -1));
}

// split() without a separator: runs of white space separate, and none is at the ends.
Values split_at_space(Runtime& runtime, const Text& text, int64_t limit) {
  Values parts;
  const auto skip_space = [&](size_t position) {
    const std::string_view rest = std::string_view(text.bytes).substr(position);
    return position + strip_range(rest, true, false, nullptr).begin;
  };
  size_t position = skip_space(0);
  while (position < text.bytes.size()) {
    if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) {
      parts.push_back(runtime.substring(text, {position, text.bytes.size()}));
      break;
    }
    const size_t begin = position;
    size_t end = position;
    while (position < text.bytes.size() && !is_space(next_character(text.bytes, &position))) end = position;
    parts.push_back(runtime.substring(text, {begin, end}));
    position = skip_space(end);
  }
  return parts;
}

// The same from the right, where it only matters if there is a limit.
Values split_at_space_from_right(Runtime& runtime, const Text& text, int64_t limit) {
  Values parts;
  size_t end = strip_range(text.bytes, false, true, nullptr).end;
  while (end > 0) {
    if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) {
      parts.push_back(runtime.substring(text, {0, end}));
      break;
    }
    size_t begin = end;
    while (begin > 0) {
      const size_t previous = previous_boundary(text.bytes, begin);
      size_t position = previous;
      if (is_space(next_character(text.bytes, &position))) break;
      begin = previous;
    }
    parts.push_back(runtime.substring(text, {begin, end}));
    end = strip_range(std::string_view(text.bytes).substr(0, begin), false, true, nullptr).end;
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

Values split_at(Runtime& runtime, const Text& text, std::string_view separator, int64_t limit) {
  Values parts;
  size_t begin = 0;
  while (limit < 0 || static_cast<int64_t>(parts.size()) < limit) {
    const size_t found = find_bytes(text.bytes, separator, begin);
    if (found == std::string::npos) break;
    parts.push_back(runtime.substring(text, {begin, found}));
    begin = found + separator.size();
  }
  parts.push_back(runtime.substring(text, {begin, text.bytes.size()}));
  return parts;
}

Values split_at_from_right(Runtime& runtime, const Text& text, const std::string& separator, int64_t limit) {
  // Backwards over the reversed bytes, so that each search goes on where the last one ended.
  const Charge working(&runtime.budget(), text.bytes.size());
  const std::string reversed(text.bytes.rbegin(), text.bytes.rend());
  const std::string reversed_separator(separator.rbegin(), separator.rend());
  const size_t size = text.bytes.size();
  Values parts;
  size_t begin = 0;
  while (limit < 0 || static_cast<int64_t>(parts.size()) < limit) {
    const size_t found = find_bytes(reversed, reversed_separator, begin);
    if (found == std::string::npos) break;
    parts.push_back(runtime.substring(text, {size - found, size - begin}));
    begin = found + separator.size();
  }
  parts.push_back(runtime.substring(text, {0, size - begin}));
  std::reverse(parts.begin(), parts.end());
  return parts;
}

template <bool kFromRight>
Value string_split(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("split", arguments, {"sep", "maxsplit"});
  const Text* separator = parameters.text_or_none(0);
  const int64_t limit = parameters.integer(1, -1);
  runtime.budget().spend_scan(2 * self.text().bytes.size());
  if (!separator) {
    return runtime.list(kFromRight ? split_at_space_from_right(runtime, self.text(), limit)
                                   : split_at_space(runtime, self.text(), limit));
  }
  if (separator->bytes.empty()) throw Error("empty separator");
  return runtime.list(kFromRight ? split_at_from_right(runtime, self.text(), separator->bytes, limit)
                                 : split_at(runtime, self.text(), separator->bytes, limit));
}

Value string_splitlines(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("splitlines", arguments, {"keepends"});
  runtime.budget().spend_scan(self.text().bytes.size());
  Values lines;
  for (const ByteRange range : split_lines(self.text(), parameters.boolean(0, false))) {
    lines.push_back(runtime.substring(self.text(), range));
  }
  return runtime.list(std::move(lines));
}

template <bool kFromRight>
Value string_partition(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("partition", arguments, {"sep"}, 1);
  const Text& text = self.text();
  const std::string& separator = parameters.text(0).bytes;
  if (separator.empty()) throw Error("empty separator");
  runtime.budget().spend_scan(2 * text.bytes.size());
  const size_t found = kFromRight ? find_last_bytes(text.bytes, separator) : find_bytes(text.bytes, separator, 0);
  const Value empty = runtime.string("", false);
  if (found == std::string::npos) {
    return runtime.tuple(kFromRight ? Values{empty, empty, self} : Values{self, empty, empty});
  }
  return runtime.tuple({runtime.substring(text, {0, found}), runtime.substring(text, {found, found + separator.size()}),
                        runtime.substring(text, {found + separator.size(), text.bytes.size()})});
}

// [start, end) in characters, as str.find and str.startswith take it; nullopt when it is empty beyond the text.
std::optional<ByteRange> search_range(Runtime& runtime, const Value& self, const Parameters& parameters) {
  const std::string& bytes = self.text().bytes;
  if (!parameters.has(1) && !parameters.has(2)) return ByteRange{0, bytes.size()};
  const int64_t count = length(runtime, self);
  const auto bound = [&](size_t index, int64_t default_value) {
    if (!parameters.has(index) || parameters[index].is_none()) return default_value;
    const int64_t value = parameters.integer(index, 0);
    return value < 0 ? std::max<int64_t>(value + count, 0) : value;
  };
  const int64_t start = bound(1, 0);
  const int64_t end = std::min(bound(2, count), count);
  if (start > end) return std::nullopt;
  return ByteRange{character_offset(bytes, static_cast<size_t>(start)),
                   character_offset(bytes, static_cast<size_t>(end))};
}

template <bool kAtStart>
Value string_starts_or_ends(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters(kAtStart ? "startswith" : "endswith", arguments, {"affix", "start", "end"}, 1);
  const std::optional<ByteRange> range = search_range(runtime, self, parameters);
  const auto matches = [&](const Value& affix) {
    if (!affix.is_string()) throw Error("startswith and endswith need a string or a tuple of strings");
    if (!range) return false;
    const std::string_view text = std::string_view(self.text().bytes).substr(range->begin, range->end - range->begin);
    runtime.budget().spend_copy(affix.text().bytes.size());
    return kAtStart ? text.starts_with(affix.text().bytes) : text.ends_with(affix.text().bytes);
  };
  if (!parameters[0].is(Kind::kSequence)) return Value::boolean(matches(parameters[0]));
  if (parameters[0].as<SequenceObject>().kind != SequenceKind::kTuple) {
    throw Error("startswith and endswith need a string or a tuple of strings, not " + type_name(parameters[0]));
  }
  const Values& affixes = parameters[0].as<SequenceObject>().items;
  return Value::boolean(std::any_of(affixes.begin(), affixes.end(), matches));
}

template <bool kFromRight, bool kMustExist>
Value string_find(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("find", arguments, {"sub", "start", "end"}, 1);
  const std::string& part = parameters.text(0).bytes;
  runtime.budget().spend_scan(2 * self.text().bytes.size());
  const std::optional<ByteRange> range = search_range(runtime, self, parameters);
  size_t found = std::string::npos;
  if (range) {
    const std::string_view text = std::string_view(self.text().bytes).substr(range->begin, range->end - range->begin);
    found = kFromRight ? find_last_bytes(text, part) : find_bytes(text, part, 0);
  }
  if (found == std::string::npos) {
    if (kMustExist) throw Error("substring not found");
    return Value::integer(-1);
  }
  const std::string_view before = std::string_view(self.text().bytes).substr(0, range->begin + found);
  return Value::integer(static_cast<int64_t>(character_count(before)));
}

Value string_count(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("count", arguments, {"sub", "start", "end"}, 1);
  const std::string& part = parameters.text(0).bytes;
  runtime.budget().spend_scan(2 * self.text().bytes.size());
  const std::optional<ByteRange> range = search_range(runtime, self, parameters);
  if (!range) return Value::integer(0);
  const std::string_view text = std::string_view(self.text().bytes).substr(range->begin, range->end - range->begin);
  if (part.empty()) return Value::integer(static_cast<int64_t>(character_count(text)) + 1);
  int64_t count = 0;
  for (size_t at = find_bytes(text, part, 0); at != std::string::npos; at = find_bytes(text, part, at + part.size()))
    ++count;
  return Value::integer(count);
}

Value string_join(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("join", arguments, {"iterable"}, 1);
  const Items sequence = iterate(runtime, parameters[0]);
  for (const Value& item : sequence) {
    if (!item.is_string()) throw Error("join: expected str instance, " + type_name(item) + " found");
  }
  return join_values(runtime, self.text(), sequence.list());
}

template <bool kPrefix>
Value string_remove_affix(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters(kPrefix ? "removeprefix" : "removesuffix", arguments, {"affix"}, 1);
  const Text& text = self.text();
  const std::string_view affix = parameters.text(0).bytes;
  const std::string_view bytes = text.bytes;
  if (kPrefix && bytes.starts_with(affix)) return runtime.substring(text, {affix.size(), bytes.size()});
  if (!kPrefix && bytes.ends_with(affix)) return runtime.substring(text, {0, bytes.size() - affix.size()});
  return self;
}

// ljust, rjust, center: fills up to a width.
enum class Align { kLeft, kRight, kCenter };
template <Align kAlign>
Value string_justify(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("the method", arguments, {"width", "fillchar"}, 1);
  Text fill;
  fill.append(" ", self.text().has_user());
  if (parameters.has(1)) fill = parameters.text(1);
  if (character_count(fill.bytes) != 1) throw Error("the fill character must be exactly one character long");
  const int64_t missing = parameters.integer(0, 0) - std::min(parameters.integer(0, 0), length(runtime, self));
  const int64_t left = kAlign == Align::kLeft    ? 0
                       : kAlign == Align::kRight ? missing
                                                 : missing / 2 + (missing & parameters.integer(0, 0) & 1);
  TextBuilder out(runtime.budget());
  for (int64_t i = 0; i < left; ++i) out.append(fill);
  out.append(self.text());
  for (int64_t i = left; i < missing; ++i) out.append(fill);
  return runtime.string(out);
}

Value string_zfill(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("zfill", arguments, {"width"}, 1);
  const Text& text = self.text();
  const bool has_sign = !text.bytes.empty() && (text.bytes[0] == '-' || text.bytes[0] == '+');
  const int64_t missing = parameters.integer(0, 0) - std::min(parameters.integer(0, 0), length(runtime, self));
  TextBuilder out(runtime.budget());
  if (has_sign) out.append(text, 0, 1);
  for (int64_t i = 0; i < missing; ++i) out.append("0", text.has_user());
  out.append(text, has_sign ? 1 : 0, text.bytes.size());
  return runtime.string(out);
}

// isdigit, isalpha …: true when there is a character and all have the property.
bool is_alphanumeric(char32_t character) { return is_alphabetic(character) || is_digit(character); }
bool is_ascii(char32_t character) { return character < 0x80; }
template <bool (*kProperty)(char32_t), bool kOfEmpty>
Value string_all(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters none("the method", arguments, {});
  const std::string& bytes = self.text().bytes;
  runtime.budget().spend_scan(4 * bytes.size());
  for (size_t position = 0; position < bytes.size();) {
    if (!kProperty(next_character(bytes, &position))) return Value::boolean(false);
  }
  return Value::boolean(kOfEmpty || !bytes.empty());
}

template <bool kUpper>
Value string_is_case(Runtime& runtime, const Value& self, const Arguments& arguments) {
  return find_test(kUpper ? "upper" : "lower")(runtime, self, arguments);
}

Value string_format(Runtime& runtime, const Value& self, const Arguments& arguments) {
  return format_braces(runtime, self.text(), arguments);
}

// ---- lists, tuples ----

Value sequence_count(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("count", arguments, {"value"}, 1);
  const Values& items = self.as<SequenceObject>().items;
  return Value::integer(std::count_if(
      items.begin(), items.end(), [&](const Value& item) { return equals(runtime.budget(), item, parameters[0]); }));
}

Value sequence_index(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("index", arguments, {"value"}, 1);
  const Values& items = self.as<SequenceObject>().items;
  for (size_t i = 0; i < items.size(); ++i) {
    if (equals(runtime.budget(), items[i], parameters[0])) return Value::integer(static_cast<int64_t>(i));
  }
  throw Error("the value is not in the list");
}

Value copy_self(Runtime&, const Value& self, const Arguments&) { return self; }  // nothing can change it

// ---- dicts ----

template <SequenceKind kView>
Value dict_view(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters none("the method", arguments, {});
  const auto& dict = self.as<DictObject>();
  Values items;
  for (const auto& [key, value] : dict.entries()) {
    if (kView == SequenceKind::kDictKeys) items.push_back(key);
    if (kView == SequenceKind::kDictValues) items.push_back(value);
    if (kView == SequenceKind::kDictItems) items.push_back(runtime.tuple({key, value}));
  }
  return runtime.sequence(kView, std::move(items), dict.from_user());
}

Value dict_get(Runtime&, const Value& self, const Arguments& arguments) {
  const Parameters parameters("get", arguments, {"key", "default"}, 1);
  if (!arguments.named.empty()) throw Error("get() takes no keyword arguments");
  if (!is_hashable(parameters[0])) throw Error("unhashable type: '" + type_name(parameters[0]) + "'");
  if (const Value* value = self.as<DictObject>().find(parameters[0])) return *value;
  return parameters.has(1) ? parameters[1] : Value::none();
}

Value unsupported(Runtime&, const Value&, const Arguments&) {
  throw Error("this method is not supported in chat templates");
}

using Methods = std::map<std::string_view, Builtin>;

const Methods& string_methods() {
  static const Methods kMethods = {
      {"capitalize", string_case<Case::kCapitalize>},
      {"casefold", unsupported},
      {"center", string_justify<Align::kCenter>},
      {"count", string_count},
      {"encode", unsupported},
      {"endswith", string_starts_or_ends<false>},
      {"expandtabs", unsupported},
      {"find", string_find<false, false>},
      {"format", string_format},
      {"format_map", unsupported},
      {"index", string_find<false, true>},
      {"isalnum", string_all<is_alphanumeric, false>},
      {"isalpha", string_all<is_alphabetic, false>},
      {"isascii", string_all<is_ascii, true>},
      {"isdecimal", string_all<is_digit, false>},
      {"isdigit", string_all<is_digit, false>},
      {"isidentifier", unsupported},
      {"islower", string_is_case<false>},
      {"isnumeric", string_all<is_digit, false>},
      {"isprintable", string_all<is_printable, true>},
      {"isspace", string_all<is_space, false>},
      {"istitle", unsupported},
      {"isupper", string_is_case<true>},
      {"join", string_join},
      {"ljust", string_justify<Align::kLeft>},
      {"lower", string_case<Case::kLower>},
      {"lstrip", string_strip<true, false>},
      {"maketrans", unsupported},
      {"partition", string_partition<false>},
      {"removeprefix", string_remove_affix<true>},
      {"removesuffix", string_remove_affix<false>},
      {"replace", string_replace},
      {"rfind", string_find<true, false>},
      {"rindex", string_find<true, true>},
      {"rjust", string_justify<Align::kRight>},
      {"rpartition", string_partition<true>},
      {"rsplit", string_split<true>},
      {"rstrip", string_strip<false, true>},
      {"split", string_split<false>},
      {"splitlines", string_splitlines},
      {"startswith", string_starts_or_ends<true>},
      {"strip", string_strip<true, true>},
      {"swapcase", string_case<Case::kSwap>},
      {"title", string_case<Case::kTitle>},
      {"translate", unsupported},
      {"upper", string_case<Case::kUpper>},
      {"zfill", string_zfill},
  };
  return kMethods;
}

// A null function marks a method that changes its object, which the sandbox does not allow.
const Methods& list_methods() {
  static const Methods kMethods = {
      {"append", nullptr}, {"clear", nullptr},        {"copy", copy_self}, {"count", sequence_count},
      {"extend", nullptr}, {"index", sequence_index}, {"insert", nullptr}, {"pop", nullptr},
      {"remove", nullptr}, {"reverse", nullptr},      {"sort", nullptr},
  };
  return kMethods;
}

const Methods& tuple_methods() {
  static const Methods kMethods = {{"count", sequence_count}, {"index", sequence_index}};
  return kMethods;
}

const Methods& dict_methods() {
  static const Methods kMethods = {
      {"clear", nullptr},
      {"copy", copy_self},
      {"fromkeys", unsupported},
      {"get", dict_get},
      {"items", dict_view<SequenceKind::kDictItems>},
      {"keys", dict_view<SequenceKind::kDictKeys>},
      {"pop", nullptr},
      {"popitem", nullptr},
      {"setdefault", nullptr},
      {"update", nullptr},
      {"values", dict_view<SequenceKind::kDictValues>},
  };
  return kMethods;
}

const Methods* methods_of(const Value& object) {
  if (object.is_string()) return &string_methods();
  if (object.is(Kind::kDict)) return &dict_methods();
  if (!object.is(Kind::kSequence)) return nullptr;
  switch (object.as<SequenceObject>().kind) {
    case SequenceKind::kList:
      return &list_methods();
    case SequenceKind::kTuple:
    case SequenceKind::kRange:
      return &tuple_methods();
    default:
      return nullptr;
  }
}

}  // namespace

std::optional<Value> find_method(Runtime& runtime, const Value& object, std::string_view name) {
  const Methods* methods = methods_of(object);
  if (!methods) return std::nullopt;
  const auto found = methods->find(name);
  if (found == methods->end()) return std::nullopt;
  if (found->second) return runtime.function(found->first, found->second, object);
  return runtime.undefined("access to attribute '" + std::string(name) + "' of '" + type_name(object) +
                           "' object is unsafe.");
}

Value call_method(Runtime& runtime, const Value& object, std::string_view name, const Arguments& arguments) {
  return methods_of(object)->at(name)(runtime, object, arguments);
}

}  // namespace headroom::jinja
