#include "kernels/device.h"

#include <algorithm>
#include <stdexcept>

#include "kernels/cuda/cuda_backend.h"

namespace headroom {
namespace {

// Throws std::runtime_error that says why not.
std::unique_ptr<Backend> cuda_backend_for(const DeviceOptions& options) {
  const auto takes = [](DType type) { return type == DType::kBF16 || type == DType::kF16; };
  const auto refused = std::ranges::find_if_not(options.weights, takes);
  if (refused != options.weights.end()) {
    throw std::runtime_error("the CUDA backend takes weights in bf16 or fp16, not " + std::string(dtype_name(*refused)) +
                             ": set --weights bf16");
  }
  const bool whole_chunks = options.head_dim % 16 == 0;  // int8 heads are copied 16 bytes at a time
  if (!takes(options.kv) && !(options.kv == DType::kI8 && whole_chunks)) {
    throw std::runtime_error("the CUDA backend takes KV in bf16 or fp16, and in int8 where head_dim is a multiple of 16, not " +
                             std::string(dtype_name(options.kv)) + ": set --kv bf16");
  }
  return make_cuda_backend({.graphs = options.cuda_graphs});
}

}  // namespace

const std::vector<std::string>& device_names() {
  static const std::vector<std::string> names = {"auto", "cpu", "cuda"};
  return names;
}

const std::vector<std::string>& activation_names() {
  static const std::vector<std::string> names = {"auto", "fp32", "bf16"};
  return names;
}

ChosenBackend choose_backend(const DeviceOptions& options) {
  const auto cpu = [&](std::string reason) {
    const bool has_bf16 = cpu_multiplies_bf16();
    if (options.activations == "bf16" && !has_bf16) throw std::runtime_error("--activations bf16: this CPU has no AVX-512 BF16 and VBMI; use fp32");
    const bool bf16 = options.activations != "fp32" && has_bf16;
    return ChosenBackend{make_cpu_backend({.threads = options.threads, .bf16_activations = bf16}), "cpu", std::move(reason)};
  };
  if (options.device == "cpu") return cpu("");
  try {
    return {cuda_backend_for(options), "cuda", ""};
  } catch (const std::runtime_error& error) {
    if (options.device == "cuda") throw std::runtime_error(std::string("--device cuda: ") + error.what());
    return cpu(error.what());
  }
}

}  // namespace headroom
