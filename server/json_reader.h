// Strict, bounded reading of the JSON that clients send: text → Json → checked fields. Pure functions and plain values.
// Refused with 400: nesting deeper than depth_max, more than values_max values, an object with more than members_max
// members or with the same key twice, ill-formed UTF-8, lone surrogates, numbers that a double cannot hold. Parsing is
// iterative, so no input exhausts the stack; what it returns is shallow enough for recursive code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>

#include "server/api_error.h"

namespace headroom {

using Json = nlohmann::ordered_json;  // keeps the order of keys: chat templates print tool schemas

struct JsonLimits {
  int32_t depth_max = 64;
  int64_t values_max = 1 << 20;  // scalars, arrays and objects; bounds the memory per request
  int64_t members_max = 4096;    // of one object
};

// `values_read`, if there is one, is counted on from what texts before had: values_max is then for all of them.
std::variant<Json, ApiError> read_json(std::string_view text, const JsonLimits& limits = {}, int64_t* values_read = nullptr);

// The integer that `value` is: 3 and 3.0, never true, "3", 1.5 or 1e20.
std::optional<int64_t> exact_integer(const Json& value);

struct RealRange {
  double min;
  double max;
  bool min_excluded = false;
};

// Reads the fields of one object. An absent or null field leaves the target as it is. The first fault is kept in
// error().
class FieldReader {
 public:
  // REQUIRES: object.is_object(); it outlives the reader. `path` goes in front of names in messages: "stream_options.".
  explicit FieldReader(const Json& object, std::string path = "");

  const Json* find(std::string_view name) const;  // null if absent or JSON null

  void boolean(std::string_view name, bool* value);
  void real(std::string_view name, RealRange range, float* value);
  void string(std::string_view name, size_t bytes_max, std::string* value);
  // Into int32_t, int64_t or an optional of these.
  template <typename T>
  void integer(std::string_view name, int64_t min, int64_t max, T* value) {
    if (const std::optional<int64_t> read = checked_integer(name, min, max)) *value = from_integer<T>(*read);
  }

  void fail(std::string_view name, std::string_view message);
  void adopt_error(const FieldReader& inner) {
    if (!error_) error_ = inner.error_;
  }
  const std::optional<ApiError>& error() const { return error_; }
  std::string path_of(std::string_view name) const { return path_ + std::string(name); }

 private:
  template <typename T>
  static T from_integer(int64_t value) {
    if constexpr (std::is_integral_v<T>) {
      return static_cast<T>(value);
    } else {
      return static_cast<typename T::value_type>(value);
    }
  }
  std::optional<int64_t> checked_integer(std::string_view name, int64_t min, int64_t max);

  const Json& object_;
  std::string path_;
  std::optional<ApiError> error_;
};

}  // namespace headroom
