// `headroom serve` and `bench` on a device that tests can do with as they like: the CUDA backend on the CPU test layer, whose device has
// HEADROOM_TEST_DEVICE_MIB of memory (0: there is none) and no more after HEADROOM_TEST_DEVICE_CALLS calls, or the CPU backend; with
// HEADROOM_TEST_FAULT=KIND:CALL, the CALL-th call of a server from the first step on fails, as faulty_backend.h says. The program that
// is shipped has none of this.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "kernels/device.h"
#include "server/command_bench.h"
#include "server/command_serve.h"
#include "tests/cuda_on_cpu/include/cuda_runtime_api.h"
#include "tests/unit/faulty_backend.h"

namespace {

using headroom::Fault;

Fault fault_named(const std::string& name) {
  if (name == "sticky") return Fault::sticky;
  if (name == "out_of_memory") return Fault::out_of_memory;
  if (name == "hang") return Fault::hang;
  if (name == "nan") return Fault::nan;
  throw std::runtime_error("HEADROOM_TEST_FAULT: no fault " + name);
}

headroom::ChosenBackend choose(const headroom::DeviceOptions& options) {
  headroom::ChosenBackend chosen = headroom::choose_backend(options);
  if (const char* text = std::getenv("HEADROOM_TEST_FAULT"); text != nullptr) {
    const std::string fault = text;
    const auto plan = std::make_shared<headroom::FaultPlan>();
    plan->fault = fault_named(fault.substr(0, fault.find(':')));
    plan->at_call = std::stoll(fault.substr(fault.find(':') + 1));
    plan->from_first_step = true;
    chosen.backend = std::make_unique<headroom::FaultyBackend>(std::move(chosen.backend), plan);
  }
  return chosen;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (const char* text = std::getenv("HEADROOM_TEST_DEVICE_MIB"); text != nullptr) {
      const size_t mebibytes = std::stoul(text);
      headroom::cuda_on_cpu::set_devices(mebibytes > 0 ? 1 : 0);
      headroom::cuda_on_cpu::set_memory_bytes(mebibytes << 20);
    }
    if (const char* text = std::getenv("HEADROOM_TEST_DEVICE_CALLS"); text != nullptr) {
      headroom::cuda_on_cpu::fail_after(std::stoi(text), cudaErrorMemoryAllocation);
    }
    const std::vector<std::string> arguments(argv + 2, argv + argc);
    return std::strcmp(argv[1], "bench") == 0 ? headroom::run_bench(arguments) : headroom::run_serve(arguments, choose);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "headroom: %s\n", error.what());
    return 1;
  }
}
