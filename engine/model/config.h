// What a model is: the fields of config.json that the forward pass, the planner and the tokenizer need, checked and in one form.
// Immutable after load; plain data.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/dtype.h"

namespace headroom {

enum class RopeType : uint8_t { kDefault, kLinear, kLlama3, kYarn, kLongRope };

struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  int32_t rotary_dim = 0;  // ≤ head_dim (partial_rotary_factor)
  double factor = 1.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  int32_t original_context_tokens = 0;                   // llama3, yarn, longrope
  double beta_fast = 32.0, beta_slow = 1.0;              // yarn
  bool truncate = true;                                  // yarn
  std::optional<double> attention_factor, mscale, mscale_all_dim;
  std::vector<double> short_factor, long_factor;         // longrope, [rotary_dim/2]
};

// The angles of one rope: inv_freq [rotary_dim/2] and what cos and sin are multiplied with.
struct RopeTable {
  std::vector<float> inv_freq;
  float attention_factor = 1.0f;
};

struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM"
  std::string model_type;    // "llama"
  int32_t layers = 0;
  int32_t model_dim = 0;     // D
  int32_t query_heads = 0;   // Q
  int32_t kv_heads = 0;      // G
  int32_t head_dim = 0;      // K
  int32_t ffn_dim = 0;       // F
  int32_t vocab_size = 0;    // V
  int32_t context_tokens = 0;  // max_position_embeddings
  float norm_eps = 1e-6f;
  bool tied_embeddings = false;
  bool qk_norm = false;         // Qwen3: per-head RMSNorm on q and k
  int32_t layer_norms = 2;      // vectors [D] of a layer
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool fused_weights = false;   // Phi-3: qkv_proj, gate_up_proj
  int32_t window_tokens = 0;    // sliding window of those layers that have one; 0: none
  int32_t window_layers = 0;    // how many: all or none, where the model is served
  std::vector<bool> layer_has_rope;  // [layers]
  RopeConfig rope;
  DType dtype = DType::kBF16;   // as config.json says; the tensors themselves decide
  std::vector<int32_t> eos_token_ids;  // config.json, overridden by generation_config.json
  std::optional<int32_t> bos_token_id;
  bool is_served = true;        // false: only its shape is known, for planning

  int32_t group() const { return query_heads / kv_heads; }
  int64_t parameters() const;   // counted from the shape

  // Reads config.json (and generation_config.json beside it, if there). `path` is a model directory or a config.json.
  // Throws std::runtime_error: one line that names the file, what is wrong and what would do.
  static ModelConfig load(const std::filesystem::path& path);
  // `source` begins every error.
  static ModelConfig from_json(std::string_view config_json, std::string_view generation_config_json = {},
                               const std::string& source = "config.json");

  // For planning: takes models of which only the shape is known too (is_served says so); rope may be unset, special tokens are
  // config.json's. `source` begins every error.
  static ModelConfig shape(const std::filesystem::path& path);
  static ModelConfig shape_from_json(std::string_view config_json, const std::string& source);
};

// Angles as the reference computes them. `served_context_tokens`: longrope takes its long factors iff this exceeds the original context.
RopeTable make_rope_table(const RopeConfig& rope, int32_t served_context_tokens);

}  // namespace headroom
