#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "kernels/cuda/cuda_backend.h"
#include "tests/cuda_on_cpu/block.h"
#include "tests/gpu/where.h"

namespace headroom {
namespace {

class NeedsADevice : public testing::Environment {
 public:
  // Ends the program: a skip from here would leave tests that count as passed.
  void SetUp() override {
    try {
      make_cuda_backend({});
    } catch (const std::runtime_error& error) {
      std::printf("SKIPPED: %s\n", error.what());
      std::fflush(stdout);
      std::_Exit(0);
    }
  }
};
const testing::Environment* const needs_a_device = testing::AddGlobalTestEnvironment(new NeedsADevice);

}  // namespace

bool on_device() { return true; }
int replayed_steps() { return 0; }
int recorded_launches() { return 0; }
void set_late(bool) {}

// A device has an order of its own, another one in each run.
void cuda_on_cpu::set_order(Order, Order) {}

}  // namespace headroom
