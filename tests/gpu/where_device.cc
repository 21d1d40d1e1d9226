#include <gtest/gtest.h>

#include <stdexcept>

#include "kernels/cuda/cuda_backend.h"
#include "tests/cuda_on_cpu/block.h"
#include "tests/gpu/where.h"

namespace headroom {
namespace {

class NeedsADevice : public testing::Environment {
 public:
  void SetUp() override {
    std::string reason;
    try {
      make_cuda_backend({});
    } catch (const std::runtime_error& error) {
      reason = error.what();
    }
    if (!reason.empty()) GTEST_SKIP() << "SKIPPED: " << reason;
  }
};
const testing::Environment* const needs_a_device = testing::AddGlobalTestEnvironment(new NeedsADevice);

}  // namespace

bool on_device() { return true; }

// A device has an order of its own, another one in each run.
void cuda_on_cpu::set_order(Order, Order) {}

}  // namespace headroom
