#include "engine/kv/kv_cache.h"

#include <cstring>

#include "kernels/check.h"

namespace headroom {

KvCache::KvCache(const KvShape& shape, int64_t pages, Backend& backend)
    : shape_(shape), pages_(pages), backend_(backend), buffer_(backend.allocate(static_cast<size_t>(pages * shape.page_bytes()))) {
  CHECK_GT(pages, 0);
  const auto page_stride = static_cast<size_t>(shape.layer_page_bytes());
  for (int32_t layer = 0; layer < shape.layers; ++layer) {
    layers_.push_back({.data = buffer_->data() + static_cast<size_t>(layer) * static_cast<size_t>(pages) * page_stride,
                       .page_stride_bytes = page_stride,
                       .dtype = shape.dtype,
                       .kv_heads = shape.kv_heads,
                       .page_tokens = shape.page_tokens,
                       .head_dim = shape.head_dim});
  }
}

std::byte* KvCache::page_data(int32_t layer, PageId page) const {
  const auto index = static_cast<int64_t>(page);
  CHECK(index >= 0 && index < pages_) << "page " << index;
  return layers_[static_cast<size_t>(layer)].data + static_cast<size_t>(index) * layers_[static_cast<size_t>(layer)].page_stride_bytes;
}

void KvCache::copy_page(PageId from, PageId to) {
  for (int32_t layer = 0; layer < shape_.layers; ++layer) {
    backend_.copy(page_data(layer, to), page_data(layer, from), layers_[static_cast<size_t>(layer)].page_stride_bytes);
  }
}

void KvCache::poison_page(PageId page) {
  // All bits set is a NaN in fp32, bf16 and fp16 alike, and in the scales of int8.
  const std::vector<std::byte> nan(layers_.front().page_stride_bytes, std::byte{0xFF});
  for (int32_t layer = 0; layer < shape_.layers; ++layer) backend_.copy_in(page_data(layer, page), nan.data(), nan.size());
}

}  // namespace headroom
