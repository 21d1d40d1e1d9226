// Launches of a stream, recorded once and replayed as one (a CUDA graph). What a launch is given is recorded by value: what may change
// lies behind pointers that stay.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

#include "kernels/cuda/errors.h"

namespace headroom::cuda {

class Recording {
 public:
  Recording() = default;
  ~Recording() {
    if (graph_ != nullptr) static_cast<void>(cudaGraphExecDestroy(graph_));  // fails only on a device that is lost already
  }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  bool empty() const { return graph_ == nullptr; }

  // Records what `work` launches in the stream, which is not run. REQUIRES: empty(); `work` neither waits nor takes memory.
  void record(cudaStream_t stream, const std::function<void()>& work) {
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    cudaGraph_t launches = nullptr;
    try {
      work();
    } catch (...) {  // the stream must be of use to whoever catches it
      static_cast<void>(cudaStreamEndCapture(stream, &launches));
      if (launches != nullptr) static_cast<void>(cudaGraphDestroy(launches));
      throw;
    }
    check_cuda(cudaStreamEndCapture(stream, &launches), "cudaStreamEndCapture");
    const cudaError_t error = cudaGraphInstantiate(&graph_, launches, 0);
    static_cast<void>(cudaGraphDestroy(launches));
    check_cuda(error, "cudaGraphInstantiate");
  }

  void launch(cudaStream_t stream) const { check_cuda(cudaGraphLaunch(graph_, stream), "cudaGraphLaunch"); }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace headroom::cuda
