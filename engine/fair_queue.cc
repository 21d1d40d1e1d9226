#include "engine/fair_queue.h"

#include "kernels/check.h"

namespace headroom {
namespace {

// Divisible enough that weights differ as they should; 2^63 of it are 10^14 tokens of weight 1.
constexpr int64_t kTokenPrice = 1 << 16;

}  // namespace

FairQueue::FairQueue(const std::vector<int32_t>& weights) : tenants_(weights.size()) {
  waiting_tenants_.reserve(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    CHECK(weights[i] >= 1 && weights[i] <= kWeightMax) << "weight " << weights[i];
    tenants_[i].token_price = kTokenPrice / weights[i];
  }
}

void FairQueue::push_back(Sequence& sequence) {
  Tenant& tenant = tenants_.at(index_of(sequence.tenant));
  if (tenant.waiting.empty()) {
    tenant.service = std::max(tenant.service, floor_);
    tenant.first_arrival = sequence.request->arrival;
    tenant.place = waiting_tenants_.size();
    waiting_tenants_.push_back(static_cast<int32_t>(index_of(sequence.tenant)));
  }
  tenant.waiting.push_back(sequence);
  ++size_;
}

void FairQueue::remove(Sequence& sequence) {
  Tenant& tenant = tenants_[index_of(sequence.tenant)];
  tenant.waiting.remove(sequence);
  --size_;
  if (!tenant.waiting.empty()) {
    tenant.first_arrival = tenant.waiting.first()->request->arrival;
    return;
  }
  const int32_t last = waiting_tenants_.back();
  waiting_tenants_[tenant.place] = last;
  tenants_[static_cast<size_t>(last)].place = tenant.place;
  waiting_tenants_.pop_back();
}

bool FairQueue::comes_before(const Tenant& a, const Tenant& b) {
  if (a.service != b.service) return a.service < b.service;
  return a.first_arrival < b.first_arrival;
}

}  // namespace headroom
