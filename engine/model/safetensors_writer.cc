#include "engine/model/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels/check.h"

namespace headroom {
namespace {

[[noreturn]] void fail_errno(const std::filesystem::path& path, const char* verb) {
  const int error = errno;
  throw std::runtime_error(path.string() + ": cannot " + verb + ": " + std::strerror(error));
}

// With the length in front, filled up with spaces so that the data begins at a multiple of 8.
std::string header_bytes(std::span<const TensorInfo> tensors) {
  nlohmann::ordered_json header = {
      {"__metadata__", {{"format", "pt"}}}};  // without it the reference's loaders refuse the file
  for (const TensorInfo& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.type},
                           {"shape", std::vector(tensor.shape().begin(), tensor.shape().end())},
                           {"data_offsets", {tensor.begin, tensor.end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string length(8, '\0');
  for (size_t i = 0; i < length.size(); ++i) length[i] = static_cast<char>(text.size() >> (8 * i) & 0xFF);
  return length + text;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::span<const TensorInfo> tensors)
    : path_(path) {
  for (const TensorInfo& tensor : tensors) {
    CHECK_EQ(tensor.begin, missing_bytes_) << tensor.name;
    missing_bytes_ = tensor.end;
  }
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0) fail_errno(path, "make");
  try {
    const std::string header = header_bytes(tensors);
    write_all(header.data(), header.size());
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ >= 0) ::close(fd_);
}

void SafetensorsWriter::append(std::span<const std::byte> data) {
  CHECK_LE(data.size(), missing_bytes_);
  missing_bytes_ -= data.size();
  write_all(data.data(), data.size());
}

void SafetensorsWriter::finish() {
  CHECK_EQ(missing_bytes_, 0u);
  if (::fsync(fd_) != 0) fail_errno(path_, "write");
  if (::close(std::exchange(fd_, -1)) != 0) fail_errno(path_, "write");
}

void SafetensorsWriter::write_all(const void* data, size_t bytes) {
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(fd_, from, bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_errno(path_, "write");
    from += written;
    bytes -= static_cast<size_t>(written);
  }
}

}  // namespace headroom
