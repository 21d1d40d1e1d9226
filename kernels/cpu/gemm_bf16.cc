// out = x · weightᵀ + bias where the CPU multiplies pairs of bf16 (AVX-512 BF16, and VBMI for int8: Zen 4, Sapphire Rapids and later), at twice
// the rate of fp32. x is rounded to bf16; weights are bf16, or whole numbers that bf16 holds exactly, whose scale is applied to the sum of
// their group. Sums are fp32. A nibble of int4 becomes bf16 by a shift and 16's exponent, which makes it 24 more than it stands for, so the sum of
// a group starts at −24 · Σ x.
//
// Bits: an output is one chain over the pairs of k ascending, the same instruction whatever the number of rows; of quantised weights
// a chain for each group, and one over the groups. Few rows read the panels once, straight from memory; for many a quantised
// panel is widened once, and each of their tiles asks for a part of the next panel: the first alone would wait for all of it.
#include "kernels/cpu/ops.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <utility>

#define HEADROOM_BF16_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,avx512vbmi")))
#if defined(__clang__)
#define HEADROOM_UNROLL _Pragma("clang loop unroll(full)")
#else
#define HEADROOM_UNROLL _Pragma("GCC unroll 32")
#endif

namespace headroom::cpu {
namespace {

constexpr int kLanes = 16;
constexpr int kVectors = static_cast<int>(kPanelRows) / kLanes;
constexpr int kTileRows = 12;              // of x: 24 sums in 32 registers
constexpr int64_t kRowsPerBlock = 40 * kTileRows;
constexpr int64_t kPrefetchBytes = 4096;   // ahead of the reader of a panel that is read once

// One pair of k of a panel's rows, as kVectors registers of [row][2].
struct Pair {
  __m512bh rows[kVectors];
};

// What is asked of memory while a tile is multiplied: lines from `at` on, `step` bytes further with each step of the panel.
struct Ahead {
  const std::byte* at;
  int64_t step;
};

// Pairs of a panel as they are stored: kPairs of them in kBytes.
template <DType type>
struct StoredPairs {
  static constexpr int kPairs = 1;
  static constexpr int64_t kBytes = kPanelRows * 4;
  HEADROOM_BF16_TARGET static inline void load(const std::byte* at, Pair (&pairs)[kPairs]) {
    pairs[0] = {{(__m512bh)_mm512_loadu_si512(at), (__m512bh)_mm512_loadu_si512(at + 64)}};
  }
};

// The bytes of the bf16 of an int8, by its low seven bits: of 0 … 127, then of -128 … -1.
struct Bf16OfInt8 {
  alignas(64) uint8_t low[256];
  alignas(64) uint8_t high[256];
};
constexpr Bf16OfInt8 kBf16OfInt8 = [] {
  Bf16OfInt8 table{};
  for (int i = 0; i < 256; ++i) {
    const uint16_t bits = f32_to_bf16(static_cast<float>(i < 128 ? i : i - 256));
    table.low[i] = static_cast<uint8_t>(bits);
    table.high[i] = static_cast<uint8_t>(bits >> 8);
  }
  return table;
}();

template <>
struct StoredPairs<DType::kI8> {
  static constexpr int kPairs = 1;
  static constexpr int64_t kBytes = kPanelRows * 2;
  HEADROOM_BF16_TARGET static inline __m512i looked_up(const uint8_t (&table)[256], __m512i quants, __mmask64 negative) {
    const __m512i above = _mm512_permutex2var_epi8(_mm512_load_si512(table), quants, _mm512_load_si512(table + 64));
    const __m512i below = _mm512_permutex2var_epi8(_mm512_load_si512(table + 128), quants, _mm512_load_si512(table + 192));
    return _mm512_mask_blend_epi8(negative, above, below);
  }
  HEADROOM_BF16_TARGET static inline void load(const std::byte* at, Pair (&pairs)[kPairs]) {
    const __m512i quants = _mm512_loadu_si512(at);
    const __mmask64 negative = _mm512_movepi8_mask(quants);
    const __m512i low = looked_up(kBf16OfInt8.low, quants, negative), high = looked_up(kBf16OfInt8.high, quants, negative);
    pairs[0] = {{(__m512bh)_mm512_unpacklo_epi8(low, high), (__m512bh)_mm512_unpackhi_epi8(low, high)}};
  }
};
template <>
struct StoredPairs<DType::kI4> {
  static constexpr int kPairs = 2;
  static constexpr int64_t kBytes = kPanelRows * 2;
  // (at_bit_3 & 15 · 8) | bf16 of 16: 16 + nibble
  HEADROOM_BF16_TARGET static inline __m512bh widened(__m512i at_bit_3) {
    return (__m512bh)_mm512_ternarylogic_epi32(at_bit_3, _mm512_set1_epi16(0x78), _mm512_set1_epi16(0x4180), 0xEA);
  }
  HEADROOM_BF16_TARGET static inline void load(const std::byte* at, Pair (&pairs)[kPairs]) {
    const __m512i nibbles = _mm512_loadu_si512(at);
    pairs[0] = {{widened(_mm512_slli_epi16(nibbles, 3)), widened(_mm512_srli_epi16(nibbles, 1))}};
    pairs[1] = {{widened(_mm512_srli_epi16(nibbles, 5)), widened(_mm512_srli_epi16(nibbles, 9))}};
  }
};
// What the widened weights of a type are more than they stand for.
constexpr float excess(DType type) { return type == DType::kI4 ? 16.0f + kInt4PairsZero : 0.0f; }

// What a tile of rows is multiplied into.
struct Output {
  float* at;           // of the tile's first row and the panel's first output
  int64_t stride;      // of rows, in floats
  const float* bias;   // of the panel's outputs; null: none
  int64_t count;       // of the panel's outputs
};

// sums[r] += pairs of x · pairs of the panel.
template <class Groups, int kRows>
HEADROOM_BF16_TARGET inline void add_pairs(__m512 (&sums)[kRows][kVectors], const uint32_t* x, const std::byte* pairs, int64_t count, Ahead& ahead) {
  using Pairs = typename Groups::Pairs;
  for (int64_t i = 0; i < count; i += Pairs::kPairs, pairs += Pairs::kBytes, ahead.at += ahead.step) {
    HEADROOM_UNROLL
    for (int64_t line = 0; line < Groups::kAheadBytes; line += 64) __builtin_prefetch(ahead.at + line, 0, Groups::kAheadLocality);
    Pair w[Pairs::kPairs];
    Pairs::load(pairs, w);
    HEADROOM_UNROLL
    for (int p = 0; p < Pairs::kPairs; ++p, x += kRows) {
      if (p > 0 && i + p >= count) break;
      HEADROOM_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m512bh both = (__m512bh)_mm512_set1_epi32(static_cast<int>(x[r]));
        HEADROOM_UNROLL
        for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], both, w[p].rows[v]);
      }
    }
  }
}

template <int kRows>
HEADROOM_BF16_TARGET inline void clear(__m512 (&sums)[kRows][kVectors]) {
  HEADROOM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    HEADROOM_UNROLL
    for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_setzero_ps();
  }
}

// The same for a group of weights widened in excess, of whose x the sum is known.
template <int kRows>
HEADROOM_BF16_TARGET inline void clear_less(__m512 (&sums)[kRows][kVectors], float excess, const float* x_sums) {
  HEADROOM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    HEADROOM_UNROLL
    for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_set1_ps(-excess * x_sums[r]);
  }
}

template <int kRows>
HEADROOM_BF16_TARGET inline void store(const Output& out, const __m512 (&sums)[kRows][kVectors]) {
  HEADROOM_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const int64_t left = std::clamp<int64_t>(out.count - v * kLanes, 0, kLanes);
    const auto lanes = static_cast<__mmask16>((1u << left) - 1u);
    const __m512 bias = out.bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(lanes, out.bias + v * kLanes);
    HEADROOM_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m512 sum = out.bias == nullptr ? sums[r][v] : _mm512_add_ps(sums[r][v], bias);
      _mm512_mask_storeu_ps(out.at + r * out.stride + v * kLanes, lanes, sum);
    }
  }
}

// A tile of x.
struct PackedRows {
  const uint32_t* pairs;  // [K/2][rows]
  const float* sums;      // [K/kQuantGroup][rows], of what is rounded, where the weights are widened in excess
};

// A tile of rows times a panel whose scales and quants, or whose bf16, `Groups` finds.
template <class Groups, int kRows>
HEADROOM_BF16_TARGET void multiply_tile(const Output& out, const PackedRows& x, const Groups& groups, Ahead ahead) {
  __m512 sums[kRows][kVectors];
  clear<kRows>(sums);
  if constexpr (!Groups::kHasScales) {
    add_pairs<Groups, kRows>(sums, x.pairs, groups.pairs(0), groups.pairs_in_all, ahead);
  } else {
    alignas(64) float total[kRows][kPanelRows] = {};
    for (int64_t g = 0; g < groups.count(); ++g) {
      const int64_t count = std::min<int64_t>(kQuantGroup / 2, groups.pairs_in_all - g * (kQuantGroup / 2));
      if constexpr (Groups::kExcess != 0) {
        clear_less<kRows>(sums, Groups::kExcess, x.sums + g * kRows);
      } else {
        clear<kRows>(sums);
      }
      add_pairs<Groups, kRows>(sums, x.pairs + g * (kQuantGroup / 2) * kRows, groups.pairs(g), count, ahead);
      HEADROOM_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(groups.scales(g)) + v));
        HEADROOM_UNROLL
        for (int r = 0; r < kRows; ++r) {
          float* to = total[r] + v * kLanes;
          _mm512_store_ps(to, _mm512_fmadd_ps(sums[r][v], scale, _mm512_load_ps(to)));
        }
      }
    }
    HEADROOM_UNROLL
    for (int r = 0; r < kRows; ++r) {
      HEADROOM_UNROLL
      for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_load_ps(total[r] + v * kLanes);
    }
  }
  store<kRows>(out, sums);
}

// A panel as it is stored, read by one tile.
template <DType type>
struct StoredGroups {
  using Pairs = StoredPairs<type>;
  static constexpr int64_t kAheadBytes = Pairs::kBytes;  // of each step
  static constexpr int kAheadLocality = 3;  // into L1
  static constexpr bool kHasScales = is_quantized(type);
  static constexpr float kExcess = excess(type);
  // Of the panel, by step of kPairs.
  static constexpr int64_t kStepBytes = kHasScales ? static_cast<int64_t>(panel_group_bytes(type)) * Pairs::kPairs / (kQuantGroup / 2) : Pairs::kBytes;
  const std::byte* panel;
  int64_t pairs_in_all;

  int64_t count() const { return (pairs_in_all + kQuantGroup / 2 - 1) / (kQuantGroup / 2); }
  const std::byte* scales(int64_t g) const { return panel + static_cast<size_t>(g) * panel_group_bytes(type); }
  const std::byte* pairs(int64_t g) const { return kHasScales ? scales(g) + kPanelScaleBytes : panel; }
};

// A panel that several tiles read, one after the other.
struct SharedGroups : StoredGroups<DType::kBF16> {
  static constexpr int64_t kAheadBytes = 64;
  static constexpr int kAheadLocality = 2;  // into L2: L1 has this one
};

// The same of a quantised panel, whose quants were widened to bf16 pairs.
template <DType type>
struct WidenedGroups {
  using Pairs = StoredPairs<DType::kBF16>;
  static constexpr int64_t kAheadBytes = SharedGroups::kAheadBytes;
  static constexpr int kAheadLocality = SharedGroups::kAheadLocality;
  static constexpr bool kHasScales = true;
  static constexpr float kExcess = excess(type);
  StoredGroups<type> stored;
  const std::byte* widened;
  int64_t pairs_in_all;

  int64_t count() const { return stored.count(); }
  const std::byte* scales(int64_t g) const { return stored.scales(g); }
  const std::byte* pairs(int64_t g) const { return widened + g * (kQuantGroup / 2) * Pairs::kBytes; }
};

template <DType type>
HEADROOM_BF16_TARGET WidenedGroups<type> widen(const StoredGroups<type>& stored, std::byte* to) {
  using Pairs = StoredPairs<type>;
  std::byte* at = to;
  for (int64_t g = 0; g < stored.count(); ++g) {
    const std::byte* from = stored.pairs(g);
    for (int64_t i = 0; i < kQuantGroup / 2; i += Pairs::kPairs, from += Pairs::kBytes) {
      Pair pairs[Pairs::kPairs];
      Pairs::load(from, pairs);
      for (const Pair& pair : pairs) {
        _mm512_storeu_si512(at, (__m512i)pair.rows[0]);
        _mm512_storeu_si512(at + 64, (__m512i)pair.rows[1]);
        at += StoredPairs<DType::kBF16>::kBytes;
      }
    }
  }
  return {stored, to, stored.pairs_in_all};
}

template <class Groups, int... kRows>
void multiply_rows(const Output& out, const PackedRows& x, const Groups& groups, Ahead ahead, int64_t rows, std::integer_sequence<int, kRows...>) {
  using Multiply = void (*)(const Output&, const PackedRows&, const Groups&, Ahead);
  static constexpr Multiply kByRows[] = {multiply_tile<Groups, kRows + 1>...};
  kByRows[rows - 1](out, x, groups, ahead);
}

int64_t tiles_of(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }
// Tiles of nearly equal height.
int64_t tile_begin(int64_t rows, int64_t i) { return rows * i / tiles_of(rows); }

// Σ of 32 bf16.
HEADROOM_BF16_TARGET inline float sum_of_pairs(__m512i pairs) {
  const __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  const __m512 second = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))));
  return _mm512_reduce_add_ps(_mm512_add_ps(first, second));
}

// Tiles [first, last) of x as [tile][K/2][rows of the tile] pairs of bf16; behind an odd K there is a zero. `sums`, unless null: Σ of each group of
// a row, [tile][K/kQuantGroup][rows of the tile].
HEADROOM_BF16_TARGET void pack_rows(uint32_t* packed, float* sums, Matrix x, int64_t first, int64_t last) {
  static_assert(kQuantGroup == 2 * kLanes);
  const int64_t pairs = (x.cols + 1) / 2, groups = (x.cols + kQuantGroup - 1) / kQuantGroup;
  for (int64_t i = first; i < last; ++i) {
    const int64_t begin = tile_begin(x.rows, i), rows = tile_begin(x.rows, i + 1) - begin;
    uint32_t* to = packed + begin * pairs;
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = x.row(begin + r);
      for (int64_t k = 0; k < pairs; k += kLanes) {
        alignas(64) uint32_t rounded[kLanes];
        const int64_t left = x.cols - 2 * k;
        const auto mask = [](int64_t count) { return static_cast<__mmask16>(count >= kLanes ? 0xFFFF : (1 << std::max<int64_t>(count, 0)) - 1); };
        const __m512 low = _mm512_maskz_loadu_ps(mask(left), from + 2 * k);
        const __m512 high = _mm512_maskz_loadu_ps(mask(left - kLanes), from + 2 * k + kLanes);
        const auto both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        _mm512_store_si512(rounded, both);
        if (sums != nullptr) sums[begin * groups + k / kLanes * rows + r] = sum_of_pairs(both);
        const int64_t count = std::min<int64_t>(kLanes, pairs - k);
        for (int64_t j = 0; j < count; ++j) to[(k + j) * rows + r] = rounded[j];
      }
    }
  }
}

// Panels [first, last), of which this worker is likely to be given the one `stride` further on next.
template <DType type>
void multiply_panels(Matrix out, const PackedRows& packed, const PackedWeight& weight, const float* bias, std::byte* widened, int64_t first,
                     int64_t last, int64_t stride) {
  const int64_t pairs = (weight.cols() + 1) / 2, groups_of_row = (weight.cols() + kQuantGroup - 1) / kQuantGroup, tiles = tiles_of(out.rows);
  const auto panel_bytes = static_cast<int64_t>(weight.panel_bytes());
  for (int64_t p = first; p < last; ++p) {
    const int64_t n = p * kPanelRows;
    const StoredGroups<type> stored{weight.panel(p), pairs};
    const std::byte* next = weight.panel(std::min(p + stride, weight.panels() - 1));
    const auto multiply = [&](const auto& groups) {
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t begin = tile_begin(out.rows, i), rows = tile_begin(out.rows, i + 1) - begin;
        const Output to{out.row(begin) + n, out.stride, bias == nullptr ? nullptr : bias + n, std::min(kPanelRows, weight.rows() - n)};
        const PackedRows tile{packed.pairs + begin * pairs, packed.sums + begin * groups_of_row};
        const Ahead ahead = tiles == 1 ? Ahead{stored.panel + kPrefetchBytes, StoredGroups<type>::kStepBytes}
                                       : Ahead{next + panel_bytes * i / tiles, (panel_bytes + pairs * tiles - 1) / (pairs * tiles)};
        multiply_rows(to, tile, groups, ahead, rows, std::make_integer_sequence<int, kTileRows>());
      }
    };
    if (tiles == 1) {
      multiply(stored);
    } else if constexpr (is_quantized(type)) {
      multiply(widen(stored, widened));
    } else {
      multiply(SharedGroups{stored});
    }
  }
}

template <DType type>
void gemm_of_type(ThreadPool& pool, Scratch& scratch, Matrix out, Matrix x, const PackedWeight& weight, const float* bias) {
  const int64_t pairs = (x.cols + 1) / 2;
  const int64_t widened_floats = is_quantized(type) ? (weight.cols() + kQuantGroup - 1) / kQuantGroup * kQuantGroup * kPanelRows / 2 : 0;
  for (int64_t first = 0; first < x.rows; first += kRowsPerBlock) {
    const int64_t rows = std::min(kRowsPerBlock, x.rows - first);
    const Matrix x_block(x.row(first), rows, x.cols, x.stride);
    const Matrix out_block(out.row(first), rows, out.cols, out.stride);
    const int64_t packed_floats = (rows * pairs + kLanes - 1) / kLanes * kLanes;
    const int64_t sums_floats = (rows * (x.cols + kQuantGroup - 1) / kQuantGroup + rows + kLanes - 1) / kLanes * kLanes;
    float* memory = scratch.reserve(static_cast<size_t>(packed_floats + sums_floats + pool.threads() * widened_floats));
    auto* packed = reinterpret_cast<uint32_t*>(memory);
    float* sums = memory + packed_floats;
    auto* widened = reinterpret_cast<std::byte*>(sums + sums_floats);
    pool.for_range(tiles_of(rows), std::max<int64_t>(1, rows_per_worker(x.cols) / kTileRows),
                   [&](int64_t begin, int64_t end) { pack_rows(packed, excess(type) != 0 ? sums : nullptr, x_block, begin, end); });
    pool.for_shared(weight.panels(), 1, [&](int worker, int64_t begin, int64_t end) {
      multiply_panels<type>(out_block, {packed, sums}, weight, bias, widened + worker * widened_floats * static_cast<int64_t>(sizeof(float)), begin, end, pool.threads());
    });
  }
}

}  // namespace

bool multiplies_bf16_pairs() { return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16") &&
                                       __builtin_cpu_supports("avx512vbmi"); }

void gemm_bf16(ThreadPool& pool, Scratch& scratch, Matrix out, Matrix x, const PackedWeight& weight, Vector bias) {
  const float* bias_data = bias.empty() ? nullptr : bias.data();
  switch (weight.dtype()) {
    case DType::kBF16:
      return gemm_of_type<DType::kBF16>(pool, scratch, out, x, weight, bias_data);
    case DType::kI8:
      return gemm_of_type<DType::kI8>(pool, scratch, out, x, weight, bias_data);
    case DType::kI4:
      return gemm_of_type<DType::kI4>(pool, scratch, out, x, weight, bias_data);
    case DType::kF32:
    case DType::kF16:
      break;
  }
  CHECK(false) << "weights of " << dtype_name(weight.dtype()) << " are not in pairs";
}

}  // namespace headroom::cpu
#else
namespace headroom::cpu {
bool multiplies_bf16_pairs() { return false; }
void gemm_bf16(ThreadPool&, Scratch&, Matrix, Matrix, const PackedWeight&, Vector) { CHECK(false) << "this CPU has no pairs of bf16"; }
}  // namespace headroom::cpu
#endif
