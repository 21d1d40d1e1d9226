// What a draw from a row of logits is made of, as plain functions that give the same bits on the host and on a device: IEEE double
// arithmetic without contraction, and sums of whole numbers, which have no order. So a token does not depend on where it was drawn.
//
// A token's score is (logit - largest logit) / temperature, in fp32. Tokens are ordered by score, equals by the smaller id. In this
// order min_p, top_k and top_p each keep some of the first ones; of those the largest score + Gumbel variable is drawn, which is a
// draw from the softmax.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "kernels/philox.h"

namespace headroom {

// How to draw for one row. A row whose logits must be changed first (bias, penalties) is not drawn by a backend.
struct SampleRow {
  int32_t logits_row = 0;
  int32_t choice = 0;                // seed, choice, position: what the Gumbel variables depend on
  int64_t position = 0;
  uint64_t seed = 0;
  float inverse_temperature = 0.0f;  // 0: the likeliest token
  float score_min = -std::numeric_limits<float>::infinity();  // log(min_p)
  int32_t top_k = 0;                 // 0: all
  float top_p = 1.0f;
  int32_t top_logprobs = -1;         // -1: no log-probabilities; at most kTopLogprobsMax
};

constexpr int32_t kTopLogprobsMax = 20;
struct TokenLogit {
  int32_t token;
  float logit;
};
// What was drawn and, if asked for, what the log-probabilities of the raw logits follow from.
struct SampleResult {
  int32_t token;          // -1: a logit is NaN, or none is finite
  int32_t rank;           // of the token; 1: the likeliest
  float logit;            // of the token
  float largest;          // of all logits
  uint64_t weights;       // sum of score_weight(logit - largest) of all
  int32_t top_count;
  TokenLogit top[kTopLogprobsMax];  // the likeliest, in any order
};

// Ascends as (score, -token) does: what is kept is what has at least some key.
constexpr uint32_t ordered_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);  // -0 equals 0
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
constexpr uint64_t sample_key(float score, int32_t token) {
  return uint64_t{ordered_bits(score)} << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(token));
}

// e^score, score <= 0, in units of 2^-44, of which 64 bits hold the sum of half a million; to 3e-10 of itself, and exact at 0. 0 from
// about -31 down.
constexpr int kWeightBits = 44;
constexpr uint64_t score_weight(float score) {
  const double exponent = static_cast<double>(score) * 1.4426950408889634;  // e^score = 2^exponent
  if (!(exponent > -45.0)) return 0;
  const int whole = static_cast<int>(exponent - 0.5);             // the nearest
  const double r = (exponent - whole) * 0.6931471805599453;       // |r| <= 0.35: e^r by Taylor, in the fewest steps one after another
  const double r2 = r * r, r4 = r2 * r2;
  const double low = (1.0 + r) + (1.0 / 2.0 + r * (1.0 / 6.0)) * r2;
  const double high = (1.0 / 24.0 + r * (1.0 / 120.0)) + (1.0 / 720.0 + r * (1.0 / 5040.0)) * r2 + r4 * (1.0 / 40320.0);
  constexpr double kUnits = static_cast<double>(int64_t{1} << kWeightBits);
  return static_cast<uint64_t>(static_cast<int64_t>((low + high * r4) * kUnits)) >> -whole;
}

// What the weights of the tokens that top_p keeps must reach, of `total`.
constexpr uint64_t top_p_weight(uint64_t total, float top_p) {
  const auto weight = static_cast<uint64_t>(static_cast<double>(top_p) * static_cast<double>(total));
  return weight < 1 ? 1 : weight < total ? weight : total;
}

// The natural logarithm of a normal number above 0, to about 1e-16: x = 2^e · m, log m = 2 artanh((m - 1) / (m + 1)).
constexpr double natural_log(double x) {
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0xFFFFFFFFFFFFFu) | 0x3FF0000000000000u);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++exponent;
  }
  const double s = (m - 1.0) / (m + 1.0);  // |s| <= 0.172
  const double z = s * s;
  double sum = 1.0 / 21.0;
  sum = sum * z + 1.0 / 19.0;
  sum = sum * z + 1.0 / 17.0;
  sum = sum * z + 1.0 / 15.0;
  sum = sum * z + 1.0 / 13.0;
  sum = sum * z + 1.0 / 11.0;
  sum = sum * z + 1.0 / 9.0;
  sum = sum * z + 1.0 / 7.0;
  sum = sum * z + 1.0 / 5.0;
  sum = sum * z + 1.0 / 3.0;
  sum = sum * z + 1.0;
  return exponent * 0.6931471805599453 + 2.0 * s * sum;
}

// The random bits of one token.
constexpr uint32_t token_bits(uint64_t seed, int32_t choice, int64_t position, int32_t token) {
  return philox4x32({static_cast<uint32_t>(token), static_cast<uint32_t>(position),
                     static_cast<uint32_t>(static_cast<uint64_t>(position) >> 32), static_cast<uint32_t>(choice)},
                    {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)})[0];
}
// A standard Gumbel variable: -log(-log(u)), u uniform in (0, 1), never either end.
constexpr double gumbel(uint32_t bits) { return -natural_log(-natural_log((static_cast<double>(bits) + 0.5) * 0x1p-32)); }
// No less than gumbel(bits), without a logarithm: -log(u) >= 1 - u >= 2^-(leading ones of `bits` + 1).
constexpr double gumbel_bound(uint32_t bits) {
  int ones = 0;
  while (ones < 32 && (bits & 0x80000000u >> ones) != 0) ++ones;
  return (1 + ones) * 0.6931472;
}

}  // namespace headroom
