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

// Where the keys and values of a block lie, in chunks of kChunkKeys (key_layout.h).
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

  const uint32_t* key_words(int chunk) const { return reinterpret_cast<const uint32_t*>(k[chunk]); }
  // Of chunk c, what to ask for while that chunk of `now` is worked on: what is there already, where there is nothing else.
  const uint32_t* key_words_or(const BlockRows& now, int c) const { return (k[c] != nullptr ? *this : now).key_words(c); }
  const Element<type>* values_or(const BlockRows& now, int c) const { return v[c] != nullptr ? v[c] : now.v[c]; }
};

// Pages lie anywhere, so the hardware cannot foresee them: while the keys and values of a block are worked on, those at the same places of a
// later block are asked for, a line or two at a time: many at once would fill the core's few miss buffers, and it waits. Into L2, for the same
// reason (half the bytes per second into L1).
template <size_t kBytes, class T>
HWY_INLINE void prefetch(const T* from) {
  HEADROOM_UNROLL
  for (size_t line = 0; line < kBytes; line += 64) __builtin_prefetch(reinterpret_cast<const std::byte*>(from) + line, 0, 2);
}

// The elements of a word of kLanes keys, widened: element i to to[i · kBlockKeys] and on.
template <DType type>
HWY_INLINE void widen_words(float* to, const uint32_t* words) {
  const DF d;
  const hn::RebindToUnsigned<DF> d32;
  const auto bits = hn::LoadU(d32, words);
  if constexpr (type == DType::kF32) {
    hn::Store(hn::BitCast(d, bits), d, to);
  } else if constexpr (type == DType::kBF16) {
    hn::Store(hn::BitCast(d, hn::ShiftLeft<16>(bits)), d, to);
    hn::Store(hn::BitCast(d, hn::And(bits, hn::Set(d32, 0xFFFF0000u))), d, to + kBlockKeys);
  } else if constexpr (type == DType::kI8) {
    const hn::RebindToSigned<DF> di;
    const auto bytes = hn::BitCast(di, bits);
    hn::Store(hn::ConvertTo(d, hn::ShiftRight<24>(hn::ShiftLeft<24>(bytes))), d, to);
    hn::Store(hn::ConvertTo(d, hn::ShiftRight<24>(hn::ShiftLeft<16>(bytes))), d, to + kBlockKeys);
    hn::Store(hn::ConvertTo(d, hn::ShiftRight<24>(hn::ShiftLeft<8>(bytes))), d, to + 2 * kBlockKeys);
    hn::Store(hn::ConvertTo(d, hn::ShiftRight<24>(bytes)), d, to + 3 * kBlockKeys);
  } else {
    const hn::Rebind<uint16_t, DF> d16;
    const auto low = hn::TruncateTo(d16, hn::And(bits, hn::Set(d32, 0xFFFFu)));
    const auto high = hn::TruncateTo(d16, hn::ShiftRight<16>(bits));
    hn::Store(widen_halves(low), d, to);
    hn::Store(widen_halves(high), d, to + kBlockKeys);
  }
}

// The block's keys as [head_dim][kBlockKeys]. Slots of a page that hold no key of the range are widened with the others: a lane meets no
// other lane until it has been masked.
template <DType type>
void load_keys(float* to, const BlockRows<type>& rows, const BlockRows<type>& later) {
  constexpr int64_t kPerWord = cpu::kWordBytes / sizeof(Element<type>);
  for (int c = 0; c < kBlockKeys / kChunkKeys; ++c) {
    if (rows.k[c] == nullptr) continue;
    const uint32_t *words = rows.key_words(c), *ahead = later.key_words_or(rows, c);
    for (int64_t word = 0; word < rows.head_dim / kPerWord; ++word) {
      prefetch<64>(ahead + word * kChunkKeys);
      HEADROOM_UNROLL
      for (int j = 0; j < kChunkKeys; j += kLanes)
        widen_words<type>(to + word * kPerWord * kBlockKeys + c * kChunkKeys + j, words + word * kChunkKeys + j);
    }
  }
}

// Calls take(key, row, row ahead) for the keys [begin, end) of the block: what is stored of their values, and of those of a later block.
template <DType type, class Take>
HWY_INLINE void for_value_rows(const BlockRows<type>& rows, const BlockRows<type>& later, int32_t begin, int32_t end, const Take& take) {
  for (int32_t c = 0; c < kBlockKeys / kChunkKeys; ++c) {
    const int32_t first = HWY_MAX(begin, c * kChunkKeys), last = HWY_MIN(end, (c + 1) * kChunkKeys);
    if (first >= last) continue;
    const int64_t skipped = (first - c * kChunkKeys) * rows.head_dim;
    const Element<type>*row = rows.v[c] + skipped, *ahead = later.values_or(rows, c) + skipped;
    for (int32_t j = first; j < last; ++j, row += rows.head_dim, ahead += rows.head_dim) take(j, row, ahead);
  }
}

// The values of keys [begin, end) of the block as rows [kBlockKeys][padded_dim].
template <DType type>
void load_values(float* to, const BlockRows<type>& rows, const BlockRows<type>& later, int32_t begin, int32_t end, int64_t padded_dim) {
  const DF d;
  constexpr size_t kVectorBytes = kLanes * sizeof(Element<type>);
  for_value_rows(rows, later, begin, end, [&](int32_t j, const Element<type>* from, const Element<type>* ahead) HWY_ATTR {
    float* row = to + j * padded_dim;
    int64_t i = 0;
    for (; i + kLanes <= rows.head_dim; i += kLanes) {
      if (i * sizeof(Element<type>) % 64 < kVectorBytes) prefetch<kVectorBytes>(ahead + i);
      hn::Store(load_f32<type>(from + i), d, row + i);
    }
    for (; i < rows.head_dim; ++i) row[i] = element_to_f32<type>(from[i]);
  });
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
