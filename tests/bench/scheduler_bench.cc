// What the control plane costs beside the model: nothing here computes a token.
#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "engine/scheduler.h"
#include "tests/bench/scheduler_load.h"

namespace headroom {
namespace {

// Of this thread alone: what else the machine does is not a pause of ours.
double cpu_seconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// plan() and commit() of a step in which every running sequence decodes, in a pool of a million pages.
void BM_Step(benchmark::State& state) {
  SchedulerLoad load(static_cast<int32_t>(state.range(0)), static_cast<int32_t>(state.range(1)));
  double longest = 0;
  for (auto _ : state) {
    const double start = cpu_seconds();
    load.step();
    longest = std::max(longest, cpu_seconds() - start);
  }
  state.counters["longest_us"] = longest * 1e6;
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_Step)
    ->ArgNames({"running", "waiting"})
    ->Args({100, 10000})
    ->Args({1000, 0})
    ->Args({1000, 1000})
    ->Args({1000, 10000})
    ->Args({1000, 100000})
    ->Unit(benchmark::kMicrosecond);

// A waiting client goes away and another comes, beside the step that notices.
void BM_CancelWaiting(benchmark::State& state) {
  SchedulerLoad load(1, static_cast<int32_t>(state.range(0)));
  for (auto _ : state) {
    load.replace_waiting();
    load.step();
  }
}
BENCHMARK(BM_CancelWaiting)->ArgName("waiting")->Arg(100)->Arg(10000)->Arg(100000)->Unit(benchmark::kMicrosecond);

// Finding and pinning a prompt that is wholly cached, then letting it go.
void BM_PrefixLookup(benchmark::State& state) {
  constexpr int32_t kPageTokens = 16;
  PageAllocator allocator(kLoadPages);
  PrefixCache cache(allocator, kPageTokens, HashKey{1, 2});
  std::vector<TokenId> tokens(static_cast<size_t>(state.range(0)) * kPageTokens);
  std::iota(tokens.begin(), tokens.end(), 0);
  auto end = cache.root("tenant");
  for (size_t i = 0; i < tokens.size(); i += kPageTokens) {
    cache.publish(allocator.take().value(), std::span(tokens).subspan(i, kPageTokens), end);
  }
  std::vector<PageId> pages;
  for (auto _ : state) {
    pages.clear();
    end = cache.root("tenant");
    cache.match_and_pin(tokens, end, pages);
    for (size_t i = pages.size(); i-- > 0;) allocator.release(pages[i]);
  }
  CHECK_EQ(static_cast<int64_t>(pages.size()), state.range(0));
  state.SetComplexityN(state.range(0));
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_PrefixLookup)->ArgName("pages")->RangeMultiplier(8)->Range(8, 32768)->Complexity(benchmark::oN);

// A million pages, each filled, published, released and evicted for the next: the longest single call is the pause.
void BM_TurnoverOfAMillionPages(benchmark::State& state) {
  constexpr int32_t kPageTokens = 16;
  PageAllocator allocator(kLoadPages);
  PrefixCache cache(allocator, kPageTokens, HashKey{1, 2});
  std::vector<TokenId> tokens(kPageTokens);
  for (int64_t i = 0; i < kLoadPages; ++i) {
    tokens[0] = static_cast<TokenId>(i);
    auto end = cache.root("");
    allocator.release(cache.publish(allocator.take().value(), tokens, end));
  }
  double longest = 0;
  TokenId next = static_cast<TokenId>(kLoadPages);
  for (auto _ : state) {
    const double start = cpu_seconds();
    tokens[0] = next++;
    auto end = cache.root("");
    allocator.release(cache.publish(allocator.take().value(), tokens, end));
    longest = std::max(longest, cpu_seconds() - start);
  }
  state.counters["longest_us"] = longest * 1e6;
  state.counters["evictions"] = static_cast<double>(allocator.evictions_total());
}
BENCHMARK(BM_TurnoverOfAMillionPages)->Iterations(3000000);

}  // namespace
}  // namespace headroom

BENCHMARK_MAIN();
