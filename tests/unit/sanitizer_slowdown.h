// How much longer a bound on time is where a sanitizer watches each access to memory; 1 in every other build.
#pragma once

namespace headroom {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr double kSanitizerSlowdown = 20;
#else
inline constexpr double kSanitizerSlowdown = 1;
#endif

}  // namespace headroom
