// How a block of keys and values comes from the pages, widened to fp32: compiled once per SIMD target.
//
// Keys and values of int8 pages are widened without their scales, which multiply scores and weights instead: once a key, not once
// an element.
#if defined(HEADROOM_KERNELS_CPU_ATTENTION_BLOCK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADROOM_KERNELS_CPU_ATTENTION_BLOCK_INL_H_
#undef HEADROOM_KERNELS_CPU_ATTENTION_BLOCK_INL_H_
#else
#define HEADROOM_KERNELS_CPU_ATTENTION_BLOCK_INL_H_
#endif

#include "hwy/cache_control.h"
#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headroom {
namespace HWY_NAMESPACE {

using cpu::AttentionCall;
using cpu::AttentionTile;
using cpu::kBlockKeys;
using cpu::kChunkKeys;
using cpu::KeyRange;
using cpu::kTileQueryRows;
using cpu::SoftmaxState;
using cpu::TileMemory;
using cpu::visible;

constexpr int kBlockVectors = kBlockKeys / kLanes;

// lane_sums = lane_sums · decay + added.
HWY_INLINE void add_to_sums(VF added, float decay, float* lane_sums) {
  const DF d;
  hn::Store(hn::MulAdd(hn::Load(d, lane_sums), hn::Set(d, decay), added), d, lane_sums);
}

// Calls body(first_row, static count) on register tiles of nearly equal height, at most kRowsMax, that cover [begin, end).
template <int kRowsMax, class Body>
HWY_INLINE void for_register_tiles(int begin, int end, const Body& body) {
  const int rows = end - begin;
  const int tiles = (rows + kRowsMax - 1) / kRowsMax;
  for (int i = 0; i < tiles; ++i) {
    const int first = begin + rows * i / tiles;
    const int next = begin + rows * (i + 1) / tiles;
    with_static_count<kRowsMax>(next - first, [&](auto count) HWY_ATTR { body(first, count); });
  }
}

// Where the K and V rows of a block lie. Keys come in chunks of kChunkKeys whose rows are neighbours in a page.
template <DType type>
struct BlockRows {
  const Element<type>* k[kBlockKeys / kChunkKeys];  // null: the chunk has no key of the range, and maybe no page
  const Element<type>* v[kBlockKeys / kChunkKeys];
  const float* scales[kBlockKeys / kChunkKeys];  // of K; those of V are v_scales_ahead further on. int8 alone
  int64_t v_scales_ahead;
  int64_t head_dim;

  BlockRows(const AttentionCall& call, const AttentionTile& tile, int32_t block, KeyRange range)
      : v_scales_ahead(call.layer.rows()), head_dim(call.layer.head_dim) {
    const KvLayer& layer = call.layer;
    const int64_t head_elements = int64_t{layer.page_tokens} * head_dim;
    for (int c = 0; c < kBlockKeys / kChunkKeys; ++c) {
      const int32_t first = block + c * kChunkKeys;
      k[c] = v[c] = nullptr;
      if (first + kChunkKeys <= range.begin || first >= range.end) continue;
      const size_t page = static_cast<size_t>(tile.page_table[first / layer.page_tokens]);
      const std::byte* data = layer.data + page * layer.page_stride_bytes;
      k[c] = reinterpret_cast<const Element<type>*>(data) + tile.kv_head * head_elements +
             first % layer.page_tokens * head_dim;
      v[c] = k[c] + layer.kv_heads * head_elements;
      scales[c] = reinterpret_cast<const float*>(data + layer.scales_offset()) + tile.kv_head * layer.page_tokens +
                  first % layer.page_tokens;
    }
  }

  const Element<type>* value(int32_t key) const { return v[key / kChunkKeys] + key % kChunkKeys * head_dim; }
};

#if HWY_TARGET == HWY_SCALAR
template <DType type>
HWY_INLINE void transpose_keys(float* to, const Element<type>* rows, const Element<type>*, const Element<type>*,
                               int64_t head_dim) {
  for (int64_t i = 0; i < head_dim; ++i) to[i * kBlockKeys] = element_to_f32<type>(rows[i]);
}
#else
// 16 bytes of every fourth row, side by side.
template <class D, class T>
HWY_INLINE hn::Vec<D> gather_rows(D d, const T* from, int64_t stride) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return hn::LoadU(d, reinterpret_cast<const hn::TFromD<D>*>(from));
  } else {
    const hn::Half<D> half;
    const T* upper = from + static_cast<int64_t>(hn::MaxLanes(D())) / 2 * stride;
    return hn::Combine(d, gather_rows(half, upper, stride), gather_rows(half, from, stride));
  }
}

// Four vectors of [row / 4][4 words], of rows 0, 1, 2, 3 modulo 4, become four vectors that each have one word of all
// rows in order.
template <class D, class V>
HWY_INLINE void transpose_words(D d, V (&words)[4]) {
  const hn::RepartitionToWide<D> wide;
  const auto ab_low = hn::BitCast(wide, hn::InterleaveLower(d, words[0], words[1]));
  const auto ab_high = hn::BitCast(wide, hn::InterleaveUpper(d, words[0], words[1]));
  const auto ce_low = hn::BitCast(wide, hn::InterleaveLower(d, words[2], words[3]));
  const auto ce_high = hn::BitCast(wide, hn::InterleaveUpper(d, words[2], words[3]));
  words[0] = hn::BitCast(d, hn::InterleaveLower(wide, ab_low, ce_low));
  words[1] = hn::BitCast(d, hn::InterleaveUpper(wide, ab_low, ce_low));
  words[2] = hn::BitCast(d, hn::InterleaveLower(wide, ab_high, ce_high));
  words[3] = hn::BitCast(d, hn::InterleaveUpper(wide, ab_high, ce_high));
}

// Pages lie anywhere, so the hardware cannot foresee them: while a chunk is transposed, as many bytes of a later block's
// keys and values are asked for, a few lines at a time. Into L2: the few miss buffers of L1 would hold the core up (half
// the bytes per second).
template <size_t kBytes, class T>
HWY_INLINE void prefetch_ahead(const T* ahead, int64_t at) {
  const std::byte* begin = reinterpret_cast<const std::byte*>(ahead + at);
  HEADROOM_UNROLL
  for (size_t line = 0; line < kBytes; line += 64) __builtin_prefetch(begin + line, 0, 2);
}

// to[i][0 .. kLanes) = element i of kLanes key rows. A word is one fp32 element, two 16-bit ones or four int8, which widen
// after the transpose. `ahead_k` and `ahead_v`, unless null: the same rows of a later block. Where head_dim is not a
// multiple of 16, the last words of int8 rows belong to what follows them in the page, and land in the padding of `to`.
template <DType type>
HWY_INLINE void transpose_keys(float* to, const Element<type>* rows, const Element<type>* ahead_k,
                               const Element<type>* ahead_v, int64_t head_dim) {
  const DF d;
  const hn::RebindToUnsigned<DF> d32;
  constexpr int kPerWord = 4 / sizeof(Element<type>);
  for (int64_t i = 0; i < head_dim; i += 4 * kPerWord) {
    if (ahead_k != nullptr) {
      prefetch_ahead<kLanes * 16>(ahead_k, i * kLanes);
      prefetch_ahead<kLanes * 16>(ahead_v, i * kLanes);
    }
    hn::Vec<decltype(d32)> words[4];
    HEADROOM_UNROLL
    for (int row = 0; row < 4; ++row) words[row] = gather_rows(d32, rows + row * head_dim + i, head_dim);
    transpose_words(d32, words);
    HEADROOM_UNROLL
    for (int word = 0; word < 4; ++word) {
      float* out = to + (i + word * kPerWord) * kBlockKeys;
      if constexpr (type == DType::kF32) {
        hn::Store(hn::BitCast(d, words[word]), d, out);
      } else if constexpr (type == DType::kBF16) {
        hn::Store(hn::BitCast(d, hn::ShiftLeft<16>(words[word])), d, out);
        hn::Store(hn::BitCast(d, hn::And(words[word], hn::Set(d32, 0xFFFF0000u))), d, out + kBlockKeys);
      } else if constexpr (type == DType::kI8) {
        const hn::RebindToSigned<DF> di;
        const auto bytes = hn::BitCast(di, words[word]);
        hn::Store(hn::ConvertTo(d, hn::ShiftRight<24>(hn::ShiftLeft<24>(bytes))), d, out);
        hn::Store(hn::ConvertTo(d, hn::ShiftRight<24>(hn::ShiftLeft<16>(bytes))), d, out + kBlockKeys);
        hn::Store(hn::ConvertTo(d, hn::ShiftRight<24>(hn::ShiftLeft<8>(bytes))), d, out + 2 * kBlockKeys);
        hn::Store(hn::ConvertTo(d, hn::ShiftRight<24>(bytes)), d, out + 3 * kBlockKeys);
      } else {
        const hn::Rebind<uint16_t, DF> d16;
        const hn::Rebind<hwy::float16_t, DF> half;
        const auto low = hn::TruncateTo(d16, hn::And(words[word], hn::Set(d32, 0xFFFFu)));
        const auto high = hn::TruncateTo(d16, hn::ShiftRight<16>(words[word]));
        hn::Store(hn::PromoteTo(d, hn::BitCast(half, low)), d, out);
        hn::Store(hn::PromoteTo(d, hn::BitCast(half, high)), d, out + kBlockKeys);
      }
    }
  }
}
#endif

// The block's keys, transposed to [head_dim][kBlockKeys]. Slots of a page that hold no key of the range are transposed
// with the others: a lane meets no other lane until it has been masked.
template <DType type>
void load_keys(float* to, const BlockRows<type>& rows, const BlockRows<type>& later) {
  for (int32_t j = 0; j < kBlockKeys; j += kLanes) {
    const int32_t c = j / kChunkKeys;
    if (rows.k[c] == nullptr) continue;
    const int64_t at = j % kChunkKeys * rows.head_dim;
    const bool ahead = later.k[c] != nullptr;
    transpose_keys<type>(to + j, rows.k[c] + at, ahead ? later.k[c] + at : nullptr, ahead ? later.v[c] + at : nullptr,
                         rows.head_dim);
  }
}

// The values of keys [begin, end) of the block as rows [kBlockKeys][padded_dim].
template <DType type>
void load_values(float* to, const BlockRows<type>& rows, int32_t begin, int32_t end, int64_t padded_dim) {
  const DF d;
  for (int32_t j = begin; j < end; ++j) {
    const Element<type>* from = rows.value(j);
    float* row = to + j * padded_dim;
    int64_t i = 0;
    for (; i + kLanes <= rows.head_dim; i += kLanes) hn::Store(load_f32<type>(from + i), d, row + i);
    for (; i < rows.head_dim; ++i) row[i] = element_to_f32<type>(from[i]);
  }
}

// The block's scales: of each key, and of each value. Nothing for the types that have none.
template <DType type>
struct BlockScales {
  explicit BlockScales(const BlockRows<type>&) {}
  HWY_INLINE VF of_keys(int, VF scores) const { return scores; }
  HWY_INLINE VF of_values(int, VF weights) const { return weights; }
};
template <>
struct BlockScales<DType::kI8> {
  HWY_ALIGN float keys[kBlockKeys];
  HWY_ALIGN float values[kBlockKeys];

  explicit BlockScales(const BlockRows<DType::kI8>& rows) {
    for (int c = 0; c < kBlockKeys / kChunkKeys; ++c) {
      for (int j = 0; j < kChunkKeys; ++j) {  // a chunk without a page is masked; 0 because it must be something
        keys[c * kChunkKeys + j] = rows.k[c] == nullptr ? 0.0f : rows.scales[c][j];
        values[c * kChunkKeys + j] = rows.k[c] == nullptr ? 0.0f : rows.scales[c][rows.v_scales_ahead + j];
      }
    }
  }
  HWY_INLINE VF of_keys(int v, VF scores) const { return hn::Mul(scores, hn::Load(DF(), keys + v * kLanes)); }
  HWY_INLINE VF of_values(int v, VF weights) const { return hn::Mul(weights, hn::Load(DF(), values + v * kLanes)); }
};

}  // namespace HWY_NAMESPACE
}  // namespace headroom
HWY_AFTER_NAMESPACE();

#endif
