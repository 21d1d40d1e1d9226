#include "engine/model/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "engine/model/block_type.h"
#include "engine/model/json_scanner.h"
#include "kernels/check.h"
#include "kernels/cpu/thread_pool.h"

namespace headroom {
namespace {

// A tensor of the checkpoint, by its name there, and the shape that the config gives it. `cols` 0: a vector.
struct TensorSpec {
  std::string name;
  int64_t rows = 0;
  int64_t cols = 0;
};

// Where each weight comes from: the parts are stacked by rows. No parts: the model has no such weight.
using Stack = std::vector<TensorSpec>;

struct LayerSpec {
  Stack attention_norm, qkv, qkv_bias, q_norm, k_norm, o, o_bias, ffn_norm, gate_up, gate_up_bias, down, down_bias;
};

struct ModelSpec {
  Stack embedding, final_norm, lm_head;
  std::vector<LayerSpec> layers;
};

LayerSpec layer_spec(const ModelConfig& config, const std::string& prefix) {
  const int64_t d = config.model_dim, f = config.ffn_dim, k = config.head_dim;
  const int64_t q_rows = config.query_heads * k, kv_rows = config.kv_heads * k;
  const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
  LayerSpec spec;
  spec.attention_norm = {{prefix + "input_layernorm.weight", d}};
  spec.ffn_norm = {{prefix + "post_attention_layernorm.weight", d}};
  if (config.fused_weights) {
    spec.qkv = {{attention + "qkv_proj.weight", q_rows + 2 * kv_rows, d}};
    spec.gate_up = {{mlp + "gate_up_proj.weight", 2 * f, d}};
  } else {
    spec.qkv = {{attention + "q_proj.weight", q_rows, d},
                {attention + "k_proj.weight", kv_rows, d},
                {attention + "v_proj.weight", kv_rows, d}};
    spec.gate_up = {{mlp + "gate_proj.weight", f, d}, {mlp + "up_proj.weight", f, d}};
  }
  spec.o = {{attention + "o_proj.weight", d, q_rows}};
  spec.down = {{mlp + "down_proj.weight", d, f}};
  if (config.qkv_bias) {
    spec.qkv_bias = {{attention + "q_proj.bias", q_rows},
                     {attention + "k_proj.bias", kv_rows},
                     {attention + "v_proj.bias", kv_rows}};
  }
  if (config.o_bias) spec.o_bias = {{attention + "o_proj.bias", d}};
  if (config.mlp_bias) {
    spec.gate_up_bias = {{mlp + "gate_proj.bias", f}, {mlp + "up_proj.bias", f}};
    spec.down_bias = {{mlp + "down_proj.bias", d}};
  }
  if (config.qk_norm) {
    spec.q_norm = {{attention + "q_norm.weight", k}};
    spec.k_norm = {{attention + "k_norm.weight", k}};
  }
  return spec;
}

// `prefix`: "model." as the causal models are saved, "" as their bare trunk is.
ModelSpec model_spec(const ModelConfig& config, const std::string& prefix) {
  ModelSpec spec;
  spec.embedding = {{prefix + "embed_tokens.weight", config.vocab_size, config.model_dim}};
  for (int32_t i = 0; i < config.layers; ++i) {
    spec.layers.push_back(layer_spec(config, prefix + "layers." + std::to_string(i) + "."));
  }
  spec.final_norm = {{prefix + "norm.weight", config.model_dim}};
  if (!config.tied_embeddings) spec.lm_head = {{"lm_head.weight", config.vocab_size, config.model_dim}};
  return spec;
}

std::vector<const Stack*> layer_stacks(const LayerSpec& layer) {
  return {
      &layer.attention_norm, &layer.qkv,      &layer.qkv_bias, &layer.q_norm,       &layer.k_norm, &layer.o,
      &layer.o_bias,         &layer.ffn_norm, &layer.gate_up,  &layer.gate_up_bias, &layer.down,   &layer.down_bias};
}

std::vector<const TensorSpec*> all_tensors(const ModelSpec& spec) {
  std::vector<const TensorSpec*> tensors;
  const auto add = [&](const Stack& stack) {
    for (const TensorSpec& tensor : stack) tensors.push_back(&tensor);
  };
  add(spec.embedding);
  for (const LayerSpec& layer : spec.layers) {
    for (const Stack* stack : layer_stacks(layer)) add(*stack);
  }
  add(spec.final_norm);
  add(spec.lm_head);
  return tensors;
}

std::string shape_text(const TensorSpec& spec) {
  return "[" + std::to_string(spec.rows) + (spec.cols == 0 ? "" : ", " + std::to_string(spec.cols)) + "]";
}

// Tensors of published checkpoints that carry nothing: angles that are computed, and the copy of a tied embedding.
bool is_ignored(std::string_view name, const ModelConfig& config) {
  return name.ends_with("rotary_emb.inv_freq") || (config.tied_embeddings && name == "lm_head.weight");
}

// Every expected tensor is there with its shape and a type that the kernels take, and nothing else is. Returns their
// bytes.
size_t check_tensors(const TensorStore& store, const ModelSpec& spec, const ModelConfig& config) {
  size_t bytes = 0;
  std::set<const TensorInfo*> expected;
  const std::string source = store.source();
  for (const TensorSpec* tensor : all_tensors(spec)) {
    const TensorInfo* found = store.find(tensor->name);
    if (found == nullptr) {
      throw std::runtime_error(source + ": tensor " + store.spelling(tensor->name) + " " + shape_text(*tensor) +
                               " is missing");
    }
    expected.insert(found);
    const auto shape = found->shape();
    const bool fits = tensor->cols == 0 ? shape.size() == 1 && shape[0] == tensor->rows
                                        : shape.size() == 2 && shape[0] == tensor->rows && shape[1] == tensor->cols;
    if (!fits) {
      throw std::runtime_error(source + ": tensor " + found->name + " is " + found->description() + ", expected " +
                               shape_text(*tensor) + " by " + store.config_source());
    }
    if (find_block_type(found->type) == nullptr) {
      throw std::runtime_error(source + ": tensor " + found->name + " has type " + std::string(found->type) +
                               ", which is not supported; supported: F32, F16, BF16");
    }
    bytes += found->bytes();
  }
  for (const TensorInfo* tensor : store.tensors()) {
    if (expected.contains(tensor) || is_ignored(tensor->name, config)) continue;
    throw std::runtime_error(source + ": tensor " + printable(tensor->name) + " " + tensor->description() +
                             " is not part of " + config.architecture + " by " + store.config_source());
  }
  return bytes;
}

ParameterVector upload_vector(const std::vector<float>& values, Backend& backend, size_t& bytes) {
  if (values.empty()) return {};
  const size_t vector_bytes = values.size() * sizeof(float);
  auto buffer = backend.allocate(vector_bytes);
  backend.copy_in(buffer->data(), values.data(), vector_bytes);
  bytes += vector_bytes;
  return {std::move(buffer), values.size()};
}

// REQUIRES: check_tensors().
const BlockType& type_of(const TensorStore& store, const TensorSpec& part) {
  const TensorInfo* info = store.find(part.name);
  CHECK(info != nullptr) << " " << part.name;
  const BlockType* type = find_block_type(info->type);
  CHECK(type != nullptr) << " " << part.name;
  return *type;
}

// What all parts of a stack become; unset: each stays what it is. Quantised parts must agree: int4 fits into int8 as it
// is, and beside a part that is not quantised all are widened.
std::optional<DType> common_type(const TensorStore& store, const Stack& stack, std::optional<DType> wanted) {
  if (wanted) return wanted;
  bool all_quantized = true, any_quantized = false, same = true;
  for (const TensorSpec& part : stack) {
    const DType kept = type_of(store, part).kept;
    all_quantized &= is_quantized(kept);
    any_quantized |= is_quantized(kept);
    same &= kept == type_of(store, stack.front()).kept;
  }
  if (same || !any_quantized) return std::nullopt;
  return all_quantized ? DType::kI8 : DType::kF32;
}

enum class Role : uint8_t { kLayer, kGateUp, kEmbedding };  // kEmbedding: the output too

std::unique_ptr<Weight> load(Backend& backend, std::span<const HostWeight> parts, Role role) {
  return role == Role::kGateUp ? backend.load_gate_up(parts) : backend.load_weight(parts);
}

// Supplies the tensors of a spec one stack at a time, so that the host holds no more than the largest stack.
class Source {
 public:
  virtual ~Source() = default;
  virtual std::unique_ptr<Weight> matrix(const Stack& stack, Role role) = 0;  // null: no parts
  virtual std::vector<float> vector(const Stack& stack, float random_center) = 0;
};

// Memory that is used again, as fresh memory costs as much as what is read into it.
class HostMemory {
 public:
  std::byte* of(size_t bytes) {
    if (bytes > bytes_) {
      data_.reset();  // before the new one is taken
      data_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
      bytes_ = bytes;
    }
    return data_.get();
  }
  void shrink(size_t bytes_max) {
    if (bytes_ <= bytes_max) return;
    data_.reset();
    bytes_ = 0;
  }

 private:
  std::unique_ptr<std::byte[]> data_;
  size_t bytes_ = 0;
};

class CheckpointSource : public Source {
 public:
  CheckpointSource(const TensorStore& store, Backend& backend, const WeightTypes& types, const LoadProgress& progress,
                   size_t total_bytes)
      : store_(store), backend_(backend), types_(types), progress_(progress), total_bytes_(total_bytes), pool_(usable_physical_cores()) {}

  std::unique_ptr<Weight> matrix(const Stack& stack, Role role) override {
    if (stack.empty()) return nullptr;
    const std::optional<DType> wanted = common_type(store_, stack, role == Role::kEmbedding ? types_.embedding : types_.layers);
    size_t host_bytes = 0, file_bytes = 0;
    for (const TensorSpec& part : stack) {
      host_bytes += static_cast<size_t>(part.rows) * weight_row_bytes(part_type(part, wanted), part.cols);
      file_bytes += info(part).bytes();
    }
    std::byte* const host = kept_.of(host_bytes);
    std::vector<HostWeight> parts;
    size_t at = 0;
    for (const TensorSpec& part : stack) {
      const DType dtype = part_type(part, wanted);
      read_as(part, dtype, host + at);
      parts.push_back({.data = host + at, .dtype = dtype, .rows = part.rows, .cols = part.cols});
      at += static_cast<size_t>(part.rows) * weight_row_bytes(dtype, part.cols);
    }
    auto weight = load(backend_, parts, role);
    for (HostMemory* memory : {&kept_, &stored_}) memory->shrink(total_bytes_ / kHostShare);
    report(file_bytes);
    return weight;
  }

  std::vector<float> vector(const Stack& stack, float /*random_center*/) override {
    std::vector<float> values;
    for (const TensorSpec& part : stack) {
      std::vector<std::byte> host(info(part).bytes());
      store_.read(part.name, host.data());
      const size_t at = values.size();
      values.resize(at + static_cast<size_t>(part.rows));
      type(part).decode(host.data(), part.rows, values.data() + at);
      report(host.size());
    }
    return values;
  }

 private:
  static constexpr size_t kHostShare = 32;  // of the weights: what is kept from one stack to the next

  const TensorInfo& info(const TensorSpec& part) const { return *store_.find(part.name); }
  const BlockType& type(const TensorSpec& part) const { return type_of(store_, part); }
  DType part_type(const TensorSpec& part, std::optional<DType> wanted) const { return wanted.value_or(type(part).kept); }

  void read_as(const TensorSpec& part, DType dtype, std::byte* destination) {
    const BlockType& stored = type(part);
    if (stored.kept == dtype && stored.kept_as_stored) return store_.read(part.name, destination);
    std::byte* const host = stored_.of(info(part).bytes());
    store_.read(part.name, host);
    const uint64_t from_bytes = stored.row_bytes(part.cols), to_bytes = weight_row_bytes(dtype, part.cols);
    pool_.for_range(part.rows, 1, [&](int64_t begin, int64_t end) {
      convert_rows(stored, dtype, host + static_cast<uint64_t>(begin) * from_bytes, end - begin, part.cols,
                   destination + static_cast<uint64_t>(begin) * to_bytes);
    });
  }

  void report(size_t bytes) {
    done_bytes_ += bytes;
    if (progress_) progress_(done_bytes_, total_bytes_);
  }

  const TensorStore& store_;
  Backend& backend_;
  const WeightTypes types_;
  const LoadProgress& progress_;
  size_t total_bytes_;
  size_t done_bytes_ = 0;
  ThreadPool pool_;           // converts; the backend packs with its own
  HostMemory stored_, kept_;  // a part as it is in the file, if that is not how it is kept; a stack as it is
};

// Uniform values with the variance 1/cols, so that a gemm keeps the size of a normed row.
class RandomSource : public Source {
 public:
  RandomSource(const WeightTypes& types, uint64_t seed, Backend& backend)
      : types_(types), state_(seed), backend_(backend) {}

  std::unique_ptr<Weight> matrix(const Stack& stack, Role role) override {
    if (stack.empty()) return nullptr;
    int64_t rows = 0;
    for (const TensorSpec& part : stack) rows += part.rows;
    const int64_t cols = stack.front().cols;
    const DType dtype = (role == Role::kEmbedding ? types_.embedding : types_.layers).value();
    const size_t row_bytes = weight_row_bytes(dtype, cols);
    const auto host = std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(rows) * row_bytes);
    const float scale = std::sqrt(3.0f / static_cast<float>(cols));
    std::vector<float> row(static_cast<size_t>(cols));
    uint64_t bits = 0, drawn = 0;
    const int64_t rows_drawn = std::min(rows, std::max<int64_t>(1, kDrawnElementsMax / cols));
    for (int64_t r = 0; r < rows_drawn; ++r) {
      for (float& value : row) {
        bits = drawn++ % 4 == 0 ? next() : bits >> 16;  // four elements from each draw
        value = scale * unit(static_cast<uint32_t>(bits));
      }
      convert_rows(*find_block_type("F32"), dtype, reinterpret_cast<const std::byte*>(row.data()), 1, cols,
                   host.get() + static_cast<size_t>(r) * row_bytes);
    }
    for (int64_t r = rows_drawn; r < rows; r += rows_drawn) {
      std::memcpy(host.get() + static_cast<size_t>(r) * row_bytes, host.get(),
                  static_cast<size_t>(std::min(rows_drawn, rows - r)) * row_bytes);
    }
    const HostWeight part{.data = host.get(), .dtype = dtype, .rows = rows, .cols = cols};
    return load(backend_, {&part, 1}, role);
  }

  std::vector<float> vector(const Stack& stack, float random_center) override {
    std::vector<float> values;
    for (const TensorSpec& part : stack) {
      for (int64_t i = 0; i < part.rows; ++i)
        values.push_back(random_center + 0.1f * unit(static_cast<uint32_t>(next())));
    }
    return values;
  }

 private:
  static constexpr int64_t kDrawnElementsMax = 1 << 22;  // of a matrix; larger ones repeat their rows, as drawing takes longer than copying

  // SplitMix64 (Steele, Lea and Flood, 2014).
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

  // The low 16 bits as a number in [−1, 1).
  static float unit(uint32_t bits) {
    return static_cast<float>(static_cast<int32_t>(bits & 0xFFFFu) - 32768) * 0x1p-15f;
  }

  WeightTypes types_;
  uint64_t state_;
  Backend& backend_;
};

// As saved: as a causal model, or its bare trunk.
ModelSpec store_spec(const TensorStore& store, const ModelConfig& config) {
  return model_spec(config, store.is_bare_trunk() ? "" : "model.");
}

std::unique_ptr<ModelWeights> build(const ModelSpec& spec, Source& source, Backend& backend) {
  auto weights = std::make_unique<ModelWeights>();
  const auto matrix = [&](const Stack& stack, Role role = Role::kLayer) {
    auto weight = source.matrix(stack, role);
    if (weight) weights->bytes += weight->bytes();
    return weight;
  };
  const auto vector = [&](const Stack& stack, float random_center) {
    return upload_vector(source.vector(stack, random_center), backend, weights->bytes);
  };
  const auto norm = [&](const Stack& stack) { return vector(stack, 1.0f); };
  const auto bias = [&](const Stack& stack) { return vector(stack, 0.0f); };

  // The largest come first: at their time there is little else in memory beside the host's copy.
  weights->embedding = matrix(spec.embedding, Role::kEmbedding);
  weights->lm_head = matrix(spec.lm_head, Role::kEmbedding);
  for (const LayerSpec& layer : spec.layers) {
    LayerWeights loaded;
    loaded.attention_norm = norm(layer.attention_norm);
    loaded.qkv = matrix(layer.qkv);
    loaded.qkv_bias = bias(layer.qkv_bias);
    loaded.q_norm = norm(layer.q_norm);
    loaded.k_norm = norm(layer.k_norm);
    loaded.o = matrix(layer.o);
    loaded.o_bias = bias(layer.o_bias);
    loaded.ffn_norm = norm(layer.ffn_norm);
    loaded.gate_up = matrix(layer.gate_up, Role::kGateUp);
    loaded.gate_up_bias = bias(layer.gate_up_bias);
    loaded.down = matrix(layer.down);
    loaded.down_bias = bias(layer.down_bias);
    weights->layers.push_back(std::move(loaded));
  }
  weights->final_norm = norm(spec.final_norm);
  return weights;
}

}  // namespace

void check_checkpoint(const TensorStore& store, const ModelConfig& config) {
  check_tensors(store, store_spec(store, config), config);
}

std::unique_ptr<ModelWeights> load_weights(const TensorStore& store, const ModelConfig& config, Backend& backend,
                                           const LoadProgress& progress, const WeightTypes& types) {
  const ModelSpec spec = store_spec(store, config);
  const size_t total_bytes = check_tensors(store, spec, config);
  CheckpointSource source(store, backend, types, progress, total_bytes);
  return build(spec, source, backend);
}

namespace {

// Calls visit(part, the type that it is loaded as) for every tensor. Vectors are always fp32.
void for_each_loaded(const TensorStore& store, const ModelConfig& config, const WeightTypes& types,
                     const std::function<void(const TensorSpec&, DType)>& visit) {
  const ModelSpec spec = store_spec(store, config);
  check_tensors(store, spec, config);
  const auto add = [&](const Stack& stack, std::optional<DType> wanted) {
    for (const TensorSpec& part : stack) {
      visit(part, part.cols == 0 ? DType::kF32 : common_type(store, stack, wanted).value_or(type_of(store, part).kept));
    }
  };
  add(spec.embedding, types.embedding);
  for (const LayerSpec& layer : spec.layers) {
    for (const Stack* stack : layer_stacks(layer)) add(*stack, types.layers);
  }
  add(spec.final_norm, std::nullopt);
  add(spec.lm_head, types.embedding);
}

}  // namespace

size_t predicted_weight_bytes(const TensorStore& store, const ModelConfig& config, const WeightTypes& types) {
  size_t bytes = 0;
  for_each_loaded(store, config, types, [&](const TensorSpec& part, DType type) {
    bytes += static_cast<size_t>(part.rows) * (part.cols == 0 ? dtype_bytes(type) : weight_row_bytes(type, part.cols));
  });
  return bytes;
}

std::set<DType> loaded_weight_types(const TensorStore& store, const ModelConfig& config, const WeightTypes& types) {
  std::set<DType> loaded;
  for_each_loaded(store, config, types, [&](const TensorSpec& part, DType type) {
    if (part.cols > 0) loaded.insert(type);
  });
  return loaded;
}

std::unique_ptr<ModelWeights> load_weights(const std::filesystem::path& model_dir, const ModelConfig& config,
                                           Backend& backend, const LoadProgress& progress, const WeightTypes& types) {
  return load_weights(*open_safetensors(model_dir), config, backend, progress, types);
}

std::unique_ptr<ModelWeights> random_weights(const ModelConfig& config, DType dtype, uint64_t seed, Backend& backend) {
  RandomSource source(WeightTypes::of(dtype), seed, backend);
  return build(model_spec(config, "model."), source, backend);
}

}  // namespace headroom
