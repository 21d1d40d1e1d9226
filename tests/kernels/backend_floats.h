// fp32 values in a backend's memory, wherever that is.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"

namespace headroom {

class BackendFloats {
 public:
  BackendFloats(Backend& backend, std::span<const float> values)
      : backend_(backend), count_(values.size()), buffer_(backend.allocate(values.size_bytes())) {
    backend_.copy_in(buffer_->data(), values.data(), values.size_bytes());
  }
  float* data() const { return reinterpret_cast<float*>(buffer_->data()); }
  Matrix matrix(int64_t rows, int64_t cols) const { return {data(), rows, cols}; }
  Matrix matrix(int64_t rows, int64_t cols, int64_t stride) const { return {data(), rows, cols, stride}; }
  Vector vector() const { return {data(), count_}; }  // empty: none
  std::vector<float> read() const {
    std::vector<float> values(count_);
    backend_.copy_out(values.data(), buffer_->data(), count_ * sizeof(float));
    return values;
  }

 private:
  Backend& backend_;
  size_t count_;
  std::unique_ptr<Buffer> buffer_;
};

}  // namespace headroom
