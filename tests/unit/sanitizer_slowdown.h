// What a sanitizer, which watches each access to memory, changes of a test's figures: how much longer a bound on time is, and whether a process's
// memory is what it holds (freed memory stays with the sanitizer for a while), and whether races that a test makes on purpose end it.
#pragma once

namespace headroom {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr double kSanitizerSlowdown = 20;
inline constexpr bool kMemoryIsCounted = false;
#else
inline constexpr double kSanitizerSlowdown = 1;
inline constexpr bool kMemoryIsCounted = true;
#endif

#if defined(__SANITIZE_THREAD__)
inline constexpr bool kRacesAreFound = true;
#else
inline constexpr bool kRacesAreFound = false;
#endif

}  // namespace headroom
