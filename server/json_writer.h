// Writes JSON into a string: what the server answers is always well-formed, whatever bytes the texts hold.
// Commas are its work, the order of calls is the caller's. A plain value, one thread at a time.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace headroom {

// Appends `text` with its quotes; an ill-formed UTF-8 sequence becomes U+FFFD.
void append_json_string(std::string_view text, std::string* out);

class JsonWriter {
 public:
  explicit JsonWriter(std::string* out) : out_(*out) {}
  JsonWriter(const JsonWriter&) = delete;
  JsonWriter& operator=(const JsonWriter&) = delete;

  JsonWriter& begin_object() { return open('{'); }
  JsonWriter& end_object() { return close('}'); }
  JsonWriter& begin_array() { return open('['); }
  JsonWriter& end_array() { return close(']'); }
  JsonWriter& key(std::string_view name);

  JsonWriter& string(std::string_view text);
  JsonWriter& integer(int64_t value);
  JsonWriter& number(double value);  // the shortest text that reads back equal; null when it is not finite
  JsonWriter& number(float value);
  JsonWriter& boolean(bool value) { return raw(value ? "true" : "false"); }
  JsonWriter& null() { return raw("null"); }
  JsonWriter& raw(std::string_view json);  // REQUIRES: one well-formed value

 private:
  JsonWriter& open(char bracket);
  JsonWriter& close(char bracket);
  void separate();

  std::string& out_;
  bool needs_comma_ = false;
};

}  // namespace headroom
