// The KV pool: all pages of all layers in one allocation made at start, [layer][page][K|V][G][page_tokens][K] (see KvLayer), as many
// bytes on every backend. It knows where a page lies, not who owns it: that is PageAllocator's. Engine thread only, after construction.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/ids.h"
#include "engine/model/capacity.h"
#include "kernels/backend.h"

namespace headroom {

class KvCache {
 public:
  // Allocates pages · shape.page_bytes() bytes; throws BackendError when the backend has not as much.
  KvCache(const KvShape& shape, int64_t pages, Backend& backend);

  std::span<const KvLayer> layers() const { return layers_; }
  int64_t pages() const { return pages_; }
  int64_t pool_bytes() const { return static_cast<int64_t>(buffer_->bytes()); }

  void copy_page(PageId from, PageId to);
  // Fills a page with NaN: whoever reads it without having written it shows it at once (I7). For tests.
  void poison_page(PageId page);

 private:
  std::byte* page_data(int32_t layer, PageId page) const;

  KvShape shape_;
  int64_t pages_;
  Backend& backend_;
  std::unique_ptr<Buffer> buffer_;
  std::vector<KvLayer> layers_;
};

}  // namespace headroom
