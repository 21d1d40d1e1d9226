// What reaches the backend from a checkpoint, tensor by tensor, with a backend that only records.
#include "engine/model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "engine/model/block_type.h"
#include "kernels/quantize.h"
#include "tests/unit/checkpoint_writer.h"

namespace headroom {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class HostBuffer : public Buffer {
 public:
  explicit HostBuffer(size_t bytes) : data_(bytes) {}
  std::byte* data() const override { return const_cast<std::byte*>(data_.data()); }
  size_t bytes() const override { return data_.size(); }

 private:
  std::vector<std::byte> data_;
};

// Keeps the stacked bytes as they came.
class RecordedWeight : public Weight {
 public:
  explicit RecordedWeight(std::span<const HostWeight> parts) : cols_(parts.front().cols) {
    for (const HostWeight& part : parts) {
      rows_ += part.rows;
      const size_t part_bytes = static_cast<size_t>(part.rows) * weight_row_bytes(part.dtype, part.cols);
      stored.append(reinterpret_cast<const char*>(part.data), part_bytes);
      types.push_back(part.dtype);
    }
  }
  int64_t rows() const override { return rows_; }
  int64_t cols() const override { return cols_; }
  size_t bytes() const override { return stored.size(); }
  std::string stored;
  std::vector<DType> types;

 private:
  int64_t rows_ = 0;
  int64_t cols_ = 0;
};

// Takes weights and vectors; loading must ask for nothing else.
class RecordingBackend : public Backend {
 public:
  std::string description() const override { return "recording"; }
  std::unique_ptr<Buffer> allocate(size_t bytes) override { return std::make_unique<HostBuffer>(bytes); }
  void copy_in(std::byte* destination, const void* source, size_t bytes) override {
    std::memcpy(destination, source, bytes);
  }
  void copy_out(void*, const std::byte*, size_t) override { unexpected(); }
  void copy(std::byte*, const std::byte*, size_t) override { unexpected(); }
  void synchronize() override {}
  std::unique_ptr<Weight> load_weight(std::span<const HostWeight> parts) override {
    return std::make_unique<RecordedWeight>(parts);
  }
  void embedding(Matrix, const Weight&, std::span<const int32_t>) override { unexpected(); }
  void rmsnorm(Matrix, Matrix, Vector, float) override { unexpected(); }
  void add_rmsnorm(Matrix, Matrix, Matrix, Vector, float) override { unexpected(); }
  void gemm(Matrix, Matrix, const Weight&, Vector) override { unexpected(); }
  void rope_table(Matrix, std::span<const int32_t>, std::span<const float>, float) override { unexpected(); }
  void rope_kv_write(Matrix, const KvLayer&, const BatchView&, const RopeKvParams&) override { unexpected(); }
  void paged_attention(Matrix, Matrix, const KvLayer&, const BatchView&, const AttentionParams&) override {
    unexpected();
  }
  void silu_mul(Matrix, Matrix) override { unexpected(); }
  void gather_rows(Matrix, Matrix, std::span<const int32_t>) override { unexpected(); }

 private:
  static void unexpected() { ADD_FAILURE() << "loading called an op"; }
};

// D 16, Q 2, G 1, K 8, F 3, V 5, one layer.
ModelConfig tiny_config(const char* architecture, const char* model_type, const std::string& more = "") {
  return ModelConfig::from_json(
      std::string(R"({"architectures":[")") + architecture + R"("],"model_type":")" + model_type +
      R"(","hidden_size":16,"intermediate_size":3,"num_hidden_layers":1,"num_attention_heads":2,
      "num_key_value_heads":1,"head_dim":8,"vocab_size":5,"max_position_embeddings":64)" +
      more + "}");
}

// Distinct, exact small values for every element of every tensor.
std::string values(const std::string& name, int64_t count) {
  std::string data;
  const auto base = static_cast<float>(std::hash<std::string>()(name) % 1000);
  for (int64_t i = 0; i < count; ++i) {
    const float value = base + static_cast<float>(i) / 1024.0f;
    data.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  return data;
}

TestTensor f32(const std::string& name, std::vector<int64_t> shape) {
  int64_t count = 1;
  for (const int64_t dim : shape) count *= dim;
  return {name, "F32", shape, values(name, count)};
}

std::vector<TestTensor> split_tensors(const std::string& prefix) {
  const std::string layer = prefix + "layers.0.";
  return {f32(prefix + "embed_tokens.weight", {5, 16}),
          f32(layer + "input_layernorm.weight", {16}),
          f32(layer + "self_attn.q_proj.weight", {16, 16}),
          f32(layer + "self_attn.k_proj.weight", {8, 16}),
          f32(layer + "self_attn.v_proj.weight", {8, 16}),
          f32(layer + "self_attn.o_proj.weight", {16, 16}),
          f32(layer + "post_attention_layernorm.weight", {16}),
          f32(layer + "mlp.gate_proj.weight", {3, 16}),
          f32(layer + "mlp.up_proj.weight", {3, 16}),
          f32(layer + "mlp.down_proj.weight", {16, 3}),
          f32(prefix + "norm.weight", {16}),
          f32("lm_head.weight", {5, 16})};
}

class WeightsTest : public ::testing::Test {
 protected:
  std::unique_ptr<ModelWeights> load(const std::vector<TestTensor>& tensors, const ModelConfig& config,
                                     const LoadProgress& progress = {}) {
    write_file(dir_ / "model.safetensors", safetensors_bytes(tensors));
    return load_weights(dir_.path(), config, backend_, progress);
  }
  std::string load_error(const std::vector<TestTensor>& tensors, const ModelConfig& config) {
    return error_of([&] { load(tensors, config); });
  }
  static const std::string& stored(const std::unique_ptr<Weight>& weight) {
    return dynamic_cast<RecordedWeight&>(*weight).stored;
  }
  static std::string stored(const ParameterVector& vector) {
    return {reinterpret_cast<const char*>(vector.view().data()), vector.view().size_bytes()};
  }

  TestDirectory dir_;
  RecordingBackend backend_;
  ModelConfig llama_ = tiny_config("LlamaForCausalLM", "llama");
};

TEST_F(WeightsTest, StacksSplitWeightsInOrder) {
  for (const std::string prefix : {"model.", ""}) {
    const auto weights = load(split_tensors(prefix), llama_);
    const LayerWeights& layer = weights->layers.at(0);
    const std::string attention = prefix + "layers.0.self_attn.", mlp = prefix + "layers.0.mlp.";
    EXPECT_EQ(stored(weights->embedding), values(prefix + "embed_tokens.weight", 80));
    EXPECT_EQ(stored(layer.qkv), values(attention + "q_proj.weight", 256) + values(attention + "k_proj.weight", 128) +
                                     values(attention + "v_proj.weight", 128));
    EXPECT_EQ(layer.qkv->rows(), 32);
    EXPECT_EQ(layer.qkv->cols(), 16);
    EXPECT_EQ(stored(layer.gate_up), values(mlp + "gate_proj.weight", 48) + values(mlp + "up_proj.weight", 48));
    EXPECT_EQ(stored(layer.o), values(attention + "o_proj.weight", 256));
    EXPECT_EQ(stored(layer.down), values(mlp + "down_proj.weight", 48));
    EXPECT_EQ(stored(layer.attention_norm), values(prefix + "layers.0.input_layernorm.weight", 16));
    EXPECT_EQ(stored(layer.ffn_norm), values(prefix + "layers.0.post_attention_layernorm.weight", 16));
    EXPECT_EQ(stored(weights->final_norm), values(prefix + "norm.weight", 16));
    EXPECT_EQ(stored(weights->lm_head), values("lm_head.weight", 80));
    EXPECT_TRUE(layer.qkv_bias.view().empty() && layer.o_bias.view().empty() && layer.gate_up_bias.view().empty());
    EXPECT_TRUE(layer.down_bias.view().empty() && layer.q_norm.view().empty() && layer.k_norm.view().empty());
    EXPECT_EQ(weights->bytes, static_cast<size_t>(llama_.parameters()) * 4);
  }
}

TEST_F(WeightsTest, FusedBiasedNormedAndTied) {
  auto tensors = split_tensors("model.");
  const std::string attention = "model.layers.0.self_attn.", mlp = "model.layers.0.mlp.";
  for (const auto& [name, rows] : std::vector<std::pair<std::string, int64_t>>{{attention + "q_proj.bias", 16},
                                                                               {attention + "k_proj.bias", 8},
                                                                               {attention + "v_proj.bias", 8},
                                                                               {attention + "o_proj.bias", 16}}) {
    tensors.push_back(f32(name, {rows}));
  }
  auto qwen = tensors;
  qwen.push_back(f32(attention + "q_norm.weight", {8}));
  qwen.push_back(f32(attention + "k_norm.weight", {8}));
  const auto normed = load(qwen, tiny_config("Qwen3ForCausalLM", "qwen3", R"(,"attention_bias":true)"));
  EXPECT_EQ(stored(normed->layers[0].q_norm), values(attention + "q_norm.weight", 8));
  EXPECT_EQ(stored(normed->layers[0].k_norm), values(attention + "k_norm.weight", 8));
  EXPECT_EQ(stored(normed->layers[0].qkv_bias), values(attention + "q_proj.bias", 16) +
                                                    values(attention + "k_proj.bias", 8) +
                                                    values(attention + "v_proj.bias", 8));

  for (const auto& [name, rows] : std::vector<std::pair<std::string, int64_t>>{
           {mlp + "gate_proj.bias", 3}, {mlp + "up_proj.bias", 3}, {mlp + "down_proj.bias", 16}}) {
    tensors.push_back(f32(name, {rows}));
  }
  const auto biased =
      load(tensors, tiny_config("LlamaForCausalLM", "llama", R"(,"attention_bias":true,"mlp_bias":true)"));
  EXPECT_EQ(stored(biased->layers[0].o_bias), values(attention + "o_proj.bias", 16));
  EXPECT_EQ(stored(biased->layers[0].gate_up_bias),
            values(mlp + "gate_proj.bias", 3) + values(mlp + "up_proj.bias", 3));
  EXPECT_EQ(stored(biased->layers[0].down_bias), values(mlp + "down_proj.bias", 16));

  std::vector<TestTensor> fused;
  for (const TestTensor& tensor : split_tensors("model.")) {
    if (tensor.name.find("q_proj") != std::string::npos) fused.push_back(f32(attention + "qkv_proj.weight", {32, 16}));
    if (tensor.name.find("gate_proj") != std::string::npos) fused.push_back(f32(mlp + "gate_up_proj.weight", {6, 16}));
    const bool is_split = tensor.name.find("o_proj") == std::string::npos &&
                          tensor.name.find("down_proj") == std::string::npos &&
                          tensor.name.find("_proj") != std::string::npos;
    if (!is_split) fused.push_back(tensor);
  }
  const auto phi = load(fused, tiny_config("Phi3ForCausalLM", "phi3", R"(,"tie_word_embeddings":true)"));
  EXPECT_EQ(stored(phi->layers[0].qkv), values(attention + "qkv_proj.weight", 512));
  EXPECT_EQ(stored(phi->layers[0].gate_up), values(mlp + "gate_up_proj.weight", 96));
  EXPECT_EQ(phi->lm_head, nullptr);  // tied: the copy in the file is ignored
  EXPECT_EQ(&phi->output(), phi->embedding.get());
}

TEST_F(WeightsTest, KeepsStoredTypesAndWidensVectors) {
  auto tensors = split_tensors("model.");
  tensors[0].type = "BF16";
  tensors[0].data.resize(160);
  tensors[2].type = "F16";
  tensors[2].data.resize(512);
  tensors[10].type = "BF16";
  tensors[10].data.clear();
  for (int i = 0; i < 16; ++i) tensors[10].data += std::string("\x80\x3F", 2);  // 1.0
  tensors[1].type = "F16";
  tensors[1].data.clear();
  for (int i = 0; i < 16; ++i) tensors[1].data += std::string("\x00\xC1", 2);  // −2.5
  const auto weights = load(tensors, llama_);
  EXPECT_THAT(dynamic_cast<RecordedWeight&>(*weights->embedding).types, ElementsAre(DType::kBF16));
  EXPECT_THAT(dynamic_cast<RecordedWeight&>(*weights->layers[0].qkv).types,
              ElementsAre(DType::kF16, DType::kF32, DType::kF32));
  EXPECT_THAT(weights->final_norm.view(), ::testing::Each(1.0f));
  EXPECT_THAT(weights->layers[0].attention_norm.view(), ::testing::Each(-2.5f));
}

// Elements of a matrix as loaded, read back from the bytes that the backend got.
std::vector<float> elements(const std::unique_ptr<Weight>& weight, DType type) {
  const auto& recorded = dynamic_cast<const RecordedWeight&>(*weight);
  std::vector<float> result;
  const size_t row_bytes = weight_row_bytes(type, recorded.cols());
  for (int64_t r = 0; r < recorded.rows(); ++r) {
    const auto* row = reinterpret_cast<const std::byte*>(recorded.stored.data()) + static_cast<size_t>(r) * row_bytes;
    for (int64_t k = 0; k < recorded.cols(); ++k) {
      uint16_t half = 0;
      std::memcpy(&half, row + 2 * k % static_cast<int64_t>(row_bytes), 2);
      result.push_back(is_quantized(type) ? quantized_row_element(row, type, k) : type == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half));
    }
  }
  return result;
}

TEST_F(WeightsTest, ConvertsToTheTypeAskedFor) {
  const auto tensors = split_tensors("model.");
  const TestDirectory dir;
  write_file(dir / "model.safetensors", safetensors_bytes(tensors));
  const auto plain = load(tensors, llama_);
  std::vector<float> original(32 * 16);
  std::memcpy(original.data(), stored(plain->layers[0].qkv).data(), original.size() * sizeof(float));
  for (const DType type : {DType::kBF16, DType::kF16, DType::kI8, DType::kI4}) {
    const WeightTypes types = WeightTypes::of(type);
    const auto weights = load_weights(dir.path(), llama_, backend_, {}, types);
    EXPECT_THAT(dynamic_cast<RecordedWeight&>(*weights->layers[0].down).types, ElementsAre(type));
    EXPECT_THAT(dynamic_cast<RecordedWeight&>(*weights->layers[0].qkv).types, ElementsAre(type, type, type));
    const DType of_embedding = type == DType::kI4 ? DType::kI8 : type;
    EXPECT_THAT(dynamic_cast<RecordedWeight&>(*weights->embedding).types, ElementsAre(of_embedding));
    EXPECT_THAT(dynamic_cast<RecordedWeight&>(*weights->lm_head).types, ElementsAre(of_embedding));
    EXPECT_EQ(predicted_weight_bytes(*open_safetensors(dir.path()), llama_, types), weights->bytes);
    const std::vector<float> converted = elements(weights->layers[0].qkv, type);
    // A share of the largest of a row: half a step of 8 and 11 bits, of 127 and, cut at the ends, of about 8.
    const float bound = type == DType::kBF16 ? 1.0f / 256 : type == DType::kF16 ? 1.0f / 2048 : type == DType::kI8 ? 0.6f / 127 : 0.15f;
    for (size_t row = 0; row < converted.size(); row += 16) {
      float largest = 0.0f;
      for (size_t i = row; i < row + 16; ++i) largest = std::max(largest, std::abs(original[i]));
      for (size_t i = row; i < row + 16; ++i) ASSERT_LE(std::abs(converted[i] - original[i]), bound * largest) << dtype_name(type);
    }
  }
}

TEST_F(WeightsTest, IgnoresAnglesAndReportsProgress) {
  auto tensors = split_tensors("model.");
  tensors.push_back(f32("model.layers.0.self_attn.rotary_emb.inv_freq", {4}));
  std::vector<size_t> done;
  size_t total = 0;
  load(tensors, llama_, [&](size_t done_bytes, size_t total_bytes) {
    done.push_back(done_bytes);
    total = total_bytes;
  });
  EXPECT_EQ(total, static_cast<size_t>(llama_.parameters()) * 4);
  EXPECT_GE(done.size(), 8u);
  EXPECT_TRUE(std::ranges::is_sorted(done));
  EXPECT_EQ(done.back(), total);
}

TEST_F(WeightsTest, RefusesWhatDoesNotFitByName) {
  auto missing = split_tensors("model.");
  missing.erase(missing.begin() + 3);
  EXPECT_THAT(load_error(missing, llama_),
              HasSubstr("tensor model.layers.0.self_attn.k_proj.weight [8, 16] is missing"));
  auto untied = split_tensors("model.");
  untied.pop_back();
  EXPECT_THAT(load_error(untied, llama_), HasSubstr("tensor lm_head.weight [5, 16] is missing"));
  auto extra = split_tensors("model.");
  extra.push_back(f32("model.layers.0.self_attn.q_proj.bias", {16}));
  EXPECT_THAT(load_error(extra, llama_),
              HasSubstr("tensor model.layers.0.self_attn.q_proj.bias F32 [16] is not part of LlamaForCausalLM"));
  auto more_layers = split_tensors("model.");
  more_layers.push_back(f32("model.layers.1.input_layernorm.weight", {16}));
  EXPECT_THAT(load_error(more_layers, llama_),
              HasSubstr("model.layers.1.input_layernorm.weight F32 [16] is not part of"));
  auto transposed = split_tensors("model.");
  transposed[9] = f32(transposed[9].name, {3, 16});
  EXPECT_THAT(load_error(transposed, llama_), HasSubstr("mlp.down_proj.weight is F32 [3, 16], expected [16, 3]"));
  auto flat = split_tensors("model.");
  flat[1] = f32(flat[1].name, {16, 1});
  EXPECT_THAT(load_error(flat, llama_), HasSubstr("input_layernorm.weight is F32 [16, 1], expected [16]"));
  auto quantised = split_tensors("model.");
  quantised[2] = {quantised[2].name, "F8_E4M3", {16, 16}, std::string(256, '\0')};
  EXPECT_THAT(load_error(quantised, llama_),
              HasSubstr("q_proj.weight has type F8_E4M3, which is not supported; supported: F32, F16, BF16"));
}

// Every byte that two loads took, in order.
std::string fingerprint(const ModelWeights& weights) {
  std::string all;
  const auto add_weight = [&](const std::unique_ptr<Weight>& weight) {
    all += weight ? dynamic_cast<RecordedWeight&>(*weight).stored : "-";
  };
  const auto add_vector = [&](const ParameterVector& vector) {
    all.append(reinterpret_cast<const char*>(vector.view().data()), vector.view().size_bytes());
  };
  add_weight(weights.embedding);
  for (const LayerWeights& layer : weights.layers) {
    for (const auto* weight : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) add_weight(*weight);
    for (const auto* vector : {&layer.attention_norm, &layer.qkv_bias, &layer.q_norm, &layer.k_norm, &layer.ffn_norm})
      add_vector(*vector);
  }
  add_vector(weights.final_norm);
  add_weight(weights.lm_head);
  return all;
}

TEST_F(WeightsTest, EveryFlippedHeaderBitIsAnErrorOrChangesNothing) {
  const std::string file = safetensors_bytes(split_tensors("model."));
  const std::string expected = fingerprint(*load(split_tensors("model."), llama_));
  const size_t data_bytes = static_cast<size_t>(llama_.parameters()) * 4;
  int errors = 0, identical = 0;
  for (size_t bit = 0; bit < (file.size() - data_bytes) * 8; ++bit) {
    std::string flipped = file;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    write_file(dir_ / "model.safetensors", flipped);
    std::unique_ptr<ModelWeights> weights;
    const std::string error = error_of([&] { weights = load_weights(dir_.path(), llama_, backend_); });
    if (weights == nullptr) {
      EXPECT_NE(error, "");
      ++errors;
    } else {
      EXPECT_EQ(fingerprint(*weights) == expected, true) << "bit " << bit << " changed the weights unseen";
      ++identical;
    }
  }
  EXPECT_GT(errors, 0);
  std::printf("%d flips refused, %d without effect\n", errors, identical);
}

TEST_F(WeightsTest, RandomWeightsAreSeededFiniteAndOfUnitGain) {
  const ModelConfig config = tiny_config("Qwen2ForCausalLM", "qwen2");
  const auto a = random_weights(config, DType::kF32, 1, backend_), b = random_weights(config, DType::kF32, 1, backend_);
  EXPECT_EQ(fingerprint(*a), fingerprint(*b));
  EXPECT_NE(fingerprint(*a), fingerprint(*random_weights(config, DType::kF32, 2, backend_)));
  EXPECT_EQ(a->bytes, static_cast<size_t>(config.parameters()) * 4);
  const std::string& qkv = stored(a->layers[0].qkv);
  double squares = 0.0;
  for (size_t i = 0; i < qkv.size(); i += 4) {
    float value = 0.0f;
    std::memcpy(&value, qkv.data() + i, 4);
    ASSERT_TRUE(std::isfinite(value));
    squares += static_cast<double>(value) * value;
  }
  EXPECT_NEAR(squares / 32.0, 1.0, 0.15);  // [32, 16]: each row of 16 has a norm near 1
  EXPECT_EQ(a->layers[0].qkv_bias.view().size(), 32u);
  EXPECT_EQ(random_weights(config, DType::kBF16, 1, backend_)->embedding->bytes(), 5u * 16u * 2u);
  EXPECT_EQ(random_weights(config, DType::kI4, 1, backend_)->layers[0].qkv->bytes(), 32u * 18u);
}

}  // namespace
}  // namespace headroom
