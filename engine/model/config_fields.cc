#include "engine/model/config_fields.h"

#include <filesystem>
#include <set>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "engine/files/checked_file.h"

namespace headroom {
namespace {

using Json = nlohmann::json;

constexpr size_t kConfigBytesMax = 512 << 10;
constexpr int kConfigDepthMax = 64;

std::string number_text(double value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

}  // namespace

std::string read_config_text(const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (error == std::errc::permission_denied) {
    throw std::runtime_error(path.string() + ": " + error.message() + ": the user that runs this must be able to read it");
  }
  if (!std::filesystem::is_regular_file(status)) {
    throw std::runtime_error(path.string() +
                             ": cannot open; --model takes a directory with config.json and model.safetensors");
  }
  return read_text_file(path, kConfigBytesMax);
}

Json parse_config_object(std::string_view text, const std::string& source) {
  if (text.size() > kConfigBytesMax)
    throw std::runtime_error(source + ": over " + std::to_string(kConfigBytesMax) + " bytes");
  std::vector<std::set<std::string>> keys_of_open_objects;
  const auto check_event = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kConfigDepthMax)
      throw std::runtime_error(source + ": JSON nested deeper than " + std::to_string(kConfigDepthMax));
    if (event == Json::parse_event_t::object_start) keys_of_open_objects.emplace_back();
    if (event == Json::parse_event_t::object_end) keys_of_open_objects.pop_back();
    if (event == Json::parse_event_t::key && !keys_of_open_objects.back().insert(parsed.get<std::string>()).second) {
      throw std::runtime_error(source + ": a key twice in one object");
    }
    return true;
  };
  Json parsed;
  try {
    parsed = Json::parse(text, check_event);
  } catch (const Json::parse_error& error) {
    throw std::runtime_error(source + ": not JSON at byte " + std::to_string(error.byte));
  } catch (const Json::out_of_range&) {
    throw std::runtime_error(source + ": a number that does not fit 64 bits");
  }
  if (!parsed.is_object()) throw std::runtime_error(source + ": not a JSON object");
  return parsed;
}

const Json* ConfigFields::find(const char* key) const {
  const auto found = object_->find(key);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

void ConfigFields::fail(const std::string& what) const { throw std::runtime_error(source_ + ": " + what); }

void ConfigFields::fail_type(const char* key, const std::string& expected) const {
  fail(std::string(key) + " must be " + expected);
}

int64_t ConfigFields::checked_integer(const char* key, const Json& value, int64_t min, int64_t max) const {
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() || value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX)) &&
                    value.get<int64_t>() >= min && value.get<int64_t>() <= max;
  if (!fits) fail_type(key, "a whole number from " + std::to_string(min) + " to " + std::to_string(max));
  return value.get<int64_t>();
}

double ConfigFields::checked_number(const char* key, const Json& value, double min, double max) const {
  if (!value.is_number() || !(value.get<double>() >= min && value.get<double>() <= max)) {
    fail_type(key, "a number from " + number_text(min) + " to " + number_text(max));
  }
  return value.get<double>();
}

std::optional<int64_t> ConfigFields::integer(const char* key, int64_t min, int64_t max) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  return checked_integer(key, *value, min, max);
}

int32_t ConfigFields::required_integer(const char* key, int32_t max) const {
  const auto value = integer(key, 1, max);
  if (!value) fail(std::string(key) + " is missing");
  return static_cast<int32_t>(*value);
}

std::optional<double> ConfigFields::number(const char* key, double min, double max) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  return checked_number(key, *value, min, max);
}

std::optional<bool> ConfigFields::boolean(const char* key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) fail_type(key, "true or false");
  return value->get<bool>();
}

std::optional<std::string> ConfigFields::string(const char* key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) fail_type(key, "a string");
  return value->get<std::string>();
}

std::optional<std::vector<double>> ConfigFields::numbers(const char* key, size_t size, double min, double max) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array() || value->size() != size) fail_type(key, "a list of " + std::to_string(size) + " numbers");
  std::vector<double> out;
  for (const Json& element : *value) out.push_back(checked_number(key, element, min, max));
  return out;
}

std::optional<std::vector<std::string>> ConfigFields::strings(const char* key, size_t size_max) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array() || value->size() > size_max)
    fail_type(key, "a list of at most " + std::to_string(size_max) + " strings");
  std::vector<std::string> out;
  for (const Json& element : *value) {
    if (!element.is_string()) fail_type(key, "a list of strings");
    out.push_back(element.get<std::string>());
  }
  return out;
}

std::optional<std::vector<int64_t>> ConfigFields::integers_or_one(const char* key, size_t size_max, int64_t min,
                                                                  int64_t max) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array()) return std::vector<int64_t>{checked_integer(key, *value, min, max)};
  if (value->size() > size_max) fail_type(key, "a list of at most " + std::to_string(size_max) + " numbers");
  std::vector<int64_t> out;
  for (const Json& element : *value) out.push_back(checked_integer(key, element, min, max));
  return out;
}

std::optional<ConfigFields> ConfigFields::object(const char* key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) fail_type(key, "an object");
  return ConfigFields(*value, source_ + ": " + key);
}

}  // namespace headroom
