// The ops of the CPU backend, one per file of the same name. Shapes were checked by the caller (op_checks.h).
//
// Threads: called by the engine thread; each spreads its rows, panels or heads over `pool`. Scratch belongs to the
// backend and is reused from call to call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/packed_weight.h"
#include "kernels/cpu/thread_pool.h"

namespace headroom::cpu {

// 64-byte aligned fp32 memory that grows to what the largest call needed. Contents do not survive growth.
class Scratch {
 public:
  float* reserve(size_t floats) {
    if (memory_ == nullptr || floats * sizeof(float) > memory_->bytes()) {
      memory_.reset();
      memory_ = std::make_unique<CpuMemory>(floats * sizeof(float));
    }
    return reinterpret_cast<float*>(memory_->data());
  }

 private:
  std::unique_ptr<CpuMemory> memory_;
};

struct AttentionScratch {
  Scratch workers;   // tiles in flight, one set per worker
  Scratch partials;  // results of splits that wait to be merged
};

void embedding(ThreadPool& pool, Matrix out, const PackedWeight& table, std::span<const int32_t> tokens);
void rmsnorm(ThreadPool& pool, Matrix out, Matrix x, Vector weight, float eps);
void add_rmsnorm(ThreadPool& pool, Matrix out, Matrix residual, Matrix x, Vector weight, float eps);
void gemm(ThreadPool& pool, Scratch& scratch, Matrix out, Matrix x, const PackedWeight& weight, Vector bias);
// The same with x rounded to bf16. REQUIRES: weight.in_pairs(), and such a CPU.
void gemm_bf16(ThreadPool& pool, Scratch& scratch, Matrix out, Matrix x, const PackedWeight& weight, Vector bias);
bool multiplies_bf16_pairs();  // whether the CPU does
void rope_table(ThreadPool& pool, Matrix out, std::span<const int32_t> positions, std::span<const float> inv_freq,
                float factor);
void rope_kv_write(ThreadPool& pool, Matrix qkv, const KvLayer& layer, const BatchView& batch,
                   const RopeKvParams& params);
// `in_pairs`: over pages of bf16 and int8, queries and softmax weights are rounded to bf16. REQUIRES: such a CPU.
void paged_attention(ThreadPool& pool, AttentionScratch& scratch, Matrix out, Matrix qkv, const KvLayer& layer,
                     const BatchView& batch, const AttentionParams& params, bool in_pairs);
void silu_mul(ThreadPool& pool, Matrix out, Matrix gate_up);
void gather_rows(ThreadPool& pool, Matrix out, Matrix x, std::span<const int32_t> rows);

// The SIMD target that run-time dispatch chose, as Highway names it: "AVX3", "AVX2", "NEON".
const char* simd_target_name();
// For tests, before anything is computed: takes the kernels of the named target (AVX3, AVX2, NEON; baseline: what every CPU of its kind runs)
// from now on; false where the CPU or the build has none of that name.
bool use_simd_target(std::string_view name);

// Elements that a worker should have before it is worth waking: a hand-over costs about a microsecond, as does this
// much work.
constexpr int64_t kElementsPerWorker = 8192;
inline int64_t rows_per_worker(int64_t cols) {
  return std::max<int64_t>(1, kElementsPerWorker / std::max<int64_t>(cols, 1));
}

}  // namespace headroom::cpu
