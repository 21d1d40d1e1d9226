// Files in the GGUF format, versions 2 and 3, little endian: typed metadata and tensors in one file. Everything is
// checked before a tensor can be read; see https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
//
// Tensors are described as those of safetensors are, with the dimensions in that order (rows first; GGUF writes the
// fastest first). Errors are std::runtime_error, one line that names the file. Used by one thread at a time.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <memory>
#include <string_view>
#include <vector>

#include "engine/files/checked_file.h"
#include "engine/model/safetensors.h"

namespace headroom {

// What a file may make us hold, each refused with a line that names it.
inline constexpr uint64_t kGgufHeaderBytesMax = 256 << 20;
inline constexpr uint64_t kGgufKeysMax = 65'536;
inline constexpr uint64_t kGgufKeyBytesMax = 65'535;       // the format's own limit
inline constexpr uint64_t kGgufStringBytesMax = 4 << 20;   // of a value: chat templates are the longest
inline constexpr uint64_t kGgufArrayElementsMax = 1 << 22;  // of all arrays: a vocabulary, its merges
inline constexpr uint64_t kGgufAlignmentMax = 1 << 20;

class GgufFile {
 public:
  explicit GgufFile(const std::filesystem::path& path);
  GgufFile(GgufFile&&) noexcept;
  ~GgufFile();

  const std::filesystem::path& path() const { return file_.path(); }
  // A JSON object of all keys; strings are bytes as they stand in the file. Arrays have elements of one type.
  const nlohmann::json& metadata() const { return *metadata_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // by name
  const TensorInfo* find(std::string_view name) const;                 // null: not there

  // REQUIRES: `tensor` is of this file; `destination` holds tensor.bytes().
  void read(const TensorInfo& tensor, std::byte* destination) const;

 private:
  CheckedFile file_;
  std::unique_ptr<nlohmann::json> metadata_;
  uint64_t data_begin_ = 0;
  std::vector<TensorInfo> tensors_;
};

}  // namespace headroom
