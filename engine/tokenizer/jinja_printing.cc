// str() and repr() of values, as Python writes them.
#include <charconv>
#include <cmath>

#include "engine/tokenizer/jinja_ast.h"
#include "engine/tokenizer/jinja_unicode.h"
#include "engine/tokenizer/jinja_value.h"
#include "engine/tokenizer/utf8.h"

namespace headroom::jinja {
namespace {

void append_hex(std::string* out, char prefix, char32_t character, int digits) {
  static constexpr char kDigits[] = "0123456789abcdef";
  out->push_back('\\');
  out->push_back(prefix);
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) out->push_back(kDigits[character >> shift & 0xF]);
}

std::string escape_character(char32_t character, char quote) {
  std::string escaped;
  if (character == '\\' || character == static_cast<char32_t>(quote)) {
    escaped = {'\\', static_cast<char>(character)};
  } else if (character == '\n') {
    escaped = "\\n";
  } else if (character == '\r') {
    escaped = "\\r";
  } else if (character == '\t') {
    escaped = "\\t";
  } else if (!is_printable(character)) {
    if (character < 0x100) {
      append_hex(&escaped, 'x', character, 2);
    } else if (character < 0x10000) {
      append_hex(&escaped, 'u', character, 4);
    } else {
      append_hex(&escaped, 'U', character, 8);
    }
  }
  return escaped;
}

void append_quoted(TextBuilder& out, const Text& text) {
  const bool has_single = text.bytes.find('\'') != std::string::npos;
  const char quote = has_single && text.bytes.find('"') == std::string::npos ? '"' : '\'';
  const std::string_view mark(&quote, 1);
  out.budget().spend_scan(text.bytes.size());
  out.append(mark, text.has_user());
  size_t copied = 0;
  for (size_t position = 0; position < text.bytes.size();) {
    const size_t begin = position;
    const std::string escaped = escape_character(next_character(text.bytes, &position), quote);
    if (escaped.empty()) continue;
    out.append(text, copied, begin);
    out.append(escaped, text.is_user(begin));
    copied = position;
  }
  out.append(text, copied, text.bytes.size());
  out.append(mark, text.has_user());
}

void append_items(TextBuilder& out, const std::vector<Value>& items, bool is_user) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.append(", ", is_user);
    append_repr(out, items[i]);
  }
}

void append_sequence(TextBuilder& out, const SequenceObject& sequence) {
  const bool is_user = sequence.from_user;
  const auto wrap = [&](std::string_view begin, std::string_view end) {
    out.append(begin, is_user);
    append_items(out, sequence.items, is_user);
    out.append(end, is_user);
  };
  switch (sequence.kind) {
    case SequenceKind::kList:
      return wrap("[", "]");
    case SequenceKind::kTuple:
      return wrap("(", sequence.items.size() == 1 ? ",)" : ")");
    case SequenceKind::kDictKeys:
      return wrap("dict_keys([", "])");
    case SequenceKind::kDictValues:
      return wrap("dict_values([", "])");
    case SequenceKind::kDictItems:
      return wrap("dict_items([", "])");
    case SequenceKind::kGenerator:
      return out.append("<generator object>", false);
    case SequenceKind::kRange: {
      const auto [start, stop, step] = sequence.range;
      const std::string last = step == 1 ? ")" : ", " + std::to_string(step) + ")";
      return out.append("range(" + std::to_string(start) + ", " + std::to_string(stop) + last, is_user);
    }
  }
}

template <class Entries>
void append_entries(TextBuilder& out, const Entries& entries, bool is_user) {
  out.append("{", is_user);
  bool is_first = true;
  for (const auto& [key, value] : entries) {
    if (!is_first) out.append(", ", is_user);
    is_first = false;
    append_repr(out, key);
    out.append(": ", is_user);
    append_repr(out, value);
  }
  out.append("}", is_user);
}

void append_namespace(TextBuilder& out, const NamespaceObject& object) {
  std::vector<std::pair<Value, Value>> entries;
  for (const auto& [name, value] : object.attributes) {
    Text text;
    text.append(name, true);  // it may be a key of the request: namespace(**message)
    entries.emplace_back(Value::object(Kind::kString, std::make_shared<StringObject>(nullptr, std::move(text))), value);
  }
  out.append("<Namespace ", false);
  append_entries(out, entries, false);
  out.append(">", false);
}

}  // namespace

std::string format_real(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[32];
  // The shortest digits that read back as the same number; Python puts the exponent where to_chars might not.
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  const std::string scientific(buffer, end);
  const size_t e = scientific.find('e');
  const bool negative = scientific[e + 1] == '-';
  int exponent = 0;
  std::from_chars(scientific.data() + e + 2, scientific.data() + scientific.size(), exponent);
  if (negative) exponent = -exponent;
  if (exponent < -4 || exponent >= 16) return scientific;
  std::string fixed(400, '\0');
  fixed.resize(static_cast<size_t>(
      std::to_chars(fixed.data(), fixed.data() + fixed.size(), value, std::chars_format::fixed).ptr - fixed.data()));
  return fixed.find('.') == std::string::npos ? fixed + ".0" : fixed;
}

void append_repr(TextBuilder& out, const Value& value) {
  const FrameGuard frame(out.budget());
  out.budget().spend(1);
  switch (value.kind()) {
    case Kind::kUndefined:
      return out.append("Undefined", false);
    case Kind::kNone:
      return out.append("None", value.from_user());
    case Kind::kBoolean:
      return out.append(value.is_true() ? "True" : "False", value.from_user());
    case Kind::kInteger:
      return out.append(std::to_string(value.as_integer()), value.from_user());
    case Kind::kReal:
      return out.append(format_real(value.as_real()), value.from_user());
    case Kind::kString:
      return append_quoted(out, value.text());
    case Kind::kSequence:
      return append_sequence(out, value.as<SequenceObject>());
    case Kind::kDict:
      return append_entries(out, value.as<DictObject>().entries(), value.as<DictObject>().from_user());
    case Kind::kNamespace:
      return append_namespace(out, value.as<NamespaceObject>());
    case Kind::kMacro:
      return out.append("<Macro '" + value.as<MacroObject>().statement.spelling + "'>", false);
    case Kind::kFunction:
      return out.append("<function " + std::string(value.as<FunctionObject>().name) + ">", false);
    case Kind::kLoop: {
      auto& loop = value.as<LoopObject>();
      const std::string place = std::to_string(loop.index0 + 1) + "/" + std::to_string(loop.length());
      return out.append("<LoopContext " + place + ">", false);
    }
  }
}

void append_string(TextBuilder& out, const Value& value) {
  if (value.is_string()) {
    out.append(value.text());
  } else if (!value.is_undefined()) {
    append_repr(out, value);
  }
}

Value to_string(Runtime& runtime, const Value& value) {
  if (value.is_string()) return value;
  TextBuilder text(runtime.budget());
  append_string(text, value);
  return runtime.string(text);
}

}  // namespace headroom::jinja
