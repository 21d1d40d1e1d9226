// What attention does in fp32, whatever the pages' type: elements are widened, sums are fused multiply-adds. Compiled once per SIMD target.
//
// Bits: a score is one chain over head_dim, an output one over the keys of its block, ascending, however many rows there are.
#if defined(HEADROOM_KERNELS_CPU_ATTENTION_FP32_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADROOM_KERNELS_CPU_ATTENTION_FP32_INL_H_
#undef HEADROOM_KERNELS_CPU_ATTENTION_FP32_INL_H_
#else
#define HEADROOM_KERNELS_CPU_ATTENTION_FP32_INL_H_
#endif

#include "kernels/cpu/attention_block-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headroom {
namespace HWY_NAMESPACE {

// Rows up to which keys are widened where they are multiplied, in registers.
constexpr int kDirectRows = kLanes >= 16 ? 6 : kLanes == 8 || HWY_ARCH_ARM_A64 ? 2 : 0;

// weights[r][j] = q[r] · k[j] over some chunks of the block, from `chunk` on, as they are stored.
template <DType type, int kRows, int kChunks>
void score_stored_rows(float* weights, const float* queries, const BlockRows<type>& rows, int chunk, Ahead& ahead) {
  const DF d;
  constexpr int kVectors = kChunkKeys / kLanes;  // of a chunk
  constexpr int64_t kStep = kPerWord<type>;
  VF acc[kRows][kChunks * kVectors];
  HEADROOM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    HEADROOM_UNROLL
    for (int v = 0; v < kChunks * kVectors; ++v) acc[r][v] = hn::Zero(d);
  }
  for_key_words<type>(rows.head_dim, ahead, [&](int64_t i) HWY_ATTR {
    VF elements[kChunks * kVectors][kStep];
    HEADROOM_UNROLL
    for (int v = 0; v < kChunks * kVectors; ++v)
      widen_words<type>(rows.k[chunk + v / kVectors] + i * kChunkKeys + v % kVectors * kLanes * kStep, elements[v]);
    HEADROOM_UNROLL
    for (int e = 0; e < kStep; ++e) {
      HEADROOM_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const VF q = hn::Set(d, queries[(i + e) * kRows + r]);
        HEADROOM_UNROLL
        for (int v = 0; v < kChunks * kVectors; ++v) acc[r][v] = hn::MulAdd(q, elements[v][e], acc[r][v]);
      }
    }
  });
  HEADROOM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    HEADROOM_UNROLL
    for (int v = 0; v < kChunks * kVectors; ++v) hn::Store(acc[r][v], d, weights + r * kBlockKeys + chunk * kChunkKeys + v * kLanes);
  }
}

// The same over the whole block, of keys that load_keys widened. queries: [head_dim][query_rows].
template <int kRows>
void score_rows(float* weights, const float* queries, int query_rows, const float* keys, int64_t head_dim) {
  const DF d;
  constexpr int kVectors = kTileVectors < kBlockVectors ? kTileVectors : kBlockVectors;
  for (int first = 0; first < kBlockVectors; first += kVectors) {
    VF acc[kRows][kVectors];
    HEADROOM_UNROLL
    for (int r = 0; r < kRows; ++r) {
      HEADROOM_UNROLL
      for (int v = 0; v < kVectors; ++v) acc[r][v] = hn::Zero(d);
    }
    accumulate_tile<1>(acc, queries, static_cast<size_t>(query_rows), keys + first * kLanes, kBlockKeys, static_cast<size_t>(head_dim));
    HEADROOM_UNROLL
    for (int r = 0; r < kRows; ++r) {
      HEADROOM_UNROLL
      for (int v = 0; v < kVectors; ++v) hn::Store(acc[r][v], d, weights + r * kBlockKeys + (first + v) * kLanes);
    }
  }
}

// accumulator[r] = accumulator[r] · decay[r] + Σ over `steps` keys of weights[r][j] · values[j].
template <int kRows, int kVectors>
HWY_INLINE void mix_columns(float* accumulator, const float* decay, const float* weights, const float* values,
                            int32_t steps, int64_t padded_dim) {
  const DF d;
  VF acc[kRows][kVectors];
  HEADROOM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const VF factor = hn::Set(d, decay[r]);
    HEADROOM_UNROLL
    for (int v = 0; v < kVectors; ++v)
      acc[r][v] = hn::Mul(hn::Load(d, accumulator + r * padded_dim + v * kLanes), factor);
  }
  accumulate_tile<kBlockKeys>(acc, weights, 1, values, static_cast<size_t>(padded_dim), static_cast<size_t>(steps));
  HEADROOM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    HEADROOM_UNROLL
    for (int v = 0; v < kVectors; ++v) hn::Store(acc[r][v], d, accumulator + r * padded_dim + v * kLanes);
  }
}

template <int kRows>
void mix_rows(float* accumulator, const float* decay, const float* weights, const float* values, int32_t steps,
              int64_t padded_dim) {
  int64_t i = 0;
  for (; i + kTileVectors * kLanes <= padded_dim; i += kTileVectors * kLanes) {
    mix_columns<kRows, kTileVectors>(accumulator + i, decay, weights, values + i, steps, padded_dim);
  }
  for (; i < padded_dim; i += kLanes) {
    mix_columns<kRows, 1>(accumulator + i, decay, weights, values + i, steps, padded_dim);
  }
}

// mix_rows on values as they are stored: few enough rows that each value is widened only once, in registers.
template <DType type, int kRows>
void mix_stored_rows(float* accumulator, const float* decay, const float* weights, const BlockRows<type>& rows, int32_t begin,
                     int32_t end, int64_t padded_dim, Ahead& ahead) {
  const DF d;
  // More columns at once where there are few rows: enough chains to hide the latency of an addition.
  constexpr int kVectors = kRows * 2 <= kTileRows ? 2 * kTileVectors : kTileVectors;
  for (int64_t i = 0; i < rows.head_dim; i += kVectors * kLanes) {
    const int vectors = static_cast<int>(HWY_MIN(int64_t{kVectors}, (rows.head_dim - i) / kLanes));
    with_static_count<kVectors>(vectors, [&](auto count) HWY_ATTR {
      constexpr int kCount = decltype(count)::value;
      VF acc[kRows][kCount];
      HEADROOM_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const VF factor = hn::Set(d, decay[r]);
        HEADROOM_UNROLL
        for (int v = 0; v < kCount; ++v)
          acc[r][v] = hn::Mul(hn::Load(d, accumulator + r * padded_dim + i + v * kLanes), factor);
      }
      for_value_rows(rows, begin, end, ahead, [&](int32_t j, const Element<type>* value) HWY_ATTR {
        VF widened[kCount];
        HEADROOM_UNROLL
        for (int v = 0; v < kCount; ++v) widened[v] = load_f32<type>(value + i + v * kLanes);
        HEADROOM_UNROLL
        for (int r = 0; r < kRows; ++r) {
          const VF weight = hn::Set(d, weights[r * kBlockKeys + j]);
          HEADROOM_UNROLL
          for (int v = 0; v < kCount; ++v) acc[r][v] = hn::MulAdd(weight, widened[v], acc[r][v]);
        }
      });
      HEADROOM_UNROLL
      for (int r = 0; r < kRows; ++r) {
        HEADROOM_UNROLL
        for (int v = 0; v < kCount; ++v) hn::Store(acc[r][v], d, accumulator + r * padded_dim + i + v * kLanes);
      }
    });
  }
}

// How a tile's rows meet a block of keys and values: in fp32, whatever the pages' type. PairArithmetic has the same functions.
template <DType type>
struct Fp32Arithmetic {
  static constexpr DType kType = type;

  static void load_queries(const AttentionCall& call, const AttentionTile& tile, TileMemory& memory) {
    const int rows = call.rows(tile);
    for (int r = 0; r < rows; ++r) {
      const float* q = call.query(tile, r);
      for (int64_t i = 0; i < call.params.head_dim; ++i) memory.queries[i * rows + r] = q[i];
    }
  }
  // Scores of all rows with all keys of the block.
  static void score(const AttentionCall& call, int rows, TileMemory& memory, const BlockRows<type>& block, Ahead& ahead) {
    if constexpr (kDirectRows > 0) {
      if (rows <= kDirectRows) return score_stored(memory, rows, block, ahead);
    }
    load_keys<type>(memory.keys, block, ahead);
    for_register_tiles<kTileRows>(0, rows, [&](int first, auto count) HWY_ATTR {
      score_rows<decltype(count)::value>(memory.weights + first * kBlockKeys, memory.queries + first, rows, memory.keys, call.params.head_dim);
    });
  }
  // Of a row, before they meet the values; `added` are their sums, to be added to the decayed lane_sums.
  static void finish_weights(float*, VF added, float decay, float* lane_sums) { add_to_sums(added, decay, lane_sums); }
  static void finish_sums(float*, int64_t) {}  // of a row, after the last block of a split
  // Whether rows that all see the same keys are mixed from values as they are stored.
  static bool mixes_stored(const AttentionCall& call, int rows) { return rows <= kTileRows && call.params.head_dim % kLanes == 0; }
  static void mix_stored(TileMemory& memory, const float* decay, int rows, const BlockRows<type>& block, KeyRange range,
                         int64_t padded_dim, Ahead& ahead) {
    with_static_count<kTileRows>(rows, [&](auto count) HWY_ATTR {
      mix_stored_rows<type, decltype(count)::value>(memory.split.accumulator, decay, memory.weights, block, range.begin, range.end, padded_dim,
                                                      ahead);
    });
  }
  static void load_values(TileMemory& memory, const BlockRows<type>& block, KeyRange range, int64_t padded_dim, Ahead& ahead) {
    HWY_NAMESPACE::load_values<type>(memory.values, block, range.begin, range.end, padded_dim, ahead);
  }
  // Rows [begin, end), which see the keys of `range`, with the loaded values.
  static void mix(TileMemory& memory, const float* decay, int begin, int end, KeyRange range, int64_t padded_dim) {
    for_register_tiles<kTileRows>(begin, end, [&](int first, auto count) HWY_ATTR {
      mix_rows<decltype(count)::value>(memory.split.accumulator + first * padded_dim, decay + first,
                                       memory.weights + first * kBlockKeys + range.begin, memory.values + range.begin * padded_dim,
                                       range.end - range.begin, padded_dim);
    });
  }

 private:
  static void score_stored(TileMemory& memory, int rows, const BlockRows<type>& block, Ahead& ahead) {
    static_assert(kBlockKeys == 2 * kChunkKeys);
    with_static_count<kDirectRows>(rows, [&](auto count) HWY_ATTR {
      constexpr int kRows = decltype(count)::value;
      if (block.k[0] != nullptr && block.k[1] != nullptr) return score_stored_rows<type, kRows, 2>(memory.weights, memory.queries, block, 0, ahead);
      for (int c = 0; c < 2; ++c) {
        if (block.k[c] != nullptr) score_stored_rows<type, kRows, 1>(memory.weights, memory.queries, block, c, ahead);
      }
    });
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace headroom
HWY_AFTER_NAMESPACE();

#endif
