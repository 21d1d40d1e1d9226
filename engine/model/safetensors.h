// Checkpoints in the safetensors format, one file or shards. Everything is checked before a tensor can be read, as the
// format's reference implementation checks it; see https://github.com/huggingface/safetensors#format.
//
// Data is read with pread, never mapped: a file that shrinks while it is read is an error, not a SIGBUS. Nothing is
// assumed about alignment. Errors are std::runtime_error, one line that names the file. Used by one thread at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/files/checked_file.h"
#include "kernels/dtype.h"

namespace headroom {

// What a file may make us hold, each refused with a line that names it.
inline constexpr uint64_t kHeaderBytesMax = 100'000'000;  // the format's own limit
inline constexpr uint64_t kIndexBytesMax = 32 << 20;
inline constexpr size_t kTensorsMax = 65'536;
inline constexpr size_t kShardsMax = 1'024;
inline constexpr size_t kTensorNameBytesMax = 1'024;
inline constexpr size_t kTensorRankMax = 8;

struct TensorInfo {
  std::string name;
  std::string_view type;  // as the format names it: "BF16"; static storage
  std::array<int64_t, kTensorRankMax> dims{};
  uint8_t rank = 0;
  uint64_t begin = 0, end = 0;  // bytes, from the start of the data

  std::span<const int64_t> shape() const { return {dims.data(), rank}; }
  uint64_t bytes() const { return end - begin; }
  std::optional<DType> dtype() const;  // none: a type that the kernels do not take
  std::string description() const;     // "BF16 [32, 64]"
  bool operator==(const TensorInfo&) const = default;
};

// The tensors that a header declares, by name. `data_bytes` is what follows the header in the file.
std::vector<TensorInfo> parse_safetensors_header(std::string_view header, uint64_t data_bytes,
                                                 const std::string& source);

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // by name
  const TensorInfo* find(std::string_view name) const;                 // null: not there

  // REQUIRES: `tensor` is of this file; `destination` holds tensor.bytes().
  void read(const TensorInfo& tensor, std::byte* destination) const;
  // As many bytes as `destination` takes, from byte `begin` of the tensor. REQUIRES: they lie within it.
  void read_part(const TensorInfo& tensor, uint64_t begin, std::span<std::byte> destination) const;

 private:
  CheckedFile file_;
  uint64_t data_begin_ = 0;
  std::vector<TensorInfo> tensors_;
};

// model.safetensors, or else the shards that model.safetensors.index.json names.
class Checkpoint {
 public:
  struct Tensor {
    const TensorInfo* info = nullptr;
    const SafetensorsFile* file = nullptr;
    void read(std::byte* destination) const { file->read(*info, destination); }
  };

  explicit Checkpoint(const std::filesystem::path& model_dir);

  const std::map<std::string_view, Tensor>& tensors() const { return tensors_; }
  const std::vector<SafetensorsFile>& files() const { return files_; }
  const Tensor* find(std::string_view name) const;

 private:
  void open_shards(const std::filesystem::path& model_dir, const std::filesystem::path& index);

  std::vector<SafetensorsFile> files_;
  std::map<std::string_view, Tensor> tensors_;
};

}  // namespace headroom
