// The instructions that the kernels use beyond plain C++, one thin function each, and the launch. Tests put a header of the
// same name in its place whose functions do the same in C++ (tests/cuda_on_cpu), so kernels use nothing else of CUDA.
//
// Half: 16-bit elements are kept as uint16_t, pairs as uint32_t with the lower index in the lower half.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/check.h"
#include "kernels/cuda/errors.h"
#include "kernels/dtype.h"

#define HEADROOM_KERNEL(threads, blocks_per_sm) __global__ void __launch_bounds__(threads, blocks_per_sm)
#define HEADROOM_DEVICE __device__ __forceinline__
#define HEADROOM_PARAMS const __grid_constant__

namespace headroom::cuda {

using Stream = cudaStream_t;
using SharedAddress = uint32_t;  // in the block's shared memory

// ---- The place of a thread.
HEADROOM_DEVICE int thread_id() { return static_cast<int>(threadIdx.x); }
HEADROOM_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
HEADROOM_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
HEADROOM_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
HEADROOM_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }

// ---- Order among threads.
HEADROOM_DEVICE void block_sync() { __syncthreads(); }
HEADROOM_DEVICE void warp_sync() { __syncwarp(); }
// What this thread wrote before is seen by whoever sees what it writes after.
HEADROOM_DEVICE void device_fence() { __threadfence(); }
HEADROOM_DEVICE int atomic_add(int32_t* to, int value) { return atomicAdd(to, value); }
HEADROOM_DEVICE uint32_t atomic_add(uint32_t* to, uint32_t value) { return atomicAdd(to, value); }

// ---- Shared memory: all of it is dynamic, 128-byte aligned.
HEADROOM_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char dynamic_shared[];
  return dynamic_shared;
}
HEADROOM_DEVICE SharedAddress shared_address(const void* pointer) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(pointer));
}

// 16 or 4 bytes from device to shared memory without registers, 16 past L1; zeros and no read where not `valid`.
template <int kBytes>
HEADROOM_DEVICE void cp_async(SharedAddress to, const void* from, bool valid) {
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes), "r"(bytes) : "memory");
  }
}
HEADROOM_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `kPending` of this thread's groups are under way. Others see the data after a block_sync.
template <int kPending>
HEADROOM_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- Device memory past the caches' usual order.
// 16 bytes that are read once: weights.
HEADROOM_DEVICE uint4 load_once(const uint4* from) {
  uint4 value;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}
// What another block wrote during this launch.
HEADROOM_DEVICE float load_shared_result(const float* from) { return __ldcg(from); }
HEADROOM_DEVICE float2 load_shared_result(const float2* from) { return __ldcg(from); }

// ---- The matrix unit. c += a · b, [16, 8] += [16, 16] · [16, 8], products exact, sums in fp32.
template <DType kType>
HEADROOM_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kType == DType::kBF16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Four tiles of 8 rows of 16 bytes. Lane l names row l % 8 of tile l / 8; of each tile it gets elements 2(l % 4) and the
// next of row l / 4, or, transposed, of column l / 4.
HEADROOM_DEVICE void ldmatrix_x4(uint32_t (&to)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}
HEADROOM_DEVICE void ldmatrix_x4_transposed(uint32_t (&to)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}

HEADROOM_DEVICE float shuffle_xor(float value, int lanes) { return __shfl_xor_sync(0xFFFFFFFFu, value, lanes); }
HEADROOM_DEVICE uint64_t shuffle_xor(uint64_t value, int lanes) {
  return __shfl_xor_sync(0xFFFFFFFFu, static_cast<unsigned long long>(value), lanes);
}

// ---- Arithmetic. 2^x, 2 ulp off; 1 at 0, 0 at -inf, NaN stays.
HEADROOM_DEVICE float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
// Round to nearest, ties to even.
template <DType kType>
HEADROOM_DEVICE uint32_t pack_halves(float low, float high) {
  uint32_t pair;
  if constexpr (kType == DType::kBF16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}
template <DType kType>
HEADROOM_DEVICE float half_to_float(uint16_t half) {
  if constexpr (kType == DType::kBF16) return __uint_as_float(static_cast<uint32_t>(half) << 16);
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
}

// a · b + c of two bf16 each, rounded once.
HEADROOM_DEVICE uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

// ---- Launch. `name` is what an error says.
struct Grid {
  int64_t x = 1;
  int64_t y = 1;
  int64_t z = 1;
};
template <class Params>
void launch(const char* name, void (*kernel)(Params), Grid grid, int threads, size_t shared_bytes, Stream stream,
            const Params& params) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  constexpr size_t kSharedBytesByDefault = 48 * 1024;
  if (shared_bytes > kSharedBytesByDefault) {
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               name);
  }
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  Params copy = params;
  void* arguments[] = {&copy};
  check_cuda(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), blocks, dim3(static_cast<unsigned>(threads)), arguments,
                              shared_bytes, stream),
             name);
}

}  // namespace headroom::cuda
