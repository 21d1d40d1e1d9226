#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rmsnorm.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "kernels/cpu/rmsnorm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headroom {
namespace HWY_NAMESPACE {

void rmsnorm_rows(Matrix out, Matrix x, const float* weight, float eps, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) rmsnorm_row(out.row(t), x.row(t), weight, x.cols, eps);
}

void add_rmsnorm_rows(Matrix out, Matrix residual, Matrix x, const float* weight, float eps, int64_t begin,
                      int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    float* sum = residual.row(t);
    for (int64_t i = 0; i < x.cols; ++i) sum[i] += x.row(t)[i];
    rmsnorm_row(out.row(t), sum, weight, x.cols, eps);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headroom
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headroom {
HWY_EXPORT(rmsnorm_rows);
HWY_EXPORT(add_rmsnorm_rows);

namespace cpu {

void rmsnorm(ThreadPool& pool, Matrix out, Matrix x, Vector weight, float eps) {
  pool.for_range(x.rows, rows_per_worker(x.cols), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(rmsnorm_rows)(out, x, weight.data(), eps, begin, end);
  });
}

void add_rmsnorm(ThreadPool& pool, Matrix out, Matrix residual, Matrix x, Vector weight, float eps) {
  pool.for_range(x.rows, rows_per_worker(x.cols), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(add_rmsnorm_rows)(out, residual, x, weight.data(), eps, begin, end);
  });
}

}  // namespace cpu
}  // namespace headroom
#endif
