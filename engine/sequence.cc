#include "engine/sequence.h"

#include <algorithm>

#include "kernels/check.h"

namespace headroom {

void RequestPages::add(PageId page, bool shared) {
  if (choices_ > 1) {
    Holders& holders = holders_[index_of(page)];
    if (++holders.count > 1) return;
    holders.shared = shared;
  }
  ++held_;
  shared_ += shared ? 1 : 0;
}

void RequestPages::remove(PageId page, bool shared) {
  if (choices_ > 1) {
    const auto it = holders_.find(index_of(page));
    CHECK(it != holders_.end());
    if (--it->second.count > 0) return;
    shared = it->second.shared;
    holders_.erase(it);
  }
  --held_;
  shared_ -= shared ? 1 : 0;
  CHECK_GE(held_, 0);
}

void RequestPages::note_peak(PageUsage& usage) const {
  if (held_ <= usage.peak_pages) return;
  usage.peak_pages = held_;
  usage.shared_pages_at_peak = shared_;
}

bool is_older(const Sequence& a, const Sequence& b) {
  if (a.request != b.request) return a.request->turn < b.request->turn;
  return a.choice < b.choice;
}

namespace {

// The low bits of an id are a place, 16 million of them; the others count its uses, enough for centuries.
constexpr int kPlaceBits = 24;
constexpr int64_t kPlaces = int64_t{1} << kPlaceBits;

int32_t place_of(SequenceId id) { return static_cast<int32_t>(static_cast<int64_t>(id) & (kPlaces - 1)); }

}  // namespace

Sequence& SequencePool::create() {
  if (free_.empty()) {
    CHECK_LT(places_, kPlaces);
    if (places_ % kChunkPlaces == 0) chunks_.push_back(std::make_unique<Sequence[]>(kChunkPlaces));
    at_place(places_).id = SequenceId{places_};
    free_.push_back(places_++);
  }
  Sequence& sequence = at_place(free_.back());
  free_.pop_back();
  return sequence;
}

void SequencePool::destroy(Sequence& sequence) {
  // A long prompt's memory is given back; a short one's is kept for the next sequence.
  constexpr size_t kCapacityKept = 1024;
  Sequence fresh;
  fresh.id = SequenceId{static_cast<int64_t>(sequence.id) + kPlaces};
  std::swap(fresh.tokens, sequence.tokens);
  std::swap(fresh.pages, sequence.pages);
  fresh.tokens.clear();
  fresh.pages.clear();
  if (fresh.tokens.capacity() > kCapacityKept) fresh.tokens.shrink_to_fit();
  if (fresh.pages.capacity() > kCapacityKept) fresh.pages.shrink_to_fit();
  const int32_t place = place_of(sequence.id);
  sequence = std::move(fresh);
  free_.push_back(place);
}

Sequence& SequencePool::at(SequenceId id) {
  const int32_t place = place_of(id);
  CHECK(place >= 0 && place < places_) << "sequence " << static_cast<int64_t>(id);
  Sequence& sequence = at_place(place);
  CHECK(sequence.id == id) << "sequence " << static_cast<int64_t>(id) << " has ended";
  return sequence;
}

bool SequencePool::has_ended(SequenceId id) const { return const_cast<SequencePool*>(this)->at_place(place_of(id)).id != id; }

void WaitingList::push_front(Sequence& sequence) {
  sequence.waiting_previous = nullptr;
  sequence.waiting_next = first_;
  (first_ != nullptr ? first_->waiting_previous : last_) = &sequence;
  first_ = &sequence;
  ++size_;
}

void WaitingList::push_back(Sequence& sequence) {
  sequence.waiting_next = nullptr;
  sequence.waiting_previous = last_;
  (last_ != nullptr ? last_->waiting_next : first_) = &sequence;
  last_ = &sequence;
  ++size_;
}

void WaitingList::remove(Sequence& sequence) {
  (sequence.waiting_previous != nullptr ? sequence.waiting_previous->waiting_next : first_) = sequence.waiting_next;
  (sequence.waiting_next != nullptr ? sequence.waiting_next->waiting_previous : last_) = sequence.waiting_previous;
  sequence.waiting_previous = sequence.waiting_next = nullptr;
  --size_;
}

}  // namespace headroom
