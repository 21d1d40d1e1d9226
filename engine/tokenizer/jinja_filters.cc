// The filters that work on one value; those over lists are in jinja_sequence_filters.cc.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include "engine/tokenizer/jinja_builtins.h"
#include "engine/tokenizer/jinja_unicode.h"
#include "engine/tokenizer/utf8.h"

namespace headroom::jinja {
namespace {

// soft_str(value): filters over text take anything that can be printed.
Value text_of(Runtime& runtime, const Value& value) { return to_string(runtime, value); }

template <Case kTarget>
Value filter_case(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters none("the filter", arguments, {});
  return change_case(runtime, text_of(runtime, self).text(), kTarget);
}

Value filter_title(Runtime& runtime, const Value& self, const Arguments&) {
  const Value value = text_of(runtime, self);
  const Text& text = value.text();
  TextBuilder out(runtime.budget());
  static constexpr std::string_view kWordBreaks = "-({[<";
  size_t word = 0;
  const auto flush = [&](size_t end) {
    if (word == end) return;
    size_t first = word;
    next_character(text.bytes, &first);
    out.append(change_case(runtime, runtime.substring(text, {word, first}).text(), Case::kUpper).text());
    out.append(change_case(runtime, runtime.substring(text, {first, end}).text(), Case::kLower).text());
  };
  for (size_t position = 0; position < text.bytes.size();) {
    const size_t begin = position;
    const char32_t character = next_character(text.bytes, &position);
    const bool breaks = is_space(character) ||
                        (character < 0x80 && kWordBreaks.find(static_cast<char>(character)) != std::string_view::npos);
    if (!breaks) continue;
    flush(begin);
    out.append(text, begin, position);
    word = position;
  }
  flush(text.bytes.size());
  return runtime.string(out);
}

Value filter_trim(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("trim", arguments, {"chars"});
  return strip_text(runtime, text_of(runtime, self).text(), true, true, parameters.text_or_none(0));
}

Value filter_replace(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("replace", arguments, {"old", "new", "count"}, 2);
  const bool has_count = parameters.has(2) && !parameters[2].is_none();
  const Value old_text = text_of(runtime, parameters[0]);
  const Value new_text = text_of(runtime, parameters[1]);
  return replace_text(runtime, text_of(runtime, self).text(), old_text.text(), new_text.text(),
                      has_count ? parameters.integer(2, -1) : -1);
}

Value filter_default(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("default", arguments, {"default_value", "boolean"});
  if (!self.is_undefined() && !(parameters.boolean(1, false) && !is_truthy(self))) return self;
  return parameters.has(0) ? parameters[0] : runtime.string("", false);
}

Value filter_length(Runtime& runtime, const Value& self, const Arguments&) {
  return Value::integer(length(runtime, self));
}

Value filter_string(Runtime& runtime, const Value& self, const Arguments&) { return text_of(runtime, self); }

Value filter_safe(Runtime& runtime, const Value& self, const Arguments&) {
  const Value text = text_of(runtime, self);
  return text.is_markup() ? text : runtime.string(text.text(), true);
}

Value filter_escape(Runtime& runtime, const Value& self, const Arguments&) { return escape_html(runtime, self); }

Value filter_indent(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("indent", arguments, {"width", "first", "blank"});
  if (!self.is_string()) throw Error("indent needs a string, not " + type_name(self));
  Text indent;
  constexpr int64_t kWidthMax = 10'000;
  if (parameters[0].is_string()) {
    indent = parameters.text(0);
  } else {
    const int64_t width = std::clamp<int64_t>(parameters.integer(0, 4), 0, kWidthMax);
    // Beside user text it is user text: it must not join with it into a control token.
    indent.append(std::string(static_cast<size_t>(width), ' '), self.text().has_user());
  }
  const bool indents_blank = parameters.boolean(2, false);
  runtime.budget().spend_scan(self.text().bytes.size());
  Text source = self.text();
  const Charge working(&runtime.budget(), source.bytes.size());
  source.append("\n", source.has_user());
  const std::vector<ByteRange> lines = split_lines(source, false);
  TextBuilder out(runtime.budget());
  if (parameters.boolean(1, false)) out.append(indent);
  for (size_t i = 0; i < lines.size(); ++i) {
    const bool is_blank = lines[i].begin == lines[i].end;
    if (i > 0) {
      out.append("\n", source.has_user());
      if (!is_blank || indents_blank) out.append(indent);
    }
    out.append(source, lines[i].begin, lines[i].end);
  }
  return runtime.string(out);
}

Value filter_center(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("center", arguments, {"width"});
  const Value text = text_of(runtime, self);
  Arguments width;
  width.positional.push_back(Value::integer(parameters.integer(0, 80)));
  return call_method(runtime, text, "center", width);
}

Value filter_truncate(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("truncate", arguments, {"length", "killwords", "end", "leeway"});
  if (!self.is_string()) throw Error("truncate needs a string, not " + type_name(self));
  const Text& text = self.text();
  const int64_t wanted = parameters.integer(0, 255);
  const Value end = parameters.has(2) ? parameters[2] : runtime.string("...", false);
  if (!end.is_string()) throw Error("truncate needs a string for 'end'");
  const int64_t leeway = parameters[3].is_none() ? 5 : parameters.integer(3, 5);
  const auto end_size = static_cast<int64_t>(character_count(end.text().bytes));
  if (wanted < end_size || leeway < 0)
    throw Error("truncate: length must be at least that of 'end', leeway at least 0");
  const int64_t size = length(runtime, self);
  if (size <= leeway || size - leeway <= wanted) return self;
  size_t cut = character_offset(text.bytes, static_cast<size_t>(wanted - end_size));
  if (!parameters.boolean(1, false)) {
    const size_t space = text.bytes.substr(0, cut).rfind(' ');
    if (space != std::string::npos) cut = space;
  }
  TextBuilder out(runtime.budget());
  out.append(text, 0, cut);
  out.append(end.text());
  return runtime.string(out);
}

Value filter_wordcount(Runtime& runtime, const Value& self, const Arguments&) {
  const Value text = text_of(runtime, self);
  runtime.budget().spend_scan(4 * text.text().bytes.size());
  int64_t words = 0;
  bool in_word = false;
  for (size_t position = 0; position < text.text().bytes.size();) {
    const char32_t character = next_character(text.text().bytes, &position);
    const bool is_word = character == '_' || is_alphabetic(character) || is_digit(character);
    words += is_word && !in_word ? 1 : 0;
    in_word = is_word;
  }
  return Value::integer(words);
}

Value filter_urlencode(Runtime& runtime, const Value& self, const Arguments&) {
  const Value text = text_of(runtime, self);
  static constexpr char kDigits[] = "0123456789ABCDEF";
  static constexpr std::string_view kPlain = "_.-~/";
  runtime.budget().spend_scan(4 * text.text().bytes.size());
  TextBuilder out(runtime.budget());
  for (size_t i = 0; i < text.text().bytes.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text.text().bytes[i]);
    const bool is_plain =
        byte < 0x80 && (std::isalnum(byte) || kPlain.find(static_cast<char>(byte)) != std::string_view::npos);
    const char escaped[] = {'%', kDigits[byte >> 4], kDigits[byte & 15]};
    const char plain = static_cast<char>(byte);
    out.append(is_plain ? std::string_view(&plain, 1) : std::string_view(escaped, 3), text.text().is_user(i));
  }
  return runtime.string(out);
}

Value filter_format(Runtime& runtime, const Value& self, const Arguments& arguments) {
  if (!arguments.positional.empty() && !arguments.named.empty()) {
    throw Error("format: positional and named arguments cannot be mixed");
  }
  const Value format = text_of(runtime, self);
  if (arguments.named.empty()) return format_percent(runtime, format.text(), runtime.tuple(arguments.positional));
  const auto named = runtime.new_dict();
  for (const auto& [name, value] : arguments.named) named->set(runtime.keyword(name), value);
  return format_percent(runtime, format.text(), runtime.dict(named));
}

// ---- numbers ----

Value filter_abs(Runtime&, const Value& self, const Arguments&) {
  require_defined(self);
  if (self.is(Kind::kReal)) return Value::real(std::fabs(self.as_real()), self.from_user());
  if (!self.is_integral()) throw Error("bad operand type for abs(): '" + type_name(self) + "'");
  if (self.as_integer() == std::numeric_limits<int64_t>::min()) throw Error("an integer is out of range");
  return Value::integer(std::abs(self.as_integer()), self.from_user());
}

std::string_view stripped(std::string_view text) {
  const ByteRange range = strip_range(text, true, true, nullptr);
  return text.substr(range.begin, range.end - range.begin);
}

// int(text, base) and float(text) of Python, without the rarely seen digits of other scripts.
std::optional<int64_t> parse_integer(std::string_view text, int base) {
  std::string digits(stripped(text));
  const bool negative = !digits.empty() && digits[0] == '-';
  if (!digits.empty() && (digits[0] == '-' || digits[0] == '+')) digits.erase(0, 1);
  if (digits.size() > 2 && digits[0] == '0') {
    const char marker = static_cast<char>(std::tolower(static_cast<unsigned char>(digits[1])));
    if ((marker == 'x' && base == 16) || (marker == 'o' && base == 8) || (marker == 'b' && base == 2))
      digits.erase(0, 2);
  }
  if (digits.empty() || digits.front() == '_' || digits.back() == '_' || digits.find("__") != std::string::npos)
    return std::nullopt;
  std::erase(digits, '_');
  if (digits.empty() || digits[0] == '-') return std::nullopt;
  if (negative) digits.insert(0, 1, '-');
  int64_t value = 0;
  const auto [last, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (error == std::errc::result_out_of_range) throw Error("an integer is out of range");
  if (error != std::errc() || last != digits.data() + digits.size()) return std::nullopt;
  return value;
}

std::optional<double> parse_real(std::string_view text) {
  std::string digits(stripped(text));
  if (digits.size() > 1 && digits[0] == '+' && digits[1] != '-') digits.erase(0, 1);
  double value = 0;
  const auto [last, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error == std::errc::result_out_of_range && last == digits.data() + digits.size())
    return std::strtod(digits.c_str(), nullptr);
  if (error != std::errc() || last != digits.data() + digits.size()) return std::nullopt;
  return value;
}

std::optional<int64_t> whole(double value) {
  constexpr double kLimit = 9223372036854775808.0;  // 2^63
  if (std::isnan(value) || std::isinf(value)) return std::nullopt;
  const double truncated = std::trunc(value);
  if (truncated < -kLimit || truncated >= kLimit) throw Error("an integer is out of range");
  return static_cast<int64_t>(truncated);
}

Value filter_int(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("int", arguments, {"default", "base"});
  require_defined(self);
  const Value default_value = parameters.has(0) ? parameters[0] : Value::integer(0);
  const int64_t base = parameters.integer(1, 10);
  if (base < 2 || base > 36) throw Error("int: the base must be from 2 to 36");
  std::optional<int64_t> result;
  if (self.is_integral()) result = self.as_integer();
  if (self.is(Kind::kReal)) result = whole(self.as_real());
  if (self.is_string()) {
    runtime.budget().spend_scan(self.text().bytes.size());
    result = parse_integer(self.text().bytes, static_cast<int>(base));
    if (const std::optional<double> real = result ? std::nullopt : parse_real(self.text().bytes)) result = whole(*real);
  }
  const bool is_user = self.is_string() ? self.text().has_user() : self.from_user();
  return result ? Value::integer(*result, is_user) : default_value;
}

Value filter_float(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("float", arguments, {"default"});
  require_defined(self);
  if (self.is_number()) return Value::real(self.as_real(), self.from_user());
  if (self.is_string()) {
    runtime.budget().spend_scan(self.text().bytes.size());
    if (const std::optional<double> value = parse_real(self.text().bytes))
      return Value::real(*value, self.text().has_user());
  }
  return parameters.has(0) ? parameters[0] : Value::real(0);
}

Value filter_round(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("round", arguments, {"precision", "method"});
  require_defined(self);
  if (!self.is_number()) throw Error("type " + type_name(self) + " cannot be rounded");
  const Value method = parameters.has(1) ? parameters[1] : runtime.string("common", false);
  const std::string name = method.is_string() ? method.text().bytes : "";
  if (name != "common" && name != "ceil" && name != "floor") throw Error("round: method must be common, ceil or floor");
  constexpr int64_t kPrecisionMax = 300;
  const int64_t precision = std::clamp<int64_t>(parameters.integer(0, 0), -kPrecisionMax, kPrecisionMax);
  if (name == "common") {
    if (self.is_integral() && precision >= 0) return Value::integer(self.as_integer(), self.from_user());
    if (precision >= 0) {  // through decimal digits, as Python rounds: half to even of the exact value
      char digits[700];
      const auto end = std::to_chars(digits, digits + sizeof(digits), self.as_real(), std::chars_format::fixed,
                                     static_cast<int>(precision))
                           .ptr;
      double rounded = 0;
      std::from_chars(digits, end, rounded);
      return Value::real(rounded, self.from_user());
    }
    const double scale = std::pow(10.0, static_cast<double>(-precision));
    const double rounded = std::nearbyint(self.as_real() / scale) * scale;
    return self.is_integral() ? Value::integer(*whole(rounded), self.from_user())
                              : Value::real(rounded, self.from_user());
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = self.as_real() * scale;
  return Value::real((name == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale, self.from_user());
}

Value filter_attr(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("attr", arguments, {"name"}, 1);
  const std::string& name = parameters.text(0).bytes;
  if (self.is(Kind::kNamespace) || self.is(Kind::kLoop)) return get_attribute(runtime, self, name);
  require_defined(self);
  if (std::optional<Value> method = find_method(runtime, self, name)) return *method;
  return runtime.undefined("'" + type_name(self) + " object' has no attribute '" + name.substr(0, 200) + "'");
}

}  // namespace

Builtin find_filter(std::string_view name) {
  static const std::map<std::string_view, Builtin> kFilters = {
      {"abs", filter_abs},
      {"attr", filter_attr},
      {"capitalize", filter_case<Case::kCapitalize>},
      {"center", filter_center},
      {"count", filter_length},
      {"d", filter_default},
      {"default", filter_default},
      {"e", filter_escape},
      {"escape", filter_escape},
      {"float", filter_float},
      {"format", filter_format},
      {"indent", filter_indent},
      {"int", filter_int},
      {"length", filter_length},
      {"lower", filter_case<Case::kLower>},
      {"replace", filter_replace},
      {"round", filter_round},
      {"safe", filter_safe},
      {"string", filter_string},
      {"title", filter_title},
      {"tojson", to_json},
      {"trim", filter_trim},
      {"truncate", filter_truncate},
      {"upper", filter_case<Case::kUpper>},
      {"urlencode", filter_urlencode},
      {"wordcount", filter_wordcount},
  };
  const auto found = kFilters.find(name);
  return found == kFilters.end() ? find_sequence_filter(name) : found->second;
}

}  // namespace headroom::jinja
