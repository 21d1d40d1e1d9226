#include "engine/model/gguf_model.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>

#include "engine/model/block_type.h"
#include "engine/model/json_scanner.h"
#include "kernels/check.h"

namespace headroom {
namespace {

using Json = nlohmann::json;

struct Architecture {
  std::string_view gguf;
  const char* hugging_face;
  const char* model_type;
  bool permutes_q_and_k;
};
constexpr Architecture kArchitectures[] = {
    {"llama", "LlamaForCausalLM", "llama", true},      {"qwen2", "Qwen2ForCausalLM", "qwen2", false},
    {"qwen3", "Qwen3ForCausalLM", "qwen3", false},     {"phi3", "Phi3ForCausalLM", "phi3", false},
    {"smollm3", "SmolLM3ForCausalLM", "smollm3", true},
};

// The metadata of one file, with the keys of its architecture.
class Metadata {
 public:
  explicit Metadata(const GgufFile& file) : file_(file), architecture_(find_architecture()) {}

  const Architecture& architecture() const { return architecture_; }
  [[noreturn]] void fail(const std::string& what) const { throw std::runtime_error(file_.path().string() + ": " + what); }
  std::string key(const char* name) const { return std::string(architecture_.gguf) + "." + name; }

  // Null: not there. Numbers that are not finite are refused: JSON has none.
  const Json* find(const std::string& full_key) const {
    const auto found = file_.metadata().find(full_key);
    if (found == file_.metadata().end()) return nullptr;
    if (found->is_number_float() && !std::isfinite(found->get<double>())) fail(full_key + " is not a finite number");
    return &*found;
  }
  // The architecture's own key; one value for all layers.
  const Json* of_architecture(const char* name) const {
    const Json* value = find(key(name));
    if (value != nullptr && !value->is_number() && !value->is_string()) fail(key(name) + " is not one value for all layers, which is not supported");
    return value;
  }
  std::string text(const char* name) const {
    const Json* value = of_architecture(name);
    if (value == nullptr) return "";
    if (!value->is_string()) fail(key(name) + " must be a string");
    return value->get<std::string>();
  }
  double number(const char* name, double otherwise) const {
    const Json* value = of_architecture(name);
    if (value == nullptr) return otherwise;
    if (!value->is_number()) fail(key(name) + " must be a number");
    return value->get<double>();
  }

 private:
  const Architecture& find_architecture() const {
    const auto found = file_.metadata().find("general.architecture");
    if (found == file_.metadata().end() || !found->is_string()) fail("general.architecture is missing");
    const auto name = found->get<std::string>();
    const auto* known = std::ranges::find(kArchitectures, std::string_view(name), &Architecture::gguf);
    if (known != std::end(kArchitectures)) return *known;
    std::string supported;
    for (const Architecture& a : kArchitectures) supported += (supported.empty() ? "" : ", ") + std::string(a.gguf);
    fail("architecture " + printable(name) + " is not supported; supported: " + supported);
  }

  const GgufFile& file_;
  const Architecture& architecture_;
};

// Divisors of RoPE's frequencies that are stored as a tensor.
Json read_factors(const GgufFile& file, const Metadata& metadata, const TensorInfo& tensor) {
  if (tensor.type != "F32" || tensor.rank != 1 || tensor.dims[0] > 4096) metadata.fail("tensor " + tensor.name + " must be a short vector of F32");
  std::vector<float> values(static_cast<size_t>(tensor.dims[0]));
  file.read(tensor, reinterpret_cast<std::byte*>(values.data()));
  for (const float value : values) {
    if (!std::isfinite(value)) metadata.fail("tensor " + tensor.name + " is not finite");
  }
  return values;
}

// In the words of config.json. Llama 3's scaling is stored as divisors alone: LongRoPE with one list and no scale of its own.
Json read_rope(const GgufFile& file, const Metadata& metadata, Json& config) {
  const std::string type = metadata.text("rope.scaling.type");
  const auto copy = [&](const char* name, Json& to, const char* to_name) {
    if (const Json* value = metadata.of_architecture(name)) to[to_name] = *value;
  };
  Json rope = Json::object();
  if (const TensorInfo* factors = file.find("rope_freqs.weight")) {
    if (!type.empty() && type != "none") metadata.fail("rope_freqs.weight beside rope.scaling.type " + printable(type) + " is not supported");
    const Json values = read_factors(file, metadata, *factors);
    return {{"rope_type", "longrope"}, {"short_factor", values}, {"long_factor", values}, {"attention_factor", 1.0},
            {"original_max_position_embeddings", config.at("max_position_embeddings")}};
  }
  const TensorInfo* long_factors = file.find("rope_factors_long.weight");
  const TensorInfo* short_factors = file.find("rope_factors_short.weight");
  if (long_factors != nullptr && short_factors != nullptr) {
    rope = {{"rope_type", "longrope"}, {"long_factor", read_factors(file, metadata, *long_factors)},
            {"short_factor", read_factors(file, metadata, *short_factors)}};
    copy("rope.scaling.attn_factor", rope, "attention_factor");
    copy("rope.scaling.original_context_length", config, "original_max_position_embeddings");
    return rope;
  }
  if (metadata.number("rope.scaling.attn_factor", 1.0) != 1.0) metadata.fail("rope.scaling.attn_factor without factors is not supported");
  if (type.empty() || type == "none") return rope;
  if (type != "linear" && type != "yarn") metadata.fail("rope.scaling.type " + printable(type) + " is not supported; supported: none, linear, yarn");
  rope["rope_type"] = type;
  copy("rope.scaling.factor", rope, "factor");
  copy("rope.scaling.original_context_length", rope, "original_max_position_embeddings");
  copy("rope.scaling.yarn_beta_fast", rope, "beta_fast");
  copy("rope.scaling.yarn_beta_slow", rope, "beta_slow");
  return rope;
}

void read_special_tokens(const Metadata& metadata, Json& config) {
  Json eos = Json::array();
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    const Json* id = metadata.find(key);
    if (id != nullptr && std::find(eos.begin(), eos.end(), *id) == eos.end()) eos.push_back(*id);
  }
  if (!eos.empty()) config["eos_token_id"] = std::move(eos);
  if (const Json* id = metadata.find("tokenizer.ggml.bos_token_id")) config["bos_token_id"] = *id;
}

const char* dtype_of(const TensorInfo* tensor) {
  if (tensor != nullptr && tensor->type == "F32") return "float32";
  return tensor != nullptr && tensor->type == "BF16" ? "bfloat16" : "float16";
}

void read_shape(const GgufFile& file, const Metadata& metadata, Json& config) {
  constexpr std::pair<const char*, const char*> kKeys[] = {
      {"embedding_length", "hidden_size"},          {"block_count", "num_hidden_layers"},
      {"feed_forward_length", "intermediate_size"}, {"attention.head_count", "num_attention_heads"},
      {"context_length", "max_position_embeddings"}, {"attention.layer_norm_rms_epsilon", "rms_norm_eps"}};
  for (const auto& [gguf, hugging_face] : kKeys) {
    const Json* value = metadata.of_architecture(gguf);
    if (value == nullptr) metadata.fail(metadata.key(gguf) + " is missing");
    if (!value->is_number()) metadata.fail(metadata.key(gguf) + " must be a number");
    config[hugging_face] = *value;
  }
  const TensorInfo* embedding = file.find("token_embd.weight");
  if (embedding == nullptr) metadata.fail("tensor token_embd.weight is missing");
  config["vocab_size"] = embedding->dims[0];
  config["tie_word_embeddings"] = file.find("output.weight") == nullptr;
  const Json* kv_heads = metadata.of_architecture("attention.head_count_kv");
  config["num_key_value_heads"] = kv_heads != nullptr ? *kv_heads : config["num_attention_heads"];
  const double heads = metadata.number("attention.head_count", 0.0), model_dim = metadata.number("embedding_length", 0.0);
  const double head_dim = metadata.number("attention.key_length", heads > 0 ? std::floor(model_dim / heads) : 0.0);
  if (!(head_dim >= 1 && head_dim <= 65'536)) metadata.fail("the dimension of a head cannot be told");
  config["head_dim"] = static_cast<int64_t>(head_dim);
  if (metadata.number("attention.value_length", head_dim) != head_dim) metadata.fail(metadata.key("attention.value_length") + " differs from that of keys, which is not supported");
  if (metadata.number("expert_count", 0.0) != 0.0) metadata.fail("a mixture of experts is not supported");
  config["rope_theta"] = metadata.number("rope.freq_base", 10'000.0);
  // Half an element more, so that the product with head_dim does not fall short of the whole number.
  const double rotary_dim = metadata.number("rope.dimension_count", head_dim);
  if (rotary_dim != head_dim) config["partial_rotary_factor"] = (rotary_dim + 0.5) / head_dim;
}

void read_window(const Metadata& metadata, Json& config) {
  const double window = metadata.number("attention.sliding_window", 0.0);
  const std::string_view name = metadata.architecture().gguf;
  if (name == "phi3") config["sliding_window"] = nullptr;
  if (window == 0.0 || window >= config.at("max_position_embeddings").get<double>()) return;
  if (name != "phi3" && name != "llama") metadata.fail("a sliding window is not supported for " + std::string(name));
  if (name == "llama") {
    config["architectures"] = {"MistralForCausalLM"};
    config["model_type"] = "mistral";
  }
  config["sliding_window"] = *metadata.of_architecture("attention.sliding_window");
}

// The part after "blk.N." of a tensor's name. Phi-3's fused gate and up is stored as "ffn_up".
constexpr std::pair<std::string_view, std::string_view> kLayerTensors[] = {
    {"input_layernorm", "attn_norm"},   {"post_attention_layernorm", "ffn_norm"},
    {"self_attn.q_proj", "attn_q"},     {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},     {"self_attn.qkv_proj", "attn_qkv"},
    {"self_attn.o_proj", "attn_output"}, {"self_attn.q_norm", "attn_q_norm"},
    {"self_attn.k_norm", "attn_k_norm"}, {"mlp.gate_proj", "ffn_gate"},
    {"mlp.up_proj", "ffn_up"},          {"mlp.gate_up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"}};

std::string gguf_name(const std::string& name) {
  if (name == "model.embed_tokens.weight") return "token_embd.weight";
  if (name == "model.norm.weight") return "output_norm.weight";
  if (name == "lm_head.weight") return "output.weight";
  constexpr std::string_view kPrefix = "model.layers.";
  CHECK(name.starts_with(kPrefix)) << " " << name;
  const size_t dot = name.find('.', kPrefix.size()), last_dot = name.rfind('.');
  const std::string layer = name.substr(kPrefix.size(), dot - kPrefix.size());
  const std::string_view part = std::string_view(name).substr(dot + 1, last_dot - dot - 1);
  const auto* found = std::ranges::find(kLayerTensors, part, &std::pair<std::string_view, std::string_view>::first);
  CHECK(found != std::end(kLayerTensors)) << " " << name;
  return "blk." + layer + "." + std::string(found->second) + name.substr(last_dot);
}

class GgufStore : public TensorStore {
 public:
  GgufStore(const GgufFile& file, int32_t head_dim, bool permutes) : file_(file), head_dim_(head_dim), permutes_(permutes) {}

  std::string source() const override { return file_.path().string(); }
  std::string config_source() const override { return "its metadata"; }
  std::string spelling(const std::string& name) const override { return gguf_name(name); }
  const TensorInfo* find(const std::string& name) const override { return file_.find(gguf_name(name)); }

  void read(const std::string& name, std::byte* destination) const override {
    const TensorInfo* tensor = find(name);
    CHECK(tensor != nullptr) << " " << name;
    const bool is_q = name.find(".q_proj.") != std::string::npos, is_k = name.find(".k_proj.") != std::string::npos;
    if (!permutes_ || (!is_q && !is_k)) return file_.read(*tensor, destination);
    std::vector<std::byte> stored(tensor->bytes());
    file_.read(*tensor, stored.data());
    // Stored row 2i + j of a head is row j · K/2 + i of the original.
    const int64_t rows = tensor->dims[0], head_dim = head_dim_, half = head_dim / 2;
    const size_t row_bytes = stored.size() / static_cast<size_t>(rows);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t in_head = row % head_dim;
      const int64_t original = row - in_head + in_head % 2 * half + in_head / 2;
      std::copy_n(stored.data() + static_cast<size_t>(row) * row_bytes, row_bytes, destination + static_cast<size_t>(original) * row_bytes);
    }
  }

  bool is_bare_trunk() const override { return false; }

  std::vector<const TensorInfo*> tensors() const override {
    std::vector<const TensorInfo*> all;
    for (const TensorInfo& tensor : file_.tensors()) {
      if (!tensor.name.starts_with("rope_f")) all.push_back(&tensor);  // rope_freqs, rope_factors_*: part of the configuration
    }
    return all;
  }

 private:
  const GgufFile& file_;
  int32_t head_dim_;
  bool permutes_;
};

}  // namespace

ModelConfig config_of_gguf(const GgufFile& file) {
  const Metadata metadata(file);
  Json json = {{"architectures", {metadata.architecture().hugging_face}}, {"model_type", metadata.architecture().model_type}};
  read_shape(file, metadata, json);
  read_window(metadata, json);
  const Json rope = read_rope(file, metadata, json);
  if (!rope.empty()) json["rope_scaling"] = rope;
  read_special_tokens(metadata, json);
  const TensorInfo* q = file.find("blk.0.attn_q.weight");
  json["dtype"] = dtype_of(q != nullptr ? q : file.find("blk.0.attn_qkv.weight"));
  std::string text;
  try {
    text = json.dump();
  } catch (const Json::exception&) {
    metadata.fail("its metadata has a string that is not UTF-8");
  }
  ModelConfig config = ModelConfig::from_json(text, {}, file.path().string() + ": metadata as config.json");
  const auto has = [&](const char* name) { return file.find(std::string("blk.0.") + name) != nullptr; };
  config.qkv_bias = config.qkv_bias || has("attn_q.bias");
  config.o_bias = has("attn_output.bias");
  config.mlp_bias = has("ffn_down.bias");
  return config;
}

std::unique_ptr<TensorStore> tensors_of_gguf(const GgufFile& file, const ModelConfig& config) {
  return std::make_unique<GgufStore>(file, config.head_dim, Metadata(file).architecture().permutes_q_and_k);
}

}  // namespace headroom
