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

// The pages and slots of a block's chunks of kChunkKeys, the same for all KV heads.
struct BlockPlace {
  const std::byte* page[kBlockKeys / kChunkKeys];  // null: the chunk has no key of the range, and maybe no page
  int32_t slot[kBlockKeys / kChunkKeys];

  BlockPlace(const KvLayer& layer, const int32_t* page_table, int32_t block, KeyRange range) {
    const int shift = __builtin_ctz(static_cast<unsigned>(layer.page_tokens));  // a power of two: no division for each block
    for (int c = 0; c < kBlockKeys / kChunkKeys; ++c) {
      const int32_t first = block + c * kChunkKeys;
      page[c] = nullptr;
      if (first + kChunkKeys <= range.begin || first >= range.end) continue;
      page[c] = layer.data + static_cast<size_t>(page_table[first >> shift]) * layer.page_stride_bytes;
      slot[c] = first & (layer.page_tokens - 1);
    }
  }
};

// Where the keys and values of a block lie, in chunks of kChunkKeys (key_layout.h).
template <DType type>
struct BlockRows {
  const Element<type>* k[kBlockKeys / kChunkKeys];  // null where the place has no page
  const Element<type>* v[kBlockKeys / kChunkKeys];
  const float* scales[kBlockKeys / kChunkKeys] = {};  // of K; those of V are v_scales_ahead further on. int8 alone
  int64_t v_scales_ahead;
  int64_t head_dim;

  BlockRows(const KvLayer& layer, const BlockPlace& place, int32_t kv_head) : v_scales_ahead(layer.rows()), head_dim(layer.head_dim) {
    const int64_t head_elements = int64_t{layer.page_tokens} * head_dim;
    for (int c = 0; c < kBlockKeys / kChunkKeys; ++c) {
      k[c] = v[c] = nullptr;
      if (place.page[c] == nullptr) continue;
      k[c] = reinterpret_cast<const Element<type>*>(place.page[c]) + kv_head * head_elements + place.slot[c] * head_dim;
      v[c] = k[c] + layer.kv_heads * head_elements;
      scales[c] = reinterpret_cast<const float*>(place.page[c] + layer.scales_offset()) + kv_head * layer.page_tokens + place.slot[c];
    }
  }

  const uint32_t* key_words(int chunk) const { return reinterpret_cast<const uint32_t*>(k[chunk]); }  // of 4 bytes
};

// What is asked of memory while a block is worked on: the runs of the next one, keys and then values. Pages lie anywhere, so the hardware cannot
// foresee them. Neighbouring lines are asked for one after the other, up to kBurstBytes, and then about as many bytes are worked on: spread line
// by line over that work they come more slowly (17 GB/s instead of 22, measured on a Zen 4), as do twice as many at once (13). Into L2: into L1 it
// is 15. All inlined: GCC leaves a call out that has no other effect than to ask.
class Ahead {
 public:
  static constexpr size_t kBurstBytes = 2048;

  template <DType type>
  HWY_INLINE explicit Ahead(const BlockRows<type>& rows) : run_bytes_(kChunkKeys * static_cast<size_t>(rows.head_dim) * sizeof(Element<type>)) {
    for (int c = 0; c < kChunks; ++c) {
      runs_[c] = reinterpret_cast<const std::byte*>(rows.k[c]);
      runs_[kChunks + c] = reinterpret_cast<const std::byte*>(rows.v[c]);
      if (type != DType::kI8 || rows.k[c] == nullptr) continue;
      __builtin_prefetch(rows.scales[c], 0, 2);
      __builtin_prefetch(rows.scales[c] + rows.v_scales_ahead, 0, 2);
    }
  }
  // For the next burst, between stages; nothing when all has been asked for.
  HWY_INLINE void ask() {
    if (run_ == 2 * kChunks) return;
    const size_t end = HWY_MIN(run_bytes_, asked_ + kBurstBytes);
    if (runs_[run_] != nullptr) {
      for (size_t line = asked_; line < end; line += 64) __builtin_prefetch(runs_[run_] + line, 0, 2);
    }
    run_ += end == run_bytes_ ? 1 : 0;
    asked_ = end == run_bytes_ ? 0 : end;
  }
  // The same within a stage, of runs that are longer than a burst.
  HWY_INLINE void ask_within() {
    if (run_bytes_ > kBurstBytes) ask();
  }
  HWY_INLINE void finish() {
    while (run_ < 2 * kChunks) ask();
  }

 private:
  static constexpr int kChunks = kBlockKeys / kChunkKeys;
  const std::byte* runs_[2 * kChunks];
  size_t run_bytes_;
  int run_ = 0;
  size_t asked_ = 0;  // of it
};

template <DType type>
constexpr int kPerWord = static_cast<int>(cpu::key_word_bytes(type) / sizeof(Element<type>));

// Calls take(i) for the first element i of each word of a key, and asks ahead between bursts of them.
template <DType type, class Take>
HWY_INLINE void for_key_words(int64_t head_dim, Ahead& ahead, const Take& take) {
  constexpr int64_t kBurst = static_cast<int64_t>(Ahead::kBurstBytes / (kChunkKeys * sizeof(Element<type>)));
  for (int64_t begin = 0; begin < head_dim; begin += kBurst) {
    if (begin > 0) ahead.ask_within();
    const int64_t end = HWY_MIN(head_dim, begin + kBurst);
    for (int64_t i = begin; i < end; i += kPerWord<type>) take(i);
  }
}

// The elements of a word of kLanes keys, widened.
template <DType type>
HWY_INLINE void widen_words(const Element<type>* words, VF (&elements)[kPerWord<type>]) {
  const DF d;
  if constexpr (kPerWord<type> == 1) {
    elements[0] = load_f32<type>(words);
  } else {
    const hn::RebindToUnsigned<DF> d32;
    const auto bits = hn::LoadU(d32, reinterpret_cast<const uint32_t*>(words));
    if constexpr (type == DType::kBF16) {
      elements[0] = hn::BitCast(d, hn::ShiftLeft<16>(bits));
      elements[1] = hn::BitCast(d, hn::And(bits, hn::Set(d32, 0xFFFF0000u)));
    } else {
      const hn::RebindToSigned<DF> di;
      const auto bytes = hn::BitCast(di, bits);
      elements[0] = hn::ConvertTo(d, hn::ShiftRight<24>(hn::ShiftLeft<24>(bytes)));
      elements[1] = hn::ConvertTo(d, hn::ShiftRight<24>(hn::ShiftLeft<16>(bytes)));
      elements[2] = hn::ConvertTo(d, hn::ShiftRight<24>(hn::ShiftLeft<8>(bytes)));
      elements[3] = hn::ConvertTo(d, hn::ShiftRight<24>(bytes));
    }
  }
}

// The block's keys as [head_dim][kBlockKeys]. Slots of a page that hold no key of the range are widened with the others: a lane meets no
// other lane until it has been masked.
template <DType type>
void load_keys(float* to, const BlockRows<type>& rows, Ahead& ahead) {
  const DF d;
  constexpr int64_t kStep = kPerWord<type>;
  for (int c = 0; c < kBlockKeys / kChunkKeys; ++c) {
    if (rows.k[c] == nullptr) continue;
    for_key_words<type>(rows.head_dim, ahead, [&](int64_t i) HWY_ATTR {
      HEADROOM_UNROLL
      for (int j = 0; j < kChunkKeys; j += kLanes) {
        VF elements[kStep];
        widen_words<type>(rows.k[c] + i * kChunkKeys + j * kStep, elements);
        HEADROOM_UNROLL
        for (int e = 0; e < kStep; ++e) hn::Store(elements[e], d, to + (i + e) * kBlockKeys + c * kChunkKeys + j);
      }
    });
  }
}

// Calls take(key, row) for the keys [begin, end) of the block: what is stored of their values. Asks ahead after each chunk.
template <DType type, class Take>
HWY_INLINE void for_value_rows(const BlockRows<type>& rows, int32_t begin, int32_t end, Ahead& ahead, const Take& take) {
  for (int32_t c = 0; c < kBlockKeys / kChunkKeys; ++c) {
    const int32_t first = HWY_MAX(begin, c * kChunkKeys), last = HWY_MIN(end, (c + 1) * kChunkKeys);
    if (first >= last) continue;
    const Element<type>* row = rows.v[c] + (first - c * kChunkKeys) * rows.head_dim;
    for (int32_t j = first; j < last; ++j, row += rows.head_dim) take(j, row);
    ahead.ask_within();
  }
}

// The values of keys [begin, end) of the block as rows [kBlockKeys][padded_dim].
template <DType type>
void load_values(float* to, const BlockRows<type>& rows, int32_t begin, int32_t end, int64_t padded_dim, Ahead& ahead) {
  const DF d;
  for_value_rows(rows, begin, end, ahead, [&](int32_t j, const Element<type>* from) HWY_ATTR {
    float* row = to + j * padded_dim;
    int64_t i = 0;
    for (; i + kLanes <= rows.head_dim; i += kLanes) hn::Store(load_f32<type>(from + i), d, row + i);
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
