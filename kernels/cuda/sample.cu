// Draws a token from a row of logits, one block a row, with the arithmetic of sampling.h: keys that order tokens, sums of whole
// numbers, and maxima. None of them depends on the order of threads, so the token is the one that the host draws.
//
// top_k, top_p and the likeliest tokens are one question: which is the greatest key such that what has at least this key weighs
// at least so much? It is found by counting tokens into bins of descending keys, and again within the bin where the answer lies.
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.h"
#include "kernels/sampling.h"

namespace headroom::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarpLanes;
constexpr int kBins = 2048;
constexpr int kBinsPerThread = kBins / kThreads;
constexpr float kMinusInfinity = -__builtin_huge_valf();
constexpr uint64_t kLastKey = ~uint64_t{0};

struct Memory {
  uint32_t weight_low[kBins];  // of the tokens in a bin, as two words, which atomics carry between
  uint32_t weight_high[kBins];
  uint64_t of_thread[kThreads];
  uint64_t of_warp[kWarps];
  int32_t bin;                 // where a search ended,
  uint64_t before;             // the weight of the bins before it,
  uint64_t within;             // and its own
  int32_t listed;
};

// op over the values of all threads, for all of them. op has no order.
template <class Op>
HEADROOM_DEVICE uint64_t block_reduce(uint64_t value, Memory& memory, const Op& op) {
#pragma unroll
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) value = op(value, shuffle_xor(value, lanes));
  block_sync();  // whoever read of_warp is done
  if (thread_id() % kWarpLanes == 0) memory.of_warp[thread_id() / kWarpLanes] = value;
  block_sync();
  value = memory.of_warp[0];
  for (int warp = 1; warp < kWarps; ++warp) value = op(value, memory.of_warp[warp]);
  return value;
}
HEADROOM_DEVICE uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }
HEADROOM_DEVICE uint64_t greater(uint64_t a, uint64_t b) { return a > b ? a : b; }
HEADROOM_DEVICE uint64_t sum(uint64_t a, uint64_t b) { return a + b; }

// The tokens of a row that are still in, by score or, with a scale of 1, by raw logit.
struct Candidates {
  const float* logits;
  int32_t vocab;
  float largest;
  float scale;       // the inverse temperature
  bool raw;          // ordered by the logit itself, also those of -infinity
  uint64_t key_min;  // what is kept

  // Calls body(key, score, token) for those that are this thread's.
  template <class Body>
  HEADROOM_DEVICE void each(const Body& body) const {
#pragma unroll 4
    for (int32_t token = thread_id(); token < vocab; token += kThreads) {
      const float logit = logits[token];
      if (!raw && logit == kMinusInfinity) continue;
      const float score = (logit - largest) * scale;
      const uint64_t key = sample_key(raw ? logit : score, token);
      if (key >= key_min) body(key, score, token);
    }
  }
};

// Scores are put into bins of 1/64 at first, since all bits of a logit's key would crowd into a few; later the bits of keys.
HEADROOM_DEVICE int score_bin(float score) {
  constexpr float kBinsPerUnit = 64.0f;
  return score <= -(kBins - 1) / kBinsPerUnit ? kBins - 1 : static_cast<int>(score * -kBinsPerUnit);
}

HEADROOM_DEVICE void add_to_bin(Memory& memory, int bin, uint64_t weight) {
  const auto low = static_cast<uint32_t>(weight);
  const uint32_t before = atomic_add(&memory.weight_low[bin], low);
  const uint32_t high = static_cast<uint32_t>(weight >> 32) + (before + low < before ? 1 : 0);
  if (high != 0) atomic_add(&memory.weight_high[bin], high);
}

// The first bin with which the weight of all up to it reaches `enough`: to memory.bin, before, within.
HEADROOM_DEVICE void find_bin(Memory& memory, uint64_t enough) {
  const int first = thread_id() * kBinsPerThread, warp = thread_id() / kWarpLanes, lane = thread_id() % kWarpLanes;
  const auto weight_of = [&](int bin) { return uint64_t{memory.weight_high[bin]} << 32 | memory.weight_low[bin]; };
  uint64_t own = 0, of_warp = 0, before = 0;
  for (int i = 0; i < kBinsPerThread; ++i) own += weight_of(first + i);
  memory.of_thread[thread_id()] = own;
  block_sync();
  for (int i = 0; i < kWarpLanes; ++i) {
    const uint64_t other = memory.of_thread[warp * kWarpLanes + i];
    of_warp += other;
    before += i < lane ? other : 0;
  }
  if (lane == 0) memory.of_warp[warp] = of_warp;
  block_sync();
  for (int i = 0; i < warp; ++i) before += memory.of_warp[i];
  if (before < enough && enough <= before + own) {
    int bin = first;
    for (; before + weight_of(bin) < enough; ++bin) before += weight_of(bin);
    memory.bin = bin;
    memory.before = before;
    memory.within = weight_of(bin);
  }
  block_sync();
}

// The greatest key such that the candidates with at least this key weigh at least `enough`, which is not 0 and not more than all.
template <class Weigh>
HEADROOM_DEVICE uint64_t last_key(const Candidates& candidates, uint64_t enough, Memory& memory, const Weigh& weigh) {
  uint64_t low = 0, high = kLastKey;
  int shift = -1;  // none yet: bins of scores
  for (;;) {
    block_sync();  // whoever read the bins is done
    for (int i = thread_id(); i < kBins; i += kThreads) memory.weight_low[i] = memory.weight_high[i] = 0;
    block_sync();
    const auto bin_of = [&](uint64_t key, float score) { return shift < 0 ? score_bin(score) : static_cast<int>((high - key) >> shift); };
    candidates.each([&](uint64_t key, float score, int32_t) {
      const uint64_t weight = weigh(score);
      if (key >= low && key <= high && weight != 0) add_to_bin(memory, bin_of(key, score), weight);
    });
    block_sync();
    find_bin(memory, enough);
    uint64_t least = kLastKey, most = 0;
    candidates.each([&](uint64_t key, float score, int32_t) {
      if (key < low || key > high || weigh(score) == 0 || bin_of(key, score) != memory.bin) return;
      least = smaller(least, key);
      most = greater(most, key);
    });
    low = block_reduce(least, memory, smaller);
    high = block_reduce(most, memory, greater);
    enough -= memory.before;
    if (low == high || enough == memory.within) return low;
    for (shift = 0; (high - low) >> shift >= kBins; ++shift) {
    }
  }
}

// The largest score + Gumbel variable, the smaller token among equals.
HEADROOM_DEVICE int32_t draw(const Candidates& candidates, const SampleRow& row, int32_t likeliest, Memory& memory) {
  const auto bits_of = [&](int32_t token) { return token_bits(row.seed, row.choice, row.position, token); };
  const double reached = gumbel(bits_of(likeliest));  // whose score is 0: what cannot win against it needs no logarithm
  double best = reached;
  int32_t chosen = likeliest;
  candidates.each([&](uint64_t, float score, int32_t token) {
    if (score + gumbel_bound(~0u) < best) return;
    const uint32_t bits = bits_of(token);
    if (score + gumbel_bound(bits) < best) return;
    const double value = score + gumbel(bits);
    if (value < best || (value == best && token >= chosen)) return;
    best = value;
    chosen = token;
  });
  const auto value_bits = std::bit_cast<uint64_t>(best + 0.0);
  const uint64_t ordered = value_bits >> 63 != 0 ? ~value_bits : value_bits | uint64_t{1} << 63;
  const uint64_t most = block_reduce(ordered, memory, greater);
  return static_cast<int32_t>(block_reduce(ordered == most ? static_cast<uint64_t>(chosen) : kLastKey, memory, smaller));
}

HEADROOM_DEVICE void note_logprobs(const Candidates& all, int32_t token, int32_t top, SampleResult& result, Memory& memory) {
  const float logit = all.logits[token];
  uint64_t weights = 0, likelier = 0;
  all.each([&](uint64_t, float score, int32_t other) {
    weights += score_weight(score);
    likelier += all.logits[other] > logit ? 1 : 0;
  });
  weights = block_reduce(weights, memory, sum);
  likelier = block_reduce(likelier, memory, sum);
  top = top < all.vocab ? top : all.vocab;
  if (thread_id() == 0) {
    result.rank = static_cast<int32_t>(likelier) + 1;
    result.logit = logit;
    result.largest = all.largest;
    result.weights = weights;
    result.top_count = top;
    memory.listed = 0;
  }
  if (top <= 0) return;
  Candidates likeliest = all;
  likeliest.key_min = last_key(all, static_cast<uint64_t>(top), memory, [](float) { return uint64_t{1}; });
  likeliest.each([&](uint64_t, float, int32_t other) { result.top[atomic_add(&memory.listed, 1)] = {other, all.logits[other]}; });
}

HEADROOM_KERNEL(kThreads, 1) sample_kernel(HEADROOM_PARAMS SampleArgs args) {
  Memory& memory = *reinterpret_cast<Memory*>(shared_memory());
  const SampleRow& row = args.rows[block_x()];
  SampleResult& result = args.results[block_x()];
  const float* logits = args.logits + row.logits_row * args.stride;
  Candidates candidates{logits, args.vocab, 0.0f, 1.0f, true, 0};
  uint64_t first = 0;
  for (int32_t token = thread_id(); token < args.vocab; token += kThreads) {
    const float logit = logits[token];
    first = logit != logit ? kLastKey : greater(first, sample_key(logit, token));
    if (first == kLastKey) break;
  }
  first = block_reduce(first, memory, greater);
  const auto likeliest = static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(first));
  candidates.largest = first == kLastKey ? kMinusInfinity : logits[likeliest];
  if (candidates.largest == kMinusInfinity || candidates.largest == -kMinusInfinity) {
    if (thread_id() == 0) result = {-1, 0, 0.0f, 0.0f, 0, 0, {}};
    return;
  }
  const Candidates all = candidates;
  int32_t token = likeliest;
  if (row.inverse_temperature != 0.0f) {
    candidates.raw = false;
    candidates.scale = row.inverse_temperature;
    candidates.key_min = sample_key(row.score_min, -1);  // no token has a smaller key of this score
    const auto count_one = [](float) { return uint64_t{1}; };
    if (row.top_k > 0) {
      uint64_t count = 0;
      candidates.each([&](uint64_t, float, int32_t) { ++count; });
      count = block_reduce(count, memory, sum);
      const auto top_k = static_cast<uint64_t>(row.top_k);
      if (top_k < count) candidates.key_min = last_key(candidates, top_k, memory, count_one);
    }
    if (row.top_p < 1.0f) {
      uint64_t total = 0;
      candidates.each([&](uint64_t, float score, int32_t) { total += score_weight(score); });
      total = block_reduce(total, memory, sum);
      candidates.key_min = last_key(candidates, top_p_weight(total, row.top_p), memory, score_weight);
    }
    token = draw(candidates, row, likeliest, memory);
  }
  if (thread_id() == 0) result.token = token;
  if (row.top_logprobs >= 0) note_logprobs(all, token, row.top_logprobs, result, memory);
}

}  // namespace

void sample(const SampleArgs& args, cudaStream_t stream) {
  launch("sample", sample_kernel, Grid{args.count}, kThreads, sizeof(Memory), stream, args);
}

}  // namespace headroom::cuda
