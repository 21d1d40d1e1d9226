// A regular file of a model, opened for reading with pread: a file that shrinks while it is read is an error, not a
// SIGBUS. What is no regular file (a pipe, a device, a directory) is refused before a byte of it is read: a model may
// have been unpacked from an archive that held anything. Errors are std::runtime_error, one line that names the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace headroom {

class CheckedFile {
 public:
  explicit CheckedFile(const std::filesystem::path& path);
  CheckedFile(CheckedFile&& other) noexcept;
  CheckedFile& operator=(CheckedFile&&) = delete;
  ~CheckedFile();

  const std::filesystem::path& path() const { return path_; }
  uint64_t bytes() const { return bytes_; }  // when it was opened
  // Reads exactly `count` bytes; a file that ends before is an error.
  void read(uint64_t offset, void* destination, uint64_t count) const;

 private:
  CheckedFile(const std::filesystem::path& path, int fd) : path_(path), fd_(fd) {}  // takes it
  void refuse_pointer() const;

  std::filesystem::path path_;
  int fd_ = -1;
  uint64_t bytes_ = 0;
};

// The whole of a file of text: at most `bytes_max`, and no byte in it that is zero, at which parsers could stop.
std::string read_text_file(const std::filesystem::path& path, size_t bytes_max);
// Nothing if there is no file of that name.
std::optional<std::string> read_text_file_if_there(const std::filesystem::path& path, size_t bytes_max);

}  // namespace headroom
