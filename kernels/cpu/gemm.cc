// out = x · weightᵀ + bias over packed panels. Every output is one chain of fused multiply-adds over k ascending, bias
// last, whatever the number of rows: few rows read the panels once, straight from memory; many rows widen a block of a
// panel to fp32 in L1, reuse it for all rows, and carry the chains from block to block.
#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headroom {
namespace HWY_NAMESPACE {

constexpr int kPanelVectors = static_cast<int>(kPanelRows) / kLanes;
// Rows that the direct kernel holds in registers beside a whole panel.
constexpr int kDirectRows =
    kTileRows * kTileVectors * 2 / 3 / kPanelVectors > 0 ? kTileRows* kTileVectors * 2 / 3 / kPanelVectors : 1;
// Up to here groups of direct rows are faster than widened blocks (measured on AVX-512: 1.6 times at 16 rows, 1.4 at
// 32, 1.2 at 64, 0.9 at 128). Where few rows fit into registers, widening for each group costs more than it saves.
constexpr int kDirectRowsMax = kDirectRows >= 8 ? 12 * kDirectRows : kDirectRows;
constexpr int64_t kBlockSteps = 128;    // k of a widened block: 16 KiB, half of L1
static_assert(kBlockSteps % kQuantGroup == 0);
constexpr int64_t kRowsPerBlock = 192;  // rows packed at a time: in L2 up to a K of 1024
constexpr int64_t kTilesPerBlock = kRowsPerBlock / kTileRows;
constexpr int64_t kPrefetchBytes = 1024;  // ahead of the panel's reader

// Writes the `count` first of a panel's outputs, bias added.
HWY_INLINE void store_outputs(float* out, const float* sums, const float* bias, int64_t count) {
  const DF d;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    VF sum = hn::LoadU(d, sums + i);
    if (bias != nullptr) sum = hn::Add(sum, hn::LoadU(d, bias + i));
    hn::StoreU(sum, d, out + i);
  }
  for (; i < count; ++i) out[i] = bias != nullptr ? sums[i] + bias[i] : sums[i];
}

// The steps of a panel that are read alike: all of it, or a group of a quantised one with the scales of its rows. A weight is
// scale · q, which fp32 holds exactly (11 and at most 8 bits), so that a quantised gemm has the bits of the fp32 one of the same
// values, in both kernels below.
template <DType type>
struct PanelSteps {
  static constexpr int64_t kStepsMax = int64_t{1} << 62;
  const Element<type>* at;

  PanelSteps(const std::byte* panel, int64_t first) : at(reinterpret_cast<const Element<type>*>(panel) + first * kPanelRows) {}
  const void* address(int64_t k) const { return at + k * kPanelRows; }
  HWY_INLINE VF load(int64_t k, int v) const { return load_f32<type>(at + k * kPanelRows + v * kLanes); }
};

template <DType type>
struct QuantizedPanelSteps {
  static constexpr int64_t kStepsMax = kQuantGroup;
  static constexpr int64_t kStepBytes = type == DType::kI8 ? kPanelRows : kPanelRows / 2;
  const int8_t* at;
  VF scales[kPanelVectors];

  // REQUIRES: `first` begins a group.
  QuantizedPanelSteps(const std::byte* panel, int64_t first) {
    const std::byte* group = panel + static_cast<size_t>(first / kQuantGroup) * panel_group_bytes(type);
    at = reinterpret_cast<const int8_t*>(group + kPanelScaleBytes);
    HEADROOM_UNROLL
    for (int v = 0; v < kPanelVectors; ++v)
      scales[v] = load_f32<DType::kF16>(reinterpret_cast<const uint16_t*>(group) + v * kLanes);
  }
  const void* address(int64_t k) const { return at + k * kStepBytes; }
  HWY_INLINE VF load(int64_t k, int v) const {
    if constexpr (type == DType::kI8) {
      return hn::Mul(load_f32<DType::kI8>(at + k * kStepBytes + v * kLanes), scales[v]);
    } else {
      const DF d;
      const hn::RebindToSigned<DF> d32;
      const hn::Rebind<int8_t, DF> d8;
      const auto bytes = hn::PromoteTo(d32, hn::LoadU(d8, at + k * kStepBytes + v * kLanes % kStepBytes));
      const auto quants = v * kLanes < kStepBytes ? hn::ShiftRight<28>(hn::ShiftLeft<28>(bytes)) : hn::ShiftRight<4>(bytes);
      return hn::Mul(hn::ConvertTo(d, quants), scales[v]);
    }
  }
};
template <>
struct PanelSteps<DType::kI8> : QuantizedPanelSteps<DType::kI8> {
  using QuantizedPanelSteps::QuantizedPanelSteps;
};
template <>
struct PanelSteps<DType::kI4> : QuantizedPanelSteps<DType::kI4> {
  using QuantizedPanelSteps::QuantizedPanelSteps;
};

template <DType type, int kRows>
void direct_panel(Matrix out, Matrix x, const PackedWeight& weight, const float* bias, int64_t p) {
  const DF d;
  const int64_t steps = weight.cols();
  VF acc[kRows][kPanelVectors];
  HEADROOM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    HEADROOM_UNROLL
    for (int v = 0; v < kPanelVectors; ++v) acc[r][v] = hn::Zero(d);
  }
  for (int64_t first = 0; first < steps; first += PanelSteps<type>::kStepsMax) {
    const PanelSteps<type> w(weight.panel(p), first);
    const int64_t count = HWY_MIN(PanelSteps<type>::kStepsMax, steps - first);
    for (int64_t k = 0; k < count; ++k) {
      hwy::Prefetch(static_cast<const std::byte*>(w.address(k)) + kPrefetchBytes);
      VF widened[kPanelVectors];
      HEADROOM_UNROLL
      for (int v = 0; v < kPanelVectors; ++v) widened[v] = w.load(k, v);
      HEADROOM_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const VF value = hn::Set(d, x.data[r * x.stride + first + k]);
        HEADROOM_UNROLL
        for (int v = 0; v < kPanelVectors; ++v) acc[r][v] = hn::MulAdd(value, widened[v], acc[r][v]);
      }
    }
  }
  const int64_t n = p * kPanelRows;
  const int64_t count = HWY_MIN(kPanelRows, weight.rows() - n);
  HEADROOM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    HWY_ALIGN float sums[kPanelRows];
    HEADROOM_UNROLL
    for (int v = 0; v < kPanelVectors; ++v) hn::Store(acc[r][v], d, sums + v * kLanes);
    store_outputs(out.row(r) + n, sums, bias == nullptr ? nullptr : bias + n, count);
  }
}

// Steps [first, first + steps) of a panel as fp32 [steps][kPanelRows].
template <DType type>
void widen_block(float* to, const std::byte* panel, int64_t first, int64_t steps) {
  const DF d;
  for (int64_t begin = 0; begin < steps; begin += PanelSteps<type>::kStepsMax) {
    const PanelSteps<type> w(panel, first + begin);
    const int64_t count = HWY_MIN(PanelSteps<type>::kStepsMax, steps - begin);
    for (int64_t k = 0; k < count; ++k, to += kPanelRows) {
      HEADROOM_UNROLL
      for (int v = 0; v < kPanelVectors; ++v) hn::Store(w.load(k, v), d, to + v * kLanes);
    }
  }
}

// A tile of rows carries its sums [rows][kPanelRows] over one block of k.
template <int kRows, int kVectors>
HWY_INLINE void multiply_tile(float* sums, const float* x, const float* w, int64_t steps, bool first) {
  const DF d;
  VF acc[kRows][kVectors];
  HEADROOM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    HEADROOM_UNROLL
    for (int v = 0; v < kVectors; ++v)
      acc[r][v] = first ? hn::Zero(d) : hn::Load(d, sums + r * kPanelRows + v * kLanes);
  }
  accumulate_tile<1>(acc, x, kTileRows, w, kPanelRows, static_cast<size_t>(steps));
  HEADROOM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    HEADROOM_UNROLL
    for (int v = 0; v < kVectors; ++v) hn::Store(acc[r][v], d, sums + r * kPanelRows + v * kLanes);
  }
}

// Rows of tile `i` when `rows` rows are cut into `tiles` tiles of nearly equal height.
HWY_INLINE int64_t tile_begin(int64_t rows, int64_t tiles, int64_t i) { return rows * i / tiles; }

template <DType type>
void blocked_panels(Matrix out, const float* packed_x, const PackedWeight& weight, const float* bias,
                    int64_t first_panel, int64_t last_panel) {
  HWY_ALIGN float widened[kBlockSteps * kPanelRows];
  HWY_ALIGN float sums[kRowsPerBlock * kPanelRows];
  const int64_t cols = weight.cols();
  const int64_t tiles = (out.rows + kTileRows - 1) / kTileRows;
  for (int64_t p = first_panel; p < last_panel; ++p) {
    for (int64_t k = 0; k < cols; k += kBlockSteps) {
      const int64_t steps = HWY_MIN(kBlockSteps, cols - k);
      widen_block<type>(widened, weight.panel(p), k, steps);
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t begin = tile_begin(out.rows, tiles, i);
        const int rows = static_cast<int>(tile_begin(out.rows, tiles, i + 1) - begin);
        const float* x = packed_x + (i * cols + k) * kTileRows;
        with_static_count<kTileRows>(rows, [&](auto count) HWY_ATTR {
          for (int v = 0; v < kPanelVectors; v += kTileVectors) {
            multiply_tile<decltype(count)::value, kTileVectors>(sums + begin * kPanelRows + v * kLanes, x,
                                                                widened + v * kLanes, steps, k == 0);
          }
        });
      }
    }
    const int64_t n = p * kPanelRows;
    const int64_t count = HWY_MIN(kPanelRows, weight.rows() - n);
    for (int64_t r = 0; r < out.rows; ++r) {
      store_outputs(out.row(r) + n, sums + r * kPanelRows, bias == nullptr ? nullptr : bias + n, count);
    }
  }
}

// Tiles [first, last) of x as [tile][k][kTileRows], so that a step of a tile reads one line.
void pack_rows(float* packed, Matrix x, int64_t first, int64_t last) {
  const int64_t tiles = (x.rows + kTileRows - 1) / kTileRows;
  for (int64_t i = first; i < last; ++i) {
    const int64_t begin = tile_begin(x.rows, tiles, i);
    const int64_t rows = tile_begin(x.rows, tiles, i + 1) - begin;
    float* to = packed + i * x.cols * kTileRows;
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = x.row(begin + r);
      for (int64_t k = 0; k < x.cols; ++k) to[k * kTileRows + r] = from[k];
    }
  }
}

template <DType type>
void gemm_of_type(ThreadPool& pool, cpu::Scratch& scratch, Matrix out, Matrix x, const PackedWeight& weight,
                  const float* bias) {
  if (x.rows <= kDirectRowsMax) {
    const int64_t groups = (x.rows + kDirectRows - 1) / kDirectRows;
    pool.for_shared(weight.panels(), 1, [&](int, int64_t begin, int64_t end) {
      // A panel comes from memory for the first group of rows, and from the cache for the others.
      for (int64_t p = begin; p < end; ++p) {
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t first = tile_begin(x.rows, groups, g);
          const int64_t rows = tile_begin(x.rows, groups, g + 1) - first;
          const Matrix x_group(x.row(first), rows, x.cols, x.stride);
          const Matrix out_group(out.row(first), rows, out.cols, out.stride);
          with_static_count<kDirectRows>(static_cast<int>(rows), [&](auto count) HWY_ATTR {
            direct_panel<type, decltype(count)::value>(out_group, x_group, weight, bias, p);
          });
        }
      }
    });
    return;
  }
  for (int64_t first = 0; first < x.rows; first += kRowsPerBlock) {
    const int64_t rows = HWY_MIN(kRowsPerBlock, x.rows - first);
    const Matrix x_block(x.row(first), rows, x.cols, x.stride);
    const Matrix out_block(out.row(first), rows, out.cols, out.stride);
    float* packed = scratch.reserve(static_cast<size_t>(kTilesPerBlock * kTileRows * x.cols));
    pool.for_range((rows + kTileRows - 1) / kTileRows, 1,
                   [&](int64_t begin, int64_t end) { pack_rows(packed, x_block, begin, end); });
    pool.for_shared(weight.panels(), 1, [&](int, int64_t begin, int64_t end) {
      blocked_panels<type>(out_block, packed, weight, bias, begin, end);
    });
  }
}

void gemm_any(ThreadPool& pool, cpu::Scratch& scratch, Matrix out, Matrix x, const PackedWeight& weight,
              const float* bias) {
  switch (weight.dtype()) {
    case DType::kF32:
      return gemm_of_type<DType::kF32>(pool, scratch, out, x, weight, bias);
    case DType::kBF16:
      return gemm_of_type<DType::kBF16>(pool, scratch, out, x, weight, bias);
    case DType::kF16:
      return gemm_of_type<DType::kF16>(pool, scratch, out, x, weight, bias);
    case DType::kI8:
      return gemm_of_type<DType::kI8>(pool, scratch, out, x, weight, bias);
    case DType::kI4:
      return gemm_of_type<DType::kI4>(pool, scratch, out, x, weight, bias);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headroom
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headroom {
HWY_EXPORT(gemm_any);

namespace cpu {

void gemm(ThreadPool& pool, Scratch& scratch, Matrix out, Matrix x, const PackedWeight& weight, Vector bias) {
  if (x.rows == 0) return;
  HWY_DYNAMIC_DISPATCH(gemm_any)(pool, scratch, out, x, weight, bias.empty() ? nullptr : bias.data());
}

}  // namespace cpu
}  // namespace headroom
#endif
