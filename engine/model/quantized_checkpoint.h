// Safetensors checkpoints whose matrices GPTQ, AWQ or compressed-tensors quantised to int4 or int8, read as if they were
// stored in the groups of 32 that kernels take (dtype.h).
//
// A matrix X.weight [N, K] is stored as codes with a scale, and often a zero point, for each group of neighbours in a row:
// weight = (code − zero) · scale. In words of 32 bits, the first code in the lowest bits:
//   gptq                X.qweight [K/8, N] along K; X.qzeros [G, N/8] along N, one too low in its first format; X.scales [G, N];
//                       X.g_idx [K]: the group of each column. 8-bit codes: 4 to a word.
//   awq                 X.qweight [K, N/8] and X.qzeros [G, N/8] along N, in the order 0 2 4 6 1 3 5 7; X.scales [G, N]
//   compressed-tensors  X.weight_packed [N, K/8] along K; X.weight_zero_point [N/8, G] along N; X.weight_scale [N, G];
//                       or X.weight int8 [N, K] with X.weight_zero_point int8 [N, G]. Its codes are signed: stored + 8 or + 128
//                       in words. What it says of activations is not followed: they stay as they are.
// The formats as AutoGPTQ 0.7, AutoAWQ 0.2 and compressed-tensors 0.20 write them.
//
// Exact where code − zero fits the groups' type: int4 without zero points becomes int4, with them int8, int8 without them int8.
// Columns in an order of their own (g_idx) or 8-bit codes with zero points are rounded to int8 groups, unless another type is
// asked for. Errors are std::runtime_error, one line that names the checkpoint and the tensor.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>

#include "engine/model/tensor_store.h"

namespace headroom {

class ConfigFields;

struct CheckpointQuantization {
  enum class Method : uint8_t { kGptq, kAwq, kCompressedTensors };
  Method method = Method::kGptq;
  int32_t bits = 4;        // of gptq and awq
  int32_t zero_added = 0;  // to what qzeros stores
};

// Of `fields`, which is quantization_config of config.json. What cannot be read is refused by name.
CheckpointQuantization read_quantization(const ConfigFields& fields);

// What config.json of the directory, or the file itself, says; nothing where there is no such file.
std::optional<CheckpointQuantization> quantization_of(const std::filesystem::path& model);

std::unique_ptr<TensorStore> open_quantized_safetensors(const std::filesystem::path& model_dir,
                                                        const CheckpointQuantization& quantization);

}  // namespace headroom
