// Rounding to whole numbers with a scale: against the definition, and where it could go wrong.
#include "kernels/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "tests/kernels/reference.h"

namespace headroom {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(QuantizeInt8, PutsTheLargestAt127AndRoundsTiesToEven) {
  const float row[] = {254.0f, -254.0f, 1.0f, 3.0f, -5.0f, 0.0f, 2.9f, -0.0f};  // scale 2: halves are ties
  int8_t quants[8];
  EXPECT_EQ(quantize_int8(row, 8, quants), 2.0f);
  EXPECT_THAT(quants, ElementsAre(127, -127, 0, 2, -2, 0, 1, 0));
}

TEST(QuantizeInt8, IsTheNearestOnRandomRowsOfAllSizes) {
  for (const float scale : {1e-42f, 1e-38f, 1e-20f, 1.0f, 1e20f, 2e37f}) {
    const std::vector<float> row = reference::random_floats(129, 3, scale);
    std::vector<int8_t> quants(row.size());
    const float step = quantize_int8(row.data(), static_cast<int64_t>(row.size()), quants.data());
    for (size_t i = 0; i < row.size(); ++i) {
      const double error = std::abs(static_cast<double>(row[i]) - static_cast<double>(step) * quants[i]);
      // Half a step; below the normal numbers the step itself is coarse.
      ASSERT_LE(error, 0.5001 * step + (scale < 1e-37f ? 127 * 1.5e-45 : 0.0)) << row[i];
    }
  }
}

TEST(QuantizeInt8, ShowsWhatIsNotFiniteAndKeepsZero) {
  int8_t quants[3] = {1, 1, 1};
  const float zeros[] = {0.0f, -0.0f, 0.0f}, with_nan[] = {1.0f, kNaN, 2.0f}, with_infinity[] = {1.0f, -kInfinity, 2.0f};
  EXPECT_EQ(quantize_int8(zeros, 3, quants), 0.0f);
  EXPECT_THAT(quants, Each(0));
  EXPECT_TRUE(std::isnan(quantize_int8(with_nan, 3, quants)));
  EXPECT_TRUE(std::isnan(quantize_int8(with_infinity, 3, quants)));
}

std::vector<float> read_back(const std::byte* group, DType type, int64_t count) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(quantized_row_element(group, type, i));
  return values;
}

double squared_error(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
  return sum;
}

TEST(QuantizeGroups, Int8IsWithinHalfAStepOfItsStoredScale) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const std::vector<float> row = reference::random_floats(32, seed, 0.05f);
    std::byte group[kInt8GroupBytes];
    quantize_int8_group(row.data(), 32, group);
    float largest = 0.0f;
    for (const float value : row) largest = std::max(largest, std::abs(value));
    const std::vector<float> values = read_back(group, DType::kI8, 32);
    // fp16 may round the scale down, by 2^-11 of it: 127 of those at the largest.
    for (size_t i = 0; i < row.size(); ++i) ASSERT_LE(std::abs(values[i] - row[i]), largest / 127 * (0.501f + 127.0f / 2048));
  }
}

// Over all scales that fp16 has around the plain one, nothing is much nearer; and the plain one is not nearer.
TEST(QuantizeGroups, Int4FindsAScaleNearTheBest) {
  double found = 0, plain = 0, best = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const std::vector<float> row = reference::random_floats(32, seed, 0.05f);
    std::byte group[kInt4GroupBytes];
    quantize_int4_group(row.data(), 32, group);
    float largest = 0.0f;
    for (const float value : row) largest = std::abs(value) > std::abs(largest) ? value : largest;
    const auto error_at = [&](float scale) {
      std::vector<float> rounded;
      for (const float value : row) rounded.push_back(std::clamp(std::nearbyint(value / scale), -8.0f, 7.0f) * scale);
      return squared_error(row, rounded);
    };
    const double row_error = squared_error(row, read_back(group, DType::kI4, 32));
    const double plain_error = error_at(f16_to_f32(f32_to_f16(largest / -8.0f)));
    ASSERT_LE(row_error, plain_error * 1.0001);
    found += row_error;
    plain += plain_error;
    double best_error = plain_error;
    for (float steps = 5.0f; steps < 12.0f; steps += 0.01f) best_error = std::min(best_error, error_at(-largest / steps));
    best += best_error;
  }
  EXPECT_LT(found, 0.95 * plain);
  EXPECT_LT(found, 1.25 * best);
}

TEST(QuantizeGroups, PartsOfAGroupLeaveTheRestZero) {
  const std::vector<float> row = reference::random_floats(5, 1);
  std::byte int8[kInt8GroupBytes], int4[kInt4GroupBytes];
  quantize_int8_group(row.data(), 5, int8);
  quantize_int4_group(row.data(), 5, int4);
  for (int64_t i = 5; i < kQuantGroup; ++i) {
    EXPECT_EQ(quantized_row_element(int8, DType::kI8, i), 0.0f);
    EXPECT_EQ(quantized_row_element(int4, DType::kI4, i), 0.0f);
  }
}

TEST(QuantizeGroups, ShowWhatIsNotFiniteAndKeepZero) {
  std::vector<float> row(32, 1.0f);
  std::byte int8[kInt8GroupBytes], int4[kInt4GroupBytes];
  for (const float value : {kNaN, kInfinity, -kInfinity}) {
    row[7] = value;
    quantize_int8_group(row.data(), 32, int8);
    quantize_int4_group(row.data(), 32, int4);
    EXPECT_TRUE(std::isnan(quantized_row_element(int8, DType::kI8, 0))) << value;
    EXPECT_TRUE(std::isnan(quantized_row_element(int4, DType::kI4, 0))) << value;
  }
  row.assign(32, 0.0f);
  quantize_int8_group(row.data(), 32, int8);
  quantize_int4_group(row.data(), 32, int4);
  EXPECT_THAT(read_back(int8, DType::kI8, 32), Each(0.0f));
  EXPECT_THAT(read_back(int4, DType::kI4, 32), Each(0.0f));
}

TEST(QuantizeGroups, ReadTheFormatAsWrittenFromItsDescription) {
  for (const DType type : {DType::kI8, DType::kI4}) {
    std::vector<float> values;
    const std::vector<std::byte> row = reference::random_quantized_rows(1, 100, type, 4, 0.01f, &values);
    ASSERT_EQ(row.size(), weight_row_bytes(type, 100));
    for (int64_t k = 0; k < 100; ++k) ASSERT_EQ(quantized_row_element(row.data(), type, k), values[static_cast<size_t>(k)]);
  }
}

}  // namespace
}  // namespace headroom
