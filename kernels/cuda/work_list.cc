#include "kernels/cuda/work_list.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "kernels/cuda/layout.h"

namespace headroom::cuda {
namespace {

// From so many tiles per block in flight on, whole tiles spread evenly enough, and splits need no memory.
constexpr int64_t kTilesPerBlock = 8;

void cut_tiles(const BatchView& batch, const WorkListOptions& options, std::vector<AttentionTile>& tiles) {
  const int32_t tokens_per_tile = std::max(1, tile_rows_max(options.head_dim) / options.group);
  for (size_t s = 0; s + 1 < batch.sequence_first_row.size(); ++s) {
    const int32_t last = batch.sequence_first_row[s + 1];
    for (int32_t row = batch.sequence_first_row[s]; row < last; row += tokens_per_tile) {
      const int32_t tokens = std::min(tokens_per_tile, last - row);
      const int32_t position = batch.positions[static_cast<size_t>(row)];
      tiles.push_back({.first_row = row,
                       .tokens = tokens,
                       .first_position = position,
                       .table_begin = batch.page_table_begin[s],
                       .row_warps = row_warps(tokens * options.group, options.head_dim),
                       .first_split = split_first(visible_begin(position, options.window_tokens)),
                       .last_split = split_last(visible_end(position, tokens)),
                       .partials_begin = 0});
    }
  }
}

}  // namespace

void make_work_list(const BatchView& batch, const WorkListOptions& options, WorkList& list) {
  list.tiles.clear();
  list.units.clear();
  list.partial_floats = 0;
  cut_tiles(batch, options, list.tiles);
  const int64_t whole_from = kTilesPerBlock * options.grid_blocks;
  const bool whole = static_cast<int64_t>(list.tiles.size()) * options.kv_heads >= whole_from;
  const int64_t room = std::min<int64_t>(options.partial_floats_max, std::numeric_limits<int32_t>::max());
  for (size_t i = 0; i < list.tiles.size(); ++i) {
    AttentionTile& tile = list.tiles[i];
    const auto index = static_cast<int32_t>(i);
    const int32_t splits = tile.last_split - tile.first_split;
    const int64_t floats = partial_floats(tile.tokens * options.group, options.head_dim) * options.kv_heads * splits;
    if (whole || splits <= 1 || list.partial_floats + floats > room) {
      list.units.push_back({index, tile.first_split, tile.last_split});
      continue;
    }
    tile.partials_begin = static_cast<int32_t>(list.partial_floats);
    list.partial_floats += floats;
    for (int32_t split = tile.first_split; split < tile.last_split; ++split) list.units.push_back({index, split, split + 1});
  }
  // Longest first, so that what is left at the end is short. Stable: the list is a function of the batch.
  const auto kind = [&](const AttentionUnit& unit) { return list.tiles[static_cast<size_t>(unit.tile)].row_warps / 2; };
  std::stable_sort(list.units.begin(), list.units.end(), [&](const AttentionUnit& a, const AttentionUnit& b) {
    if (kind(a) != kind(b)) return kind(a) < kind(b);
    return a.last_split - a.first_split > b.last_split - b.first_split;
  });
  std::fill(std::begin(list.units_of), std::end(list.units_of), 0);
  for (const AttentionUnit& unit : list.units) ++list.units_of[kind(unit)];
}

}  // namespace headroom::cuda
