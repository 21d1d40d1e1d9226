// Python's two ways to format: 'text' % values and 'text'.format(values).
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "engine/tokenizer/jinja_builtins.h"

namespace headroom::jinja {
namespace {

constexpr int64_t kWidthMax = 1'000'000;

// %[(name)][flags][width][.precision]type
struct Conversion {
  std::optional<std::string> name;
  bool left = false, zero = false, plus = false, space = false, alternate = false;
  int64_t width = 0;
  int64_t precision = -1;
  char type = 0;
};

class PercentFormatter {
 public:
  PercentFormatter(Runtime& runtime, const Text& format, const Value& arguments)
      : runtime_(runtime), format_(format), arguments_(arguments), out_(runtime.budget()) {
    is_tuple_ = arguments.is(Kind::kSequence) && arguments.as<SequenceObject>().kind == SequenceKind::kTuple;
  }

  Value run() {
    runtime_.budget().spend_scan(format_.bytes.size());
    size_t copied = 0;
    for (size_t at = format_.bytes.find('%'); at != std::string::npos; at = format_.bytes.find('%', position_)) {
      out_.append(format_, copied, at);
      position_ = at + 1;
      convert(parse());
      copied = position_;
    }
    out_.append(format_, copied, format_.bytes.size());
    const bool all_used = is_tuple_ ? used_ == arguments_.as<SequenceObject>().items.size()
                                    : used_ > 0 || arguments_.is(Kind::kDict) || arguments_.is(Kind::kSequence);
    if (!all_used) throw Error("not all arguments converted during string formatting");
    return runtime_.string(out_);
  }

 private:
  char peek() const { return position_ < format_.bytes.size() ? format_.bytes[position_] : '\0'; }

  int64_t parse_number() {
    if (peek() == '*') {
      ++position_;
      const Value value = next_argument();
      if (!value.is_integral()) throw Error("* wants int");
      return std::clamp<int64_t>(value.as_integer(), -kWidthMax, kWidthMax);
    }
    int64_t number = 0;
    for (; peek() >= '0' && peek() <= '9'; ++position_) {
      number = number * 10 + (peek() - '0');
      if (number > kWidthMax) throw Error("the width of a format is too large");
    }
    return number;
  }

  Conversion parse() {
    Conversion conversion;
    if (peek() == '(') {
      const size_t end = format_.bytes.find(')', position_);
      if (end == std::string::npos) throw Error("incomplete format key");
      conversion.name = format_.bytes.substr(position_ + 1, end - position_ - 1);
      position_ = end + 1;
    }
    for (;; ++position_) {
      const char c = peek();
      if (c == '-')
        conversion.left = true;
      else if (c == '0')
        conversion.zero = true;
      else if (c == '+')
        conversion.plus = true;
      else if (c == ' ')
        conversion.space = true;
      else if (c == '#')
        conversion.alternate = true;
      else
        break;
    }
    conversion.width = parse_number();
    if (conversion.width < 0) {
      conversion.left = true;
      conversion.width = -conversion.width;
    }
    if (peek() == '.') {
      ++position_;
      conversion.precision = std::max<int64_t>(parse_number(), 0);
    }
    if (position_ == format_.bytes.size()) throw Error("incomplete format");
    conversion.type = format_.bytes[position_++];
    return conversion;
  }

  Value next_argument() {
    if (is_tuple_) {
      const auto& items = arguments_.as<SequenceObject>().items;
      if (used_ == items.size()) throw Error("not enough arguments for format string");
      return items[used_++];
    }
    if (used_++ > 0) throw Error("not enough arguments for format string");
    return arguments_;
  }

  Value argument(const Conversion& conversion) {
    if (!conversion.name) return next_argument();
    if (!arguments_.is(Kind::kDict)) throw Error("format requires a mapping");
    const Value* value = arguments_.as<DictObject>().find(*conversion.name);
    if (!value) throw Error("the format key '" + conversion.name->substr(0, 100) + "' is missing");
    return *value;
  }

  void convert(const Conversion& conversion) {
    if (conversion.type == '%') return out_.append("%", format_.is_user(position_ - 1));
    const Value value = argument(conversion);
    switch (conversion.type) {
      case 's':
        return pad_text(conversion, to_string(runtime_, value));
      case 'r':
      case 'a': {
        TextBuilder text(runtime_.budget());
        append_repr(text, value);
        return pad_text(conversion, runtime_.string(text));
      }
      case 'd':
      case 'i':
      case 'u':
      case 'x':
      case 'X':
      case 'o':
        return integer(conversion, value);
      case 'f':
      case 'F':
      case 'e':
      case 'E':
      case 'g':
      case 'G':
        return real(conversion, value);
      default:
        throw Error(std::string("unsupported format character '") + conversion.type + "'");
    }
  }

  void fill(int64_t count, char c, bool is_user) {
    for (int64_t i = 0; i < count; ++i) out_.append(std::string_view(&c, 1), is_user);
  }

  void pad_text(const Conversion& conversion, const Value& value) {
    const Text& text = value.text();
    runtime_.budget().spend_scan(text.bytes.size());
    const size_t end = conversion.precision < 0
                           ? text.bytes.size()
                           : character_offset(text.bytes, static_cast<size_t>(conversion.precision));
    const auto size = static_cast<int64_t>(character_count(std::string_view(text.bytes).substr(0, end)));
    if (!conversion.left) fill(conversion.width - size, ' ', text.has_user());
    out_.append(text, 0, end);
    if (conversion.left) fill(conversion.width - size, ' ', text.has_user());
  }

  void pad_number(const Conversion& conversion, bool negative, std::string digits, bool is_user) {
    const std::string sign = negative ? "-" : conversion.plus ? "+" : conversion.space ? " " : "";
    const int64_t missing = conversion.width - static_cast<int64_t>(sign.size() + digits.size());
    if (!conversion.left && !conversion.zero) fill(missing, ' ', is_user);
    out_.append(sign, is_user);
    if (!conversion.left && conversion.zero) fill(missing, '0', is_user);
    out_.append(digits, is_user);
    if (conversion.left) fill(missing, ' ', is_user);
  }

  void integer(const Conversion& conversion, const Value& value) {
    if (!value.is_number() ||
        (!value.is_integral() && conversion.type != 'd' && conversion.type != 'i' && conversion.type != 'u')) {
      throw Error(std::string("%") + conversion.type + " format: a number is required, not " + type_name(value));
    }
    Arguments none;
    const int64_t number =
        value.is_integral() ? value.as_integer() : find_filter("int")(runtime_, value, none).as_integer();
    const int base = conversion.type == 'o' ? 8 : conversion.type == 'x' || conversion.type == 'X' ? 16 : 10;
    const uint64_t magnitude = number < 0 ? ~static_cast<uint64_t>(number) + 1 : static_cast<uint64_t>(number);
    char buffer[72];
    std::string digits(buffer, std::to_chars(buffer, buffer + sizeof(buffer), magnitude, base).ptr);
    if (conversion.precision > static_cast<int64_t>(digits.size())) {
      const auto zeros = static_cast<size_t>(conversion.precision) - digits.size();
      digits.insert(0, zeros, '0');
    }
    if (conversion.alternate && base != 10) digits.insert(0, base == 8 ? "0o" : "0x");
    if (conversion.type == 'X')
      std::transform(digits.begin(), digits.end(), digits.begin(),
                     [](char c) { return static_cast<char>(std::toupper(static_cast<unsigned char>(c))); });
    pad_number(conversion, number < 0, std::move(digits), value.from_user());
  }

  void real(const Conversion& conversion, const Value& value) {
    if (!value.is_number()) throw Error("must be real number, not " + type_name(value));
    constexpr int64_t kPrecisionMax = 100;
    const int precision =
        static_cast<int>(conversion.precision < 0 ? 6 : std::min(conversion.precision, kPrecisionMax));
    const char format[] = {'%', '.', '*', conversion.type, '\0'};
    char buffer[512];
    const double number = value.as_real();
    const int size = std::snprintf(buffer, sizeof(buffer), format, precision, std::signbit(number) ? -number : number);
    if (size < 0 || static_cast<size_t>(size) >= sizeof(buffer)) throw Error("a number is too long to be formatted");
    pad_number(conversion, std::signbit(number), std::string(buffer, static_cast<size_t>(size)), value.from_user());
  }

  Runtime& runtime_;
  const Text& format_;
  const Value& arguments_;
  TextBuilder out_;
  bool is_tuple_ = false;
  size_t position_ = 0;
  size_t used_ = 0;
};

// One {field} of str.format, without its braces: [name or number][.attribute | [key]]…[!r | !s]
Value find_field(Runtime& runtime, std::string_view field, const Arguments& arguments, size_t* next_index) {
  const size_t name_end = std::min(field.find_first_of(".["), field.size());
  const std::string name(field.substr(0, name_end));
  Value value;
  const bool is_index = std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (is_index) {
    size_t index = name.empty() ? (*next_index)++ : 0;
    const bool fits = name.empty() || std::from_chars(name.data(), name.data() + name.size(), index).ec == std::errc();
    if (!fits || index >= arguments.positional.size()) throw Error("format: too few positional arguments");
    value = arguments.positional[index];
  } else {
    const auto found = std::find_if(arguments.named.begin(), arguments.named.end(),
                                    [&](const auto& entry) { return entry.first == name; });
    if (found == arguments.named.end()) throw Error("format: the argument '" + name.substr(0, 100) + "' is missing");
    value = found->second;
  }
  for (std::string_view rest = field.substr(name_end); !rest.empty();) {
    const bool is_item = rest[0] == '[';
    const size_t end = is_item ? rest.find(']') : std::min(rest.find_first_of(".[", 1), rest.size());
    if (end == std::string_view::npos) throw Error("format: a ']' is missing");
    const std::string key(rest.substr(1, end - 1));
    int64_t index = 0;
    const auto [last, error] = std::from_chars(key.data(), key.data() + key.size(), index);
    if (!is_item) {
      value = get_attribute(runtime, value, key);
    } else if (error == std::errc() && last == key.data() + key.size()) {
      value = get_item(runtime, value, Value::integer(index));
    } else {
      value = get_item(runtime, value, runtime.string(key, false));
    }
    rest = rest.substr(end + (is_item ? 1 : 0));
    if (!rest.empty() && rest[0] != '.' && rest[0] != '[') throw Error("format: only '.' or '[' may follow ']'");
  }
  return value;
}

}  // namespace

Value format_percent(Runtime& runtime, const Text& format, const Value& arguments) {
  return PercentFormatter(runtime, format, arguments).run();
}

Value format_braces(Runtime& runtime, const Text& format, const Arguments& arguments) {
  const std::string& bytes = format.bytes;
  runtime.budget().spend_scan(bytes.size());
  TextBuilder out(runtime.budget());
  size_t next_index = 0;
  size_t position = 0;
  while (position < bytes.size()) {
    const size_t brace = std::min(bytes.find_first_of("{}", position), bytes.size());
    out.append(format, position, brace);
    if (brace == bytes.size()) break;
    if (brace + 1 < bytes.size() && bytes[brace + 1] == bytes[brace]) {  // {{ or }}
      out.append(format, brace, brace + 1);
      position = brace + 2;
      continue;
    }
    const size_t end = bytes.find('}', brace);
    if (bytes[brace] == '}' || end == std::string::npos) throw Error("format: a single brace in the format string");
    std::string_view field = std::string_view(bytes).substr(brace + 1, end - brace - 1);
    if (field.find('{') != std::string_view::npos || field.find(':') != std::string_view::npos) {
      throw Error("format: format specifications are not supported in chat templates");
    }
    const bool is_repr = field.ends_with("!r");
    if (is_repr || field.ends_with("!s")) field.remove_suffix(2);
    const Value value = find_field(runtime, field, arguments, &next_index);
    is_repr ? append_repr(out, value) : append_string(out, value);
    position = end + 1;
  }
  return runtime.string(out);
}

}  // namespace headroom::jinja
