#include "engine/model/convert_kv_heads.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/model/config.h"
#include "engine/model/config_fields.h"
#include "engine/model/open_model.h"
#include "engine/model/quantized_checkpoint.h"
#include "engine/model/safetensors.h"
#include "engine/model/safetensors_writer.h"
#include "engine/model/tensor_store.h"
#include "engine/model/weights.h"
#include "kernels/op_checks.h"

namespace headroom {
namespace {

namespace fs = std::filesystem;

constexpr size_t kCopyBytes = 16 << 20;
constexpr const char* kIndexName = "model.safetensors.index.json";

std::string numbers_text(const std::vector<int32_t>& numbers) {
  std::string text;
  for (const int32_t number : numbers) text += (text.empty() ? "" : ", ") + std::to_string(number);
  return text;
}

// Each head becomes several, or several become one; and our kernels can serve the result.
bool is_possible(const ModelConfig& config, int32_t kv_heads) {
  return kv_heads > 0 && config.query_heads % kv_heads == 0 && config.query_heads / kv_heads <= kQueryGroupMax &&
         (kv_heads % config.kv_heads == 0 || config.kv_heads % kv_heads == 0);
}

void check_request(const ModelConfig& config, const ConvertOptions& options, const std::string& source) {
  if (options.kv_heads == config.kv_heads || !is_possible(config, options.kv_heads)) {
    std::vector<int32_t> possible;
    for (int32_t heads = 1; heads <= config.query_heads; ++heads) {
      if (heads != config.kv_heads && is_possible(config, heads)) possible.push_back(heads);
    }
    throw std::runtime_error(source + " has " + std::to_string(config.query_heads) + " query heads on " +
                             std::to_string(config.kv_heads) + " KV heads, which cannot become " +
                             std::to_string(options.kv_heads) +
                             (possible.empty() ? "" : "; possible: " + numbers_text(possible)));
  }
  if (config.qk_norm && options.kv_heads < config.kv_heads && !options.force) {
    throw std::runtime_error(source +
                             ": k_norm scales each key to one length after its projection, so the mean of projections "
                             "is not the mean of keys, "
                             "and merged heads are wrong beyond what the mean loses; --force merges them all the same");
  }
}

// Bytes of a tensor: kept as they are, or those of all KV heads.
struct ByteRange {
  uint64_t bytes;
  bool is_kv;
};

// The ranges of a tensor, in order. REQUIRES: it has the shape that the config gives it.
std::vector<ByteRange> byte_ranges(const TensorInfo& tensor, const ModelConfig& config) {
  const std::string_view name = tensor.name;
  for (const char* part :
       {"self_attn.k_proj.weight", "self_attn.k_proj.bias", "self_attn.v_proj.weight", "self_attn.v_proj.bias"}) {
    if (name.ends_with(part)) return {{tensor.bytes(), true}};
  }
  if (name.ends_with("self_attn.qkv_proj.weight")) {
    const uint64_t head_bytes = tensor.bytes() / static_cast<uint64_t>(config.query_heads + 2 * config.kv_heads);
    const uint64_t kv_bytes = head_bytes * static_cast<uint64_t>(config.kv_heads);
    return {{head_bytes * static_cast<uint64_t>(config.query_heads), false}, {kv_bytes, true}, {kv_bytes, true}};
  }
  return {{tensor.bytes(), false}};
}

// The mean of `count` blocks of `bytes` each, summed in fp64. REQUIRES: a type that the kernels take.
void mean_of_blocks(const std::byte* blocks, size_t count, size_t bytes, DType dtype, std::byte* mean) {
  const size_t element_bytes = dtype_bytes(dtype);
  for (size_t at = 0; at < bytes; at += element_bytes) {
    double sum = 0;
    for (size_t block = 0; block < count; ++block) {
      const std::byte* from = blocks + block * bytes + at;
      if (dtype == DType::kF32) {
        float value;
        std::memcpy(&value, from, sizeof(value));
        sum += value;
      } else {
        uint16_t bits;
        std::memcpy(&bits, from, sizeof(bits));
        sum += dtype == DType::kBF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
      }
    }
    const auto value = static_cast<float>(sum / static_cast<double>(count));
    const uint16_t bits = dtype == DType::kBF16 ? f32_to_bf16(value) : f32_to_f16(value);
    std::memcpy(mean + at, dtype == DType::kF32 ? static_cast<const void*>(&value) : &bits, element_bytes);
  }
}

// Writes the files of one checkpoint with another number of KV heads.
class Converter {
 public:
  Converter(const ModelConfig& config, int32_t kv_heads, size_t total_bytes,
            const std::function<void(size_t, size_t)>& progress)
      : config_(config), kv_heads_(kv_heads), total_bytes_(total_bytes), progress_(progress) {}

  void write_file(const SafetensorsFile& file, const fs::path& path) {
    std::vector<const TensorInfo*> sources;
    for (const TensorInfo& tensor : file.tensors()) sources.push_back(&tensor);
    std::ranges::sort(sources, {}, [](const TensorInfo* tensor) {
      return std::pair(tensor->begin, tensor->end);
    });  // keeps their alignment
    std::vector<TensorInfo> tensors;
    uint64_t at = 0;
    for (const TensorInfo* source : sources) {
      TensorInfo& tensor = tensors.emplace_back(*source);
      const uint64_t bytes = converted_bytes(*source);
      if (bytes != source->bytes())
        tensor.dims[0] = static_cast<int64_t>(bytes / (source->bytes() / static_cast<uint64_t>(source->dims[0])));
      tensor.begin = at;
      tensor.end = at += bytes;
    }
    SafetensorsWriter writer(path, tensors);
    for (const TensorInfo* source : sources) write_tensor(file, *source, writer);
    writer.finish();
  }

  uint64_t converted_bytes(const TensorInfo& tensor) const {
    uint64_t bytes = 0;
    for (const ByteRange& range : byte_ranges(tensor, config_)) {
      bytes += range.is_kv ? range.bytes / static_cast<uint64_t>(config_.kv_heads) * static_cast<uint64_t>(kv_heads_)
                           : range.bytes;
    }
    return bytes;
  }

 private:
  void write_tensor(const SafetensorsFile& file, const TensorInfo& tensor, SafetensorsWriter& writer) {
    uint64_t at = 0;
    for (const ByteRange& range : byte_ranges(tensor, config_)) {
      range.is_kv ? write_kv(file, tensor, at, range.bytes, writer) : copy(file, tensor, at, range.bytes, writer);
      at += range.bytes;
    }
  }

  void copy(const SafetensorsFile& file, const TensorInfo& tensor, uint64_t begin, uint64_t bytes,
            SafetensorsWriter& writer) {
    for (uint64_t at = 0; at < bytes; at += kCopyBytes) {
      buffer_.resize(std::min<uint64_t>(kCopyBytes, bytes - at));
      read(file, tensor, begin + at);
      writer.append(buffer_);
    }
  }

  void write_kv(const SafetensorsFile& file, const TensorInfo& tensor, uint64_t begin, uint64_t bytes,
                SafetensorsWriter& writer) {
    const size_t head_bytes = bytes / static_cast<uint64_t>(config_.kv_heads);
    const auto repeats = static_cast<size_t>(std::max(1, kv_heads_ / config_.kv_heads));
    const auto merged = static_cast<size_t>(std::max(1, config_.kv_heads / kv_heads_));
    std::vector<std::byte> head(head_bytes);
    for (uint64_t at = 0; at < bytes; at += merged * head_bytes) {
      buffer_.resize(merged * head_bytes);
      read(file, tensor, begin + at);
      if (merged > 1) {
        mean_of_blocks(buffer_.data(), merged, head_bytes, *tensor.dtype(), head.data());
      } else {
        head = buffer_;
      }
      for (size_t i = 0; i < repeats; ++i) writer.append(head);
    }
  }

  // As much as the buffer takes.
  void read(const SafetensorsFile& file, const TensorInfo& tensor, uint64_t begin) {
    file.read_part(tensor, begin, buffer_);
    done_bytes_ += buffer_.size();
    if (progress_) progress_(done_bytes_, total_bytes_);
  }

  const ModelConfig& config_;
  const int32_t kv_heads_;
  const size_t total_bytes_;
  const std::function<void(size_t, size_t)>& progress_;
  size_t done_bytes_ = 0;
  std::vector<std::byte> buffer_;
};

void write_json(const fs::path& path, const nlohmann::ordered_json& json) {
  std::ofstream file(path, std::ios::binary);
  file << json.dump(2) << '\n';
  file.close();
  if (!file) throw std::runtime_error(path.string() + ": cannot write");
}

bool is_weights(const fs::path& path) {
  constexpr std::string_view kExtensions[] = {".safetensors", ".bin",  ".pt",      ".pth",
                                              ".gguf",        ".onnx", ".msgpack", ".h5"};
  return std::ranges::find(kExtensions, path.extension().string()) != std::end(kExtensions);
}

void copy_other_files(const fs::path& in, const fs::path& out) {
  for (const fs::directory_entry& entry : fs::directory_iterator(in)) {
    const fs::path name = entry.path().filename();
    if (!entry.is_regular_file() || is_weights(name) || name == "config.json" || name == kIndexName) continue;
    fs::copy_file(entry.path(), out / name);
  }
}

void write_index(const Checkpoint& checkpoint, size_t total_bytes, const fs::path& path) {
  nlohmann::ordered_json index = {{"metadata", {{"total_size", total_bytes}}},
                                  {"weight_map", nlohmann::ordered_json::object()}};
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    index["weight_map"][std::string(name)] = tensor.file->path().filename().string();
  }
  write_json(path, index);
}

// A directory beside `out` that goes when it was not made final.
class Draft {
 public:
  explicit Draft(const fs::path& out) : out_(fs::absolute(out).lexically_normal()) {
    if (!out_.has_filename()) out_ = out_.parent_path();
    if (fs::exists(out_) && !(fs::is_directory(out_) && fs::is_empty(out_))) {
      throw std::runtime_error(out.string() + " exists and is not empty: name a new directory");
    }
    if (!fs::is_directory(out_.parent_path()))
      throw std::runtime_error(out_.parent_path().string() + " is not a directory");
    path_ = out_.parent_path() / ("." + out_.filename().string() + ".draft-" + std::to_string(::getpid()));
    if (!fs::create_directory(path_)) throw std::runtime_error(path_.string() + " exists: remove it");
  }
  Draft(const Draft&) = delete;
  Draft& operator=(const Draft&) = delete;
  ~Draft() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }
  // rename() replaces an empty directory.
  void make_final() {
    fs::rename(path_, out_);
    path_.clear();
  }

 private:
  fs::path out_, path_;
};

}  // namespace

void convert_kv_heads(const fs::path& in, const fs::path& out, const ConvertOptions& options,
                      const std::function<void(size_t, size_t)>& progress) {
  if (is_gguf_path(in)) throw std::runtime_error(in.string() + " is a GGUF file: convert the checkpoint that it was made of, a directory in Hugging Face layout");
  const ModelConfig config = ModelConfig::load(in);
  check_request(config, options, in.string());
  if (quantization_of(in)) {
    throw std::runtime_error(in.string() + ": its weights are quantised; convert the fp32, fp16 or bf16 checkpoint");
  }
  const Checkpoint checkpoint(in);
  check_checkpoint(*open_safetensors(in), config);
  size_t in_bytes = 0, out_bytes = 0;
  for (const auto& [name, tensor] : checkpoint.tensors()) in_bytes += tensor.info->bytes();
  Converter converter(config, options.kv_heads, in_bytes, progress);
  for (const auto& [name, tensor] : checkpoint.tensors()) out_bytes += converter.converted_bytes(*tensor.info);

  Draft draft(out);
  if (fs::space(draft.path()).available < out_bytes) {
    throw std::runtime_error(out.string() + ": the weights take " + std::to_string(out_bytes) +
                             " bytes, and there is room for " + std::to_string(fs::space(draft.path()).available));
  }
  for (const SafetensorsFile& file : checkpoint.files())
    converter.write_file(file, draft.path() / file.path().filename());
  if (checkpoint.files().size() > 1 || fs::exists(in / kIndexName))
    write_index(checkpoint, out_bytes, draft.path() / kIndexName);
  auto config_json = nlohmann::ordered_json::parse(read_config_text(in / "config.json"));
  config_json["num_key_value_heads"] = options.kv_heads;
  write_json(draft.path() / "config.json", config_json);
  copy_other_files(in, draft.path());
  draft.make_final();
}

}  // namespace headroom
