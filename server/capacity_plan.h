// What a deployment takes and what fits: the questions and answers of `headroom plan` and of GET /v1/capacity, with one
// JSON. All bytes come from engine/model/capacity. Plain values, any thread.
//
// Counted: the KV pool in whole pages, and, where a budget is a machine's memory, the weights. Not counted: activations
// and the program.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/capacity.h"
#include "engine/model/config.h"
#include "server/svg.h"

namespace headroom {

struct MemoryBudget {
  int64_t memory_bytes = 0;    // of which the weights are taken; 0: the pool itself was given
  int64_t pool_bytes_max = 0;  // what is left for the KV cache
};

struct CapacityQuestion {
  std::string model;  // how answers call it
  ModelConfig config;
  DType weight_dtype = DType::kBF16;
  DType kv_dtype = DType::kBF16;
  int32_t page_tokens = 16;
  int32_t step_tokens = kStepTokensDefault;
  int64_t context_tokens = 0;  // of every request
  int64_t concurrency = 1;     // requests at once
  std::vector<MemoryBudget> budgets;

  int64_t weight_bytes() const;
};

// Sets context, concurrency, kv_dtype or kv_heads. Returns what is wrong with the value and what would do; empty when
// nothing is.
std::string set_capacity_parameter(std::string_view name, std::string_view value, CapacityQuestion* question);

// The model with some number of KV heads.
struct CapacityVariant {
  KvShape shape;
  int64_t request_bytes = 0;         // of the whole context
  int64_t needed_bytes = 0;          // of all requests
  std::vector<Capacity> capacities;  // [budgets]: of the same pools for all variants
};

struct CapacityAnswer {
  CapacityQuestion question;
  CapacityVariant planned, mha, mqa;
  std::vector<int64_t> heat_context_tokens;
  std::vector<int32_t> heat_kv_heads;  // every number that divides the query heads, MHA first
  std::vector<int64_t> heat_bytes;     // [heat_kv_heads, heat_context_tokens] of all requests
};

CapacityAnswer answer_capacity(CapacityQuestion question);

void append_capacity_json(const CapacityAnswer& answer, std::string* out);
std::string capacity_table(const CapacityAnswer& answer);  // for a terminal
Heatmap capacity_heatmap(const CapacityAnswer& answer);

}  // namespace headroom
