// SipHash-2-4 with a 128-bit result (Aumasson and Bernstein, 2012): a keyed hash. Without the key nobody can construct
// two inputs with the same hash, so clients cannot steer their prompts into one another's entries of the prefix cache.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace headroom {

struct Hash128 {
  uint64_t low = 0;
  uint64_t high = 0;
  friend bool operator==(const Hash128&, const Hash128&) = default;
};

struct HashKey {
  uint64_t low = 0;
  uint64_t high = 0;
};

// Takes 64-bit words, or bytes; finish() ends it. Each object hashes one input.
class SipHash128 {
 public:
  explicit SipHash128(const HashKey& key)
      : v0_(0x736f6d6570736575ULL ^ key.low),
        v1_(0x646f72616e646f6dULL ^ key.high ^ 0xee),
        v2_(0x6c7967656e657261ULL ^ key.low),
        v3_(0x7465646279746573ULL ^ key.high) {}

  void add_word(uint64_t word) {
    v3_ ^= word;
    round();
    round();
    v0_ ^= word;
    words_ += 1;
  }

  // The result for the words added so far followed by `tail` (fewer than 8 bytes or any number of them, little endian).
  Hash128 finish(std::span<const unsigned char> tail = {}) {
    size_t i = 0;
    for (; i + 8 <= tail.size(); i += 8) add_word(load(tail.subspan(i, 8)));
    const uint64_t length = words_ * 8 + (tail.size() - i);
    add_word(load(tail.subspan(i)) | length << 56);
    v2_ ^= 0xee;
    for (int r = 0; r < 4; ++r) round();
    Hash128 hash;
    hash.low = v0_ ^ v1_ ^ v2_ ^ v3_;
    v1_ ^= 0xdd;
    for (int r = 0; r < 4; ++r) round();
    hash.high = v0_ ^ v1_ ^ v2_ ^ v3_;
    return hash;
  }

 private:
  static uint64_t load(std::span<const unsigned char> bytes) {
    uint64_t word = 0;
    for (size_t i = 0; i < bytes.size(); ++i) word |= static_cast<uint64_t>(bytes[i]) << (8 * i);
    return word;
  }

  void round() {
    v0_ += v1_;
    v1_ = std::rotl(v1_, 13) ^ v0_;
    v0_ = std::rotl(v0_, 32);
    v2_ += v3_;
    v3_ = std::rotl(v3_, 16) ^ v2_;
    v0_ += v3_;
    v3_ = std::rotl(v3_, 21) ^ v0_;
    v2_ += v1_;
    v1_ = std::rotl(v1_, 17) ^ v2_;
    v2_ = std::rotl(v2_, 32);
  }

  uint64_t v0_, v1_, v2_, v3_;
  uint64_t words_ = 0;
};

}  // namespace headroom
