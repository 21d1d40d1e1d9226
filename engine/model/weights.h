// The weights of a model in the backend's memory.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "engine/model/config.h"
#include "engine/model/tensor_store.h"
#include "kernels/backend.h"

namespace headroom {

// A vector of parameters in the backend's memory, widened to fp32; empty when the model has none.
class ParameterVector {
 public:
  ParameterVector() = default;
  ParameterVector(std::unique_ptr<Buffer> buffer, size_t size) : buffer_(std::move(buffer)), size_(size) {}
  Vector view() const { return size_ == 0 ? Vector() : Vector(reinterpret_cast<const float*>(buffer_->data()), size_); }

 private:
  std::unique_ptr<Buffer> buffer_;
  size_t size_ = 0;
};

struct LayerWeights {
  ParameterVector attention_norm;   // [D]
  std::unique_ptr<Weight> qkv;      // [(Q+2G)·K, D]
  ParameterVector qkv_bias;         // [(Q+2G)·K]
  ParameterVector q_norm, k_norm;   // [K]
  std::unique_ptr<Weight> o;        // [D, Q·K]
  ParameterVector o_bias;           // [D]
  ParameterVector ffn_norm;         // [D]
  std::unique_ptr<Weight> gate_up;  // [2F, D]
  ParameterVector gate_up_bias;     // [2F]
  std::unique_ptr<Weight> down;     // [D, F]
  ParameterVector down_bias;        // [D]
};

struct ModelWeights {
  std::unique_ptr<Weight> embedding;  // [V, D]
  std::vector<LayerWeights> layers;
  ParameterVector final_norm;         // [D]
  std::unique_ptr<Weight> lm_head;    // [V, D]; null: tied to the embedding
  size_t bytes = 0;                   // as they stand in the backend's memory
  const Weight& output() const { return lm_head ? *lm_head : *embedding; }
};

// Every tensor that the config asks for is there, with its shape and a type that the kernels take, and nothing else is. Throws
// std::runtime_error: one line that begins with the store's source.
void check_checkpoint(const TensorStore& store, const ModelConfig& config);

// Called while loading with bytes done and bytes in all.
using LoadProgress = std::function<void(size_t done_bytes, size_t total_bytes)>;

// What the matrices are kept as. Unset: as the checkpoint has them, or what is nearest to it (block_type.h).
struct WeightTypes {
  std::optional<DType> layers;
  std::optional<DType> embedding;  // and the output

  // Of one type for all; but with int4 the embedding and the output, whose errors reach every token, are int8.
  static WeightTypes of(std::optional<DType> type) {
    return {type, type == DType::kI4 ? std::optional(DType::kI8) : type};
  }
};

// Loads model.safetensors, or the shards that model.safetensors.index.json names. Throws std::runtime_error: one line naming the
// file and tensor and what to do.
std::unique_ptr<ModelWeights> load_weights(const std::filesystem::path& model_dir, const ModelConfig& config, Backend& backend,
                                           const LoadProgress& progress = {}, const WeightTypes& types = {});
std::unique_ptr<ModelWeights> load_weights(const TensorStore& store, const ModelConfig& config, Backend& backend,
                                           const LoadProgress& progress = {}, const WeightTypes& types = {});

// The bytes of what load_weights() makes of the store, before a backend rounds matrices up to whole panels. Checks the tensors' names,
// shapes and types as load_weights() does, and throws as it does.
size_t predicted_weight_bytes(const TensorStore& store, const ModelConfig& config, const WeightTypes& types);

// The types that load_weights() hands matrices to the backend in. Checks and throws as predicted_weight_bytes() does.
std::set<DType> loaded_weight_types(const TensorStore& store, const ModelConfig& config, const WeightTypes& types);

// Weights of the config's shape with seeded random values, for benchmarks of shapes whose checkpoint is not at hand.
std::unique_ptr<ModelWeights> random_weights(const ModelConfig& config, DType dtype, uint64_t seed, Backend& backend);

}  // namespace headroom
