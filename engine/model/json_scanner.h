// A strict JSON scanner for the headers of model files. It walks a buffer without building a tree, so that its memory
// does not grow with the input: a hostile 100 MB header costs the buffer and what the caller keeps. RFC 8259, valid
// UTF-8, depth-bounded. Used by one thread; the buffer must outlive the reader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace headroom {

class JsonScanner {
 public:
  static constexpr int kDepthMax = 64;

  // `source` begins every error: std::runtime_error("model.safetensors: … at byte 17").
  JsonScanner(std::string_view text, std::string source);

  // Calls on_member(key) for every member; it must consume the value with one of the calls below. Keys over
  // `key_bytes_max` are refused.
  template <typename OnMember>
  void read_object(size_t key_bytes_max, const OnMember& on_member) {
    enter('{');
    if (!accept('}')) {
      do {
        const std::string key = read_string(key_bytes_max);
        expect(':');
        on_member(key);
      } while (accept(','));
      expect('}');
    }
    --depth_;
  }

  // Calls on_element() for every element; it must consume the value.
  template <typename OnElement>
  void read_array(const OnElement& on_element) {
    enter('[');
    if (!accept(']')) {
      do on_element();
      while (accept(','));
      expect(']');
    }
    --depth_;
  }

  std::string read_string(size_t bytes_max);
  uint64_t read_unsigned();  // digits alone: no sign, fraction or exponent
  void skip_string();
  void skip_value();
  void expect_end();  // white space alone remains

  [[noreturn]] void fail(const std::string& what) const;

 private:
  void skip_space();
  void enter(char bracket);
  void expect(char c);
  bool accept(char c);
  void scan_string(std::string* out, size_t bytes_max);
  void append_escape(std::string* out);
  uint32_t read_hex4();
  void skip_object();
  void skip_number();
  void skip_digits();
  bool skip_literal(std::string_view literal);

  std::string_view text_;
  std::string source_;
  size_t at_ = 0;
  int depth_ = 0;
};

// The byte at which `text` stops being UTF-8 (no overlong forms, no surrogates), or its size.
size_t valid_utf8_prefix(std::string_view text);

// Text for an error line: control characters and quotes replaced, cut at 80 bytes.
std::string printable(std::string_view text);

}  // namespace headroom
