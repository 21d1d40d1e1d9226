// Which backend is taken, and what is said where it is not the one that was hoped for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "kernels/device.h"
#include "tests/cuda_on_cpu/include/cuda_runtime_api.h"

namespace headroom {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

class Devices : public testing::Test {
 protected:
  ~Devices() override {
    cuda_on_cpu::set_devices(1);
    cuda_on_cpu::fail_after(-1, cudaSuccess);
  }
  static std::string refusal(const DeviceOptions& options) {
    try {
      choose_backend(options);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "";
  }
};

TEST_F(Devices, AutoTakesTheDeviceThatIsThere) {
  for (const char* device : {"auto", "cuda"}) {
    const ChosenBackend chosen = choose_backend({.device = device, .weights = {DType::kBF16, DType::kF16}});
    EXPECT_EQ(chosen.device, "cuda");
    EXPECT_EQ(chosen.reason, "");
    EXPECT_THAT(chosen.backend->description(), StartsWith("cuda: "));
    EXPECT_FALSE(chosen.backend->host_readable());
  }
}

// The runtime loads a kernel at its first launch otherwise, when the pool may have left no room. An operator's own choice stands.
TEST_F(Devices, AllKernelsAreLoadedAtStart) {
  unsetenv("CUDA_MODULE_LOADING");
  choose_backend({.device = "cuda", .weights = {DType::kBF16}});
  EXPECT_STREQ(std::getenv("CUDA_MODULE_LOADING"), "EAGER");
  setenv("CUDA_MODULE_LOADING", "LAZY", 1);
  choose_backend({.device = "cuda", .weights = {DType::kBF16}});
  EXPECT_STREQ(std::getenv("CUDA_MODULE_LOADING"), "LAZY");
}

TEST_F(Devices, TheCpuIsTakenWhereItIsNamed) {
  const ChosenBackend chosen = choose_backend({.device = "cpu", .threads = 1});
  EXPECT_EQ(chosen.device, "cpu");
  EXPECT_EQ(chosen.reason, "");
  EXPECT_THAT(chosen.backend->description(), StartsWith("cpu: "));
}

TEST_F(Devices, WithoutADeviceAutoTakesTheCpuAndSaysWhy) {
  cuda_on_cpu::set_devices(0);
  const ChosenBackend chosen = choose_backend({.threads = 1});
  EXPECT_EQ(chosen.device, "cpu");
  EXPECT_THAT(chosen.reason, HasSubstr("no CUDA-capable device"));
  EXPECT_THAT(refusal({.device = "cuda"}), StartsWith("--device cuda: no CUDA device: "));
}

TEST_F(Devices, ADeviceThatFailsAtOnceIsNone) {
  cuda_on_cpu::fail_after(0, cudaErrorIllegalAddress);
  const ChosenBackend chosen = choose_backend({.threads = 1});
  EXPECT_EQ(chosen.device, "cpu");
  EXPECT_THAT(chosen.reason, HasSubstr("cudaGetDeviceProperties"));
}

TEST_F(Devices, TypesThatTheDeviceDoesNotTakeLeaveTheCpu) {
  for (const DType type : {DType::kF32, DType::kI8, DType::kI4}) {
    const ChosenBackend chosen = choose_backend({.threads = 1, .weights = {DType::kBF16, type}});
    EXPECT_EQ(chosen.device, "cpu");
    EXPECT_THAT(chosen.reason, HasSubstr(std::string(dtype_name(type)))) << dtype_name(type);
    EXPECT_THAT(refusal({.device = "cuda", .weights = {type}}), HasSubstr("set --weights bf16"));
  }
  EXPECT_EQ(choose_backend({.threads = 1, .kv = DType::kF32}).device, "cpu");
  EXPECT_THAT(refusal({.device = "cuda", .kv = DType::kF32}), HasSubstr("set --kv bf16"));
  EXPECT_EQ(choose_backend({.kv = DType::kI8, .head_dim = 64}).device, "cuda");
  EXPECT_EQ(choose_backend({.threads = 1, .kv = DType::kI8, .head_dim = 72}).device, "cpu");
}

}  // namespace
}  // namespace headroom
