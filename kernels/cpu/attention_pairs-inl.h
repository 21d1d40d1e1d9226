// What attention does with pairs of bf16, where the CPU multiplies them (AVX-512 BF16, and VBMI for int8: Zen 4, Sapphire Rapids and later) and
// the pages are of bf16 or int8: queries and softmax weights are rounded to bf16, products and sums are fp32. A pair is a word, its first half
// the lower: two neighbouring elements of a query or key, the weights of two neighbouring keys, an element of their values.
//
// Bits: a score is one chain over the pairs of head_dim, an output one over the pairs of keys at even positions of its block: ascending, the same
// instruction whatever the number of rows. Of a pair that a row sees half of, the other half is made 0 in weight and value: 0 · NaN is NaN.
#if defined(HEADROOM_KERNELS_CPU_ATTENTION_PAIRS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADROOM_KERNELS_CPU_ATTENTION_PAIRS_INL_H_
#undef HEADROOM_KERNELS_CPU_ATTENTION_PAIRS_INL_H_
#else
#define HEADROOM_KERNELS_CPU_ATTENTION_PAIRS_INL_H_
#endif

#include "kernels/cpu/attention_block-inl.h"

#undef HEADROOM_HAS_PAIRS
#if HWY_ARCH_X86 && HWY_TARGET == HWY_AVX3
#define HEADROOM_HAS_PAIRS 1
#include <immintrin.h>

#include <array>

#define HEADROOM_PAIRS __attribute__((target("avx512bf16,avx512vbmi")))
// For the lambdas of inner loops: what they capture stays in registers.
#define HEADROOM_PAIRS_INLINE __attribute__((always_inline, target("avx512bf16,avx512vbmi")))

HWY_BEFORE_NAMESPACE();
namespace headroom {
namespace HWY_NAMESPACE {

constexpr int kTilePairRows = 12;    // with two vectors: 24 sums in 32 registers
constexpr int kDirectPairRows = 6;   // up to so many rows, keys and values are made pairs where they are multiplied
constexpr int kUnit = 2 * kLanes;    // elements of a value row that become two vectors of pairs

// bf16 of the whole numbers 0 … 127, in bytes.
struct Bf16OfBytes {
  alignas(64) uint8_t low[128];
  alignas(64) uint8_t high[128];
};
constexpr Bf16OfBytes make_bf16_of_bytes() {
  Bf16OfBytes table{};
  for (int i = 0; i < 128; ++i) {
    const uint16_t bits = f32_to_bf16(static_cast<float>(i));
    table.low[i] = static_cast<uint8_t>(bits);
    table.high[i] = static_cast<uint8_t>(bits >> 8);
  }
  return table;
}
inline constexpr Bf16OfBytes kBf16OfBytes = make_bf16_of_bytes();

// The two bytes of the bf16 of 64 int8, -127 … 127.
struct Bf16Bytes {
  __m512i low, high;
  HEADROOM_PAIRS HWY_INLINE explicit Bf16Bytes(__m512i quants) {
    const __m512i magnitude = _mm512_abs_epi8(quants);
    low = _mm512_permutex2var_epi8(_mm512_load_si512(kBf16OfBytes.low), magnitude, _mm512_load_si512(kBf16OfBytes.low + 64));
    high = _mm512_permutex2var_epi8(_mm512_load_si512(kBf16OfBytes.high), magnitude, _mm512_load_si512(kBf16OfBytes.high + 64));
    high = _mm512_ternarylogic_epi32(high, quants, _mm512_set1_epi8(-128), 0xF8);  // high | (quants & sign)
  }
};

// Which bytes of two vectors, the second's from 64 on, make up one.
struct ByteOrder {
  alignas(64) uint8_t of[64];
};

// One word of a key, of 16 keys, as pairs: one of bf16, two of int8.
template <DType type>
HEADROOM_PAIRS HWY_INLINE void pairs_of_words(__m512i words, __m512i (&pairs)[4 / sizeof(Element<type>) / 2]) {
  if constexpr (type == DType::kBF16) {
    pairs[0] = words;
  } else {
    static constexpr auto order = [](int first) {
      ByteOrder bytes{};
      for (int i = 0; i < 64; ++i) bytes.of[i] = static_cast<uint8_t>(i / 4 * 4 + first + i % 4 / 2 + (i % 2 == 0 ? 0 : 64));
      return bytes;
    };
    static constexpr ByteOrder kFirst = order(0), kSecond = order(2);
    const Bf16Bytes bytes(words);
    pairs[0] = _mm512_permutex2var_epi8(bytes.low, _mm512_load_si512(kFirst.of), bytes.high);
    pairs[1] = _mm512_permutex2var_epi8(bytes.low, _mm512_load_si512(kSecond.of), bytes.high);
  }
}

// kUnit elements of two value rows, interleaved within 16 bytes (in_order puts them right); `first` and `second` say which elements there are,
// the others become 0.
template <DType type>
HEADROOM_PAIRS HWY_INLINE void pairs_of_values(const Element<type>* a, const Element<type>* b, __mmask32 first, __mmask32 second,
                                               __m512i (&pairs)[2]) {
  if constexpr (type == DType::kBF16) {
    const __m512i x = _mm512_maskz_loadu_epi16(first, a), y = _mm512_maskz_loadu_epi16(second, b);
    pairs[0] = _mm512_unpacklo_epi16(x, y);
    pairs[1] = _mm512_unpackhi_epi16(x, y);
  } else {
    static constexpr ByteOrder kInterleaved = [] {
      ByteOrder bytes{};
      for (int i = 0; i < 64; ++i) bytes.of[i] = static_cast<uint8_t>(i / 2 + (i % 2 == 0 ? 0 : 64));
      return bytes;
    }();
    const __m512i x = _mm512_castsi256_si512(_mm256_maskz_loadu_epi8(first, a));
    const __m512i y = _mm512_castsi256_si512(_mm256_maskz_loadu_epi8(second, b));
    const Bf16Bytes bytes(_mm512_permutex2var_epi8(x, _mm512_load_si512(kInterleaved.of), y));
    pairs[0] = _mm512_unpacklo_epi8(bytes.low, bytes.high);
    pairs[1] = _mm512_unpackhi_epi8(bytes.low, bytes.high);
  }
}

// Puts the sums of kUnit columns, as pairs_of_values leaves them, in order.
HEADROOM_PAIRS inline void in_order(float* columns) {
  const __m512i a = _mm512_load_si512(columns), b = _mm512_load_si512(columns + kLanes);
  _mm512_store_si512(columns, _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), b));
  _mm512_store_si512(columns + kLanes, _mm512_permutex2var_epi64(a, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), b));
}

HEADROOM_PAIRS HWY_INLINE __m512 add_products(__m512 sums, __m512i pairs, uint32_t pair) {
  return _mm512_dpbf16_ps(sums, (__m512bh)pairs, (__m512bh)_mm512_set1_epi32(static_cast<int>(pair)));
}

// Calls take(pair, vectors) for the pairs of head_dim, ascending: of each of kChunks chunks of keys from `chunk` on, one vector.
template <DType type, int kChunks, class Take>
HEADROOM_PAIRS HWY_INLINE void for_key_pairs(const BlockRows<type>& rows, int chunk, Ahead& ahead, const Take& take) {
  static_assert(kChunkKeys == kLanes);
  constexpr int kPairs = kPerWord<type> / 2;  // of a word
  const int64_t words = rows.head_dim / (2 * kPairs);
  const uint32_t* from[kChunks];
  for (int c = 0; c < kChunks; ++c) from[c] = rows.key_words(chunk + c);
  constexpr int64_t kBurst = Ahead::kBurstBytes / (kChunkKeys * cpu::key_word_bytes(type));  // words of a chunk
  for (int64_t begin = 0; begin < words; begin += kBurst) {
    if (begin > 0) ahead.ask_within();
    const int64_t end = HWY_MIN(words, begin + kBurst);
    for (int64_t word = begin; word < end; ++word) {
      __m512i pairs[kChunks][kPairs];
      HEADROOM_UNROLL
      for (int c = 0; c < kChunks; ++c) pairs_of_words<type>(_mm512_loadu_si512(from[c] + word * kChunkKeys), pairs[c]);
      HEADROOM_UNROLL
      for (int p = 0; p < kPairs; ++p) {
        __m512i vectors[kChunks];
        HEADROOM_UNROLL
        for (int c = 0; c < kChunks; ++c) vectors[c] = pairs[c][p];
        take(word * kPairs + p, vectors);
      }
    }
  }
}

// Scores of some rows with the keys of some chunks, as they are stored.
template <DType type, int kRows, int kChunks>
HEADROOM_PAIRS void score_stored_pairs(float* weights, const uint32_t* queries, int query_rows, const BlockRows<type>& rows, int chunk,
                                       Ahead& ahead) {
  __m512 sums[kRows][kChunks];
  HEADROOM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    HEADROOM_UNROLL
    for (int c = 0; c < kChunks; ++c) sums[r][c] = _mm512_setzero_ps();
  }
  for_key_pairs<type, kChunks>(rows, chunk, ahead, [&](int64_t pair, const __m512i(&keys)[kChunks]) HEADROOM_PAIRS_INLINE {
    HEADROOM_UNROLL
    for (int r = 0; r < kRows; ++r) {
      HEADROOM_UNROLL
      for (int c = 0; c < kChunks; ++c) sums[r][c] = add_products(sums[r][c], keys[c], queries[pair * query_rows + r]);
    }
  });
  HEADROOM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    HEADROOM_UNROLL
    for (int c = 0; c < kChunks; ++c) _mm512_store_ps(weights + r * kBlockKeys + (chunk + c) * kLanes, sums[r][c]);
  }
}

// Scores of rows with keys [head_dim / 2][kBlockKeys] of pairs.
template <int kRows>
HEADROOM_PAIRS void score_packed_pairs(float* weights, const uint32_t* queries, int query_rows, const uint32_t* keys, int64_t pairs) {
  __m512 sums[kRows][kBlockVectors];
  HEADROOM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    HEADROOM_UNROLL
    for (int v = 0; v < kBlockVectors; ++v) sums[r][v] = _mm512_setzero_ps();
  }
  for (int64_t i = 0; i < pairs; ++i) {
    HEADROOM_UNROLL
    for (int v = 0; v < kBlockVectors; ++v) {
      const __m512i key = _mm512_load_si512(keys + i * kBlockKeys + v * kLanes);
      HEADROOM_UNROLL
      for (int r = 0; r < kRows; ++r) sums[r][v] = add_products(sums[r][v], key, queries[i * query_rows + r]);
    }
  }
  HEADROOM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    HEADROOM_UNROLL
    for (int v = 0; v < kBlockVectors; ++v) _mm512_store_ps(weights + r * kBlockKeys + v * kLanes, sums[r][v]);
  }
}

// Calls take(p, has first, has second) for the pairs of keys 2p and 2p + 1 that have a half in [begin, end). Those that have both are one loop.
template <class Take>
HEADROOM_PAIRS HWY_INLINE void for_pairs(int32_t begin, int32_t end, const Take& take) {
  if (begin % 2 != 0) take(begin / 2, std::false_type(), std::true_type());
  for (int32_t p = (begin + 1) / 2; p < end / 2; ++p) take(p, std::true_type(), std::true_type());
  if (end % 2 != 0) take(end / 2, std::true_type(), std::false_type());
}

// The columns of [column, column + kVectors · kLanes) that there are, by unit.
template <int kVectors>
struct ColumnMasks {
  __mmask32 of[kVectors / 2];

  HWY_INLINE ColumnMasks(int64_t column, int64_t head_dim) {
    HEADROOM_UNROLL
    for (int u = 0; u < kVectors / 2; ++u) {
      const int64_t left = head_dim - column - u * kUnit;
      of[u] = left >= kUnit ? ~0u : (1u << left) - 1u;
    }
  }
};

// Two neighbouring rows of values from some column on, and which of the rows there are.
template <DType type, bool kFirst, bool kSecond>
struct ValuePair {
  const Element<type>* row;
  int64_t head_dim;

  template <int kVectors>
  HEADROOM_PAIRS HWY_INLINE void load(const ColumnMasks<kVectors>& there, int64_t column, __m512i (&pairs)[kVectors]) const {
    HEADROOM_UNROLL
    for (int u = 0; u < kVectors / 2; ++u) {
      const Element<type>* at = row + column + u * kUnit;
      __m512i two[2];
      pairs_of_values<type>(at, at + head_dim, kFirst ? there.of[u] : 0, kSecond ? there.of[u] : 0, two);
      pairs[2 * u] = two[0];
      pairs[2 * u + 1] = two[1];
    }
  }
};

// Calls take(p, pair of rows) for the pairs of keys [begin, end) of the block. Asks ahead after each chunk.
template <DType type, class Take>
HEADROOM_PAIRS HWY_INLINE void for_value_pairs(const BlockRows<type>& rows, int32_t begin, int32_t end, Ahead& ahead, const Take& take) {
  for (int32_t c = 0; c < kBlockKeys / kChunkKeys; ++c) {
    const int32_t before = c * kChunkKeys, first = HWY_MAX(begin, before), last = HWY_MIN(end, before + kChunkKeys);
    if (first >= last) continue;
    const int64_t step = 2 * rows.head_dim;
    const Element<type>* row = rows.v[c] + (first - before) / 2 * step;
    for_pairs(first, last, [&](int32_t p, auto has_first, auto has_second) HEADROOM_PAIRS_INLINE {
      take(p, ValuePair<type, has_first(), has_second()>{row, rows.head_dim});
      row += step;
    });
    ahead.ask_within();
  }
}

// The sums of some rows and columns, in registers.
template <int kRows, int kVectors>
struct PairSums {
  __m512 of[kRows][kVectors];

  HEADROOM_PAIRS HWY_INLINE PairSums(const float* accumulator, const float* decay, int64_t padded_dim) {
    HEADROOM_UNROLL
    for (int r = 0; r < kRows; ++r) {
      HEADROOM_UNROLL
      for (int v = 0; v < kVectors; ++v) of[r][v] = _mm512_mul_ps(_mm512_load_ps(accumulator + r * padded_dim + v * kLanes), _mm512_set1_ps(decay[r]));
    }
  }
  // weights: [kRows, kBlockKeys] of pairs of keys, from pair p on.
  HEADROOM_PAIRS HWY_INLINE void add(const uint32_t* weights, const __m512i (&pairs)[kVectors]) {
    HEADROOM_UNROLL
    for (int r = 0; r < kRows; ++r) {
      HEADROOM_UNROLL
      for (int v = 0; v < kVectors; ++v) of[r][v] = add_products(of[r][v], pairs[v], weights[r * kBlockKeys]);
    }
  }
  HEADROOM_PAIRS HWY_INLINE void store(float* accumulator, int64_t padded_dim) const {
    HEADROOM_UNROLL
    for (int r = 0; r < kRows; ++r) {
      HEADROOM_UNROLL
      for (int v = 0; v < kVectors; ++v) _mm512_store_ps(accumulator + r * padded_dim + v * kLanes, of[r][v]);
    }
  }
};

// Calls mix(first column, static count of vectors) over all columns, at most kUnits units at a time.
template <int kUnits, class Mix>
HEADROOM_PAIRS HWY_INLINE void for_columns(int64_t padded_dim, const Mix& mix) {
  for (int64_t i = 0; i < padded_dim; i += kUnits * kUnit) {
    with_static_count<kUnits>(static_cast<int>(HWY_MIN(int64_t{kUnits}, (padded_dim - i) / kUnit)),
                              [&](auto count) HEADROOM_PAIRS { mix(i, std::integral_constant<int, 2 * decltype(count)::value>()); });
  }
}

// accumulator[r] = accumulator[r] · decay[r] + Σ over the pairs of keys [begin, end) of weights[r] · values: of few rows, with the values as
// they are stored.
template <DType type, int kRows>
HEADROOM_PAIRS void mix_stored_pairs(float* accumulator, const float* decay, const uint32_t* weights, const BlockRows<type>& rows,
                                     int32_t begin, int32_t end, int64_t padded_dim, Ahead& ahead) {
  for_columns<kRows <= kDirectPairRows ? 2 : 1>(padded_dim, [&](int64_t i, auto count) HEADROOM_PAIRS {
    constexpr int kVectors = decltype(count)::value;
    const ColumnMasks<kVectors> there(i, rows.head_dim);
    PairSums<kRows, kVectors> sums(accumulator + i, decay, padded_dim);
    for_value_pairs(rows, begin, end, ahead, [&](int32_t p, const auto& values) HEADROOM_PAIRS_INLINE {
      __m512i pairs[kVectors];
      values.load(there, i, pairs);
      sums.add(weights + p, pairs);
    });
    sums.store(accumulator + i, padded_dim);
  });
}

// Values of keys [begin, end) as pairs [kBlockKeys / 2][padded_dim]; a half that is not among them is 0.
template <DType type>
HEADROOM_PAIRS void pack_value_pairs(uint32_t* to, const BlockRows<type>& rows, int32_t begin, int32_t end, int64_t padded_dim, Ahead& ahead) {
  for_value_pairs(rows, begin, end, ahead, [&](int32_t p, const auto& values) HEADROOM_PAIRS_INLINE {
    for (int64_t i = 0; i < padded_dim; i += kUnit) {
      __m512i pairs[2];
      values.load(ColumnMasks<2>(i, rows.head_dim), i, pairs);
      _mm512_store_si512(to + p * padded_dim + i, pairs[0]);
      _mm512_store_si512(to + p * padded_dim + i + kLanes, pairs[1]);
    }
  });
}

// Rows that see keys [begin, end) of packed values.
template <int kRows>
HEADROOM_PAIRS void mix_packed_pairs(float* accumulator, const float* decay, const uint32_t* weights, const uint32_t* values, int32_t begin, int32_t end,
                                     int64_t padded_dim) {
  for_columns<1>(padded_dim, [&](int64_t i, auto count) HEADROOM_PAIRS {
    constexpr int kVectors = decltype(count)::value;
    PairSums<kRows, kVectors> sums(accumulator + i, decay, padded_dim);
    for_pairs(begin, end, [&](int32_t p, auto has_first, auto has_second) HEADROOM_PAIRS_INLINE {
      constexpr __mmask32 kHalves = (has_first() ? 0x55555555u : 0u) | (has_second() ? 0xAAAAAAAAu : 0u);
      __m512i pairs[kVectors];
      HEADROOM_UNROLL
      for (int v = 0; v < kVectors; ++v) pairs[v] = _mm512_maskz_loadu_epi16(kHalves, values + p * padded_dim + i + v * kLanes);
      sums.add(weights + p, pairs);
    });
    sums.store(accumulator + i, padded_dim);
  });
}

// Softmax weights of a row, rounded in place to pairs.
HEADROOM_PAIRS inline __m512i round_weights(float* weights) {
  static_assert(kBlockVectors == 2);
  const auto pairs = (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(weights + kLanes), _mm512_load_ps(weights));
  _mm512_store_si512(weights, pairs);
  return pairs;
}

// A tile's queries as pairs [head_dim / 2][rows of the tile].
HEADROOM_PAIRS inline void load_query_pairs(const AttentionCall& call, const AttentionTile& tile, uint32_t* queries) {
  const int64_t head_dim = call.params.head_dim;
  const int rows = call.rows(tile);
  for (int r = 0; r < rows; ++r) {
    const float* q = call.query(tile, r);
    for (int64_t i = 0; i < head_dim; i += kLanes) {
      const auto there = static_cast<__mmask16>(head_dim - i >= kLanes ? 0xFFFF : (1 << (head_dim - i)) - 1);
      alignas(32) uint32_t rounded[kLanes / 2];
      _mm256_store_si256(reinterpret_cast<__m256i*>(rounded), (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, q + i)));
      for (int64_t j = 0; j < kLanes / 2; ++j) queries[(i / 2 + j) * rows + r] = rounded[j];
    }
  }
}

// See Fp32Arithmetic.
template <DType type>
struct PairArithmetic {
  static constexpr DType kType = type;

  static void load_queries(const AttentionCall& call, const AttentionTile& tile, TileMemory& memory) {
    load_query_pairs(call, tile, words(memory.queries));
  }
  HEADROOM_PAIRS static void score(const AttentionCall& call, int rows, TileMemory& memory, const BlockRows<type>& block, Ahead& ahead) {
    static_assert(kBlockKeys == 2 * kChunkKeys);
    const uint32_t* queries = words(memory.queries);
    if (type == DType::kI8 && rows > kDirectPairRows) return score_packed(memory, queries, rows, block, ahead);
    for_register_tiles<kTilePairRows>(0, rows, [&](int first, auto count) HEADROOM_PAIRS {
      constexpr int kRows = decltype(count)::value;
      float* weights = memory.weights + first * kBlockKeys;
      if (block.k[0] != nullptr && block.k[1] != nullptr) return score_stored_pairs<type, kRows, 2>(weights, queries + first, rows, block, 0, ahead);
      for (int c = 0; c < 2; ++c) {
        if (block.k[c] != nullptr) score_stored_pairs<type, kRows, 1>(weights, queries + first, rows, block, c, ahead);
      }
    });
  }
  // What was rounded is what is summed: a row's weights add up to 1, so a value that all keys share comes out as it is. Not where the values'
  // scales are in the weights.
  HEADROOM_PAIRS static void finish_weights(float* weights, VF added, float decay, float* lane_sums) {
    const __m512i pairs = round_weights(weights);
    if constexpr (type == DType::kI8) return add_to_sums(added, decay, lane_sums);
    constexpr uint32_t kOnes = 0x3F803F80;  // a pair of bf16
    const __m512 decayed = _mm512_mul_ps(_mm512_load_ps(lane_sums), _mm512_set1_ps(decay));
    _mm512_store_ps(lane_sums, add_products(decayed, pairs, kOnes));
  }
  static void finish_sums(float* sums, int64_t padded_dim) {
    for (int64_t i = 0; i < padded_dim; i += kUnit) in_order(sums + i);
  }
  static bool mixes_stored(const AttentionCall&, int rows) { return rows <= kTilePairRows; }
  HEADROOM_PAIRS static void mix_stored(TileMemory& memory, const float* decay, int rows, const BlockRows<type>& block, KeyRange range,
                                        int64_t padded_dim, Ahead& ahead) {
    with_static_count<kTilePairRows>(rows, [&](auto count) HEADROOM_PAIRS {
      mix_stored_pairs<type, decltype(count)::value>(memory.split.accumulator, decay, words(memory.weights), block, range.begin, range.end, padded_dim, ahead);
    });
  }
  static void load_values(TileMemory& memory, const BlockRows<type>& block, KeyRange range, int64_t padded_dim, Ahead& ahead) {
    pack_value_pairs<type>(words(memory.values), block, range.begin, range.end, padded_dim, ahead);
  }
  HEADROOM_PAIRS static void mix(TileMemory& memory, const float* decay, int begin, int end, KeyRange range, int64_t padded_dim) {
    for_register_tiles<kTilePairRows>(begin, end, [&](int first, auto count) HEADROOM_PAIRS {
      mix_packed_pairs<decltype(count)::value>(memory.split.accumulator + first * padded_dim, decay + first, words(memory.weights) + first * kBlockKeys,
                                               words(memory.values), range.begin, range.end, padded_dim);
    });
  }

 private:
  // Keys become pairs once for all rows.
  HEADROOM_PAIRS static void score_packed(TileMemory& memory, const uint32_t* queries, int rows, const BlockRows<type>& block, Ahead& ahead) {
    uint32_t* keys = words(memory.keys);
    for (int c = 0; c < 2; ++c) {
      if (block.k[c] == nullptr) continue;
      for_key_pairs<type, 1>(block, c, ahead, [&](int64_t pair, const __m512i(&vectors)[1]) HEADROOM_PAIRS_INLINE {
        _mm512_store_si512(keys + pair * kBlockKeys + c * kLanes, vectors[0]);
      });
    }
    for_register_tiles<kTilePairRows>(0, rows, [&](int first, auto count) HEADROOM_PAIRS {
      score_packed_pairs<decltype(count)::value>(memory.weights + first * kBlockKeys, queries + first, rows, keys, block.head_dim / 2);
    });
  }
  static uint32_t* words(float* memory) { return reinterpret_cast<uint32_t*>(memory); }
};

}  // namespace HWY_NAMESPACE
}  // namespace headroom
HWY_AFTER_NAMESPACE();

#undef HEADROOM_PAIRS
#undef HEADROOM_PAIRS_INLINE
#else
#define HEADROOM_HAS_PAIRS 0
#endif
#endif
