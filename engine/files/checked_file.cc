#include "engine/files/checked_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace headroom {
namespace {

[[noreturn]] void fail_errno(const std::filesystem::path& path, const char* verb) {
  const int error = errno;
  throw std::runtime_error(path.string() + ": cannot " + verb + ": " + std::strerror(error));
}

}  // namespace

CheckedFile::CheckedFile(const std::filesystem::path& path)
    : CheckedFile(path, ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (fd_ < 0) fail_errno(path, "open");
  struct stat status {};
  if (::fstat(fd_, &status) != 0) fail_errno(path, "stat");
  if (!S_ISREG(status.st_mode)) throw std::runtime_error(path.string() + ": not a regular file");
  bytes_ = static_cast<uint64_t>(status.st_size);
  refuse_pointer();
}

// What a clone without Git LFS has in the place of large files.
void CheckedFile::refuse_pointer() const {
  constexpr std::string_view kBegin = "version https://git-lfs.github.com/spec/";
  constexpr uint64_t kPointerBytesMax = 1024;
  if (bytes_ < kBegin.size() || bytes_ > kPointerBytesMax) return;
  std::string begin(kBegin.size(), ' ');
  read(0, begin.data(), begin.size());
  if (begin == kBegin) throw std::runtime_error(path_.string() + ": a pointer of Git LFS in place of the file: run `git lfs pull` where it was cloned");
}

CheckedFile::CheckedFile(CheckedFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), bytes_(other.bytes_) {}

CheckedFile::~CheckedFile() {
  if (fd_ >= 0) ::close(fd_);
}

void CheckedFile::read(uint64_t offset, void* destination, uint64_t count) const {
  constexpr uint64_t kChunkBytesMax = 64 << 20;
  auto* out = static_cast<char*>(destination);
  while (count > 0) {
    const ssize_t got = ::pread(fd_, out, std::min(count, kChunkBytesMax), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_errno(path_, "read");
    if (got == 0) throw std::runtime_error(path_.string() + ": the file was truncated while it was being read");
    out += got;
    offset += static_cast<uint64_t>(got);
    count -= static_cast<uint64_t>(got);
  }
}

std::string read_text_file(const std::filesystem::path& path, size_t bytes_max) {
  const CheckedFile file(path);
  if (file.bytes() > bytes_max) throw std::runtime_error(path.string() + ": over " + std::to_string(bytes_max) + " bytes");
  std::string text(static_cast<size_t>(file.bytes()), '\0');
  file.read(0, text.data(), text.size());
  if (const size_t zero = text.find('\0'); zero != text.npos) {
    throw std::runtime_error(path.string() + ": not text: byte " + std::to_string(zero) + " is zero");
  }
  return text;
}

std::optional<std::string> read_text_file_if_there(const std::filesystem::path& path, size_t bytes_max) {
  std::error_code ignored;
  if (std::filesystem::symlink_status(path, ignored).type() == std::filesystem::file_type::not_found) return std::nullopt;
  return read_text_file(path, bytes_max);
}

}  // namespace headroom
