#include "engine/analysis/gradients.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <span>

#include "kernels/check.h"

namespace headroom {
namespace {

constexpr double kStep = 1e-4;  // of the differences: truncation ~ step², rounding ~ 1e-16 / step, both far under 1e-6

// Row `token` of head `head` of a tensor [T, heads, K].
template <typename Vector>
auto head_row(Vector& tensor, const AttentionProblem& p, int32_t heads, int32_t token, int32_t head) {
  const auto K = static_cast<size_t>(p.head_dim);
  return std::span(tensor).subspan(
      (static_cast<size_t>(token) * static_cast<size_t>(heads) + static_cast<size_t>(head)) * K, K);
}

double dot(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

void add_scaled(std::span<double> to, double factor, std::span<const double> from) {
  for (size_t i = 0; i < to.size(); ++i) to[i] += factor * from[i];
}

// p of row `token`, query head `head`: [token + 1].
std::vector<double> probabilities(const AttentionProblem& p, int32_t token, int32_t head) {
  const int32_t g = head / (p.query_heads / p.kv_heads);
  std::vector<double> row;
  for (int32_t j = 0; j <= token; ++j) {
    row.push_back(dot(head_row(p.q, p, p.query_heads, token, head), head_row(p.k, p, p.kv_heads, j, g)) /
                  std::sqrt(p.head_dim));
  }
  const double largest = *std::max_element(row.begin(), row.end());
  double total = 0;
  for (double& value : row) total += value = std::exp(value - largest);
  for (double& value : row) value /= total;
  return row;
}

double norm(const std::vector<double>& tensor, const AttentionProblem& p, int32_t kv_head) {
  double sum = 0;
  for (int32_t t = 0; t < p.tokens; ++t) {
    const auto row = head_row(tensor, p, p.kv_heads, t, kv_head);
    sum += dot(row, row);
  }
  return std::sqrt(sum);
}

// The largest relative difference of `analytic` from the differences of the loss by each element of `tensor`, a member
// of `problem`.
double largest_difference(AttentionProblem& problem, std::vector<double>& tensor, const std::vector<double>& analytic) {
  const double rms = std::sqrt(dot(analytic, analytic) / static_cast<double>(analytic.size()));
  double largest = 0;
  for (size_t i = 0; i < tensor.size(); ++i) {
    const double value = tensor[i];
    tensor[i] = value + kStep;
    const double above = attention_loss(problem);
    tensor[i] = value - kStep;
    const double below = attention_loss(problem);
    tensor[i] = value;
    const double numerical = (above - below) / (2 * kStep);
    largest = std::max(largest, std::abs(numerical - analytic[i]) / std::max(std::abs(analytic[i]), rms));
  }
  return largest;
}

}  // namespace

AttentionProblem random_attention_problem(int32_t tokens, int32_t query_heads, int32_t kv_heads, int32_t head_dim,
                                          uint64_t seed) {
  CHECK_EQ(query_heads % kv_heads, 0);
  AttentionProblem problem{.tokens = tokens, .query_heads = query_heads, .kv_heads = kv_heads, .head_dim = head_dim};
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  const auto fill = [&](std::vector<double>& tensor, int32_t heads) {
    tensor.resize(static_cast<size_t>(tokens) * static_cast<size_t>(heads) * static_cast<size_t>(head_dim));
    for (double& value : tensor) value = normal(random);
  };
  fill(problem.q, query_heads);
  fill(problem.k, kv_heads);
  fill(problem.v, kv_heads);
  fill(problem.d_out, query_heads);
  return problem;
}

double attention_loss(const AttentionProblem& problem) {
  const int32_t group = problem.query_heads / problem.kv_heads;
  double loss = 0;
  for (int32_t head = 0; head < problem.query_heads; ++head) {
    for (int32_t i = 0; i < problem.tokens; ++i) {
      const std::vector<double> p = probabilities(problem, i, head);
      const auto d_out = head_row(problem.d_out, problem, problem.query_heads, i, head);
      for (int32_t j = 0; j <= i; ++j) {
        loss += p[static_cast<size_t>(j)] * dot(head_row(problem.v, problem, problem.kv_heads, j, head / group), d_out);
      }
    }
  }
  return loss;
}

AttentionGradients attention_backward(const AttentionProblem& problem) {
  const int32_t group = problem.query_heads / problem.kv_heads;
  const double scale = 1 / std::sqrt(problem.head_dim);
  AttentionGradients d{std::vector<double>(problem.q.size()), std::vector<double>(problem.k.size()),
                       std::vector<double>(problem.v.size())};
  for (int32_t head = 0; head < problem.query_heads; ++head) {
    const int32_t g = head / group;
    for (int32_t i = 0; i < problem.tokens; ++i) {
      const std::vector<double> p = probabilities(problem, i, head);
      const auto q = head_row(problem.q, problem, problem.query_heads, i, head);
      const auto d_out = head_row(problem.d_out, problem, problem.query_heads, i, head);
      std::vector<double> d_p;  // do·v_j
      for (int32_t j = 0; j <= i; ++j) d_p.push_back(dot(d_out, head_row(problem.v, problem, problem.kv_heads, j, g)));
      const double out_dot = dot(p, d_p);  // do·o
      for (int32_t j = 0; j <= i; ++j) {
        const auto at = static_cast<size_t>(j);
        const double d_s = p[at] * (d_p[at] - out_dot) * scale;
        add_scaled(head_row(d.v, problem, problem.kv_heads, j, g), p[at], d_out);
        add_scaled(head_row(d.q, problem, problem.query_heads, i, head), d_s,
                   head_row(problem.k, problem, problem.kv_heads, j, g));
        add_scaled(head_row(d.k, problem, problem.kv_heads, j, g), d_s, q);
      }
    }
  }
  return d;
}

GradientCheck check_gradients(const AttentionProblem& given) {
  AttentionProblem problem = given;
  const AttentionGradients analytic = attention_backward(problem);
  return {.q = largest_difference(problem, problem.q, analytic.q),
          .k = largest_difference(problem, problem.k, analytic.k),
          .v = largest_difference(problem, problem.v, analytic.v),
          .elements = static_cast<int64_t>(problem.q.size() + problem.k.size() + problem.v.size())};
}

GradientNorms kv_gradient_norms(int32_t group, int32_t repetitions) {
  constexpr int32_t kTokens = 24, kKvHeads = 4, kHeadDim = 16;
  GradientNorms norms{.group = group};
  for (int32_t r = 0; r < repetitions; ++r) {
    const AttentionProblem problem =
        random_attention_problem(kTokens, group * kKvHeads, kKvHeads, kHeadDim, static_cast<uint64_t>(r) + 1);
    const AttentionGradients d = attention_backward(problem);
    for (int32_t g = 0; g < kKvHeads; ++g) {
      norms.k += norm(d.k, problem, g) / (kKvHeads * repetitions);
      norms.v += norm(d.v, problem, g) / (kKvHeads * repetitions);
    }
  }
  return norms;
}

std::vector<GradientNorms> kv_gradient_norms_of_group(const AttentionProblem& problem, int32_t kv_head) {
  const int32_t group = problem.query_heads / problem.kv_heads;
  std::vector<GradientNorms> norms;
  AttentionProblem part = problem;
  for (int32_t readers = 1; readers <= group; ++readers) {
    part.d_out = problem.d_out;
    for (int32_t i = 0; i < problem.tokens; ++i) {
      for (int32_t member = readers; member < group; ++member) {  // a head that gets no gradient adds none
        const auto row = head_row(part.d_out, part, part.query_heads, i, kv_head * group + member);
        std::fill(row.begin(), row.end(), 0.0);
      }
    }
    const AttentionGradients d = attention_backward(part);
    norms.push_back({.group = readers, .k = norm(d.k, part, kv_head), .v = norm(d.v, part, kv_head)});
  }
  return norms;
}

}  // namespace headroom
