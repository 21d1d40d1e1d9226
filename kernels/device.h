// Chooses what computes. A build without CUDA, a machine without a device, and a model that the CUDA backend does not take all leave
// the CPU; whoever asked for CUDA by name is told why it cannot be had.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace headroom {

struct DeviceOptions {
  std::string device = "auto";  // one of device_names()
  int threads = 0;              // of the CPU backend; 0: one per physical core
  std::string activations = "auto";  // of the CPU backend, one of activation_names(): what the inputs of its gemms are rounded to
  bool cuda_graphs = true;      // decode steps are recorded once and replayed
  std::set<DType> weights;      // of the matrices that will be loaded
  DType kv = DType::kBF16;
  int32_t head_dim = 0;         // of the model
};

struct ChosenBackend {
  std::unique_ptr<Backend> backend;
  std::string device;  // "cpu" or "cuda"
  std::string reason;  // why not CUDA, where it was not asked for by name; empty: it is CUDA, or the CPU was asked for
};

const std::vector<std::string>& device_names();
// "auto": bf16 where the CPU multiplies that at twice the speed, else fp32. Weights of fp32 and fp16 always meet fp32.
const std::vector<std::string>& activation_names();

// Throws std::runtime_error, one line, when "cuda", or "bf16" of a CPU, is asked for and cannot be had.
ChosenBackend choose_backend(const DeviceOptions& options);

// How servers get their backend: choose_backend, or what a test puts in its place.
using BackendChooser = std::function<ChosenBackend(const DeviceOptions&)>;

}  // namespace headroom
