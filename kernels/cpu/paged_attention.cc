// Causal attention over pages, prefill and decode alike: softmax(scale · q·kᵀ) · v with an online softmax (Milakov &
// Gimelshein 2018).
//
// A tile is up to kTileQueryRows rows of one sequence and one KV head: all query heads of the group for one or several
// neighbouring tokens. It walks the pages once; a K or V element is widened to fp32 once for all rows of the tile.
// Bits: keys are taken in blocks of kBlockKeys at absolute positions, blocks in splits of kSplitKeys at absolute
// positions, splits are merged in ascending order. A key that a row may not see never enters that row's arithmetic: not
// as a zero weight either, since 0 · NaN is NaN. So a row's bits depend on its query and the keys that it sees, and on
// no tile, page size, split across threads. In fp32, or over pages of bf16 and int8 in pairs of bf16 (attention_pairs-inl.h).
#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/paged_attention.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "kernels/cpu/attention_block-inl.h"
#include "kernels/cpu/attention_fp32-inl.h"
#include "kernels/cpu/attention_pairs-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headroom {
namespace HWY_NAMESPACE {

// The mask of the keys of `range` in vector v of the block.
HWY_INLINE hn::Mask<DF> key_mask(int v, int32_t block, KeyRange range) {
  const hn::RebindToSigned<DF> di;
  const DF d;
  const auto position = hn::Iota(di, block + v * kLanes);
  const auto outside = hn::Or(hn::Lt(position, hn::Set(di, range.begin)), hn::Gt(position, hn::Set(di, range.end - 1)));
  return hn::RebindMask(d, hn::Not(outside));
}

// Scales the scores of one row, masks those outside of `range` unless it is the whole block, and raises the row's maximum; returns old
// maximum − new maximum. It is looked for only where some score is above it: seldom, after the first blocks.
template <bool kWhole, class Scales>
HWY_INLINE float raise_maximum(float* scores, float* maximum, float scale_log2, const Scales& scales, int32_t block,
                               KeyRange range) {
  const DF d;
  const VF scale = hn::Set(d, scale_log2);
  const VF none = hn::Set(d, -std::numeric_limits<float>::infinity());
  const float old_maximum = *maximum;
  VF largest = hn::Set(d, old_maximum);
  HEADROOM_UNROLL
  for (int v = 0; v < kBlockVectors; ++v) {
    VF score = hn::Mul(scales.of_keys(v, hn::Load(d, scores + v * kLanes)), scale);
    if constexpr (!kWhole) score = hn::IfThenElse(key_mask(v, block, range), score, none);
    hn::Store(score, d, scores + v * kLanes);
    largest = hn::Max(largest, score);
  }
  if (hn::AllFalse(d, hn::Gt(largest, hn::Set(d, old_maximum)))) return 0.0f;
  *maximum = std::max(old_maximum, hn::GetLane(hn::MaxOfLanes(d, largest)));
  return old_maximum - *maximum;
}

// Turns the scores of one row into weights 2^(score − maximum), exactly 0 outside `range`, and adds them to the row's sums, a lane each. What
// is stored is to be multiplied with the values, so it has their scales in it; the sums have not.
template <class Arithmetic, bool kWhole>
HWY_INLINE void weigh(float* scores, float maximum, float* lane_sums, float decay, const BlockScales<Arithmetic::kType>& scales, int32_t block,
                      KeyRange range) {
  const DF d;
  const VF shift = hn::Set(d, maximum);
  VF added = hn::Zero(d);
  HEADROOM_UNROLL
  for (int v = 0; v < kBlockVectors; ++v) {
    const VF weight = exp2_nonpositive(hn::Sub(hn::Load(d, scores + v * kLanes), shift));
    if constexpr (kWhole) {
      hn::Store(scales.of_values(v, weight), d, scores + v * kLanes);
      added = hn::Add(added, weight);
    } else {
      const auto mask = key_mask(v, block, range);
      hn::Store(hn::IfThenElseZero(mask, scales.of_values(v, weight)), d, scores + v * kLanes);
      added = hn::Add(added, hn::IfThenElseZero(mask, weight));
    }
  }
  Arithmetic::finish_weights(scores, added, decay, lane_sums);
}

HWY_INLINE void exp2_rows(float* values) {
  const DF d;
  for (int r = 0; r < kTileQueryRows; r += kLanes) hn::Store(exp2_nonpositive(hn::Load(d, values + r)), d, values + r);
}

// Takes one block of keys into the split's state of every row that sees some of them.
template <class Arithmetic>
void attend_block(const AttentionCall& call, const AttentionTile& tile, TileMemory& memory, int32_t block, KeyRange block_range,
                  const BlockRows<Arithmetic::kType>& stored, Ahead ahead) {
  constexpr DType type = Arithmetic::kType;
  const int64_t padded_dim = call.padded_dim();
  const int group = call.group(), rows = call.rows(tile);
  const float scale_log2 = call.params.scale * 1.44269504f;
  ahead.ask();
  Arithmetic::score(call, rows, memory, stored, ahead);
  ahead.ask();

  const BlockScales<type> scales(stored);
  KeyRange ranges[kTileQueryRows];
  HWY_ALIGN float decay[kTileQueryRows] = {};
  bool uniform = true, raised = false;
  for (int32_t t = 0; t < tile.tokens; ++t) {
    ranges[t] = visible(tile.first_position + t, call.params.window_tokens, block_range.begin, block_range.end);
    uniform &= ranges[t] == ranges[0];
    if (ranges[t].empty()) continue;
    const bool whole = ranges[t].end - ranges[t].begin == kBlockKeys;
    for (int r = t * group; r < (t + 1) * group; ++r) {
      decay[r] = (whole ? raise_maximum<true, BlockScales<type>> : raise_maximum<false, BlockScales<type>>)(
          memory.weights + r * kBlockKeys, memory.split.max + r, scale_log2, scales, block, ranges[t]);
      raised |= decay[r] != 0.0f;
    }
  }
  if (raised) {
    exp2_rows(decay);
  } else {
    std::fill(decay, decay + rows, 1.0f);
  }
  for (int32_t t = 0; t < tile.tokens; ++t) {
    if (ranges[t].empty()) continue;
    const bool whole = ranges[t].end - ranges[t].begin == kBlockKeys;
    for (int r = t * group; r < (t + 1) * group; ++r) {
      float* weights = memory.weights + r * kBlockKeys;
      (whole ? weigh<Arithmetic, true> : weigh<Arithmetic, false>)(weights, memory.split.max[r], memory.lane_sums + r * kLanes, decay[r], scales,
                                                                  block, ranges[t]);
    }
  }

  ahead.ask();
  const auto in_block = [block](KeyRange range) { return KeyRange{range.begin - block, range.end - block}; };
  if (uniform && Arithmetic::mixes_stored(call, rows)) {
    Arithmetic::mix_stored(memory, decay, rows, stored, in_block(ranges[0]), padded_dim, ahead);
  } else {
    Arithmetic::load_values(memory, stored, in_block(block_range), padded_dim, ahead);
    // Rows that see the same keys of the block share one pass; on the diagonal and at the window's edge each token has
    // its own.
    const int32_t tokens_per_pass = uniform ? tile.tokens : 1;
    for (int32_t t = 0; t < tile.tokens; t += tokens_per_pass) {
      if (ranges[t].empty()) continue;
      Arithmetic::mix(memory, decay, t * group, (t + tokens_per_pass) * group, in_block(ranges[t]), padded_dim);
    }
  }
  ahead.finish();
}

// The block that is read after `block` of some tiles, KV heads of the same rows: theirs, and after their last the first of `next`.
struct NextBlock {
  BlockPlace place;
  std::span<const AttentionTile> heads;
};
NextBlock block_after(const AttentionCall& call, std::span<const AttentionTile> heads, std::span<const AttentionTile> next, int32_t block) {
  const auto seen = [&call](const AttentionTile& tile) { return cpu::visible_to_tile(tile, call.params.window_tokens); };
  const auto block_at = [&call, &seen](std::span<const AttentionTile> of, int32_t at) {
    const KeyRange range{std::max(at, seen(of[0]).begin), std::min(at + kBlockKeys, seen(of[0]).end)};
    return NextBlock{BlockPlace(call.layer, of[0].page_table, at, range), of};
  };
  if (block + kBlockKeys <= heads[0].last_position() || next.empty()) return block_at(heads, block + kBlockKeys);
  return block_at(next, seen(next[0]).begin / kBlockKeys * kBlockKeys);
}

// The states of all rows of some tiles over the keys of one split: tiles of several KV heads of the same rows. `next`: those
// that are likely to follow them, if any.
template <class Arithmetic>
void attend_split(const AttentionCall& call, std::span<const AttentionTile> heads, std::span<const AttentionTile> next,
                  std::span<TileMemory> memory, int32_t split) {
  for (size_t h = 0; h < heads.size(); ++h) {
    memory[h].split.clear(call.rows(heads[h]), call.padded_dim());
    std::fill(memory[h].lane_sums, memory[h].lane_sums + call.rows(heads[h]) * kLanes, 0.0f);
  }
  const KeyRange seen = cpu::visible_to_tile(heads[0], call.params.window_tokens);
  const int32_t end = std::min((split + 1) * cpu::kSplitKeys, seen.end);
  for (int32_t block = split * cpu::kSplitKeys; block < end; block += kBlockKeys) {
    const KeyRange range{std::max(block, seen.begin), std::min(block + kBlockKeys, seen.end)};
    if (range.empty()) continue;
    const BlockPlace place(call.layer, heads[0].page_table, block, range);
    const NextBlock after = block_after(call, heads, next, block);
    for (size_t h = 0; h < heads.size(); ++h) {
      const BlockRows<Arithmetic::kType> stored(call.layer, place, heads[h].kv_head);
      const BlockRows<Arithmetic::kType> later(call.layer, after.place, after.heads[std::min(h, after.heads.size() - 1)].kv_head);
      attend_block<Arithmetic>(call, heads[h], memory[h], block, range, stored, Ahead(later));
    }
  }
  const DF d;
  for (size_t h = 0; h < heads.size(); ++h) {
    for (int r = 0; r < call.rows(heads[h]); ++r) {
      Arithmetic::finish_sums(memory[h].split.accumulator + r * call.padded_dim(), call.padded_dim());
      memory[h].split.sum[r] = hn::GetLane(hn::SumOfLanes(d, hn::Load(d, memory[h].lane_sums + r * kLanes)));
    }
  }
}

// Merges the state of the next split into `total`, row by row where the row saw keys of that split.
void merge_split(const AttentionCall& call, const AttentionTile& tile, SoftmaxState total, SoftmaxState split,
                 int32_t split_index) {
  const DF d;
  const int64_t padded_dim = call.padded_dim();
  const int32_t begin = split_index * cpu::kSplitKeys;
  HWY_ALIGN float old_factor[kTileQueryRows] = {};
  HWY_ALIGN float new_factor[kTileQueryRows] = {};
  const int rows = call.rows(tile);
  for (int r = 0; r < rows; ++r) {
    const float maximum = std::max(total.max[r], split.max[r]);
    old_factor[r] = total.max[r] - maximum;
    new_factor[r] = split.max[r] - maximum;
  }
  exp2_rows(old_factor);
  exp2_rows(new_factor);
  for (int r = 0; r < rows; ++r) {
    const int32_t position = tile.first_position + r / call.group();
    if (visible(position, call.params.window_tokens, begin, begin + cpu::kSplitKeys).empty()) continue;
    total.max[r] = std::max(total.max[r], split.max[r]);
    total.sum[r] = total.sum[r] * old_factor[r] + split.sum[r] * new_factor[r];
    const VF old_factors = hn::Set(d, old_factor[r]);
    const VF new_factors = hn::Set(d, new_factor[r]);
    for (int64_t i = r * padded_dim; i < (r + 1) * padded_dim; i += kLanes) {
      const VF old_part = hn::Mul(hn::Load(d, total.accumulator + i), old_factors);
      hn::Store(hn::MulAdd(hn::Load(d, split.accumulator + i), new_factors, old_part), d, total.accumulator + i);
    }
  }
}

void store_rows(const AttentionCall& call, const AttentionTile& tile, SoftmaxState total) {
  const int group = call.group();
  for (int r = 0; r < call.rows(tile); ++r) {
    const int64_t head = int64_t{tile.kv_head} * group + r % group;
    float* out = call.out.row(tile.first_row + r / group) + head * call.params.head_dim;
    const float* sums = total.accumulator + r * call.padded_dim();
    const float inverse = total.sum[r] == 0.0f ? 0.0f : 1.0f / total.sum[r];  // padding sees no key
    for (int64_t i = 0; i < call.params.head_dim; ++i) out[i] = sums[i] * inverse;
  }
}

// Calls body with the arithmetic that the call is computed in.
template <class Body>
void with_arithmetic(const AttentionCall& call, const Body& body) {
#if HEADROOM_HAS_PAIRS
  if (call.in_pairs && call.layer.dtype == DType::kBF16) return body(PairArithmetic<DType::kBF16>());
  if (call.in_pairs && call.layer.dtype == DType::kI8) return body(PairArithmetic<DType::kI8>());
#endif
  switch (call.layer.dtype) {
    case DType::kF32:
      return body(Fp32Arithmetic<DType::kF32>());
    case DType::kBF16:
      return body(Fp32Arithmetic<DType::kBF16>());
    case DType::kF16:
      return body(Fp32Arithmetic<DType::kF16>());
    case DType::kI8:
      return body(Fp32Arithmetic<DType::kI8>());
    case DType::kI4:
      break;  // of weights alone: check_layer
  }
}

void load_queries_any(const AttentionCall& call, const AttentionTile& tile, TileMemory& memory) {
  with_arithmetic(call, [&](auto arithmetic) { arithmetic.load_queries(call, tile, memory); });
}

void attend_split_any(const AttentionCall& call, std::span<const AttentionTile> heads, std::span<const AttentionTile> next,
                      std::span<TileMemory> memory, int32_t split) {
  with_arithmetic(call, [&](auto arithmetic) { attend_split<decltype(arithmetic)>(call, heads, next, memory, split); });
}

}  // namespace HWY_NAMESPACE
}  // namespace headroom
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headroom {
HWY_EXPORT(attend_split_any);
HWY_EXPORT(merge_split);
HWY_EXPORT(load_queries_any);
HWY_EXPORT(store_rows);

namespace cpu {
namespace {

struct SplitRange {
  int32_t begin;
  int32_t end;
};
SplitRange splits_of(const AttentionTile& tile, int32_t window_tokens) {
  const KeyRange seen = visible_to_tile(tile, window_tokens);
  return {seen.begin / kSplitKeys, (seen.end + kSplitKeys - 1) / kSplitKeys};
}

std::vector<AttentionTile> cut_tiles(const AttentionCall& call) {
  const BatchView& batch = call.batch;
  const int32_t tokens_per_tile = std::max(1, kTileQueryRows / call.group());
  std::vector<AttentionTile> tiles;
  for (size_t s = 0; s + 1 < batch.sequence_first_row.size(); ++s) {
    const int32_t* page_table = batch.page_tables.data() + batch.page_table_begin[s];
    for (int32_t row = batch.sequence_first_row[s]; row < batch.sequence_first_row[s + 1]; row += tokens_per_tile) {
      const int32_t tokens = std::min(tokens_per_tile, batch.sequence_first_row[s + 1] - row);
      for (int32_t g = 0; g < call.params.kv_heads; ++g)
        tiles.push_back({page_table, row, tokens, g, batch.positions[row]});
    }
  }
  return tiles;
}

// Tiles that are worked on together: some KV heads of the same rows, whose keys and values lie side by side in the pages, so that memory
// is read more nearly in order.
struct Heads {
  size_t first;
  size_t count;
};

std::vector<Heads> group_heads(const AttentionCall& call, std::span<const AttentionTile> tiles, size_t together) {
  std::vector<Heads> groups;
  for (size_t i = 0; i < tiles.size(); i += groups.back().count) {
    const size_t count_max = call.rows(tiles[i]) <= kRowsTogether ? together : 1;
    size_t count = 1;
    while (count < count_max && i + count < tiles.size() && tiles[i + count].first_row == tiles[i].first_row) ++count;
    groups.push_back({i, count});
  }
  return groups;
}

// What a worker works in.
class WorkerMemory {
 public:
  WorkerMemory(float* memory, size_t heads, int rows_max, int64_t padded_dim) {
    float* own = memory + TileMemory::shared_floats(rows_max, padded_dim);
    for (size_t h = 0; h < heads; ++h, own += TileMemory::own_floats(rows_max, padded_dim)) tiles_.emplace_back(memory, own, rows_max, padded_dim);
  }
  static size_t floats(size_t heads, int rows_max, int64_t padded_dim) {
    return TileMemory::shared_floats(rows_max, padded_dim) + heads * TileMemory::own_floats(rows_max, padded_dim);
  }
  std::span<TileMemory> of(const Heads& heads) { return std::span(tiles_).first(heads.count); }

 private:
  std::vector<TileMemory> tiles_;
};

// One attention call's tiles on the pool.
struct TileRun {
  ThreadPool& pool;
  const AttentionCall& call;
  std::span<const AttentionTile> tiles;
  std::span<const Heads> groups;  // of them
  size_t heads_max;               // of a group
  int rows_max;                   // of a tile
  float* worker_memory;

  WorkerMemory memory_of(int worker) const {
    const size_t floats = WorkerMemory::floats(heads_max, rows_max, call.padded_dim());
    return {worker_memory + static_cast<size_t>(worker) * floats, heads_max, rows_max, call.padded_dim()};
  }
  std::span<const AttentionTile> tiles_of(size_t group) const { return tiles.subspan(groups[group].first, groups[group].count); }
  SplitRange splits(size_t group) const { return splits_of(tiles[groups[group].first], call.params.window_tokens); }
  void attend(size_t group, std::span<TileMemory> memory, int32_t split) const {
    const auto next = group + 1 < groups.size() ? tiles_of(group + 1) : std::span<const AttentionTile>();
    HWY_DYNAMIC_DISPATCH(attend_split_any)(call, tiles_of(group), next, memory, split);
  }
};

// Whole groups to whichever worker is free: enough of them to go round.
void attend_tiles(const TileRun& run) {
  const auto attend = [&](int worker, int64_t begin, int64_t) {
    const auto group = static_cast<size_t>(begin);
    WorkerMemory worker_memory = run.memory_of(worker);
    const std::span<TileMemory> memory = worker_memory.of(run.groups[group]);
    const auto tiles = run.tiles_of(group);
    for (size_t h = 0; h < tiles.size(); ++h) {
      HWY_DYNAMIC_DISPATCH(load_queries_any)(run.call, tiles[h], memory[h]);
      memory[h].total.clear(run.call.rows(tiles[h]), run.call.padded_dim());
    }
    const SplitRange splits = run.splits(group);
    for (int32_t split = splits.begin; split < splits.end; ++split) {
      run.attend(group, memory, split);
      for (size_t h = 0; h < tiles.size(); ++h) {
        HWY_DYNAMIC_DISPATCH(merge_split)(run.call, tiles[h], memory[h].total, memory[h].split, split);
      }
    }
    for (size_t h = 0; h < tiles.size(); ++h) HWY_DYNAMIC_DISPATCH(store_rows)(run.call, tiles[h], memory[h].total);
  };
  if (run.groups.size() == 1) return attend(0, 0, 1);
  run.pool.for_shared(static_cast<int64_t>(run.groups.size()), 1, attend);
}

// Few groups and long contexts: the splits go round, then each tile merges its own in ascending order.
void attend_splits(const TileRun& run, Scratch& partials) {
  struct Part {
    size_t group;
    int32_t split;
    size_t first_state;  // of its tiles
  };
  std::vector<Part> parts;
  std::vector<size_t> first_part;
  size_t states_count = 0;
  for (size_t i = 0; i < run.groups.size(); ++i) {
    first_part.push_back(parts.size());
    const SplitRange splits = run.splits(i);
    for (int32_t split = splits.begin; split < splits.end; ++split, states_count += run.groups[i].count) parts.push_back({i, split, states_count});
  }
  first_part.push_back(parts.size());
  const size_t state_floats = SoftmaxState::floats(run.rows_max, run.call.padded_dim());
  float* states = partials.reserve(states_count * state_floats);
  const auto state = [&](const Part& part, size_t h) { return SoftmaxState(states + (part.first_state + h) * state_floats, run.rows_max); };
  run.pool.for_shared(static_cast<int64_t>(parts.size()), 1, [&](int worker, int64_t begin, int64_t) {
    const Part& part = parts[static_cast<size_t>(begin)];
    WorkerMemory worker_memory = run.memory_of(worker);
    const std::span<TileMemory> memory = worker_memory.of(run.groups[part.group]);
    for (size_t h = 0; h < memory.size(); ++h) {
      memory[h].split = state(part, h);
      HWY_DYNAMIC_DISPATCH(load_queries_any)(run.call, run.tiles[run.groups[part.group].first + h], memory[h]);
    }
    run.attend(part.group, memory, part.split);
  });
  run.pool.for_shared(static_cast<int64_t>(run.groups.size()), 1, [&](int worker, int64_t begin, int64_t) {
    const auto group = static_cast<size_t>(begin);
    WorkerMemory worker_memory = run.memory_of(worker);
    TileMemory& memory = worker_memory.of(run.groups[group])[0];
    for (size_t h = 0; h < run.groups[group].count; ++h) {
      const AttentionTile& tile = run.tiles[run.groups[group].first + h];
      memory.total.clear(run.call.rows(tile), run.call.padded_dim());
      for (size_t p = first_part[group]; p < first_part[group + 1]; ++p) {
        HWY_DYNAMIC_DISPATCH(merge_split)(run.call, tile, memory.total, state(parts[p], h), parts[p].split);
      }
      HWY_DYNAMIC_DISPATCH(store_rows)(run.call, tile, memory.total);
    }
  });
}

}  // namespace

void paged_attention(ThreadPool& pool, AttentionScratch& scratch, Matrix out, Matrix qkv, const KvLayer& layer,
                     const BatchView& batch, const AttentionParams& params, bool in_pairs) {
  const AttentionCall call{out, qkv, layer, batch, params, in_pairs};
  const std::vector<AttentionTile> tiles = cut_tiles(call);
  if (tiles.empty()) return;
  const size_t workers = static_cast<size_t>(pool.threads());
  const auto splits_of_all = [&](std::span<const Heads> groups) {
    int64_t splits = 0;
    for (const Heads& heads : groups) {
      const SplitRange range = splits_of(tiles[heads.first], params.window_tokens);
      splits += range.end - range.begin;
    }
    return splits;
  };
  // As many together as leave parts enough to go round.
  const size_t block_bytes = 2 * kBlockKeys * kv_row_bytes(layer.dtype, layer.head_dim);
  const size_t together_max = std::min(kHeadsTogether, static_cast<size_t>(params.kv_heads));
  size_t together = std::clamp<size_t>(kTogetherBytesMax / block_bytes, 1, together_max);
  std::vector<Heads> groups = group_heads(call, tiles, together);
  while (together > 1 && splits_of_all(groups) < static_cast<int64_t>(workers * kPartsPerWorker)) groups = group_heads(call, tiles, together /= 2);
  const bool small = std::ranges::all_of(tiles, [&call](const AttentionTile& tile) { return call.rows(tile) <= kRowsTogether; });
  const int rows_max = small ? kRowsTogether : kTileQueryRows;
  const size_t heads_max = std::ranges::max(groups, {}, &Heads::count).count;
  float* worker_memory = scratch.workers.reserve(workers * WorkerMemory::floats(heads_max, rows_max, call.padded_dim()));
  const bool groups_go_round =
      workers == 1 || groups.size() >= workers * kTilesPerWorker || splits_of_all(groups) == static_cast<int64_t>(groups.size());
  if (groups_go_round) return attend_tiles({pool, call, tiles, groups, heads_max, rows_max, worker_memory});
  // In waves of groups whose partial states stay within a fixed room, or of a group alone, whose states grow with its context.
  const int64_t states_max = static_cast<int64_t>(kPartialBytesMax / (SoftmaxState::floats(rows_max, call.padded_dim()) * sizeof(float)));
  for (size_t begin = 0, end = 0; begin < groups.size(); begin = end) {
    for (int64_t states = 0; end < groups.size(); ++end) {
      const SplitRange range = splits_of(tiles[groups[end].first], params.window_tokens);
      states += static_cast<int64_t>(groups[end].count) * (range.end - range.begin);
      if (states > states_max && end > begin) break;
    }
    attend_splits({pool, call, tiles, std::span(groups).subspan(begin, end - begin), heads_max, rows_max, worker_memory}, scratch.partials);
  }
}

}  // namespace cpu
}  // namespace headroom
#endif
