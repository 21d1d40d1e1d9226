// Expected values: parameter counts as the models' cards publish them, angles as the reference implementation computes
// them for the published rope settings.
#include "engine/model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tests/unit/checkpoint_writer.h"

namespace headroom {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

json base(const char* architecture = "LlamaForCausalLM", const char* model_type = "llama") {
  return {{"architectures", json::array({architecture})},
          {"model_type", model_type},
          {"hidden_size", 64},
          {"intermediate_size", 128},
          {"num_hidden_layers", 4},
          {"num_attention_heads", 8},
          {"num_key_value_heads", 2},
          {"vocab_size", 100},
          {"max_position_embeddings", 512},
          {"rms_norm_eps", 1e-5},
          {"torch_dtype", "float16"}};
}

ModelConfig parse(const json& config) { return ModelConfig::from_json(config.dump()); }

json with(json config, const char* key, json value) {
  config[key] = std::move(value);
  return config;
}

std::string refusal(const json& config) {
  return error_of([&] { parse(config); });
}

TEST(Config, PlainLlama) {
  const ModelConfig config = parse(base());
  EXPECT_EQ(config.architecture, "LlamaForCausalLM");
  EXPECT_EQ(config.layers, 4);
  EXPECT_EQ(config.model_dim, 64);
  EXPECT_EQ(config.query_heads, 8);
  EXPECT_EQ(config.kv_heads, 2);
  EXPECT_EQ(config.group(), 4);
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_EQ(config.ffn_dim, 128);
  EXPECT_EQ(config.vocab_size, 100);
  EXPECT_EQ(config.context_tokens, 512);
  EXPECT_FLOAT_EQ(config.norm_eps, 1e-5f);
  EXPECT_EQ(config.dtype, DType::kF16);
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_EQ(config.rope.rotary_dim, 8);
  EXPECT_EQ(config.window_tokens, 0);
  EXPECT_FALSE(config.tied_embeddings || config.qk_norm || config.qkv_bias || config.o_bias || config.mlp_bias ||
               config.fused_weights);
  EXPECT_THAT(config.layer_has_rope, ElementsAre(true, true, true, true));
  EXPECT_TRUE(config.eos_token_ids.empty());
}

TEST(Config, ParametersOfPublishedModels) {
  const auto parameters = [](const char* name) {
    return ModelConfig::shape(std::filesystem::path(HEADROOM_SOURCE_DIR) / "configs/models" / name).parameters();
  };
  EXPECT_EQ(parameters("llama-2-7b.json"), 6'738'415'616);
  EXPECT_EQ(parameters("llama-2-70b.json"), 68'976'648'192);
  EXPECT_EQ(parameters("llama-3.1-8b.json"), 8'030'261'248);
  EXPECT_EQ(parameters("llama-3.2-1b.json"), 1'235'814'400);
  EXPECT_EQ(parameters("tinyllama-1.1b.json"), 1'100'048'384);
  EXPECT_EQ(parameters("smollm2-135m.json"), 134'515'008);
  EXPECT_EQ(parameters("smollm3-3b.json"), 3'075'098'624);
  EXPECT_EQ(parameters("mistral-7b-v0.1.json"), 7'241'732'096);
  EXPECT_EQ(parameters("qwen2.5-0.5b.json"), 494'032'768);
  EXPECT_EQ(parameters("qwen3-0.6b.json"), 596'049'920);
  EXPECT_EQ(parameters("phi-3-mini-4k.json"), 3'821'079'552);
  EXPECT_EQ(parameters("phi-4-mini.json"), 3'836'021'760);
  EXPECT_EQ(parameters("phi-4.json"), 14'659'507'200);
  EXPECT_EQ(parameters("llama-2-13b.json"), 13'015'864'320);
  EXPECT_EQ(parameters("llama-3.1-70b.json"), 70'553'706'496);
  EXPECT_EQ(parameters("llama-3.1-405b.json"), 405'853'388'800);
  EXPECT_EQ(parameters("qwen2.5-14b.json"), 14'770'033'664);
  EXPECT_EQ(parameters("qwen2.5-32b.json"), 32'763'876'352);
  EXPECT_EQ(parameters("qwen2.5-72b.json"), 72'706'203'648);
  EXPECT_EQ(parameters("qwen3-14b.json"), 14'768'307'200);
  EXPECT_EQ(parameters("qwen3-32b.json"), 32'762'123'264);
  EXPECT_EQ(parameters("gemma-3-270m.json"), 268'098'176);
  EXPECT_EQ(parameters("gemma-3-1b.json"), 999'885'952);
  // The published counts are with the image encoder, the same in all three, and its projection of 1152 to the model's dimension.
  const auto image = [](int64_t model_dim) { return 416'866'032 + 1152 * (model_dim + 1); };
  EXPECT_EQ(parameters("gemma-3-4b.json") + image(2560), 4'300'079'472);
  EXPECT_EQ(parameters("gemma-3-12b.json") + image(3840), 12'187'325'040);
  EXPECT_EQ(parameters("gemma-3-27b.json") + image(5376), 27'432'406'640);
}

TEST(Config, EveryPublishedShapeLoads) {
  int shapes = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(HEADROOM_SOURCE_DIR) / "configs/models")) {
    if (entry.path().extension() != ".json") continue;
    const ModelConfig shape = ModelConfig::shape(entry.path());
    const std::string refusal = error_of([&] { ModelConfig::load(entry.path()); });
    EXPECT_EQ(refusal.empty(), shape.is_served) << refusal;
    EXPECT_EQ(shape.is_served, !entry.path().stem().string().starts_with("gemma"));
    ++shapes;
  }
  EXPECT_GE(shapes, 39);
}

TEST(Config, FamiliesDifferWhereTheirReferencesDo) {
  const ModelConfig qwen2 = parse(base("Qwen2ForCausalLM", "qwen2"));
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.o_bias);
  const ModelConfig qwen3 = parse(base("Qwen3ForCausalLM", "qwen3"));
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_EQ(qwen3.head_dim, 128);
  const ModelConfig smollm3 = parse(base("SmolLM3ForCausalLM", "smollm3"));
  EXPECT_TRUE(smollm3.tied_embeddings);
  EXPECT_EQ(smollm3.rope.theta, 2e6);
  EXPECT_THAT(smollm3.layer_has_rope, ElementsAre(true, true, true, false));
  EXPECT_THAT(parse(with(base("SmolLM3ForCausalLM", "smollm3"), "no_rope_layers", {0, 1, 1, 0})).layer_has_rope,
              ElementsAre(false, true, true, false));
  EXPECT_THAT(parse(with(base("SmolLM3ForCausalLM", "smollm3"), "no_rope_layer_interval", 2)).layer_has_rope,
              ElementsAre(true, false, true, false));
  EXPECT_TRUE(parse(base("Phi3ForCausalLM", "phi3")).fused_weights);
  const ModelConfig biased = parse(with(with(base(), "attention_bias", true), "mlp_bias", true));
  EXPECT_TRUE(biased.qkv_bias && biased.o_bias && biased.mlp_bias);
}

TEST(Config, HeadDim) {
  EXPECT_EQ(parse(with(base("MistralForCausalLM", "mistral"), "head_dim", 16)).head_dim, 16);
  EXPECT_EQ(parse(with(base(), "head_dim", nullptr)).head_dim, 8);
  EXPECT_THAT(refusal(with(base(), "head_dim", 12)), HasSubstr("multiple of 8"));
  EXPECT_THAT(refusal(with(base(), "hidden_size", 100)), HasSubstr("head_dim is missing"));
}

TEST(Config, Windows) {
  json mistral = base("MistralForCausalLM", "mistral");
  EXPECT_EQ(parse(with(mistral, "sliding_window", 100)).window_tokens, 100);
  EXPECT_EQ(parse(with(mistral, "sliding_window", nullptr)).window_tokens, 0);
  EXPECT_EQ(parse(mistral).window_tokens, 0);  // 4096 by default, past the context of 512
  EXPECT_EQ(parse(with(mistral, "max_position_embeddings", 8192)).window_tokens, 4096);
  EXPECT_EQ(parse(with(mistral, "sliding_window", 512)).window_tokens, 0);
  EXPECT_EQ(parse(with(mistral, "sliding_window", 511)).window_tokens, 511);
  EXPECT_EQ(parse(with(base(), "sliding_window", 100)).window_tokens, 0);

  json qwen = with(base("Qwen2ForCausalLM", "qwen2"), "sliding_window", 100);
  EXPECT_EQ(parse(with(qwen, "use_sliding_window", false)).window_tokens, 0);
  qwen["use_sliding_window"] = true;
  EXPECT_EQ(parse(qwen).window_tokens, 0);  // max_window_layers 28 by default: every layer of these sees everything
  EXPECT_EQ(parse(with(qwen, "max_window_layers", 0)).window_tokens, 100);
  EXPECT_THAT(refusal(with(qwen, "max_window_layers", 3)),
              HasSubstr("sliding window on 1 of 4 layers is not supported"));
  EXPECT_THAT(
      refusal(with(qwen, "layer_types", {"full_attention", "sliding_attention", "full_attention", "full_attention"})),
      HasSubstr("sliding window on 1 of 4 layers is not supported"));
  EXPECT_THAT(refusal(with(qwen, "layer_types", json::array({"full_attention"}))), HasSubstr("one entry per layer"));
  EXPECT_THAT(
      refusal(with(base(), "layer_types", {"full_attention", "full_attention", "chunked_attention", "full_attention"})),
      HasSubstr("layer type chunked_attention is not supported"));

  json smollm3 = with(base("SmolLM3ForCausalLM", "smollm3"), "sliding_window", 100);
  EXPECT_EQ(parse(smollm3).window_tokens, 0);
  EXPECT_THAT(refusal(with(smollm3, "use_sliding_window", true)), HasSubstr("sliding window on 1 of 4 layers"));
}

TEST(Config, ShapesForPlanningMayMixWindows) {
  json gemma = base("Gemma3ForCausalLM", "gemma3_text");
  gemma["sliding_window"] = 100;
  const auto shape = [](const json& config) { return ModelConfig::shape_from_json(config.dump(), "config.json"); };
  EXPECT_EQ(shape(gemma).window_layers, 4);  // of 4: the first that sees everything would be the sixth
  EXPECT_EQ(shape(with(gemma, "sliding_window_pattern", 2)).window_layers, 2);
  EXPECT_EQ(shape(with(gemma, "sliding_window_pattern", 2)).window_tokens, 100);
  EXPECT_EQ(shape(with(gemma, "sliding_window", 512)).window_layers, 0);  // reaches over the context
  EXPECT_FALSE(shape(gemma).is_served);
  EXPECT_THAT(refusal(gemma), HasSubstr("Gemma3ForCausalLM is not supported; supported: LlamaForCausalLM"));

  json qwen = with(with(base("Qwen2ForCausalLM", "qwen2"), "sliding_window", 100), "use_sliding_window", true);
  EXPECT_EQ(shape(with(qwen, "max_window_layers", 3)).window_layers, 1);
  EXPECT_FALSE(shape(with(qwen, "max_window_layers", 3)).is_served);
  EXPECT_TRUE(shape(with(qwen, "max_window_layers", 0)).is_served);
  EXPECT_EQ(parse(with(qwen, "max_window_layers", 0)).window_layers, 4);
  EXPECT_TRUE(shape(base()).is_served);
  EXPECT_THAT(error_of([&] { shape({{"architectures", {"Gemma3ForConditionalGeneration"}}}); }), HasSubstr("text_config"));
}

TEST(Config, WhatIsNotSupportedIsRefusedByName) {
  EXPECT_THAT(
      refusal(base("Gemma3ForCausalLM", "gemma3_text")),
      HasSubstr("architecture Gemma3ForCausalLM is not supported; supported: LlamaForCausalLM, MistralForCausalLM"));
  EXPECT_THAT(refusal(with(base(), "architectures", nullptr)), HasSubstr("architectures"));
  EXPECT_THAT(refusal(with(base(), "architectures", "LlamaForCausalLM")), HasSubstr("architectures"));
  EXPECT_THAT(refusal(with(base(), "model_type", "granite")), HasSubstr("model_type granite"));
  EXPECT_THAT(refusal(with(base(), "hidden_act", "gelu")), HasSubstr("hidden_act gelu is not supported"));
  EXPECT_THAT(refusal(with(base(), "quantization_config", {{"quant_method", "fp8"}})),
              HasSubstr("quant_method fp8 is not supported; supported: gptq, awq, compressed-tensors"));
  EXPECT_THAT(refusal(with(base(), "rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}})),
              HasSubstr("rope type dynamic is not supported"));
  EXPECT_THAT(refusal(with(base(), "rope_parameters", {{"full_attention", {{"rope_theta", 1e4}}}})),
              HasSubstr("rope per layer type"));
  EXPECT_THAT(refusal(with(base(), "rope_scaling", {{"type", "default"}, {"mrope_section", {1, 1, 2}}})),
              HasSubstr("mrope_section"));
  EXPECT_THAT(refusal(with(base(), "partial_rotary_factor", 0.5)), HasSubstr("partial_rotary_factor is not supported"));
  EXPECT_THAT(refusal(with(base("MistralForCausalLM", "mistral"), "attention_bias", true)),
              HasSubstr("attention_bias is not supported"));
  EXPECT_THAT(refusal(with(base("Phi3ForCausalLM", "phi3"), "lm_head_bias", true)),
              HasSubstr("lm_head_bias is not supported"));
  EXPECT_THAT(refusal(with(base(), "torch_dtype", "float8_e4m3fn")), HasSubstr("dtype float8_e4m3fn is not supported"));
  EXPECT_THAT(refusal(with(with(with(base(), "num_attention_heads", 64), "head_dim", 8), "num_key_value_heads", 1)),
              HasSubstr("64 query heads share a KV head"));
}

TEST(Config, ValuesOutOfRangeAreRefusedByName) {
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                          "num_key_value_heads", "vocab_size", "max_position_embeddings"}) {
    for (const json& value : {json(0), json(-1), json(4294967297), json(18446744073709551615u), json(1.5), json("8"),
                              json(true), json::array(), json(2000000000)}) {
      EXPECT_THAT(refusal(with(base(), key, value)), HasSubstr(key)) << value;
    }
  }
  EXPECT_THAT(refusal(with(base(), "num_key_value_heads", 3)), HasSubstr("not a multiple"));
  EXPECT_THAT(refusal(with(base(), "rms_norm_eps", 0.0)), HasSubstr("rms_norm_eps"));
  EXPECT_THAT(refusal(with(base(), "rms_norm_eps", "small")), HasSubstr("rms_norm_eps"));
  EXPECT_THAT(refusal(with(base(), "rope_theta", -1)), HasSubstr("rope_theta"));
  EXPECT_THAT(refusal(with(base(), "tie_word_embeddings", 1)), HasSubstr("tie_word_embeddings"));
  EXPECT_THAT(refusal(with(base(), "eos_token_id", 100)), HasSubstr("eos_token_id"));
  EXPECT_THAT(refusal(with(base(), "eos_token_id", {1, -1})), HasSubstr("eos_token_id"));
  EXPECT_THAT(refusal(with(base(), "rope_scaling", {{"type", "linear"}})), HasSubstr("factor is missing"));
  EXPECT_THAT(refusal(with(base(), "rope_scaling",
                           {{"rope_type", "llama3"}, {"factor", 8}, {"low_freq_factor", 4}, {"high_freq_factor", 4}})),
              HasSubstr("high_freq_factor"));
  EXPECT_THAT(
      refusal(with(
          base(), "rope_scaling",
          {{"rope_type", "longrope"}, {"original_max_position_embeddings", 8}, {"short_factor", json::array({1.0})}})),
      HasSubstr("short_factor"));
  EXPECT_THAT(refusal(with(base(), "rope_scaling", {{"rope_type", "longrope"}})),
              HasSubstr("original_max_position_embeddings is missing"));
  EXPECT_THAT(refusal(with(base("SmolLM3ForCausalLM", "smollm3"), "no_rope_layers", json::array({1}))),
              HasSubstr("no_rope_layers"));
}

TEST(Config, SpecialTokensAndTheirOverride) {
  json config = base();
  config["eos_token_id"] = 2;
  config["bos_token_id"] = 1;
  EXPECT_THAT(parse(config).eos_token_ids, ElementsAre(2));
  EXPECT_EQ(parse(config).bos_token_id, 1);
  config["eos_token_id"] = {2, 7};
  EXPECT_THAT(parse(config).eos_token_ids, ElementsAre(2, 7));
  EXPECT_THAT(ModelConfig::from_json(config.dump(), R"({"eos_token_id": [9, 2]})").eos_token_ids, ElementsAre(9, 2));
  EXPECT_THAT(ModelConfig::from_json(config.dump(), R"({"temperature": 0.6})").eos_token_ids, ElementsAre(2, 7));
  EXPECT_THAT(error_of([&] { ModelConfig::from_json(config.dump(), "{"); }), HasSubstr("generation_config.json"));
}

TEST(Config, OldAndNewSpellingsOfRopeAgree) {
  json old_form = with(base(), "rope_theta", 5000.0);
  old_form["rope_scaling"] = {{"type", "llama3"},
                              {"factor", 8.0},
                              {"low_freq_factor", 1.0},
                              {"high_freq_factor", 4.0},
                              {"original_max_position_embeddings", 64}};
  json new_form = base();
  new_form.erase("torch_dtype");
  new_form["dtype"] = "float16";
  new_form["rope_parameters"] = {{"rope_theta", 5000.0},    {"rope_type", "llama3"},
                                 {"factor", 8.0},           {"low_freq_factor", 1.0},
                                 {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 64}};
  const ModelConfig a = parse(old_form), b = parse(new_form);
  EXPECT_EQ(a.rope.type, RopeType::kLlama3);
  EXPECT_EQ(b.rope.type, RopeType::kLlama3);
  EXPECT_EQ(a.dtype, b.dtype);
  EXPECT_EQ(make_rope_table(a.rope, 512).inv_freq, make_rope_table(b.rope, 512).inv_freq);
}

struct Angles {
  RopeConfig rope;
  int32_t served_context_tokens;
  float attention_factor;
  std::vector<std::pair<size_t, float>> inv_freq;
};

void expect_angles(const Angles& expected) {
  const RopeTable table = make_rope_table(expected.rope, expected.served_context_tokens);
  EXPECT_EQ(table.inv_freq.size(), static_cast<size_t>(expected.rope.rotary_dim / 2));
  EXPECT_FLOAT_EQ(table.attention_factor, expected.attention_factor);
  for (const auto& [index, value] : expected.inv_freq) {
    EXPECT_NEAR(table.inv_freq[index], value, 2e-7f * value) << "inv_freq[" << index << "]";
  }
}

TEST(Rope, AnglesOfLlama31And32) {
  RopeConfig rope{
      .type = RopeType::kLlama3, .theta = 500000.0, .rotary_dim = 128, .factor = 8.0, .original_context_tokens = 8192};
  expect_angles({rope,
                 131072,
                 1.0f,
                 {{0, 1.0f},
                  {10, 0.12868738174438477f},
                  {28, 0.0032114461064338684f},
                  {29, 0.0021665706299245358f},
                  {30, 0.0013718936825171113f},
                  {31, 0.0008567514596506953f},
                  {32, 0.0005248460220173001f},
                  {34, 0.0001785077911335975f},
                  {36, 7.784655463183299e-05f},
                  {63, 3.068925877869333e-07f}}});
  rope.rotary_dim = 64;
  rope.factor = 32.0;
  expect_angles({rope,
                 131072,
                 1.0f,
                 {{13, 0.00483942124992609f},
                  {14, 0.0032114461064338684f},
                  {15, 0.0012905480107292533f},
                  {16, 0.000429556705057621f},
                  {17, 9.708286233944818e-05f},
                  {31, 9.418306490260875e-08f}}});
}

TEST(Rope, AnglesOfYarn) {
  RopeConfig rope{
      .type = RopeType::kYarn, .theta = 1e6, .rotary_dim = 128, .factor = 4.0, .original_context_tokens = 32768};
  expect_angles({rope,
                 131072,
                 1.138629436111989f,
                 {{0, 1.0f},
                  {10, 0.11547820270061493f},
                  {20, 0.01333521492779255f},
                  {24, 0.005375321488827467f},
                  {30, 0.0010643609566614032f},
                  {35, 0.0002462583943270147f},
                  {39, 6.490394298452884e-05f},
                  {40, 4.4456985051510856e-05f},
                  {63, 3.102344408034696e-07f}}});
  rope.truncate = false;
  rope.mscale = 1.0;
  rope.mscale_all_dim = 0.5;
  rope.beta_fast = 24;
  rope.beta_slow = 2;
  expect_angles({rope,
                 131072,
                 1.0648216253695715f,
                 {{20, 0.01333521492779255f},
                  {24, 0.005623413249850273f},
                  {30, 0.001031107036396861f},
                  {35, 0.00017991766799241304f},
                  {39, 5.516835517482832e-05f}}});
}

TEST(Rope, AnglesOfLongRopeAndLinear) {
  RopeConfig rope{
      .type = RopeType::kLongRope, .theta = 1e4, .rotary_dim = 96, .factor = 32.0, .original_context_tokens = 4096};
  for (int i = 0; i < 48; ++i) {
    rope.short_factor.push_back(1.0 + 0.01 * i);
    rope.long_factor.push_back(1.0 + 0.5 * i);
  }
  expect_angles({rope,
                 4096,
                 1.1902380714238083f,
                 {{0, 1.0f}, {1, 0.8172318339347839f}, {10, 0.13343629240989685f}, {47, 8.24168382678181e-05f}}});
  expect_angles({rope,
                 4097,
                 1.1902380714238083f,
                 {{0, 1.0f}, {1, 0.5502694249153137f}, {10, 0.024463320150971413f}, {47, 4.945010459778132e-06f}}});
  const RopeConfig linear{.type = RopeType::kLinear, .theta = 1e4, .rotary_dim = 128, .factor = 2.5};
  expect_angles({linear,
                 4096,
                 1.0f,
                 {{0, 0.4f}, {1, 0.34638574719429016f}, {32, 0.003999999724328518f}, {63, 4.619127867044881e-05f}}});
}

// Hostile text: an error of one line, or a config; nothing else.
void expect_survives(const std::string& text) {
  const std::string error = error_of([&] { ModelConfig::from_json(text); });
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
}

TEST(ConfigHostile, CutAtEveryByteAndEveryBitFlipped) {
  json config = base("Phi3ForCausalLM", "phi3");
  config["rope_scaling"] = {
      {"type", "longrope"}, {"short_factor", {1.0, 1.1, 1.2, 1.3}}, {"long_factor", {1.0, 2.0, 3.0, 4.0}}};
  config["original_max_position_embeddings"] = 128;
  config["eos_token_id"] = {2, 3};
  const std::string text = config.dump();
  EXPECT_EQ(error_of([&] { ModelConfig::from_json(text); }), "");
  for (size_t cut = 0; cut < text.size(); ++cut) {
    EXPECT_NE(error_of([&] { ModelConfig::from_json(text.substr(0, cut)); }), "") << "cut at " << cut;
  }
  for (size_t bit = 0; bit < text.size() * 8; ++bit) {
    std::string flipped = text;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    expect_survives(flipped);
  }
}

TEST(ConfigHostile, DepthDuplicatesSizesAndNumbers) {
  for (const char* bracket : {"[", "{\"a\":"}) {
    std::string deep;
    for (int i = 0; i < 50'000; ++i) deep += bracket;
    EXPECT_THAT(error_of([&] { ModelConfig::from_json(deep); }), HasSubstr("deeper than 64"));
    EXPECT_THAT(error_of([&] { ModelConfig::from_json("{\"x\":" + deep); }), HasSubstr("deeper than 64"));
  }
  EXPECT_THAT(error_of([] { ModelConfig::from_json(R"({"a": 1, "a": 2})"); }), HasSubstr("twice"));
  EXPECT_THAT(error_of([] { ModelConfig::from_json(R"({"x": {"a": 1, "a": 2}})"); }), HasSubstr("twice"));
  EXPECT_THAT(error_of([] { ModelConfig::from_json("[]"); }), HasSubstr("not a JSON object"));
  EXPECT_THAT(error_of([] { ModelConfig::from_json(""); }), HasSubstr("not JSON"));
  EXPECT_THAT(error_of([] { ModelConfig::from_json("{\"a\": \"\xFF\"}"); }), HasSubstr("not JSON"));
  EXPECT_THAT(error_of([] { ModelConfig::from_json("{\"rope_theta\": 1e999}"); }), HasSubstr("config.json"));
  EXPECT_THAT(error_of([] { ModelConfig::from_json(std::string(5 << 20, ' ')); }), HasSubstr("over"));
  EXPECT_THAT(error_of([] { ModelConfig::from_json("{\"architectures\": [\"a\\nb\"]}"); }),
              HasSubstr("architecture a?b"));
}

TEST(Config, LoadNamesTheFile) {
  const TestDirectory dir;
  EXPECT_THAT(error_of([&] { ModelConfig::load(dir.path()); }),
              HasSubstr((dir / "config.json").string() + ": cannot open"));
  EXPECT_THAT(error_of([&] { ModelConfig::load(dir / "nowhere"); }), HasSubstr("nowhere: cannot open"));
  write_file(dir / "config.json", base().dump());
  EXPECT_EQ(ModelConfig::load(dir.path()).layers, 4);
  EXPECT_EQ(ModelConfig::load(dir / "config.json").layers, 4);
  write_file(dir / "generation_config.json", R"({"eos_token_id": 5})");
  EXPECT_THAT(ModelConfig::load(dir.path()).eos_token_ids, ElementsAre(5));
  write_file(dir / "config.json", "{");
  EXPECT_THAT(error_of([&] { ModelConfig::load(dir.path()); }), HasSubstr("not JSON at byte"));
}

}  // namespace
}  // namespace headroom
