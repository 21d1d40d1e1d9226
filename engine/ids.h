// Identifiers of the control plane. Each is its own type, so that a page can never be passed where a sequence is meant.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headroom {

enum class PageId : int32_t {};      // a page of the KV pool, 0 .. pages_total - 1
enum class SequenceId : int64_t {};  // one stream of tokens; never reused while the process lives
enum class RequestId : int64_t {};   // what a client sent; chosen by the caller of Scheduler::submit
enum class TenantId : int32_t {};    // whose it is, 0 .. tenants - 1; all are 0 where there are no API keys

// Stands in a page table where a sequence holds no page any more: those wholly below its sliding window.
inline constexpr PageId kNoPage{-1};

constexpr int32_t index_of(PageId page) { return static_cast<int32_t>(page); }
constexpr size_t index_of(TenantId tenant) { return static_cast<size_t>(tenant); }

}  // namespace headroom
