#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/simd_target.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace headroom {
namespace HWY_NAMESPACE {
const char* target_name() { return hwy::TargetName(HWY_TARGET); }
}  // namespace HWY_NAMESPACE
}  // namespace headroom
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headroom {
HWY_EXPORT(target_name);
const char* cpu::simd_target_name() { return HWY_DYNAMIC_DISPATCH(target_name)(); }

bool cpu::use_simd_target(std::string_view name) {
  const int64_t there = hwy::SupportedTargets() & HWY_TARGETS;
  for (int64_t target = 1; target != 0 && target <= there; target <<= 1) {
    const bool named = name == hwy::TargetName(target) || (name == "baseline" && target == HWY_STATIC_TARGET);
    if ((there & target) == 0 || !named) continue;
    hwy::SetSupportedTargetsForTest(target);
    return true;
  }
  return false;
}
}  // namespace headroom
#endif
