#include "server/json_reader.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <utility>
#include <vector>

#include "kernels/check.h"

namespace headroom {
namespace {

// Builds a Json from the parser's events and stops at the first limit. Open containers are a stack of pointers: a child
// is always the last element of its parent, which does not move while the child is open.
class JsonBuilder : public nlohmann::json_sax<Json> {
 public:
  JsonBuilder(std::string_view text, const JsonLimits& limits, int64_t* values) : text_(text), limits_(limits), values_(*values) {}

  bool null() override { return add(Json(nullptr)) != nullptr; }
  bool boolean(bool value) override { return add(Json(value)) != nullptr; }
  bool number_integer(number_integer_t value) override { return add(Json(value)) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return add(Json(value)) != nullptr; }
  bool number_float(number_float_t value, const string_t&) override { return add(Json(value)) != nullptr; }
  bool string(string_t& value) override { return add(Json(std::move(value))) != nullptr; }
  bool binary(binary_t&) override { return false; }  // not a JSON event

  bool start_object(size_t) override { return open(Json::value_t::object); }
  bool start_array(size_t) override { return open(Json::value_t::array); }
  bool end_array() override {
    open_.pop_back();
    return true;
  }
  bool end_object() override {
    const bool is_unique = keys_are_unique(open_.back()->get_ref<const Json::object_t&>());
    open_.pop_back();
    return is_unique;
  }

  bool key(string_t& name) override {
    if (static_cast<int64_t>(open_.back()->size()) == limits_.members_max) {
      return fail("an object has more than " + std::to_string(limits_.members_max) + " members");
    }
    key_ = std::move(name);
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    return fail("the body is not valid JSON in UTF-8: it breaks at byte " + std::to_string(position) + " of " +
                std::to_string(text_.size()));
  }

  std::variant<Json, ApiError> take() {
    if (error_) return *std::move(error_);
    return std::move(root_);
  }

 private:
  bool fail(std::string message) {
    error_ = ApiError{.message = std::move(message), .code = "invalid_json"};
    return false;
  }

  Json* add(Json value) {
    if (++values_ > limits_.values_max) {
      fail("the body holds more than " + std::to_string(limits_.values_max) + " JSON values");
      return nullptr;
    }
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    if (open_.back()->is_array()) return &open_.back()->get_ref<Json::array_t&>().emplace_back(std::move(value));
    // Past the map's own emplace, which searches all keys: end_object() looks for duplicates once.
    Json::object_t::Container& members = open_.back()->get_ref<Json::object_t&>();
    return &members.emplace_back(std::move(key_), std::move(value)).second;
  }

  bool open(Json::value_t type) {
    if (static_cast<int64_t>(open_.size()) == limits_.depth_max) {
      return fail("the body is nested deeper than " + std::to_string(limits_.depth_max) + " levels");
    }
    Json* container = add(Json(type));
    if (container == nullptr) return false;
    open_.push_back(container);
    return true;
  }

  bool keys_are_unique(const Json::object_t& object) {
    std::vector<std::string_view> keys;
    keys.reserve(object.size());
    for (const auto& [name, value] : object) keys.push_back(name);
    std::sort(keys.begin(), keys.end());
    if (std::adjacent_find(keys.begin(), keys.end()) == keys.end()) return true;
    return fail("an object holds the same key twice");
  }

  std::string_view text_;
  const JsonLimits& limits_;
  Json root_;
  std::vector<Json*> open_;
  std::string key_;
  int64_t& values_;
  std::optional<ApiError> error_;
};

std::string to_text(double value) {
  char digits[32];
  return std::string(digits, std::to_chars(digits, digits + sizeof(digits), value).ptr);
}

}  // namespace

std::variant<Json, ApiError> read_json(std::string_view text, const JsonLimits& limits, int64_t* values_read) {
  if (text.empty()) return ApiError{.message = "the body is empty: it must be a JSON object", .code = "invalid_json"};
  // To the parser a zero byte is the end, and what stands behind it would go unread; JSON has none.
  if (const size_t zero = text.find('\0'); zero != text.npos) {
    return ApiError{.message = "the body is not valid JSON in UTF-8: it breaks at byte " + std::to_string(zero + 1) + " of " + std::to_string(text.size()),
                    .code = "invalid_json"};
  }
  int64_t values = 0;
  JsonBuilder builder(text, limits, values_read == nullptr ? &values : values_read);
  Json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

std::optional<int64_t> exact_integer(const Json& value) {
  constexpr double kTwo53 = 9007199254740992.0;  // from here on a double may stand for a neighbour of what was written
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (!value.is_number_float()) return std::nullopt;
  const auto number = value.get<double>();
  if (!(std::abs(number) < kTwo53) || number != std::trunc(number)) return std::nullopt;
  return static_cast<int64_t>(number);
}

FieldReader::FieldReader(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
  CHECK(object.is_object());
}

const Json* FieldReader::find(std::string_view name) const {
  for (const auto& [key, value] : object_.get_ref<const Json::object_t&>()) {
    if (key == name) return value.is_null() ? nullptr : &value;
  }
  return nullptr;
}

void FieldReader::fail(std::string_view name, std::string_view message) {
  if (!error_) error_ = invalid_field(path_of(name), path_of(name) + " " + std::string(message));
}

void FieldReader::boolean(std::string_view name, bool* value) {
  const Json* field = find(name);
  if (field == nullptr) return;
  if (!field->is_boolean()) return fail(name, "must be true or false");
  *value = field->get<bool>();
}

void FieldReader::real(std::string_view name, RealRange range, float* value) {
  const Json* field = find(name);
  if (field == nullptr) return;
  // Numbers that a double cannot hold were refused by the parser, so the value is finite.
  const double number = field->is_number() ? field->get<double>() : std::nan("");
  const bool is_in_range = number >= range.min && number <= range.max;
  // After rounding: 1e-60 is no top_p above 0.
  const float rounded = is_in_range ? static_cast<float>(number) : 0.0f;
  if (!is_in_range || (range.min_excluded && !(rounded > range.min))) {
    return fail(name, "must be a number in " + std::string(range.min_excluded ? "(" : "[") + to_text(range.min) + ", " +
                          to_text(range.max) + "]");
  }
  *value = rounded;
}

void FieldReader::string(std::string_view name, size_t bytes_max, std::string* value) {
  const Json* field = find(name);
  if (field == nullptr) return;
  if (!field->is_string()) return fail(name, "must be a string");
  const auto& text = field->get_ref<const std::string&>();
  if (text.size() > bytes_max) return fail(name, "must have at most " + std::to_string(bytes_max) + " bytes");
  *value = text;
}

std::optional<int64_t> FieldReader::checked_integer(std::string_view name, int64_t min, int64_t max) {
  const Json* field = find(name);
  if (field == nullptr) return std::nullopt;
  const std::optional<int64_t> number = exact_integer(*field);
  if (number && *number >= min && *number <= max) return number;
  fail(name, "must be an integer from " + std::to_string(min) + " to " + std::to_string(max));
  return std::nullopt;
}

}  // namespace headroom
