// A regular file of a model, opened for reading with pread: a file that shrinks while it is read is an error, not a
// SIGBUS. Errors are std::runtime_error, one line that names the file.
#pragma once

#include <cstdint>
#include <filesystem>

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
  std::filesystem::path path_;
  int fd_ = -1;
  uint64_t bytes_ = 0;
};

}  // namespace headroom
