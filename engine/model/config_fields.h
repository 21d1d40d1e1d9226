// Checked reading of a parsed config.json: each call names its field, its type and its range, and refuses anything else
// with one line. `null` counts as absent, as in the reference.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace headroom {

// A file of a model's configuration, no more of it than parse_config_object() takes.
std::string read_config_text(const std::filesystem::path& path);

// Parses a JSON object of at most 512 KiB and 64 levels without duplicate keys; `source` begins every error.
nlohmann::json parse_config_object(std::string_view text, const std::string& source);

class ConfigFields {
 public:
  // `object` must outlive this.
  ConfigFields(const nlohmann::json& object, std::string source) : object_(&object), source_(std::move(source)) {}

  bool has(const char* key) const { return find(key) != nullptr; }
  std::optional<int64_t> integer(const char* key, int64_t min, int64_t max) const;
  std::optional<double> number(const char* key, double min, double max) const;
  std::optional<bool> boolean(const char* key) const;
  std::optional<std::string> string(const char* key) const;
  std::optional<std::vector<double>> numbers(const char* key, size_t size, double min, double max) const;
  std::optional<std::vector<std::string>> strings(const char* key, size_t size_max) const;
  std::optional<std::vector<int64_t>> integers_or_one(const char* key, size_t size_max, int64_t min, int64_t max) const;
  std::optional<ConfigFields> object(const char* key) const;

  int32_t required_integer(const char* key, int32_t max) const;  // 1 … max
  [[noreturn]] void fail(const std::string& what) const;
  const nlohmann::json& json() const { return *object_; }

 private:
  const nlohmann::json* find(const char* key) const;
  [[noreturn]] void fail_type(const char* key, const std::string& expected) const;
  int64_t checked_integer(const char* key, const nlohmann::json& value, int64_t min, int64_t max) const;
  double checked_number(const char* key, const nlohmann::json& value, double min, double max) const;

  const nlohmann::json* object_;
  std::string source_;
};

}  // namespace headroom
