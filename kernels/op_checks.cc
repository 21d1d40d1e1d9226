#include "kernels/op_checks.h"

namespace headroom {
namespace {

// A size that takes its value from the first shape that has it and must agree with every other.
struct Size {
  const char* name;
  int64_t value = -1;
};

void bind(Size& size, int64_t value, const char* what) {
  if (size.value < 0) size.value = value;
  CHECK_EQ(size.value, value) << "size " << size.name << " of " << what;
}

void check_shape(const Matrix& matrix, Size& rows, Size& cols, const char* what) {
  bind(rows, matrix.rows, what);
  bind(cols, matrix.cols, what);
  CHECK(matrix.data != nullptr || matrix.rows == 0 || matrix.cols == 0) << what << " has no data";
  CHECK_GE(matrix.stride, matrix.cols) << "rows of " << what << " overlap";
}

void check_length(size_t length, Size& size, const char* what) { bind(size, static_cast<int64_t>(length), what); }

// The batch's arrays fit each other, and every position of every sequence has a place in its page table.
void check_batch(const KvLayer& layer, const BatchView& batch) {
  Size T{"T"}, S{"S + 1"};
  bind(T, batch.rows, "batch.rows");
  check_length(batch.positions.size(), T, "batch.positions");
  check_length(batch.sequence_first_row.size(), S, "batch.sequence_first_row");
  check_length(batch.page_table_begin.size(), S, "batch.page_table_begin");
  CHECK_GE(S.value, 1);
  CHECK_EQ(batch.sequence_first_row.front(), 0);
  CHECK_EQ(batch.sequence_first_row.back(), batch.rows);
  CHECK_LE(batch.page_table_begin.back(), static_cast<int64_t>(batch.page_tables.size()));
  for (int64_t s = 0; s + 1 < S.value; ++s) {
    const int32_t begin = batch.sequence_first_row[s];
    const int32_t end = batch.sequence_first_row[s + 1];
    CHECK_LE(begin, end) << "rows of sequence " << s;
    if (begin == end) continue;
    if (batch.positions[begin] == -1 && end == begin + 1) continue;  // padding
    CHECK_GE(batch.positions[begin], 0) << "sequence " << s;
    CHECK_EQ(batch.positions[end - 1] - batch.positions[begin], end - 1 - begin)
        << "positions of sequence " << s << " must ascend by one";
    const int32_t pages = batch.page_table_begin[s + 1] - batch.page_table_begin[s];
    CHECK_LT(batch.positions[end - 1] / layer.page_tokens, pages)
        << "the page table of sequence " << s << " is too short";
  }
}

void check_layer(const KvLayer& layer, int32_t query_heads, int32_t kv_heads, int32_t head_dim) {
  CHECK(layer.data != nullptr);
  CHECK(layer.page_tokens == 16 || layer.page_tokens == 32 || layer.page_tokens == 64)
      << "page_tokens " << layer.page_tokens;
  CHECK_EQ(layer.kv_heads, kv_heads);
  CHECK_EQ(layer.head_dim, head_dim);
  CHECK_GE(kv_heads, 1);
  CHECK_EQ(query_heads % kv_heads, 0) << "query heads must be a multiple of the KV heads";
  CHECK_GE(query_heads, kv_heads);
  CHECK_LE(query_heads / kv_heads, kQueryGroupMax);
  CHECK_EQ(head_dim % kHeadDimStep, 0);
  CHECK_GE(head_dim, kHeadDimStep);
  CHECK_LE(head_dim, kHeadDimMax);
  CHECK(layer.dtype != DType::kI4) << "a type of weights";
  CHECK_GE(layer.page_stride_bytes, layer.page_bytes()) << "pages overlap";
}

}  // namespace

void check_load_weight(std::span<const HostWeight> parts) {
  CHECK(!parts.empty());
  Size K{"K"};
  for (const HostWeight& part : parts) {
    bind(K, part.cols, "part of a weight");
    CHECK_GE(part.rows, 1);
    CHECK_GE(part.cols, 1);
    CHECK(part.data != nullptr);
  }
}

void check_embedding(const Matrix& out, const Weight& table, std::span<const int32_t> tokens, int32_t results) {
  Size T{"T"}, D{"D"};
  check_shape(out, T, D, "out");
  bind(D, table.cols(), "table");
  check_length(tokens.size(), T, "tokens");
  for (const int32_t token : tokens)
    CHECK(token >= -results && token < table.rows()) << "token " << token << " of " << table.rows();
}

void check_rmsnorm(const Matrix& out, const Matrix& x, Vector weight) {
  Size T{"T"}, D{"D"};
  check_shape(x, T, D, "x");
  check_shape(out, T, D, "out");
  check_length(weight.size(), D, "weight");
}

void check_add_rmsnorm(const Matrix& out, const Matrix& residual, const Matrix& x, Vector weight) {
  Size T{"T"}, D{"D"};
  check_shape(x, T, D, "x");
  check_shape(residual, T, D, "residual");
  check_shape(out, T, D, "out");
  check_length(weight.size(), D, "weight");
}

void check_gemm(const Matrix& out, const Matrix& x, const Weight& weight, Vector bias) {
  Size T{"T"}, N{"N"}, K{"K"};
  check_shape(x, T, K, "x");
  check_shape(out, T, N, "out");
  bind(N, weight.rows(), "weight");
  bind(K, weight.cols(), "weight");
  if (!bias.empty()) check_length(bias.size(), N, "bias");
  CHECK(out.data != x.data || out.rows == 0) << "gemm reads x after it has written out";
}

void check_rope_table(const Matrix& out, std::span<const int32_t> positions, std::span<const float> inv_freq) {
  Size T{"T"}, R{"rotary_dim"};
  check_shape(out, T, R, "out");
  check_length(positions.size(), T, "positions");
  bind(R, static_cast<int64_t>(inv_freq.size()) * 2, "inv_freq, twice");
}

void check_rope_kv_write(const Matrix& qkv, const KvLayer& layer, const BatchView& batch, const RopeKvParams& params) {
  check_layer(layer, params.query_heads, params.kv_heads, params.head_dim);
  check_batch(layer, batch);
  Size T{"T"}, C{"(Q+2G)·K"}, K{"K"}, R{"rotary_dim"};
  bind(T, batch.rows, "batch.rows");
  bind(C, int64_t{params.query_heads + 2 * params.kv_heads} * params.head_dim, "heads");
  bind(K, params.head_dim, "head_dim");
  check_shape(qkv, T, C, "qkv");
  if (params.rope_table.cols > 0) {
    check_shape(params.rope_table, T, R, "rope_table");
    CHECK_EQ(R.value % 2, 0);
    CHECK_LE(R.value, K.value) << "rotary_dim past the head";
  }
  if (!params.q_norm.empty()) check_length(params.q_norm.size(), K, "q_norm");
  if (!params.k_norm.empty()) check_length(params.k_norm.size(), K, "k_norm");
}

void check_paged_attention(const Matrix& out, const Matrix& qkv, const KvLayer& layer, const BatchView& batch,
                           const AttentionParams& params) {
  check_layer(layer, params.query_heads, params.kv_heads, params.head_dim);
  check_batch(layer, batch);
  Size T{"T"}, C{"(Q+2G)·K"}, O{"Q·K"};
  bind(T, batch.rows, "batch.rows");
  bind(C, int64_t{params.query_heads + 2 * params.kv_heads} * params.head_dim, "heads");
  bind(O, int64_t{params.query_heads} * params.head_dim, "query heads");
  check_shape(qkv, T, C, "qkv");
  check_shape(out, T, O, "out");
  CHECK_GE(params.window_tokens, 0);
}

void check_silu_mul(const Matrix& out, const Matrix& gate_up) {
  Size T{"T"}, F{"F"}, F2{"2F"};
  check_shape(out, T, F, "out");
  bind(F2, 2 * out.cols, "out, twice");
  check_shape(gate_up, T, F2, "gate_up");
}

void check_gemm_silu_mul(const Matrix& out, const Matrix& gate_up, const Matrix& x, const Weight& weight, Vector bias) {
  check_gemm(gate_up, x, weight, bias);
  check_silu_mul(out, gate_up);
  CHECK(out.data != x.data || out.rows == 0) << "gemm_silu_mul reads x after it has written out";
}

void check_gather_rows(const Matrix& out, const Matrix& x, std::span<const int32_t> rows) {
  Size S{"S"}, D{"D"}, T{"T"};
  check_shape(out, S, D, "out");
  check_shape(x, T, D, "x");
  check_length(rows.size(), S, "rows");
  for (const int32_t row : rows) CHECK(row >= 0 && row < x.rows) << "row " << row << " of " << x.rows;
}

void check_sample(int32_t first, int32_t count, const Matrix& logits, std::span<const SampleRow> rows) {
  Size S{"S"}, V{"V"};
  check_shape(logits, S, V, "logits");
  CHECK(first >= 0 && static_cast<int64_t>(first) + static_cast<int64_t>(rows.size()) <= count) << "results of " << count;
  CHECK_GE(V.value, 1);
  for (const SampleRow& row : rows) {
    CHECK(row.logits_row >= 0 && row.logits_row < logits.rows) << "row " << row.logits_row << " of " << logits.rows;
    CHECK_GE(row.inverse_temperature, 0.0f);
    CHECK_GE(row.top_k, 0);
    CHECK_GT(row.top_p, 0.0f);
    CHECK_LE(row.score_min, 0.0f) << "the likeliest token is always kept";
    CHECK_LE(row.top_logprobs, kTopLogprobsMax);
  }
}

}  // namespace headroom
