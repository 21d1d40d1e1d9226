// Analysis 5: the backward pass of grouped-query attention in float64, and what sharing K and V does to their
// gradients.
//
//   p_ij = softmax_j(q_i·k_j / √K), j ≤ i     o_i = Σ_j p_ij v_j
//   dv_j = Σ_i p_ij do_i     ds_ij = p_ij (do_i·v_j − do_i·o_i)     dq_i = Σ_j ds_ij k_j / √K     dk_j = Σ_i ds_ij q_i
//   / √K
//
// where dk and dv of a KV head are the sums over the query heads of its group: as many terms as the group has heads, so
// that their norm grows with √group where the terms are independent, and up to group where they point the same way.
// Source: Vaswani et al. 2017; Ainslie et al. 2023 (GQA). Pure functions of plain values.
#pragma once

#include <cstdint>
#include <vector>

namespace headroom {

// The attention of one sequence; row-major.
struct AttentionProblem {
  int32_t tokens = 0, query_heads = 0, kv_heads = 0, head_dim = 0;
  std::vector<double> q;      // [T, Q, K]
  std::vector<double> k, v;   // [T, G, K]
  std::vector<double> d_out;  // [T, Q, K] gradient of the loss by the output; the loss is Σ out · d_out
};
AttentionProblem random_attention_problem(int32_t tokens, int32_t query_heads, int32_t kv_heads, int32_t head_dim,
                                          uint64_t seed);

struct AttentionGradients {
  std::vector<double> q, k, v;
};
double attention_loss(const AttentionProblem& problem);
AttentionGradients attention_backward(const AttentionProblem& problem);

// The largest difference between the backward pass and central differences of the loss, over all elements, relative to
// the larger of the element and the root mean square of its tensor (so that elements near zero do not count as noise).
struct GradientCheck {
  double q = 0, k = 0, v = 0;
  int64_t elements = 0;
};
GradientCheck check_gradients(const AttentionProblem& problem);

// The norm of the gradient of one KV head, the mean over the heads and `repetitions` problems with independent heads.
struct GradientNorms {
  int32_t group = 0;
  double k = 0, v = 0;
};
GradientNorms kv_gradient_norms(int32_t group, int32_t repetitions);

// The same where a group is given: the norms of the gradient of `kv_head` if only the first 1, 2, … heads of its group
// read it.
std::vector<GradientNorms> kv_gradient_norms_of_group(const AttentionProblem& problem, int32_t kv_head);

}  // namespace headroom
