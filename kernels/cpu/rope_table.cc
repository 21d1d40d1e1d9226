#include <cmath>

#include "kernels/cpu/ops.h"

namespace headroom::cpu {

// The angle is rounded to fp32 before the cosine, as the reference implementations do: at position 100,000 another
// rounding would turn a pair by 0.004 rad against what the model was trained with.
void rope_table(ThreadPool& pool, Matrix out, std::span<const int32_t> positions, std::span<const float> inv_freq,
                float factor) {
  const int64_t half = out.cols / 2;
  pool.for_range(out.rows, std::max<int64_t>(1, rows_per_worker(out.cols * 16)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(positions[t]) * inv_freq[i];
        out.row(t)[i] = factor * static_cast<float>(std::cos(static_cast<double>(angle)));
        out.row(t)[half + i] = factor * static_cast<float>(std::sin(static_cast<double>(angle)));
      }
    }
  });
}

}  // namespace headroom::cpu
