#include "kernels/cpu/machine_probe.h"

#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/machine_probe.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headroom {
namespace HWY_NAMESPACE {

// Reads `bytes`, a multiple of 4 KiB, as four streams a page apart, which is what the hardware prefetchers follow best.
uint32_t read_all(const std::byte* data, size_t bytes) {
  const hn::ScalableTag<uint32_t> d;
  constexpr size_t kStep = 64;
  auto a = hn::Zero(d), b = hn::Zero(d), c = hn::Zero(d), e = hn::Zero(d);
  const size_t quarter = bytes / 4;
  for (size_t i = 0; i < quarter; i += kStep) {
    for (size_t j = 0; j < kStep; j += kLanes * sizeof(float)) {
      const auto load = [&](size_t at)
                            HWY_ATTR { return hn::LoadU(d, reinterpret_cast<const uint32_t*>(data + at + i + j)); };
      a = hn::Xor(a, load(0));
      b = hn::Xor(b, load(quarter));
      c = hn::Xor(c, load(2 * quarter));
      e = hn::Xor(e, load(3 * quarter));
    }
    for (size_t stream = 0; stream < 4; ++stream) hwy::Prefetch(data + stream * quarter + i + 1024);
  }
  return hn::GetLane(hn::Xor(hn::Xor(a, b), hn::Xor(c, e)));
}

constexpr int kChains = 12;

// Returns the operations done.
double run_chains(int64_t rounds, float* result) {
  const DF d;
  const VF x = hn::Set(d, 0.999f + *result);
  const VF y = hn::Set(d, 0.001f);
  VF acc[kChains];
  HEADROOM_UNROLL
  for (int i = 0; i < kChains; ++i) acc[i] = hn::Set(d, static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round) {
    HEADROOM_UNROLL
    for (int i = 0; i < kChains; ++i) acc[i] = hn::MulAdd(acc[i], x, y);
  }
  VF sum = acc[0];
  for (int i = 1; i < kChains; ++i) sum = hn::Add(sum, acc[i]);
  *result = hn::GetLane(sum);
  return 2.0 * static_cast<double>(rounds) * kChains * kLanes;
}

}  // namespace HWY_NAMESPACE
}  // namespace headroom
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "kernels/cpu/memory.h"
#include "kernels/cpu/thread_pool.h"

namespace headroom {
HWY_EXPORT(read_all);
HWY_EXPORT(run_chains);

namespace {

constexpr int kPasses = 5;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

double measured_read_bytes_per_second(int threads) {
  constexpr size_t kBytesPerThread = size_t{128} << 20;  // several times a core's share of the last-level cache
  ThreadPool pool(threads);
  const CpuMemory memory(kBytesPerThread * static_cast<size_t>(threads));
  const auto part = [&](int worker) { return memory.data() + static_cast<size_t>(worker) * kBytesPerThread; };
  pool.run([&](int worker) { std::memset(part(worker), 1, kBytesPerThread); });
  std::atomic<uint32_t> sink{0};
  double best = 0.0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    pool.run([&](int worker) { sink ^= HWY_DYNAMIC_DISPATCH(read_all)(part(worker), kBytesPerThread); });
    best = std::max(best, static_cast<double>(memory.bytes()) / seconds_since(start));
  }
  return best;
}

double measured_fma_flops_per_second(int threads) {
  constexpr int64_t kRounds = 4'000'000;
  ThreadPool pool(threads);
  std::atomic<float> sink{0.0f};
  double best = 0.0;
  for (int pass = 0; pass < kPasses; ++pass) {
    double operations = 0.0;
    const auto start = std::chrono::steady_clock::now();
    pool.run([&](int worker) {
      float result = sink;
      const double done = HWY_DYNAMIC_DISPATCH(run_chains)(kRounds, &result);
      if (worker == 0) operations = done * pool.threads();
      sink = result * 0.0f;
    });
    best = std::max(best, operations / seconds_since(start));
  }
  return best;
}

}  // namespace headroom
#endif
