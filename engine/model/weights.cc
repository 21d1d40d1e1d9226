#include "engine/model/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "engine/model/json_scanner.h"
#include "engine/model/safetensors.h"
#include "kernels/check.h"

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
size_t check_tensors(const Checkpoint& checkpoint, const ModelSpec& spec, const ModelConfig& config,
                     const std::string& source) {
  size_t bytes = 0;
  std::set<std::string_view> expected;
  for (const TensorSpec* tensor : all_tensors(spec)) {
    expected.insert(tensor->name);
    const Checkpoint::Tensor* found = checkpoint.find(tensor->name);
    if (found == nullptr) {
      throw std::runtime_error(source + ": tensor " + tensor->name + " " + shape_text(*tensor) + " is missing");
    }
    const auto shape = found->info->shape();
    const bool fits = tensor->cols == 0 ? shape.size() == 1 && shape[0] == tensor->rows
                                        : shape.size() == 2 && shape[0] == tensor->rows && shape[1] == tensor->cols;
    if (!fits) {
      throw std::runtime_error(source + ": tensor " + tensor->name + " is " + found->info->description() +
                               ", expected " + shape_text(*tensor) + " by config.json");
    }
    if (!found->info->dtype()) {
      throw std::runtime_error(source + ": tensor " + tensor->name + " has type " + std::string(found->info->type) +
                               ", which is not supported; supported: F32, F16, BF16");
    }
    bytes += found->info->bytes();
  }
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    if (expected.contains(name) || is_ignored(name, config)) continue;
    throw std::runtime_error(source + ": tensor " + printable(name) + " " + tensor.info->description() +
                             " is not part of " + config.architecture + " by config.json");
  }
  return bytes;
}

float element_to_f32(const std::byte* data, DType dtype, size_t index) {
  const auto read = [&]<typename T>(T) {
    T value;
    std::memcpy(&value, data + index * sizeof(T), sizeof(T));
    return value;
  };
  switch (dtype) {
    case DType::kF32:
      return read(float{});
    case DType::kBF16:
      return bf16_to_f32(read(uint16_t{}));
    case DType::kF16:
      return f16_to_f32(read(uint16_t{}));
    case DType::kI8:
      break;  // of KV pages alone
  }
  return 0.0f;
}

ParameterVector upload_vector(const std::vector<float>& values, Backend& backend, size_t& bytes) {
  if (values.empty()) return {};
  const size_t vector_bytes = values.size() * sizeof(float);
  auto buffer = backend.allocate(vector_bytes);
  backend.copy_in(buffer->data(), values.data(), vector_bytes);
  bytes += vector_bytes;
  return {std::move(buffer), values.size()};
}

// Supplies the tensors of a spec one stack at a time, so that the host holds no more than the largest stack.
class Source {
 public:
  virtual ~Source() = default;
  virtual std::unique_ptr<Weight> matrix(const Stack& stack) = 0;  // null: no parts
  virtual std::vector<float> vector(const Stack& stack, float random_center) = 0;
};

class CheckpointSource : public Source {
 public:
  CheckpointSource(const Checkpoint& checkpoint, Backend& backend, const LoadProgress& progress, size_t total_bytes)
      : checkpoint_(checkpoint), backend_(backend), progress_(progress), total_bytes_(total_bytes) {}

  std::unique_ptr<Weight> matrix(const Stack& stack) override {
    if (stack.empty()) return nullptr;
    size_t stack_bytes = 0;
    for (const TensorSpec& part : stack) stack_bytes += found(part).info->bytes();
    const auto host = std::make_unique_for_overwrite<std::byte[]>(stack_bytes);
    std::vector<HostWeight> parts;
    size_t at = 0;
    for (const TensorSpec& part : stack) {
      const Checkpoint::Tensor& tensor = found(part);
      tensor.read(host.get() + at);
      parts.push_back({.data = host.get() + at, .dtype = *tensor.info->dtype(), .rows = part.rows, .cols = part.cols});
      at += tensor.info->bytes();
    }
    auto weight = backend_.load_weight(parts);
    report(stack_bytes);
    return weight;
  }

  std::vector<float> vector(const Stack& stack, float /*random_center*/) override {
    std::vector<float> values;
    for (const TensorSpec& part : stack) {
      const Checkpoint::Tensor& tensor = found(part);
      std::vector<std::byte> host(tensor.info->bytes());
      tensor.read(host.data());
      for (size_t i = 0; i < static_cast<size_t>(part.rows); ++i) {
        values.push_back(element_to_f32(host.data(), *tensor.info->dtype(), i));
      }
      report(host.size());
    }
    return values;
  }

 private:
  const Checkpoint::Tensor& found(const TensorSpec& spec) const {
    const Checkpoint::Tensor* tensor = checkpoint_.find(spec.name);
    CHECK(tensor != nullptr) << " " << spec.name;
    return *tensor;
  }

  void report(size_t bytes) {
    done_bytes_ += bytes;
    if (progress_) progress_(done_bytes_, total_bytes_);
  }

  const Checkpoint& checkpoint_;
  Backend& backend_;
  const LoadProgress& progress_;
  size_t total_bytes_;
  size_t done_bytes_ = 0;
};

// Uniform values with the variance 1/cols, so that a gemm keeps the size of a normed row.
class RandomSource : public Source {
 public:
  RandomSource(DType dtype, uint64_t seed, Backend& backend) : dtype_(dtype), state_(seed), backend_(backend) {}

  std::unique_ptr<Weight> matrix(const Stack& stack) override {
    if (stack.empty()) return nullptr;
    int64_t rows = 0;
    for (const TensorSpec& part : stack) rows += part.rows;
    const int64_t cols = stack.front().cols;
    const auto elements = static_cast<size_t>(rows * cols);
    const auto host = std::make_unique_for_overwrite<std::byte[]>(elements * dtype_bytes(dtype_));
    fill(host.get(), elements, std::sqrt(3.0f / static_cast<float>(cols)));
    const HostWeight part{.data = host.get(), .dtype = dtype_, .rows = rows, .cols = cols};
    return backend_.load_weight({&part, 1});
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

  void fill(std::byte* out, size_t elements, float scale) {
    uint64_t bits = 0;
    for (size_t i = 0; i < elements; ++i) {
      bits = i % 4 == 0 ? next() : bits >> 16;  // four elements from each draw
      const float value = scale * unit(static_cast<uint32_t>(bits));
      if (dtype_ == DType::kF32) {
        std::memcpy(out + i * sizeof(float), &value, sizeof(float));
      } else {
        const uint16_t half = dtype_ == DType::kBF16 ? f32_to_bf16(value) : f32_to_f16(value);
        std::memcpy(out + i * sizeof(half), &half, sizeof(half));
      }
    }
  }

  DType dtype_;
  uint64_t state_;
  Backend& backend_;
};

// As saved: as a causal model, or its bare trunk.
ModelSpec checkpoint_spec(const Checkpoint& checkpoint, const ModelConfig& config) {
  return model_spec(config, checkpoint.find("embed_tokens.weight") != nullptr ? "" : "model.");
}

std::unique_ptr<ModelWeights> build(const ModelSpec& spec, Source& source, Backend& backend) {
  auto weights = std::make_unique<ModelWeights>();
  const auto matrix = [&](const Stack& stack) {
    auto weight = source.matrix(stack);
    if (weight) weights->bytes += weight->bytes();
    return weight;
  };
  const auto vector = [&](const Stack& stack, float random_center) {
    return upload_vector(source.vector(stack, random_center), backend, weights->bytes);
  };
  const auto norm = [&](const Stack& stack) { return vector(stack, 1.0f); };
  const auto bias = [&](const Stack& stack) { return vector(stack, 0.0f); };

  weights->embedding = matrix(spec.embedding);
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
    loaded.gate_up = matrix(layer.gate_up);
    loaded.gate_up_bias = bias(layer.gate_up_bias);
    loaded.down = matrix(layer.down);
    loaded.down_bias = bias(layer.down_bias);
    weights->layers.push_back(std::move(loaded));
  }
  weights->final_norm = norm(spec.final_norm);
  weights->lm_head = matrix(spec.lm_head);
  return weights;
}

}  // namespace

void check_checkpoint(const Checkpoint& checkpoint, const ModelConfig& config, const std::string& source) {
  check_tensors(checkpoint, checkpoint_spec(checkpoint, config), config, source);
}

std::unique_ptr<ModelWeights> load_weights(const std::filesystem::path& model_dir, const ModelConfig& config,
                                           Backend& backend, const LoadProgress& progress) {
  const Checkpoint checkpoint(model_dir);
  const ModelSpec spec = checkpoint_spec(checkpoint, config);
  const size_t total_bytes = check_tensors(checkpoint, spec, config, model_dir.string());
  CheckpointSource source(checkpoint, backend, progress, total_bytes);
  return build(spec, source, backend);
}

std::unique_ptr<ModelWeights> random_weights(const ModelConfig& config, DType dtype, uint64_t seed, Backend& backend) {
  RandomSource source(dtype, seed, backend);
  return build(model_spec(config, "model."), source, backend);
}

}  // namespace headroom
