// What the attention tests of all backends share: sequences with known q, k and v, a pool of NaN pages, and steps over them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "tests/kernels/backend_floats.h"
#include "tests/kernels/reference.h"

namespace headroom::attention_cases {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Shape {
  int32_t group = 1;
  int32_t kv_heads = 2;
  int32_t head_dim = 64;
  DType type = DType::kF32;
  int32_t window_tokens = 0;

  int32_t query_heads() const { return group * kv_heads; }
  int64_t cols() const { return int64_t{query_heads() + 2 * kv_heads} * head_dim; }
  int64_t out_cols() const { return int64_t{query_heads()} * head_dim; }
  AttentionParams attention() const {
    return {query_heads(), kv_heads, head_dim, 1.0f / std::sqrt(static_cast<float>(head_dim)), window_tokens};
  }
  RopeKvParams rope() const {
    RopeKvParams params;
    params.query_heads = query_heads();
    params.kv_heads = kv_heads;
    params.head_dim = head_dim;
    return params;
  }
};

// The q, k and v of every token of one sequence, already in their final form (no RoPE), exact in the type of the pages; int8 pages
// round them, so their keys and values are kept as rounded.
struct Sequence {
  Shape shape;
  int32_t tokens;
  std::vector<float> qkv;         // [tokens, cols]
  std::vector<float> from_pages;  // the same as rounded by int8 pages; empty for other types

  Sequence(Shape shape, int32_t tokens, uint64_t seed)
      : Sequence(shape, tokens,
                 reference::random_floats(static_cast<size_t>(tokens * shape.cols()), seed, 1.5f, shape.type)) {}
  Sequence(Shape shape, int32_t tokens, std::vector<float> values)
      : shape(shape), tokens(tokens), qkv(std::move(values)) {
    if (shape.type != DType::kI8) return;
    from_pages = qkv;
    for (size_t at = 0; at < qkv.size(); at += static_cast<size_t>(shape.head_dim)) {
      const std::vector<float> row = reference::stored_row(shape.type, std::span(qkv).subspan(at, static_cast<size_t>(shape.head_dim)));
      std::copy(row.begin(), row.end(), from_pages.begin() + static_cast<int64_t>(at));
    }
  }

  std::span<const float> query(int32_t token, int32_t head) const { return part(qkv, token, head); }
  std::span<const float> key(int32_t token, int32_t g) const { return part(kept(), token, shape.query_heads() + g); }
  std::span<const float> value(int32_t token, int32_t g) const {
    return part(kept(), token, shape.query_heads() + shape.kv_heads + g);
  }

  // Row `token` by the definition, [Q·K]; `skip_last` and `head_shift` make the nearest wrong kernels.
  std::vector<double> expected(int32_t token, int32_t window_tokens, bool skip_last = false, int32_t head_shift = 0,
                               double scale_factor = 1.0) const {
    std::vector<double> row;
    for (int32_t head = 0; head < shape.query_heads(); ++head) {
      const int32_t g = ((head + head_shift) % shape.query_heads()) / shape.group;
      std::vector<std::vector<float>> keys, values;
      for (int32_t j = 0; j <= token - (skip_last ? 1 : 0); ++j) {
        if (window_tokens > 0 && token - j >= window_tokens) continue;
        keys.emplace_back(key(j, g).begin(), key(j, g).end());
        values.emplace_back(value(j, g).begin(), value(j, g).end());
      }
      const std::vector<double> out =
          reference::attend(query(token, head), keys, values, scale_factor / std::sqrt(shape.head_dim));
      row.insert(row.end(), out.begin(), out.end());
    }
    return row;
  }

 private:
  const std::vector<float>& kept() const { return from_pages.empty() ? qkv : from_pages; }
  std::span<const float> part(const std::vector<float>& rows, int32_t token, int32_t head) const {
    return {rows.data() + token * shape.cols() + int64_t{head} * shape.head_dim, static_cast<size_t>(shape.head_dim)};
  }
};

// A pool of one layer whose every element is NaN until a row is written (I7), and the page tables of some sequences.
class Pool {
 public:
  Pool(Backend& backend, Shape shape, int32_t page_tokens, int32_t pages, uint64_t seed)
      : backend_(backend), shape_(shape), page_tokens_(page_tokens), free_(static_cast<size_t>(pages)) {
    const size_t page_bytes = size_t{2} * shape.kv_heads * page_tokens *
                              (shape.head_dim * dtype_bytes(shape.type) + (shape.type == DType::kI8 ? 4 : 0));
    buffer_ = backend.allocate(page_bytes * (pages + 1));
    const std::vector<std::byte> nans(page_bytes, std::byte{0xFF});  // a NaN in every type; of int8, in its scale
    for (int32_t p = 0; p <= pages; ++p) backend.copy_in(buffer_->data() + p * page_bytes, nans.data(), page_bytes);
    layer_ = {buffer_->data() + page_bytes, page_bytes, shape.type, shape.kv_heads, page_tokens, shape.head_dim};
    std::iota(free_.begin(), free_.end(), 0);
    std::shuffle(free_.begin(), free_.end(), std::mt19937_64(seed));
  }

  const KvLayer& layer() const { return layer_; }
  int32_t take_page() {
    CHECK(!free_.empty());
    const int32_t page = free_.back();
    free_.pop_back();
    return page;
  }

  // True while nobody has written in front of page 0.
  bool front_untouched() const {
    std::vector<std::byte> front(layer_.page_stride_bytes);
    backend_.copy_out(front.data(), buffer_->data(), front.size());
    return std::all_of(front.begin(), front.end(), [](std::byte byte) { return byte == std::byte{0xFF}; });
  }

  struct Chunk {
    const Sequence* sequence;  // null: a row of padding, whose q, k and v are NaN
    std::vector<int32_t>* page_table;
    int32_t begin, end;  // tokens that this step computes
  };
  // One step over the chunks: writes their k and v, attends, returns the rows [T, Q·K]; none where only the keys are wanted.
  std::vector<float> step(std::span<const Chunk> chunks, bool attends = true) {
    std::vector<int32_t> positions, first_row{0}, tables, table_begin{0};
    std::vector<float> qkv;
    for (const Chunk& chunk : chunks) {
      if (chunk.sequence == nullptr) {
        qkv.insert(qkv.end(), static_cast<size_t>(shape_.cols()), kNaN);
        positions.push_back(-1);
        first_row.push_back(static_cast<int32_t>(positions.size()));
        table_begin.push_back(static_cast<int32_t>(tables.size()));
        continue;
      }
      while (static_cast<int32_t>(chunk.page_table->size()) * page_tokens_ < chunk.end)
        chunk.page_table->push_back(take_page());
      give_back_below_window(chunk);
      const auto begin = chunk.sequence->qkv.begin();
      qkv.insert(qkv.end(), begin + chunk.begin * shape_.cols(), begin + chunk.end * shape_.cols());
      for (int32_t position = chunk.begin; position < chunk.end; ++position) positions.push_back(position);
      first_row.push_back(static_cast<int32_t>(positions.size()));
      tables.insert(tables.end(), chunk.page_table->begin(), chunk.page_table->end());
      table_begin.push_back(static_cast<int32_t>(tables.size()));
    }
    const int64_t rows = static_cast<int64_t>(positions.size());
    const std::vector<int32_t> tokens(positions.size());
    const BatchView batch{static_cast<int32_t>(rows), tokens, positions, first_row, tables, table_begin};
    const BackendFloats qkv_on_backend(backend_, qkv);
    const BackendFloats out(backend_, std::vector<float>(static_cast<size_t>(rows * shape_.out_cols()), kNaN));
    const Matrix qkv_matrix = qkv_on_backend.matrix(rows, shape_.cols());
    backend_.begin_step(batch);
    backend_.rope_kv_write(qkv_matrix, layer_, batch, shape_.rope());
    if (!attends) return {};
    backend_.paged_attention(out.matrix(rows, shape_.out_cols()), qkv_matrix, layer_, batch, shape_.attention());
    return out.read();
  }

 private:
  void give_back_below_window(const Chunk& chunk) {
    if (shape_.window_tokens == 0) return;
    const int32_t oldest = chunk.begin - shape_.window_tokens + 1;
    for (int32_t p = 0; (p + 1) * page_tokens_ <= oldest; ++p) (*chunk.page_table)[p] = -1;
  }

  Backend& backend_;
  Shape shape_;
  int32_t page_tokens_;
  std::unique_ptr<Buffer> buffer_;
  KvLayer layer_;
  std::vector<int32_t> free_;
};

// Rows of padding among the rows of a batch: zeros, no page written, the other rows' bits as they are without.
inline void expect_padding_is_nothing(Backend& backend, const Shape& shape) {
  const Sequence a(shape, 20, 31), b(shape, 70, 32);
  const auto step = [&](bool padded) {
    Pool pool(backend, shape, 16, 12, 5);
    std::vector<int32_t> table_a, table_b;
    std::vector<Pool::Chunk> chunks{{&a, &table_a, 0, 20}, {&b, &table_b, 0, 69}};
    pool.step(chunks, false);
    chunks = {{&a, &table_a, 19, 20}, {&b, &table_b, 69, 70}};
    const Pool::Chunk padding{nullptr, nullptr, 0, 0};
    if (padded) chunks = {padding, chunks[0], padding, padding, chunks[1], padding};
    const std::vector<float> rows = pool.step(chunks);
    EXPECT_TRUE(pool.front_untouched());
    return rows;
  };
  const std::vector<float> plain = step(false), padded = step(true);
  const auto row = [&](const std::vector<float>& rows, int64_t at) {
    return reference::bits(std::span(rows).subspan(static_cast<size_t>(at * shape.out_cols()), static_cast<size_t>(shape.out_cols())));
  };
  EXPECT_EQ(row(padded, 1), row(plain, 0));
  EXPECT_EQ(row(padded, 4), row(plain, 1));
  const std::vector<uint32_t> zeros(static_cast<size_t>(shape.out_cols()));
  for (const int64_t at : {0, 2, 3, 5}) EXPECT_EQ(row(padded, at), zeros) << at;
}

// Rows [attended_from, …) of one sequence, computed in the given chunks; chunks before that only write their keys.
inline std::vector<float> run_alone(Backend& backend, const Sequence& sequence, int32_t page_tokens, const std::vector<int32_t>& cuts,
                                    uint64_t seed = 1, int32_t attended_from = 0) {
  Pool pool(backend, sequence.shape, page_tokens, sequence.tokens / page_tokens + 4, seed);
  std::vector<int32_t> table;
  std::vector<float> all;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    if (cuts[i] == cuts[i + 1]) continue;
    const Pool::Chunk chunk{&sequence, &table, cuts[i], cuts[i + 1]};
    const std::vector<float> rows = pool.step({&chunk, 1}, cuts[i] >= attended_from);
    all.insert(all.end(), rows.begin(), rows.end());
  }
  return all;
}

}  // namespace headroom::attention_cases
