// What the tokenizer's golden tests share: the generator of strings and the hash of
// tests/golden/make_tokenizer_goldens.py, repeated here to the bit.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "engine/tokenizer/token_id.h"
#include "engine/tokenizer/utf8.h"

namespace headroom {

inline const std::filesystem::path kGoldens = std::filesystem::path(HEADROOM_SOURCE_DIR) / "tests/golden/tokenizer";

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }
  size_t below(size_t bound) { return next() % bound; }

 private:
  uint64_t state_;
};

class Hash {
 public:
  void add(uint64_t word) {
    state_ = (state_ ^ word) * 0x100000001B3u;
    state_ ^= state_ >> 32;
  }
  void add_ids(const std::vector<TokenId>& ids) {
    add(ids.size());
    for (const TokenId id : ids) add(static_cast<uint64_t>(id));
  }
  void add_text(const std::string& text) {
    add(text.size());
    for (size_t at = 0; at < text.size(); at += 8) {
      uint64_t word = 0;
      std::memcpy(&word, text.data() + at, std::min<size_t>(8, text.size() - at));
      add(word);
    }
  }
  std::string hex() const {
    std::array<char, 17> digits{};
    std::snprintf(digits.data(), digits.size(), "%016llx", static_cast<unsigned long long>(state_));
    return digits.data();
  }

 private:
  uint64_t state_ = 0xCBF29CE484222325u;
};

struct Strings {
  std::vector<std::string> fragments;
  std::vector<std::pair<uint32_t, uint32_t>> ranges;
  size_t count = 0;
  size_t block = 0;
  std::vector<std::string> run_units;
  size_t run_length = 0;
  std::vector<std::string> styles;
};

inline const Strings& strings() {
  static const Strings loaded = [] {
    const auto json = nlohmann::json::parse(read_file(kGoldens / "strings.json"));
    return Strings{json["fragments"], json["ranges"],     json["strings"], json["block_strings"],
                   json["run_units"], json["run_length"], json["styles"]};
  }();
  return loaded;
}

inline std::string make_string(size_t index, const std::vector<std::string>& specials) {
  SplitMix64 rng(index);
  std::string text;
  for (size_t parts = 1 + rng.below(16); parts > 0; --parts) {
    const size_t kind = rng.below(8);
    if (kind < 4) {
      text += strings().fragments[rng.below(strings().fragments.size())];
      if (rng.below(2)) text += " ";
    } else if (kind == 4) {
      const auto [first, last] = strings().ranges[rng.below(strings().ranges.size())];
      append_utf8(static_cast<char32_t>(first + rng.below(last - first + 1)), &text);
    } else if (kind == 5) {
      text += static_cast<char>(0x20 + rng.below(0x5F));
    } else if (kind == 6) {
      const std::string& fragment = strings().fragments[rng.below(strings().fragments.size())];
      size_t end = 0;
      next_character(fragment, &end);
      for (size_t count = 1 + rng.below(60); count > 0; --count) text += fragment.substr(0, end);
    } else {
      const std::string& special = specials[rng.below(specials.size())];
      size_t end = special.size();
      if (rng.below(4) == 0) {
        size_t characters = 0;
        for (size_t at = 0; at < special.size(); ++characters) next_character(special, &at);
        end = 0;
        for (size_t left = rng.below(characters + 1); left > 0; --left) next_character(special, &end);
      }
      text += special.substr(0, end);
    }
  }
  return text;
}

}  // namespace headroom
