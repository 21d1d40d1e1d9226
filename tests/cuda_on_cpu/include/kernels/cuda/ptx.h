// kernels/cuda/ptx.h in C++, for tests: stands in its place when the kernels are compiled for the CPU. The fragment layouts of
// mma and ldmatrix are written here from the PTX ISA's tables, independently of kernels/cuda/layout.h.
//
// Numbers: products of 16-bit elements are exact in fp32; a matrix product adds them to the sum one after another, where a GPU
// adds several at once and truncates. 2^x is the C library's. So bits differ from a GPU's; rules about bits do not.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/check.h"
#include "kernels/cuda/errors.h"
#include "kernels/dtype.h"
#include "tests/cuda_on_cpu/block.h"

#define HEADROOM_KERNEL(threads, blocks_per_sm) void
#define HEADROOM_DEVICE inline
#define HEADROOM_PARAMS const

struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};

namespace headroom::cuda {

using Stream = cudaStream_t;
using SharedAddress = uint32_t;

inline int thread_id() { return cuda_on_cpu::thread_id(); }
inline int block_x() { return cuda_on_cpu::block_id().x; }
inline int block_y() { return cuda_on_cpu::block_id().y; }
inline int block_z() { return cuda_on_cpu::block_id().z; }
inline int grid_x() { return cuda_on_cpu::grid_size().x; }

struct Nothing {};
inline void block_sync() { cuda_on_cpu::block_barrier(); }
inline void warp_sync() {
  Nothing nothing;
  cuda_on_cpu::warp_meet("warp_sync", &nothing, sizeof(nothing), &nothing, sizeof(nothing), [](const void*, void*) {});
}
inline void device_fence() {}
template <class T>
T atomic_add(T* to, T value) {
  const T before = *to;
  *to += value;
  return before;
}

inline unsigned char* shared_memory() { return cuda_on_cpu::shared_begin(); }
// `bytes` at `address`, inside the block's shared memory.
inline unsigned char* shared_at(SharedAddress address, size_t bytes) {
  CHECK_LE(address + bytes, cuda_on_cpu::shared_bytes()) << "past the block's shared memory";
  CHECK_EQ(address % bytes, 0u) << "an unaligned address in shared memory";
  return cuda_on_cpu::shared_begin() + address;
}
inline SharedAddress shared_address(const void* pointer) {
  return static_cast<SharedAddress>(static_cast<const unsigned char*>(pointer) - cuda_on_cpu::shared_begin());
}

template <int kBytes>
void cp_async(SharedAddress to, const void* from, bool valid) {
  CHECK_EQ(reinterpret_cast<uintptr_t>(from) % kBytes, 0u) << "an unaligned source of cp.async";
  cuda_on_cpu::copy_later(shared_at(to, kBytes), valid ? from : nullptr, kBytes);
}
inline void cp_async_commit() { cuda_on_cpu::close_copy_group(); }
template <int kPending>
void cp_async_wait() {
  cuda_on_cpu::wait_copy_groups(kPending);
}

inline uint4 load_once(const uint4* from) {
  CHECK_EQ(reinterpret_cast<uintptr_t>(from) % 16, 0u);
  return *from;
}
inline float load_shared_result(const float* from) { return *from; }
inline float2 load_shared_result(const float2* from) { return *from; }

template <DType kType>
float half_to_float(uint16_t half) {
  return kType == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
}
template <DType kType>
uint32_t pack_halves(float low, float high) {
  const auto round = [](float value) -> uint32_t { return kType == DType::kBF16 ? f32_to_bf16(value) : f32_to_f16(value); };
  return round(low) | round(high) << 16;
}
inline float half_of(DType type, uint32_t pair, int upper) {
  const auto half = static_cast<uint16_t>(upper ? pair >> 16 : pair);
  return type == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

struct MmaIn {
  uint32_t a[4];
  uint32_t b[2];
  float c[4];
};
struct MmaOut {
  float c[4];
};
// PTX ISA, m16n8k16 .f16/.bf16: groupID = lane >> 2, threadID_in_group = lane % 4.
//   A, a0..a7: row = groupID for i in {0,1,4,5}, groupID + 8 otherwise; col = threadID · 2 + (i & 1), + 8 for i >= 4.
//   B, b0..b3: row = threadID · 2 + (i & 1), + 8 for i >= 2; col = groupID.
//   C, c0..c3: row = groupID for i < 2, groupID + 8 otherwise; col = threadID · 2 + (i & 1).
template <DType kType>
void combine_mma(const void* in, void* out) {
  const auto* slots = static_cast<const unsigned char*>(in);
  float a[16][16], b[16][8], sums[16][8];
  for (int lane = 0; lane < cuda_on_cpu::kLanes; ++lane) {
    MmaIn mine;
    std::memcpy(&mine, slots + lane * 64, sizeof(mine));
    const int group = lane >> 2, thread = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const int row = i == 0 || i == 1 || i == 4 || i == 5 ? group : group + 8;
      const int col = thread * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      a[row][col] = half_of(kType, mine.a[i / 2], i & 1);
    }
    for (int i = 0; i < 4; ++i) {
      const int row = thread * 2 + (i & 1) + (i >= 2 ? 8 : 0);
      b[row][group] = half_of(kType, mine.b[i / 2], i & 1);
    }
    for (int i = 0; i < 4; ++i) sums[i < 2 ? group : group + 8][thread * 2 + (i & 1)] = mine.c[i];
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      const float left = a[row][k];
      for (int col = 0; col < 8; ++col) sums[row][col] += left * b[k][col];
    }
  }
  for (int lane = 0; lane < cuda_on_cpu::kLanes; ++lane) {
    const int group = lane >> 2, thread = lane % 4;
    MmaOut result;
    for (int i = 0; i < 4; ++i) result.c[i] = sums[i < 2 ? group : group + 8][thread * 2 + (i & 1)];
    std::memcpy(static_cast<unsigned char*>(out) + lane * 64, &result, sizeof(result));
  }
}
template <DType kType>
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MmaIn in{{a[0], a[1], a[2], a[3]}, {b0, b1}, {c[0], c[1], c[2], c[3]}};
  MmaOut out;
  cuda_on_cpu::warp_meet(kType == DType::kBF16 ? "mma bf16" : "mma fp16", &in, sizeof(in), &out, sizeof(out), combine_mma<kType>);
  std::memcpy(c, out.c, sizeof(out.c));
}

struct LdmatrixOut {
  uint32_t words[4];
};
// PTX ISA, ldmatrix .x4: threads 8i .. 8i+7 hold the addresses of the rows of matrix i; thread t receives elements 2(t % 4) and
// 2(t % 4) + 1 of row t / 4 of each matrix; .trans: of the transposed matrix.
template <bool kTransposed>
void combine_ldmatrix(const void* in, void* out) {
  uint16_t tiles[4][8][8];
  for (int lane = 0; lane < cuda_on_cpu::kLanes; ++lane) {
    SharedAddress address;
    std::memcpy(&address, static_cast<const unsigned char*>(in) + lane * 64, sizeof(address));
    std::memcpy(tiles[lane / 8][lane % 8], shared_at(address, 16), 16);
  }
  for (int lane = 0; lane < cuda_on_cpu::kLanes; ++lane) {
    LdmatrixOut result;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4, col = lane % 4 * 2;
      const uint32_t low = kTransposed ? tiles[i][col][row] : tiles[i][row][col];
      const uint32_t high = kTransposed ? tiles[i][col + 1][row] : tiles[i][row][col + 1];
      result.words[i] = low | high << 16;
    }
    std::memcpy(static_cast<unsigned char*>(out) + lane * 64, &result, sizeof(result));
  }
}
inline void ldmatrix_x4(uint32_t (&to)[4], SharedAddress row) {
  LdmatrixOut out;
  cuda_on_cpu::warp_meet("ldmatrix", &row, sizeof(row), &out, sizeof(out), combine_ldmatrix<false>);
  std::memcpy(to, out.words, sizeof(to));
}
inline void ldmatrix_x4_transposed(uint32_t (&to)[4], SharedAddress row) {
  LdmatrixOut out;
  cuda_on_cpu::warp_meet("ldmatrix.trans", &row, sizeof(row), &out, sizeof(out), combine_ldmatrix<true>);
  std::memcpy(to, out.words, sizeof(to));
}

template <class T>
struct ShuffleIn {
  T value;
  int lanes;
};
template <class T>
T shuffle_xor(T value, int lanes) {
  const ShuffleIn<T> in{value, lanes};
  T out;
  cuda_on_cpu::warp_meet("shuffle_xor", &in, sizeof(in), &out, sizeof(out), [](const void* slots, void* results) {
    for (int lane = 0; lane < cuda_on_cpu::kLanes; ++lane) {
      ShuffleIn<T> mine, other;
      std::memcpy(&mine, static_cast<const unsigned char*>(slots) + lane * 64, sizeof(mine));
      std::memcpy(&other, static_cast<const unsigned char*>(slots) + (lane ^ mine.lanes) * 64, sizeof(other));
      std::memcpy(static_cast<unsigned char*>(results) + lane * 64, &other.value, sizeof(T));
    }
  });
  return out;
}

inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  const auto at = [&](int upper) {
    const auto value = [upper](uint32_t pair) { return half_of(DType::kBF16, pair, upper); };
    return fmaf(value(a), value(b), value(c));  // rounded twice, which shows only where fp32 does not hold it
  };
  return pack_halves<DType::kBF16>(at(0), at(1));
}

inline float exp2_fast(float x) { return exp2f(x); }

struct Grid {
  int64_t x = 1;
  int64_t y = 1;
  int64_t z = 1;
};
template <class Params>
void launch(const char* name, void (*kernel)(Params), Grid grid, int threads, size_t shared_bytes, Stream,
            const Params& params) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const cuda_on_cpu::Index3 blocks{static_cast<int>(grid.x), static_cast<int>(grid.y), static_cast<int>(grid.z)};
  const bool ran = cuda_on_cpu::do_in_stream([=] { return cuda_on_cpu::run_grid(blocks, threads, shared_bytes, [&] { kernel(params); }); });
  check_cuda(ran ? cudaSuccess : cudaErrorInvalidValue, name);
}

}  // namespace headroom::cuda
