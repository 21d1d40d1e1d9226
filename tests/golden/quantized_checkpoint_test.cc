// Checkpoints packed by AutoGPTQ, AutoAWQ and compressed-tensors (quantized/, made by make_quantized_goldens.py): each
// gives the values that its codes stand for, to the bit wherever kernels can hold them, and a broken one is refused by
// name.
#include "engine/model/quantized_checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "engine/model/block_type.h"
#include "engine/model/convert_kv_heads.h"
#include "engine/model/open_model.h"
#include "engine/model/weights.h"
#include "kernels/quantize.h"
#include "tests/unit/checkpoint_writer.h"

namespace headroom {
namespace {

using ::testing::HasSubstr;

const std::filesystem::path kGoldens = std::filesystem::path(HEADROOM_SOURCE_DIR) / "tests/golden/quantized";

// Every matrix of the checkpoint as `type` and then as fp32, by name.
std::map<std::string, std::vector<float>> matrices_of(const std::filesystem::path& model_dir,
                                                      std::optional<DType> type = {}) {
  const auto store = open_safetensors(model_dir);
  std::map<std::string, std::vector<float>> matrices;
  for (const TensorInfo* tensor : store->tensors()) {
    if (tensor->rank != 2) continue;
    const int64_t rows = tensor->dims[0], cols = tensor->dims[1];
    const BlockType& stored = *find_block_type(tensor->type);
    std::vector<std::byte> bytes(tensor->bytes());
    store->read(tensor->name, bytes.data());
    std::vector<float>& values = matrices[tensor->name];
    values.resize(static_cast<size_t>(rows * cols));
    const DType as = type.value_or(stored.kept);
    const size_t row_bytes = weight_row_bytes(as, cols);
    std::vector<std::byte> kept(static_cast<size_t>(rows) * row_bytes);
    convert_rows(stored, as, bytes.data(), rows, cols, kept.data());
    for (int64_t r = 0; r < rows; ++r) {
      const std::byte* row = kept.data() + static_cast<size_t>(r) * row_bytes;
      float* out = values.data() + r * cols;
      if (is_quantized(as)) {
        for (int64_t k = 0; k < cols; ++k) out[k] = quantized_row_element(row, as, k);
      } else {
        find_block_type(as == DType::kF32 ? "F32" : "F16")->decode(row, cols, out);
      }
    }
  }
  return matrices;
}

struct Case {
  const char* name;
  DType kept;  // as which its matrices are held
  bool exact;  // in that type
};

class QuantizedCheckpoint : public ::testing::TestWithParam<Case> {};

TEST_P(QuantizedCheckpoint, HoldsTheValuesOfItsCodes) {
  const auto expected = matrices_of(kGoldens / (std::string(GetParam().name) + ".values"));
  const auto kept = matrices_of(kGoldens / GetParam().name);
  EXPECT_EQ(matrices_of(kGoldens / GetParam().name, DType::kF32), expected);
  if (GetParam().exact) {
    EXPECT_EQ(kept, expected);
    return;
  }
  // Rounded to int8 groups of 32: within half a step of a group, and what fp16 rounds off its scale.
  for (const auto& [name, values] : expected) {
    for (size_t first = 0; first < values.size(); first += kQuantGroup) {
      float largest = 0.0f;
      for (size_t i = first; i < first + kQuantGroup; ++i) largest = std::max(largest, std::abs(values[i]));
      for (size_t i = first; i < first + kQuantGroup; ++i)
        ASSERT_NEAR(kept.at(name)[i], values[i], largest / 127.0f * 0.54f) << name;
    }
  }
}

TEST_P(QuantizedCheckpoint, IsKeptAsTheTypeThatHoldsIt) {
  const auto store = open_safetensors(kGoldens / GetParam().name);
  int matrices = 0;
  for (const TensorInfo* tensor : store->tensors()) {
    if (tensor->name.find("_proj.weight") == std::string::npos) continue;
    EXPECT_EQ(find_block_type(tensor->type)->kept, GetParam().kept) << tensor->name;
    ++matrices;
  }
  EXPECT_EQ(matrices, 7);
}

TEST_P(QuantizedCheckpoint, LoadsInThePredictedBytes) {
  const OpenModel model = open_model(kGoldens / GetParam().name);
  const auto backend = make_cpu_backend({.threads = 1});
  const auto weights = load_weights(*model.tensors, model.config, *backend);
  EXPECT_EQ(weights->bytes, predicted_weight_bytes(*model.tensors, model.config, {}));  // rows are whole panels here
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizedCheckpoint,
                         ::testing::Values(Case{"gptq_sym", DType::kI4, true},
                                           Case{"gptq_zeros_one_group", DType::kI8, true},
                                           Case{"gptq_act_order", DType::kI8, false}, Case{"gptq_v2", DType::kI8, true},
                                           Case{"gptq_int8", DType::kI8, true}, Case{"awq", DType::kI8, true},
                                           Case{"packed_sym", DType::kI4, true}, Case{"packed_zeros", DType::kI8, true},
                                           Case{"packed_int8_zeros", DType::kI8, false},
                                           Case{"int8_channel", DType::kI8, true}),
                         [](const auto& test) { return std::string(test.param.name); });

// ---- Broken and unsupported checkpoints.

std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string load_error(const std::filesystem::path& model_dir) {
  try {
    const OpenModel model = open_model(model_dir);
    const auto backend = make_cpu_backend({.threads = 1});
    load_weights(*model.tensors, model.config, *backend);
    return "";
  } catch (const std::runtime_error& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
}

// What a copy of the golden is refused with after a change of its tensors' header, of its config.json or of its data.
using Change = std::function<void(nlohmann::ordered_json& header, nlohmann::json& config, std::string& data)>;
std::string error_after(const std::string& name, const Change& change) {
  const TestDirectory dir;
  const std::string bytes = read_bytes(kGoldens / name / "model.safetensors");
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < 8; ++i) header_bytes |= static_cast<uint64_t>(static_cast<uint8_t>(bytes[i])) << (8 * i);
  auto header = nlohmann::ordered_json::parse(bytes.substr(8, header_bytes));
  auto config = nlohmann::json::parse(read_bytes(kGoldens / name / "config.json"));
  std::string data = bytes.substr(8 + header_bytes);
  change(header, config, data);
  write_file(dir / "config.json", config.dump());
  write_file(dir / "model.safetensors", safetensors_bytes(header.dump(), data));
  return load_error(dir / "");
}
void rename(nlohmann::ordered_json& header, const std::string& from, const std::string& to) {
  header[to] = header.at(from);
  header.erase(from);
}

const std::string kDown = "model.layers.0.mlp.down_proj";

TEST(QuantizedCheckpointFile, BrokenTensorsAreRefusedByName) {
  EXPECT_EQ(error_after("gptq_sym", [](auto&, auto&, auto&) {}), "");
  EXPECT_THAT(error_after("gptq_sym", [](auto& h, auto&, auto&) { rename(h, kDown + ".qzeros", kDown + ".zeros"); }),
              HasSubstr("down_proj.qzeros is missing"));
  EXPECT_THAT(error_after("gptq_sym", [](auto& h, auto&, auto&) { rename(h, kDown + ".qweight", kDown + ".q"); }),
              HasSubstr("down_proj.weight [64, 96] is missing"));
  EXPECT_THAT(error_after("gptq_sym",
                          [](auto& h, auto&, auto&) {
                            h[kDown + ".qweight"]["shape"] = {24, 32};
                          }),
              HasSubstr("down_proj.scales is F16 [3, 64], expected F16 [3, 32]"));
  EXPECT_THAT(error_after("gptq_sym", [](auto& h, auto&, auto&) { h[kDown + ".qweight"]["dtype"] = "F32"; }),
              HasSubstr("is F32 [12, 64], expected a matrix of I32"));
  EXPECT_THAT(error_after("gptq_sym",
                          [](auto& h, auto&, auto&) {
                            h[kDown + ".g_idx"]["shape"] = {48, 2};
                          }),
              HasSubstr("expected I32 [96]"));
  EXPECT_THAT(error_after("gptq_sym",
                          [](auto& h, auto&, std::string& data) {
                            data[h[kDown + ".g_idx"]["data_offsets"][0].template get<size_t>()] = 3;
                          }),
              HasSubstr("down_proj.g_idx names group 3 of 3"));
  EXPECT_THAT(error_after("packed_sym",
                          [](auto& h, auto&, auto&) {
                            h[kDown + ".weight_scale"]["shape"] = {3, 64};
                          }),
              HasSubstr("expected"));
  EXPECT_THAT(error_after("int8_channel",
                          [](auto& h, auto&, auto&) { rename(h, kDown + ".weight_scale", kDown + ".k_scale"); }),
              HasSubstr("down_proj.weight_scale is missing"));
}

TEST(QuantizedCheckpointFile, OtherMethodsAreRefusedByName) {
  const auto refusal = [](const char* name, const char* key, const nlohmann::json& value) {
    return error_after(name, [&](auto&, auto& config, auto&) { config["quantization_config"][key] = value; });
  };
  EXPECT_THAT(refusal("awq", "quant_method", "fp8"),
              HasSubstr("quant_method fp8 is not supported; supported: gptq, awq, compressed-tensors"));
  EXPECT_THAT(refusal("awq", "version", "gemv"), HasSubstr("supported: gemm"));
  EXPECT_THAT(refusal("awq", "bits", 8), HasSubstr("4 bits alone"));
  EXPECT_THAT(refusal("gptq_sym", "bits", 3), HasSubstr("gptq with 3 bits is not supported; supported: 4, 8"));
  EXPECT_THAT(refusal("gptq_sym", "checkpoint_format", "marlin"), HasSubstr("supported: gptq, gptq_v2"));
  EXPECT_THAT(refusal("packed_sym", "format", "float-quantized"),
              HasSubstr("supported: pack-quantized, int-quantized"));
  EXPECT_THAT(refusal("packed_sym", "kv_cache_scheme", {{"num_bits", 8}}),
              HasSubstr("kv_cache_scheme is not supported"));
  EXPECT_THROW(convert_kv_heads(kGoldens / "awq", "/nowhere", {.kv_heads = 1}, {}), std::runtime_error);
}

TEST(QuantizedCheckpointFile, FlippedHeaderBitsAreRefusedOrLeaveAModel) {
  const TestDirectory dir;
  std::filesystem::copy(kGoldens / "gptq_act_order/config.json", dir / "config.json");
  const std::string bytes = read_bytes(kGoldens / "gptq_act_order/model.safetensors");
  const size_t header = 8 + static_cast<uint8_t>(bytes[0]) + 256 * static_cast<size_t>(static_cast<uint8_t>(bytes[1]));
  int refused = 0, loaded = 0;
  for (size_t bit = 0; bit < header * 8; bit += 7) {
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    write_file(dir / "model.safetensors", flipped);
    ++(load_error(dir / "").empty() ? loaded : refused);
  }
  EXPECT_GT(refused, loaded);
}

}  // namespace
}  // namespace headroom
