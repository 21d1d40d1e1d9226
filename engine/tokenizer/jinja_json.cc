#include "engine/tokenizer/jinja_json.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/tokenizer/jinja_builtins.h"
#include "engine/tokenizer/utf8.h"

namespace headroom::jinja {
namespace {

using Json = nlohmann::ordered_json;

Value user_string(Runtime& runtime, const std::string& bytes) {
  if (!is_valid_utf8(bytes)) throw Error("a string of the request is not valid UTF-8");
  return runtime.string(bytes, true);
}

// json.dumps of Python over values of the template language.
class JsonWriter {
 public:
  JsonWriter(Runtime& runtime, const Parameters& parameters) : runtime_(runtime), out_(runtime.budget()) {
    static const Value kFalse = Value::boolean(false);
    ensure_ascii_ = is_truthy(parameters.or_default(0, kFalse));
    sort_keys_ = is_truthy(parameters.or_default(3, kFalse));
    if (const Value& indent = parameters[1]; parameters.has(1) && !indent.is_none()) set_indent(indent);
    item_separator_.append(pretty_ ? "," : ", ", false);
    key_separator_.append(": ", false);
    if (const Value& separators = parameters[2]; parameters.has(2) && !separators.is_none()) set_separators(separators);
  }

  Value run(const Value& value) {
    write(value);
    return runtime_.string(out_);
  }

 private:
  void set_indent(const Value& indent) {
    pretty_ = true;
    if (indent.is_string()) {
      indent_ = indent.text();
    } else if (indent.is_integral()) {
      constexpr int64_t kIndentMax = 1000;
      indent_.append(std::string(static_cast<size_t>(std::clamp<int64_t>(indent.as_integer(), 0, kIndentMax)), ' '),
                     false);
    } else {
      throw Error("tojson: indent must be an integer or a string");
    }
  }

  void set_separators(const Value& separators) {
    const Items items = iterate(runtime_, separators);
    if (items.size() != 2 || !items[0].is_string() || !items[1].is_string()) {
      throw Error("tojson: separators must be two strings");
    }
    item_separator_ = items[0].text();
    key_separator_ = items[1].text();
  }

  void write(const Value& value) {
    const FrameGuard frame(runtime_.budget());
    runtime_.budget().spend(1);
    switch (value.kind()) {
      case Kind::kNone:
      case Kind::kBoolean:
      case Kind::kInteger:
      case Kind::kReal:
        return out_.append(scalar(value), value.from_user());
      case Kind::kString:
        return write_string(value.text());
      case Kind::kDict:
        return write_dict(value.as<DictObject>());
      case Kind::kSequence: {
        const auto& sequence = value.as<SequenceObject>();
        if (sequence.kind == SequenceKind::kList || sequence.kind == SequenceKind::kTuple) return write_list(sequence);
        break;
      }
      default:
        break;
    }
    throw Error("Object of type " + type_name(value) + " is not JSON serializable");
  }

  static std::string scalar(const Value& value) {
    if (value.is_none()) return "null";
    if (value.is(Kind::kBoolean)) return value.is_true() ? "true" : "false";
    if (value.is(Kind::kInteger)) return std::to_string(value.as_integer());
    const double real = value.as_real();
    if (std::isnan(real)) return "NaN";
    if (std::isinf(real)) return real < 0 ? "-Infinity" : "Infinity";
    return format_real(real);
  }

  void append_escape_code(std::string* out, char32_t unit) const {
    static constexpr char kDigits[] = "0123456789abcdef";
    *out += "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) out->push_back(kDigits[unit >> shift & 0xF]);
  }

  std::string escape(char32_t character) const {
    switch (character) {
      case '"':
        return "\\\"";
      case '\\':
        return "\\\\";
      case '\n':
        return "\\n";
      case '\r':
        return "\\r";
      case '\t':
        return "\\t";
      case '\f':
        return "\\f";
      case '\b':
        return "\\b";
      default:
        break;
    }
    std::string escaped;
    if (character < 0x20 || (ensure_ascii_ && character > 0x7E && character < 0x10000)) {
      append_escape_code(&escaped, character);
    } else if (ensure_ascii_ && character >= 0x10000) {
      append_escape_code(&escaped, 0xD800 + ((character - 0x10000) >> 10));
      append_escape_code(&escaped, 0xDC00 + ((character - 0x10000) & 0x3FF));
    }
    return escaped;
  }

  void write_string(const Text& text) {
    runtime_.budget().spend_scan(text.bytes.size());
    const bool is_user = text.has_user();
    out_.append("\"", is_user);
    size_t copied = 0;
    for (size_t position = 0; position < text.bytes.size();) {
      const size_t begin = position;
      const std::string escaped = escape(next_character(text.bytes, &position));
      if (escaped.empty()) continue;
      out_.append(text, copied, begin);
      out_.append(escaped, text.is_user(begin));
      copied = position;
    }
    out_.append(text, copied, text.bytes.size());
    out_.append("\"", is_user);
  }

  // Between the parts of a container: user text if that is, and in any case where the separator itself is.
  void punctuate(const Text& separator, bool is_user) {
    is_user ? out_.append(separator.bytes, true) : out_.append(separator);
  }

  void break_line(bool is_user) {
    if (!pretty_) return;
    out_.append("\n", is_user);
    for (int i = 0; i < level_; ++i) punctuate(indent_, is_user);
  }

  template <class Items, class WriteItem>
  void write_items(const Items& items, char open, char close, bool is_user, WriteItem write_item) {
    out_.append(std::string_view(&open, 1), is_user);
    ++level_;
    bool is_first = true;
    for (const auto& item : items) {
      if (!is_first) punctuate(item_separator_, is_user);
      is_first = false;
      break_line(is_user);
      write_item(item);
    }
    --level_;
    if (!is_first) break_line(is_user);
    out_.append(std::string_view(&close, 1), is_user);
  }

  void write_list(const SequenceObject& sequence) {
    write_items(sequence.items, '[', ']', sequence.from_user, [&](const Value& item) { write(item); });
  }

  void write_key(const Value& key) {
    if (key.is_string()) return write_string(key.text());
    if (!key.is_none() && !key.is_number()) {
      throw Error("keys must be str, int, float, bool or None, not " + type_name(key));
    }
    out_.append("\"" + scalar(key) + "\"", key.from_user());
  }

  void write_dict(const DictObject& dict) {
    std::vector<const std::pair<Value, Value>*> entries;
    runtime_.budget().spend(static_cast<int64_t>(dict.entries().size()));
    for (const auto& entry : dict.entries()) entries.push_back(&entry);
    if (sort_keys_) {
      std::stable_sort(entries.begin(), entries.end(),
                       [&](const auto* a, const auto* b) { return less(runtime_.budget(), a->first, b->first); });
    }
    write_items(entries, '{', '}', dict.from_user(), [&](const auto* entry) {
      write_key(entry->first);
      punctuate(key_separator_, dict.from_user());
      write(entry->second);
    });
  }

  Runtime& runtime_;
  TextBuilder out_;
  bool ensure_ascii_ = false;
  bool sort_keys_ = false;
  bool pretty_ = false;
  Text indent_;
  Text item_separator_;
  Text key_separator_;
  int level_ = 0;
};

}  // namespace

Value from_json(Runtime& runtime, const Json& json) {
  const FrameGuard frame(runtime.budget());
  runtime.budget().spend(1);
  switch (json.type()) {
    case Json::value_t::null:
      return Value::none(true);
    case Json::value_t::boolean:
      return Value::boolean(json.get<bool>(), true);
    case Json::value_t::number_integer:
      return Value::integer(json.get<int64_t>(), true);
    case Json::value_t::number_unsigned: {
      const uint64_t value = json.get<uint64_t>();
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        throw Error("the integer " + std::to_string(value) + " of the request is out of range");
      }
      return Value::integer(static_cast<int64_t>(value), true);
    }
    case Json::value_t::number_float:
      return Value::real(json.get<double>(), true);
    case Json::value_t::string:
      return user_string(runtime, json.get_ref<const std::string&>());
    case Json::value_t::array: {
      std::vector<Value> items;
      for (const Json& item : json) items.push_back(from_json(runtime, item));
      return runtime.sequence(SequenceKind::kList, std::move(items), true);
    }
    case Json::value_t::object: {
      const auto dict = runtime.new_dict(true);
      for (const auto& [key, value] : json.items()) {
        dict->set(user_string(runtime, key), from_json(runtime, value));
      }
      return runtime.dict(dict);
    }
    case Json::value_t::binary:
    case Json::value_t::discarded:
      break;
  }
  throw Error("the request holds something that is not JSON");
}

Value to_json(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const Parameters parameters("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"});
  return JsonWriter(runtime, parameters).run(value);
}

}  // namespace headroom::jinja
