// The CPU layer itself: fragments as the PTX ISA prints them, and kernels that are wrong on purpose, which it must notice.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ptx.h"

namespace headroom::cuda {
namespace {

using cuda_on_cpu::Order;

class Layer : public testing::Test {
 protected:
  void TearDown() override { cuda_on_cpu::set_order(Order::ascending, Order::ascending); }
};
using LayerDeathTest = Layer;

struct Empty {};

// ---- The matrix unit.

struct MmaParams {
  const float* a;  // [16, 16]
  const float* b;  // [16, 8]
  const float* c;  // [16, 8]
  float* out;
};

template <DType kType>
void mma_kernel(const MmaParams p) {
  const int lane = thread_id() % kWarpLanes;
  uint32_t a[4], b[2];
  float c[4];
  const auto a_at = [&](int i) { return p.a[mma_a(lane, i).row * 16 + mma_a(lane, i).col]; };
  const auto b_at = [&](int i) { return p.b[mma_b(lane, i).row * 8 + mma_b(lane, i).col]; };
  for (int i = 0; i < 4; ++i) a[i] = pack_halves<kType>(a_at(2 * i), a_at(2 * i + 1));
  for (int i = 0; i < 2; ++i) b[i] = pack_halves<kType>(b_at(2 * i), b_at(2 * i + 1));
  for (int i = 0; i < 4; ++i) c[i] = p.c[mma_c(lane, i).row * 8 + mma_c(lane, i).col];
  mma<kType>(c, a, b[0], b[1]);
  for (int i = 0; i < 4; ++i) p.out[mma_c(lane, i).row * 8 + mma_c(lane, i).col] = c[i];
}

TEST_F(Layer, MmaMultipliesMatricesThatLieAsLayoutSays) {
  std::mt19937 random(1);
  std::vector<float> a(256), b(128), c(128), out(128);
  for (auto* values : {&a, &b, &c}) {
    for (float& value : *values) value = static_cast<float>(static_cast<int>(random() % 33) - 16);  // exact in fp16 and bf16
  }
  for (const auto kernel : {mma_kernel<DType::kBF16>, mma_kernel<DType::kF16>}) {
    launch("mma", kernel, Grid{}, 32, 0, nullptr, MmaParams{a.data(), b.data(), c.data(), out.data()});
    for (int row = 0; row < 16; ++row) {
      for (int col = 0; col < 8; ++col) {
        float expected = c[row * 8 + col];
        for (int k = 0; k < 16; ++k) expected += a[row * 16 + k] * b[k * 8 + col];
        ASSERT_EQ(out[row * 8 + col], expected) << row << ", " << col;
      }
    }
  }
}

// Entries of the PTX ISA's figures, typed off: "T5: {a0, a1}" stands in row 1, columns 2 and 3, and so on.
TEST_F(Layer, FragmentMapsHaveTheEntriesOfThePtxIsa) {
  EXPECT_EQ(mma_a(0, 0), (Coordinate{0, 0}));
  EXPECT_EQ(mma_a(5, 1), (Coordinate{1, 3}));
  EXPECT_EQ(mma_a(3, 2), (Coordinate{8, 6}));
  EXPECT_EQ(mma_a(31, 3), (Coordinate{15, 7}));
  EXPECT_EQ(mma_a(0, 4), (Coordinate{0, 8}));
  EXPECT_EQ(mma_a(30, 7), (Coordinate{15, 13}));
  EXPECT_EQ(mma_b(0, 0), (Coordinate{0, 0}));
  EXPECT_EQ(mma_b(1, 1), (Coordinate{3, 0}));
  EXPECT_EQ(mma_b(3, 2), (Coordinate{14, 0}));
  EXPECT_EQ(mma_b(29, 3), (Coordinate{11, 7}));
  EXPECT_EQ(mma_c(4, 0), (Coordinate{1, 0}));
  EXPECT_EQ(mma_c(7, 1), (Coordinate{1, 7}));
  EXPECT_EQ(mma_c(28, 2), (Coordinate{15, 0}));
}

struct LdmatrixParams {
  uint32_t* plain;       // [32 lanes][4]
  uint32_t* transposed;  // [32 lanes][4]
};

// Tile i holds 1000 · i + 10 · row + col.
void ldmatrix_kernel(const LdmatrixParams p) {
  auto* tiles = reinterpret_cast<uint16_t*>(shared_memory());
  const int lane = thread_id();
  for (int col = 0; col < 8; ++col) tiles[lane * 8 + col] = static_cast<uint16_t>(1000 * (lane / 8) + 10 * (lane % 8) + col);
  warp_sync();
  uint32_t words[4];
  ldmatrix_x4(words, shared_address(tiles + lane * 8));
  for (int i = 0; i < 4; ++i) p.plain[lane * 4 + i] = words[i];
  ldmatrix_x4_transposed(words, shared_address(tiles + lane * 8));
  for (int i = 0; i < 4; ++i) p.transposed[lane * 4 + i] = words[i];
}

TEST_F(Layer, LdmatrixGivesEachLaneItsPair) {
  std::vector<uint32_t> plain(128), transposed(128);
  launch("ldmatrix", ldmatrix_kernel, Grid{}, 32, 512, nullptr, LdmatrixParams{plain.data(), transposed.data()});
  const auto pair = [](uint32_t low, uint32_t high) { return low | high << 16; };
  EXPECT_EQ(plain[0], pair(0, 1));
  EXPECT_EQ(plain[5 * 4], pair(12, 13));             // row 1, columns 2 and 3
  EXPECT_EQ(plain[31 * 4 + 3], pair(3076, 3077));    // tile 3, row 7, columns 6 and 7
  EXPECT_EQ(transposed[5 * 4], pair(21, 31));        // column 1, rows 2 and 3
  EXPECT_EQ(transposed[28 * 4 + 2], pair(2007, 2017));  // tile 2, column 7, rows 0 and 1
}

// ---- Order, and what is missing.

struct SharedParams {
  float* out;
  const float* in;
};

template <bool kWaits>
void reverse_kernel(const SharedParams p) {
  auto* values = reinterpret_cast<float*>(shared_memory());
  values[thread_id()] = p.in[thread_id()];
  if (kWaits) block_sync();
  p.out[thread_id()] = values[63 - thread_id()];
}

std::vector<float> reversed(void (*kernel)(SharedParams), Order order) {
  cuda_on_cpu::set_order(order, Order::ascending);
  std::vector<float> in(64), out(64);
  for (int i = 0; i < 64; ++i) in[static_cast<size_t>(i)] = static_cast<float>(i);
  launch("reverse", kernel, Grid{}, 64, 256, nullptr, SharedParams{out.data(), in.data()});
  return out;
}

TEST_F(Layer, AMissingBarrierShows) {
  const std::vector<float> right = reversed(reverse_kernel<true>, Order::ascending);
  EXPECT_EQ(right[0], 63.0f);
  EXPECT_EQ(reversed(reverse_kernel<true>, Order::shuffled), right);
  EXPECT_NE(reversed(reverse_kernel<false>, Order::ascending), right);
  EXPECT_TRUE(std::isnan(reversed(reverse_kernel<false>, Order::ascending)[0])) << "what was not written is NaN";
  EXPECT_EQ(reversed(reverse_kernel<false>, Order::descending)[0], right[0]) << "right by luck, in this order";
}

template <int kPending>
void copy_kernel(const SharedParams p) {
  auto* values = reinterpret_cast<float*>(shared_memory());
  const int at = thread_id() * 4;
  cp_async<16>(shared_address(values + at), p.in + at, true);
  cp_async_commit();
  cp_async<16>(shared_address(values + 128 + at), p.in + at, false);
  cp_async_commit();
  cp_async_wait<kPending>();
  block_sync();
  p.out[thread_id()] = values[thread_id()];
  p.out[32 + thread_id()] = values[128 + thread_id()];
}

TEST_F(Layer, CopiesArriveWhenTheyAreWaitedForAndNoSooner) {
  alignas(16) float in[128];
  for (int i = 0; i < 128; ++i) in[i] = static_cast<float>(i);
  std::vector<float> out(64);
  const auto run = [&](void (*kernel)(SharedParams)) {
    launch("copy", kernel, Grid{}, 32, 1024, nullptr, SharedParams{out.data(), in});
  };
  run(copy_kernel<0>);
  EXPECT_EQ(out[31], 31.0f);
  EXPECT_EQ(out[32], 0.0f) << "zeros where it is not valid";
  run(copy_kernel<1>);
  EXPECT_EQ(out[31], 31.0f);
  EXPECT_TRUE(std::isnan(out[32]));
  run(copy_kernel<2>);
  EXPECT_TRUE(std::isnan(out[31]));
}

void half_barrier_kernel(const Empty) {
  if (thread_id() < 32) block_sync();
}
void torn_warp_kernel(const Empty) {
  if (thread_id() % 2 == 0) {
    warp_sync();
  } else {
    shuffle_xor(1.0f, 1);
  }
}
void past_the_end_kernel(const Empty) { cp_async<16>(1024 - 8, nullptr, false); }
void stray_kernel(const Empty) { cp_async<16>(1024, nullptr, false); }

TEST_F(LayerDeathTest, WrongKernelsStop) {
  const auto run = [](void (*kernel)(Empty)) { launch("wrong", kernel, Grid{}, 64, 1024, nullptr, Empty{}); };
  EXPECT_DEATH(run(half_barrier_kernel), "32 at a barrier");
  EXPECT_DEATH(run(torn_warp_kernel), "others at");
  EXPECT_DEATH(run(past_the_end_kernel), "past the block's shared memory");
  EXPECT_DEATH(run(stray_kernel), "past the block's shared memory");
}

TEST_F(Layer, TooMuchSharedMemoryIsAnErrorOfTheLaunch) {
  EXPECT_THROW(launch("greedy", half_barrier_kernel, Grid{}, 64, 228 * 1024, nullptr, Empty{}), BackendError);
}

}  // namespace
}  // namespace headroom::cuda
