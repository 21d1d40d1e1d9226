#include "engine/model/config.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <stdexcept>
#include <utility>

#include "engine/model/config_fields.h"
#include "engine/model/json_scanner.h"
#include "engine/model/quantized_checkpoint.h"
#include "kernels/op_checks.h"

namespace headroom {
namespace {

// The largest published models are below each of these by 2× or more; above them a file is wrong or hostile.
constexpr int32_t kLayersMax = 512;
constexpr int32_t kModelDimMax = 65'536;
constexpr int32_t kHeadsMax = 1'024;
constexpr int32_t kFfnDimMax = 1 << 19;
constexpr int32_t kVocabMax = 1 << 21;
constexpr int32_t kContextTokensMax = 1 << 26;
constexpr size_t kEosIdsMax = 64;

// What the reference's configuration class of a family does when config.json is silent, and what its attention does.
struct Family {
  const char* architecture;
  const char* model_type;
  double rope_theta = 10000.0;
  float norm_eps = 1e-6f;
  bool tied_embeddings = false;
  int32_t head_dim = 0;  // 0: model_dim / query_heads
  bool qk_norm = false;
  bool qkv_bias = false;              // always there, whatever attention_bias says
  bool reads_attention_bias = false;  // on q, k, v and o
  bool reads_mlp_bias = false;
  bool fused_weights = false;
  bool partial_rotary = false;
  bool nope_layers = false;
  bool window_switch = false;   // a sliding window is in use only where use_sliding_window says so
  int32_t window_pattern = 0;   // every so many layers one sees everything, where layer_types does not say
  int32_t layer_norms = 2;
  const char* activation = "silu";
  bool plan_only = false;       // its shape is known; it is not served
};

constexpr Family kFamilies[] = {
    {.architecture = "LlamaForCausalLM", .model_type = "llama", .reads_attention_bias = true, .reads_mlp_bias = true},
    {.architecture = "MistralForCausalLM", .model_type = "mistral"},
    {.architecture = "Qwen2ForCausalLM", .model_type = "qwen2", .qkv_bias = true, .window_switch = true},
    {.architecture = "Qwen3ForCausalLM",
     .model_type = "qwen3",
     .head_dim = 128,
     .qk_norm = true,
     .reads_attention_bias = true,
     .window_switch = true},
    {.architecture = "SmolLM3ForCausalLM",
     .model_type = "smollm3",
     .rope_theta = 2e6,
     .tied_embeddings = true,
     .reads_attention_bias = true,
     .reads_mlp_bias = true,
     .nope_layers = true,
     .window_switch = true},
    {.architecture = "Phi3ForCausalLM",
     .model_type = "phi3",
     .norm_eps = 1e-5f,
     .fused_weights = true,
     .partial_rotary = true},
    {.architecture = "Gemma3ForCausalLM",
     .model_type = "gemma3_text",
     .tied_embeddings = true,
     .head_dim = 256,
     .qk_norm = true,
     .reads_attention_bias = true,
     .window_pattern = 6,
     .layer_norms = 4,
     .activation = "gelu_pytorch_tanh",
     .plan_only = true},
};

// What a config is read for: planning takes shapes that cannot be served.
enum class Purpose : uint8_t { kServe, kPlan };

const Family& find_family(const ConfigFields& fields, Purpose purpose) {
  const auto architectures = fields.strings("architectures", 8);
  if (!architectures || architectures->size() != 1) fields.fail("architectures must name one architecture");
  const std::string& name = architectures->front();
  const auto* family = std::ranges::find(kFamilies, std::string_view(name), &Family::architecture);
  const auto is_taken = [purpose](const Family& known) { return purpose == Purpose::kPlan || !known.plan_only; };
  if (family == std::end(kFamilies) || !is_taken(*family)) {
    std::string supported;
    for (const Family& known : kFamilies) {
      if (is_taken(known)) supported += (supported.empty() ? "" : ", ") + std::string(known.architecture);
    }
    fields.fail("architecture " + printable(name) + " is not supported; supported: " + supported);
  }
  const std::string model_type = fields.string("model_type").value_or(family->model_type);
  if (model_type != family->model_type) {
    fields.fail("model_type " + printable(model_type) + " is not that of " + name + " (" + family->model_type + ")");
  }
  return *family;
}

// Settings that change the result and that the forward pass does not have.
void refuse_unsupported(const ConfigFields& fields, const Family& family) {
  if (const auto quantization = fields.object("quantization_config")) read_quantization(*quantization);
  for (const char* key : {"hidden_act", "hidden_activation"}) {
    std::string activation = fields.string(key).value_or(family.activation);
    if (activation == "swish") activation = "silu";
    if (activation != family.activation) {
      fields.fail(std::string(key) + " " + printable(activation) + " is not supported; supported: " +
                  family.activation);
    }
  }
  const auto refuse_flag = [&](const char* key, bool is_supported) {
    if (!is_supported && fields.boolean(key).value_or(false)) {
      fields.fail(std::string(key) + " is not supported for " + family.architecture);
    }
  };
  refuse_flag("attention_bias", family.reads_attention_bias || family.qkv_bias);
  refuse_flag("mlp_bias", family.reads_mlp_bias);
  refuse_flag("lm_head_bias", false);
  refuse_flag("is_encoder_decoder", false);
}

void read_shape(const ConfigFields& fields, const Family& family, ModelConfig& config) {
  config.layers = fields.required_integer("num_hidden_layers", kLayersMax);
  config.model_dim = fields.required_integer("hidden_size", kModelDimMax);
  config.query_heads = fields.required_integer("num_attention_heads", kHeadsMax);
  config.ffn_dim = fields.required_integer("intermediate_size", kFfnDimMax);
  config.vocab_size = fields.required_integer("vocab_size", kVocabMax);
  config.context_tokens = fields.required_integer("max_position_embeddings", kContextTokensMax);
  // Mistral and SmolLM3 have defaults of their own that no published config relies on: silence would be a guess.
  const bool is_mha_by_default = std::string_view(family.architecture) != "MistralForCausalLM" && !family.nope_layers;
  config.kv_heads = fields.has("num_key_value_heads") || !is_mha_by_default
                        ? fields.required_integer("num_key_value_heads", kHeadsMax)
                        : config.query_heads;
  if (config.query_heads % config.kv_heads != 0) {
    fields.fail("num_attention_heads " + std::to_string(config.query_heads) +
                " is not a multiple of num_key_value_heads " + std::to_string(config.kv_heads));
  }
  if (config.group() > kQueryGroupMax) {
    fields.fail(std::to_string(config.group()) + " query heads share a KV head; at most " +
                std::to_string(kQueryGroupMax) + " can");
  }
  const auto head_dim = fields.integer("head_dim", 1, kHeadDimMax);
  if (head_dim) {
    config.head_dim = static_cast<int32_t>(*head_dim);
  } else if (family.head_dim != 0) {
    config.head_dim = family.head_dim;
  } else if (config.model_dim % config.query_heads == 0 && config.model_dim / config.query_heads <= kHeadDimMax) {
    config.head_dim = config.model_dim / config.query_heads;
  } else {
    fields.fail("head_dim is missing, and hidden_size / num_attention_heads is not a whole number up to " +
                std::to_string(kHeadDimMax));
  }
  if (config.head_dim % kHeadDimStep != 0) {
    fields.fail("head_dim " + std::to_string(config.head_dim) + " is not a multiple of " +
                std::to_string(kHeadDimStep));
  }
  config.norm_eps = static_cast<float>(fields.number("rms_norm_eps", 1e-12, 1.0).value_or(family.norm_eps));
  config.tied_embeddings = fields.boolean("tie_word_embeddings").value_or(family.tied_embeddings);
  config.qk_norm = family.qk_norm;
  config.layer_norms = family.layer_norms;
  config.fused_weights = family.fused_weights;
  const bool attention_bias = family.reads_attention_bias && fields.boolean("attention_bias").value_or(false);
  config.qkv_bias = family.qkv_bias || attention_bias;
  config.o_bias = attention_bias;
  config.mlp_bias = family.reads_mlp_bias && fields.boolean("mlp_bias").value_or(false);
}

// SmolLM3: no_rope_layers[i] is 0 where layer i has no RoPE; without the list, every no_rope_layer_interval-th layer.
std::vector<bool> read_layer_has_rope(const ConfigFields& fields, const Family& family, int32_t layers) {
  std::vector<bool> has_rope(static_cast<size_t>(layers), true);
  if (!family.nope_layers) return has_rope;
  if (const auto flags = fields.numbers("no_rope_layers", has_rope.size(), 0, 1)) {
    for (size_t i = 0; i < has_rope.size(); ++i) has_rope[i] = (*flags)[i] != 0.0;
    return has_rope;
  }
  const int64_t interval = fields.integer("no_rope_layer_interval", 1, kLayersMax).value_or(4);
  for (size_t i = 0; i < has_rope.size(); ++i) has_rope[i] = (static_cast<int64_t>(i) + 1) % interval != 0;
  return has_rope;
}

// Which layers have the sliding window, as the family's reference decides it.
std::vector<bool> read_sliding_layers(const ConfigFields& fields, const Family& family, const ModelConfig& config,
                                      bool has_window) {
  const auto layers = static_cast<size_t>(config.layers);
  if (const auto types = fields.strings("layer_types", kLayersMax)) {
    if (types->size() != layers) fields.fail("layer_types must have one entry per layer");
    std::vector<bool> sliding;
    for (const std::string& type : *types) {
      if (type != "full_attention" && type != "sliding_attention")
        fields.fail("layer type " + printable(type) + " is not supported");
      sliding.push_back(type == "sliding_attention");
    }
    return sliding;
  }
  if (!has_window) return std::vector<bool>(layers, false);
  if (family.window_pattern > 0) {
    const int64_t pattern =
        fields.integer("sliding_window_pattern", 1, kLayersMax)
            .value_or(fields.integer("_sliding_window_pattern", 1, kLayersMax).value_or(family.window_pattern));
    std::vector<bool> sliding(layers);
    for (size_t i = 0; i < layers; ++i) sliding[i] = (static_cast<int64_t>(i) + 1) % pattern != 0;
    return sliding;
  }
  if (family.qk_norm || family.qkv_bias) {  // Qwen: the first max_window_layers see everything
    const int64_t full_layers = fields.integer("max_window_layers", 0, INT32_MAX).value_or(28);
    std::vector<bool> sliding(layers);
    for (size_t i = 0; i < layers; ++i) sliding[i] = static_cast<int64_t>(i) >= full_layers;
    return sliding;
  }
  if (family.nope_layers) {  // SmolLM3: the layers without RoPE
    std::vector<bool> sliding = config.layer_has_rope;
    sliding.flip();
    return sliding;
  }
  return std::vector<bool>(layers, true);
}

// One window for all layers or none: where the layers differ, a model can be planned, and is not served.
void read_window(const ConfigFields& fields, const Family& family, Purpose purpose, ModelConfig& config) {
  constexpr int64_t kWindowDefault = 4096;  // of Mistral and Gemma 3
  const bool is_mistral = std::string_view(family.architecture) == "MistralForCausalLM";
  const bool is_llama = std::string_view(family.architecture) == "LlamaForCausalLM";
  int64_t window = fields.integer("sliding_window", 1, INT32_MAX).value_or(0);  // 0: none
  if (is_llama) window = 0;  // the reference has no window here and ignores the key
  const bool has_default = is_mistral || family.window_pattern > 0;
  if (has_default && !fields.json().contains("sliding_window")) window = kWindowDefault;
  if (family.window_switch && !fields.boolean("use_sliding_window").value_or(false)) window = 0;

  const std::vector<bool> sliding = read_sliding_layers(fields, family, config, window > 0);
  const auto sliding_layers = std::ranges::count(sliding, true);
  if (sliding_layers == 0) {
    if (window > 0 && !family.window_switch) fields.fail("sliding_window is set, but layer_types has no sliding layer");
    return;
  }
  if (window == 0) fields.fail("layer_types has sliding layers, but no sliding_window is in use");
  if (window >= config.context_tokens) return;  // a window that reaches over the whole context hides nothing
  if (sliding_layers != config.layers && purpose == Purpose::kServe) {
    fields.fail("a sliding window on " + std::to_string(sliding_layers) + " of " + std::to_string(config.layers) +
                " layers is not supported; supported: on all or none");
  }
  config.window_tokens = static_cast<int32_t>(window);
  config.window_layers = static_cast<int32_t>(sliding_layers);
}

RopeType read_rope_type(const ConfigFields& rope, const Family& family) {
  const std::string name = rope.string("rope_type").value_or(rope.string("type").value_or("default"));
  if (name == "default") return RopeType::kDefault;
  if (name == "linear" && !family.partial_rotary) return RopeType::kLinear;
  if (name == "llama3" && !family.partial_rotary) return RopeType::kLlama3;
  // Early Phi-3 checkpoints call LongRoPE "su" or "yarn".
  if (name == "longrope" || (family.partial_rotary && (name == "su" || name == "yarn"))) return RopeType::kLongRope;
  if (name == "yarn") return RopeType::kYarn;
  rope.fail("rope type " + printable(name) + " is not supported for " + family.architecture + "; supported: " +
            (family.partial_rotary ? "default, longrope" : "default, linear, llama3, yarn, longrope"));
}

double required_number(const ConfigFields& fields, const char* key, double min, double max) {
  const auto value = fields.number(key, min, max);
  if (!value) fields.fail(std::string(key) + " is missing");
  return *value;
}

void read_longrope(const ConfigFields& scaling, const ModelConfig& config, RopeConfig& rope) {
  const auto size = static_cast<size_t>(rope.rotary_dim / 2);
  const auto read_factors = [&](const char* key) {
    auto factors = scaling.numbers(key, size, 1e-3, 1e6);
    if (!factors) scaling.fail(std::string(key) + " is missing");
    return *std::move(factors);
  };
  rope.short_factor = read_factors("short_factor");
  rope.long_factor = read_factors("long_factor");
  rope.factor =
      scaling.number("factor", 1e-3, 1e6)
          .value_or(static_cast<double>(config.context_tokens) / static_cast<double>(rope.original_context_tokens));
  rope.attention_factor = scaling.number("attention_factor", 1e-3, 1e3);
  if (rope.original_context_tokens < 2) scaling.fail("original_max_position_embeddings must be at least 2");
}

void read_yarn(const ConfigFields& scaling, RopeConfig& rope) {
  rope.factor = required_number(scaling, "factor", 1e-3, 1e6);
  // 0 means the default, as in the reference.
  const double beta_fast = scaling.number("beta_fast", 0.0, 1e6).value_or(0.0);
  const double beta_slow = scaling.number("beta_slow", 0.0, 1e6).value_or(0.0);
  if (beta_fast != 0.0) rope.beta_fast = beta_fast;
  if (beta_slow != 0.0) rope.beta_slow = beta_slow;
  if (rope.beta_fast < rope.beta_slow) scaling.fail("beta_fast is below beta_slow");
  rope.truncate = scaling.boolean("truncate").value_or(true);
  rope.attention_factor = scaling.number("attention_factor", 1e-3, 1e3);
  rope.mscale = scaling.number("mscale", 0.0, 1e3);
  rope.mscale_all_dim = scaling.number("mscale_all_dim", 0.0, 1e3);
}

// rope_scaling (older) or rope_parameters (newer, with theta and the partial factor inside).
RopeConfig read_rope(const ConfigFields& fields, const Family& family, const ModelConfig& config) {
  const nlohmann::json none = nlohmann::json::object();
  const ConfigFields empty(none, "rope_parameters");
  std::optional<ConfigFields> found = fields.object("rope_scaling");
  if (!found || found->json().empty()) found = fields.object("rope_parameters");
  const ConfigFields& scaling = found ? *found : empty;
  for (const auto& [key, value] : scaling.json().items()) {
    if (value.is_object()) scaling.fail("a rope per layer type (" + printable(key) + ") is not supported");
  }
  if (scaling.has("mrope_section")) scaling.fail("mrope_section (multimodal rope) is not supported");

  const auto theta = scaling.number("rope_theta", 1.5, 1e12);
  RopeConfig rope;
  rope.theta = theta ? *theta : fields.number("rope_theta", 1.5, 1e12).value_or(family.rope_theta);
  rope.type = read_rope_type(scaling, family);

  const auto partial = scaling.number("partial_rotary_factor", 0.0, 1.0);
  const double rotary_share = partial ? *partial : fields.number("partial_rotary_factor", 0.0, 1.0).value_or(1.0);
  if (rotary_share != 1.0 && !family.partial_rotary) {
    fields.fail(std::string("partial_rotary_factor is not supported for ") + family.architecture);
  }
  rope.rotary_dim = static_cast<int32_t>(config.head_dim * rotary_share);
  if (rope.rotary_dim < 2 || rope.rotary_dim % 2 != 0) {
    fields.fail("head_dim × partial_rotary_factor = " + std::to_string(rope.rotary_dim) + " is not an even number ≥ 2");
  }

  // Phi-3 writes it beside the rope, where it takes precedence; else it is inside, else the context was not stretched.
  const auto outer = fields.integer("original_max_position_embeddings", 1, kContextTokensMax);
  const auto inner = scaling.integer("original_max_position_embeddings", 1, kContextTokensMax);
  if (rope.type == RopeType::kLongRope && !outer && !inner) fields.fail("original_max_position_embeddings is missing");
  rope.original_context_tokens = static_cast<int32_t>(outer.value_or(inner.value_or(config.context_tokens)));
  switch (rope.type) {
    case RopeType::kDefault:
      break;
    case RopeType::kLinear:
      rope.factor = required_number(scaling, "factor", 1e-3, 1e6);
      break;
    case RopeType::kLlama3:
      rope.factor = required_number(scaling, "factor", 1e-3, 1e6);
      rope.low_freq_factor = required_number(scaling, "low_freq_factor", 1e-3, 1e6);
      rope.high_freq_factor = required_number(scaling, "high_freq_factor", 1e-3, 1e6);
      if (rope.high_freq_factor <= rope.low_freq_factor) scaling.fail("high_freq_factor is not above low_freq_factor");
      break;
    case RopeType::kYarn:
      read_yarn(scaling, rope);
      break;
    case RopeType::kLongRope:
      read_longrope(scaling, config, rope);
      break;
  }
  return rope;
}

DType read_dtype(const ConfigFields& fields) {
  const std::string name = fields.string("dtype").value_or(fields.string("torch_dtype").value_or("bfloat16"));
  if (name == "bfloat16") return DType::kBF16;
  if (name == "float16") return DType::kF16;
  if (name == "float32") return DType::kF32;
  fields.fail("dtype " + printable(name) + " is not supported; supported: float32, float16, bfloat16");
}

// generation_config.json has the last word.
void read_special_tokens(const ConfigFields& fields, ModelConfig& config) {
  const int32_t id_max = config.vocab_size - 1;
  if (const auto eos = fields.integers_or_one("eos_token_id", kEosIdsMax, 0, id_max)) {
    config.eos_token_ids.assign(eos->begin(), eos->end());
  }
  if (const auto bos = fields.integer("bos_token_id", 0, id_max)) config.bos_token_id = static_cast<int32_t>(*bos);
}

// The language model inside of a multimodal Gemma 3, whose configs leave out what is as in the reference's class.
nlohmann::json text_model(nlohmann::json root, const std::string& source) {
  if (root.value("architectures", nlohmann::json()) != nlohmann::json::array({"Gemma3ForConditionalGeneration"})) return root;
  const nlohmann::json& inner = root["text_config"];
  if (!inner.is_object()) throw std::runtime_error(source + ": text_config must be an object");
  nlohmann::json text = {{"num_attention_heads", 8}, {"num_key_value_heads", 4},         {"head_dim", 256},
                         {"vocab_size", 262'208},    {"max_position_embeddings", 131'072}, {"hidden_size", 2304},
                         {"intermediate_size", 9216}, {"num_hidden_layers", 26}};
  if (root.contains("torch_dtype")) text["torch_dtype"] = root["torch_dtype"];
  text.update(inner);
  text["architectures"] = nlohmann::json::array({"Gemma3ForCausalLM"});
  return text;
}

ModelConfig parse_config(std::string_view config_json, const std::string& source, std::string_view generation_json,
                         const std::string& generation_source, Purpose purpose = Purpose::kServe) {
  nlohmann::json root = parse_config_object(config_json, source);
  if (purpose == Purpose::kPlan) root = text_model(std::move(root), source);
  const ConfigFields fields(root, source);
  const Family& family = find_family(fields, purpose);
  refuse_unsupported(fields, family);
  ModelConfig config;
  config.architecture = family.architecture;
  config.model_type = family.model_type;
  read_shape(fields, family, config);
  config.layer_has_rope = read_layer_has_rope(fields, family, config.layers);
  read_window(fields, family, purpose, config);
  if (!family.plan_only) config.rope = read_rope(fields, family, config);
  config.is_served = !family.plan_only && (config.window_layers == 0 || config.window_layers == config.layers);
  config.dtype = read_dtype(fields);
  read_special_tokens(fields, config);
  if (!generation_json.empty()) {
    const nlohmann::json generation = parse_config_object(generation_json, generation_source);
    read_special_tokens(ConfigFields(generation, generation_source), config);
  }
  return config;
}

}  // namespace

ModelConfig ModelConfig::shape(const std::filesystem::path& path) {
  const std::filesystem::path file = std::filesystem::is_directory(path) ? path / "config.json" : path;
  return shape_from_json(read_config_text(file), file.string());
}

ModelConfig ModelConfig::shape_from_json(std::string_view config_json, const std::string& source) {
  return parse_config(config_json, source, {}, {}, Purpose::kPlan);
}

ModelConfig ModelConfig::load(const std::filesystem::path& path) {
  const std::filesystem::path config_path = std::filesystem::is_directory(path) ? path / "config.json" : path;
  const std::filesystem::path generation_path = config_path.parent_path() / "generation_config.json";
  const std::string config_json = read_config_text(config_path);
  const bool has_generation = config_path.filename() == "config.json" && std::filesystem::exists(generation_path);
  const std::string generation_json = has_generation ? read_config_text(generation_path) : std::string();
  return parse_config(config_json, config_path.string(), generation_json, generation_path.string());
}

ModelConfig ModelConfig::from_json(std::string_view config_json, std::string_view generation_config_json,
                                   const std::string& source) {
  return parse_config(config_json, source, generation_config_json, "generation_config.json");
}

int64_t ModelConfig::parameters() const {
  const int64_t d = model_dim, f = ffn_dim, v = vocab_size;
  const int64_t qkv_rows = int64_t{query_heads + 2 * kv_heads} * head_dim;
  const int64_t q_rows = int64_t{query_heads} * head_dim;
  const int64_t attention =
      qkv_rows * d + d * q_rows + (qkv_bias ? qkv_rows : 0) + (o_bias ? d : 0) + (qk_norm ? 2 * head_dim : 0);
  const int64_t ffn = 3 * d * f + (mlp_bias ? 2 * f + d : 0);
  return v * d * (tied_embeddings ? 1 : 2) + layers * (attention + ffn + layer_norms * d) + d;
}

}  // namespace headroom
