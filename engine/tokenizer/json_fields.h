// Typed access to the fields of tokenizer.json. Every wrong type, missing field or unknown kind is a
// std::runtime_error that names the place in the file; nothing here asserts.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace headroom::json_fields {

using Json = nlohmann::json;

[[noreturn]] inline void fail(const std::string& where, const std::string& problem) {
  throw std::runtime_error(where + ": " + problem);
}

inline const Json* find(const Json& object, const std::string& where, const char* key) {
  if (!object.is_object()) fail(where, "must be an object");
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

inline const Json& require(const Json& object, const std::string& where, const char* key) {
  const Json* value = find(object, where, key);
  if (value == nullptr) fail(where, std::string("needs the field \"") + key + "\"");
  return *value;
}

inline const std::string& as_string(const Json& value, const std::string& where) {
  if (!value.is_string()) fail(where, "must be a string");
  return value.get_ref<const std::string&>();
}

inline const std::string& require_string(const Json& object, const std::string& where, const char* key) {
  return as_string(require(object, where, key), where + "." + key);
}

inline const Json& require_array(const Json& object, const std::string& where, const char* key) {
  const Json& value = require(object, where, key);
  if (!value.is_array()) fail(where + "." + key, "must be an array");
  return value;
}

// An absent or null field has the default.
inline bool get_bool(const Json& object, const std::string& where, const char* key, bool default_value) {
  const Json* value = find(object, where, key);
  if (value == nullptr) return default_value;
  if (!value->is_boolean()) fail(where + "." + key, "must be true or false");
  return value->get<bool>();
}

// An integer in [0, max].
inline int64_t as_integer(const Json& value, const std::string& where, int64_t max) {
  const bool fits = value.is_number_unsigned()
                        ? value.get<uint64_t>() <= static_cast<uint64_t>(max)
                        : value.is_number_integer() && value.get<int64_t>() >= 0 && value.get<int64_t>() <= max;
  if (!fits) fail(where, "must be an integer from 0 to " + std::to_string(max));
  return value.get<int64_t>();
}

// Steps of normalisers, pre-tokenisers, decoders and post-processors in the order in which they run: a "Sequence" is
// flattened, null is no step. `list_key` names the array of a Sequence.
inline void flatten_sequence(const Json& step, const std::string& where, const char* list_key, int depth_left,
                             std::vector<const Json*>* steps) {
  constexpr size_t kStepsMax = 16;
  if (step.is_null()) return;
  if (require_string(step, where, "type") != "Sequence") {
    if (steps->size() == kStepsMax) fail(where, "holds more than " + std::to_string(kStepsMax) + " steps");
    steps->push_back(&step);
    return;
  }
  if (depth_left == 0) fail(where, "nests Sequence too deeply");
  for (const Json& inner : require_array(step, where, list_key)) {
    if (inner.is_null()) fail(where, "holds null as a step");
    flatten_sequence(inner, where, list_key, depth_left - 1, steps);
  }
}

inline std::vector<const Json*> steps_of(const Json& root, const char* key, const char* list_key) {
  constexpr int kSequenceDepthMax = 8;
  std::vector<const Json*> steps;
  if (const Json* step = find(root, "tokenizer.json", key)) {
    flatten_sequence(*step, key, list_key, kSequenceDepthMax, &steps);
  }
  return steps;
}

}  // namespace headroom::json_fields
