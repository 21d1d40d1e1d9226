// An open-addressing hash map from 64-bit keys, filled once and then only read: the tables of merges and of whole
// pieces are asked once or more for every character of a prompt. Not thread-safe while it is filled.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace headroom {

// The finaliser of splitmix64: every bit of the key reaches every bit of the result.
inline uint64_t mix_bits(uint64_t key) {
  key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9u;
  key = (key ^ key >> 27) * 0x94D049BB133111EBu;
  return key ^ key >> 31;
}

template <typename Value>
class FlatMap {
 public:
  static constexpr uint64_t kNoKey = ~uint64_t{0};  // never a key

  FlatMap() : slots_(2) {}

  // Makes room for `count` keys with at most half of the slots taken.
  void reserve(size_t count) {
    size_t slots = 2;
    while (slots < 2 * count + 2) slots *= 2;
    if (slots <= slots_.size()) return;
    std::vector<Slot> old(slots);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.key != kNoKey) *locate(slot.key) = slot;
    }
  }

  // The value of `key`, made if it is absent.
  Value& operator[](uint64_t key) {
    if (2 * (size_ + 1) + 2 > slots_.size()) reserve(2 * (size_ + 1));
    Slot* slot = locate(key);
    if (slot->key == kNoKey) {
      slot->key = key;
      ++size_;
    }
    return slot->value;
  }

  const Value* find(uint64_t key) const {
    const Slot* slot = const_cast<FlatMap*>(this)->locate(key);
    return slot->key == kNoKey ? nullptr : &slot->value;
  }

 private:
  struct Slot {
    uint64_t key = kNoKey;
    Value value{};
  };

  Slot* locate(uint64_t key) {
    const size_t mask = slots_.size() - 1;
    size_t index = mix_bits(key) & mask;
    while (slots_[index].key != kNoKey && slots_[index].key != key) index = (index + 1) & mask;
    return &slots_[index];
  }

  std::vector<Slot> slots_;
  size_t size_ = 0;
};

}  // namespace headroom
