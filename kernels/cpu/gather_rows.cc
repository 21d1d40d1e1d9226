#include <cstring>

#include "kernels/cpu/ops.h"

namespace headroom::cpu {

void gather_rows(ThreadPool& pool, Matrix out, Matrix x, std::span<const int32_t> rows) {
  pool.for_range(out.rows, rows_per_worker(out.cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::memcpy(out.row(i), x.row(rows[i]), static_cast<size_t>(out.cols) * sizeof(float));
  });
}

}  // namespace headroom::cpu
