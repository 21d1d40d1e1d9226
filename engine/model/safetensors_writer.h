// Writes one file in the safetensors format: the header at once, then the data of its tensors in the order of the
// header, in pieces of any size, so that a file larger than memory can be written. Errors are std::runtime_error, one
// line that names the file. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "engine/model/safetensors.h"

namespace headroom {

class SafetensorsWriter {
 public:
  // Makes the file, which must not be there. REQUIRES: tensors lie behind each other from 0, in the order given.
  SafetensorsWriter(const std::filesystem::path& path, std::span<const TensorInfo> tensors);
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;
  ~SafetensorsWriter();

  void append(std::span<const std::byte> data);
  // The file is whole and on disk. REQUIRES: all data was appended.
  void finish();

 private:
  void write_all(const void* data, size_t bytes);

  std::filesystem::path path_;
  int fd_ = -1;
  uint64_t missing_bytes_ = 0;
};

}  // namespace headroom
