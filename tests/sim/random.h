// A small seeded generator (SplitMix64): the same numbers on every machine, unlike the distributions of <random>.
#pragma once

#include <cstdint>

namespace headroom::sim {

inline uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}
inline uint64_t mix(uint64_t a, uint64_t b) { return mix(mix(a) ^ (b + 0x632be59bd9b4e019ULL)); }

class Random {
 public:
  explicit Random(uint64_t seed) : state_(mix(seed)) {}
  uint64_t next() { return mix(state_++); }
  int32_t below(int32_t bound) { return static_cast<int32_t>((next() >> 33) % static_cast<uint64_t>(bound)); }
  int32_t between(int32_t low, int32_t high) { return low + below(high - low + 1); }  // both included
  bool chance(double p) { return static_cast<double>(next() >> 11) * 0x1p-53 < p; }

 private:
  uint64_t state_;
};

}  // namespace headroom::sim
