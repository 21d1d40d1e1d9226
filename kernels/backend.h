// The one interface between the engine and the hardware. The transformer is written once against it; a backend supplies the ops.
//
// Threads: one engine thread calls a backend; a backend may use threads of its own inside a call.
// Memory: everything that an op takes lives in memory of this backend (`allocate`, `load_weight`), unless it says "host".
// Bits (I5): the result for a row depends on that row's inputs alone: not on the other rows of a call, their number, the
//   placement of pages, `page_tokens`, or the number of threads. Every op keeps this, and tests hold it to the bit.
// Errors: a wrong shape is a bug and CHECKs (op_checks.h). What the device does wrong is thrown as BackendError.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/sampling.h"
#include "kernels/tensor.h"

namespace headroom {

// What a device failed at. `out_of_memory` fails one request; `sticky` means that the device is lost and the process must drain and exit.
class BackendError : public std::runtime_error {
 public:
  enum class Kind { out_of_memory, sticky };
  BackendError(Kind kind, const std::string& what) : std::runtime_error(what), kind(kind) {}
  Kind kind;
};

// Memory, freed with the object; must not outlive the backend that it is of.
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual std::byte* data() const = 0;
  virtual size_t bytes() const = 0;
};

// A weight in the layout that the backend's gemm wants: [N, K] logically, `bytes()` as it stands in memory. Immutable: backends of
// one kind may read it at the same time.
class Weight {
 public:
  virtual ~Weight() = default;
  virtual int64_t rows() const = 0;  // N, outputs
  virtual int64_t cols() const = 0;  // K, inputs
  virtual size_t bytes() const = 0;
};

// One layer's part of the KV pool: pages of [K|V][G][page_tokens][K], in which the CPU keeps a head's keys in an order of its own
// (kernels/cpu/key_layout.h); int8 pages have fp32 scales [K|V][G][page_tokens] behind
// their elements. Page p begins at data + p · page_stride bytes.
struct KvLayer {
  std::byte* data = nullptr;
  size_t page_stride_bytes = 0;
  DType dtype = DType::kBF16;
  int32_t kv_heads = 0;     // G
  int32_t page_tokens = 0;  // 16, 32 or 64
  int32_t head_dim = 0;     // K

  int64_t rows() const { return int64_t{kv_heads} * page_tokens; }  // of K, and of V, in a page
  size_t page_bytes() const { return 2 * static_cast<size_t>(rows()) * kv_row_bytes(dtype, head_dim); }
  size_t scales_offset() const { return 2 * static_cast<size_t>(rows() * head_dim) * dtype_bytes(dtype); }
};

// The rows of one step, flat, on the host. Rows of a sequence are neighbours and its positions ascend by one. A sequence of one
// row at position -1 is padding, which fills a batch up to a size: it has no pages, nothing is written for it, and its attention is 0.
struct BatchView {
  int32_t rows = 0;                              // T
  std::span<const int32_t> tokens;               // [T] token ids; −1 − i: what the latest launch_sample() gives as result i
  std::span<const int32_t> positions;            // [T] absolute position of each row
  std::span<const int32_t> sequence_first_row;   // [S+1] rows of sequence s: [s, s+1)
  std::span<const int32_t> page_tables;          // concatenated page ids; −1 where the window gave the page back
  std::span<const int32_t> page_table_begin;     // [S+1]
};

// What rope_kv_write needs to know of a layer's attention block.
struct RopeKvParams {
  int32_t query_heads = 0;  // Q
  int32_t kv_heads = 0;     // G
  int32_t head_dim = 0;     // K
  Matrix rope_table;        // [T, rotary_dim] of rope_table(); no columns: no RoPE in this layer
  Vector q_norm;            // [K] per-head RMSNorm before RoPE; empty: none
  Vector k_norm;            // [K]
  float norm_eps = 0.0f;
};

struct AttentionParams {
  int32_t query_heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  float scale = 0.0f;         // multiplies q·k
  int32_t window_tokens = 0;  // key j is seen by row i iff i − j < window_tokens; 0: no window
};

// Memory of a device, as it says itself.
struct DeviceMemoryState {
  int64_t free_bytes = 0;
  int64_t total_bytes = 0;
};

// The largest steps that will be asked for.
struct StepLimits {
  int32_t rows = 0;                                   // of a step
  int32_t logits_rows = 0;                            // whose logits are computed at once
  int32_t sequences = 0;                              // of a step
  int32_t sequence_pages = 0;                         // in the page table of one
  std::vector<std::pair<int64_t, int64_t>> weights;   // [N, K] of the layers' gemms
  std::pair<int64_t, int64_t> output_weight;          // [V, D]
  int32_t query_heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string description() const = 0;  // for logs and /version: "cpu: AVX3_ZEN4, 2 threads"
  virtual bool host_readable() const { return true; }  // the host may read its memory, after synchronize()

  // Of its device; none: it takes memory of the host. Any thread.
  virtual std::optional<DeviceMemoryState> device_memory() const { return std::nullopt; }
  // What ops take for themselves in steps up to these limits, beside the memory that is handed to them; reserve() takes it now, so that
  // no step takes any. Without reserve(), and beyond its limits, ops take memory as they need it.
  virtual size_t workspace_bytes(const StepLimits& /*limits*/) const { return 0; }
  virtual void reserve(const StepLimits& /*limits*/) {}

  virtual std::unique_ptr<Buffer> allocate(size_t bytes) = 0;  // 64-byte aligned; contents undefined; not counted as resident until written
  // Memory of the host, to and from which the backend copies fastest.
  virtual std::unique_ptr<Buffer> allocate_host(size_t bytes) { return allocate(bytes); }
  virtual void copy_in(std::byte* destination, const void* host_source, size_t bytes) = 0;
  virtual void copy_out(void* host_destination, const std::byte* source, size_t bytes) = 0;
  virtual void copy(std::byte* destination, const std::byte* source, size_t bytes) = 0;  // within the backend
  virtual void synchronize() = 0;
  // The batch of the ops that follow, until the next call. The batch, and what it points to, must not change before that.
  virtual void begin_step(const BatchView& /*batch*/) {}
  // A whole step: begin_step, and the ops that `ops` calls for the batch that it is given, which is `batch` or has rows of padding behind
  // it that nobody reads. Calls with the same `program` call the same ops with the same arguments, but for the batch and the number
  // of rows, so a backend may record them once and replay them; then `ops` is not called.
  virtual void run_step(const BatchView& batch, uint64_t /*program*/, const std::function<void(const BatchView&)>& ops) {
    begin_step(batch);
    ops(batch);
  }

  // Stacks `parts` by rows into one weight (q, k, v; gate, up) and packs it. All parts have the same cols. Elements are kept as
  // stored; parts of different types are kept as fp32.
  virtual std::unique_ptr<Weight> load_weight(std::span<const HostWeight> parts) = 0;
  // The same for gate and up [2F, K], which a backend may pack so that gemm_silu_mul finds a column of both together.
  virtual std::unique_ptr<Weight> load_gate_up(std::span<const HostWeight> parts) { return load_weight(parts); }

  // out[t, :] = table[tokens[t], :]            [T, D]
  virtual void embedding(Matrix out, const Weight& table, std::span<const int32_t> tokens) = 0;
  // out = x / sqrt(mean(x²) + eps) · weight    [T, D]; out may be x
  virtual void rmsnorm(Matrix out, Matrix x, Vector weight, float eps) = 0;
  // residual += x; out = rmsnorm(residual)     [T, D]
  virtual void add_rmsnorm(Matrix out, Matrix residual, Matrix x, Vector weight, float eps) = 0;
  // out = x · weightᵀ + bias                   [T, N] = [T, K] · [N, K]ᵀ + [N]; each output sums over K in ascending order
  virtual void gemm(Matrix out, Matrix x, const Weight& weight, Vector bias) = 0;
  // out[t] = factor · cos(positions[t] · inv_freq[i]) for i < rotary_dim/2, then the sines    [T, rotary_dim]; inv_freq: host
  virtual void rope_table(Matrix out, std::span<const int32_t> positions, std::span<const float> inv_freq, float factor) = 0;
  // Of each head the first rotary_dim elements turn in pairs (i, i + rotary_dim/2).
  // qkv [T, (Q+2G)·K]: q and k of each row are normed (where the layer has it) and turned in place; k and v are rounded to the
  // layer's type and written to the row's slot.
  virtual void rope_kv_write(Matrix qkv, const KvLayer& layer, const BatchView& batch, const RopeKvParams& params) = 0;
  // Which element of a page is element i of the key in row `row` of [G][page_tokens]; those of values lie in rows on every backend.
  virtual int64_t key_element(const KvLayer& layer, int64_t row, int64_t i) const { return row * layer.head_dim + i; }
  // out [T, Q·K]: causal attention of each row over its sequence's pages, its own token included; q is the first Q·K columns of qkv.
  virtual void paged_attention(Matrix out, Matrix qkv, const KvLayer& layer, const BatchView& batch, const AttentionParams& params) = 0;
  // out[t, f] = silu(gate_up[t, f]) · gate_up[t, F + f]   [T, F]
  virtual void silu_mul(Matrix out, Matrix gate_up) = 0;
  // gate_up = x · weightᵀ + bias; out = silu_mul of it, to the bit    [T, F] = [T, K] · [2F, K]ᵀ; weight: of load_gate_up.
  // gate_up [T, 2F] is room, which a backend that has both in one launch leaves as it is.
  virtual void gemm_silu_mul(Matrix out, Matrix gate_up, Matrix x, const Weight& weight, Vector bias) {
    gemm(gate_up, x, weight, bias);
    silu_mul(out, gate_up);
  }
  // out[i, :] = x[rows[i], :]                  [S, D]
  virtual void gather_rows(Matrix out, Matrix x, std::span<const int32_t> rows) = 0;
  // Drawing: result `first + i` of the `count` that a step has is what is drawn for rows[i], in host memory, from its row of logits [S, V]:
  // sampling.h. Only where samples(): else the host draws, with the same result. Nothing is waited for; the tokens of later batches may
  // name the results until those of another step are launched.
  virtual bool samples() const { return false; }
  virtual void launch_sample(int32_t /*first*/, int32_t /*count*/, Matrix /*logits*/, std::span<const SampleRow> /*rows*/) { leave_to_host(); }
  // Sends the `count` results to the host, to one of two places (0, 1), behind all that was asked for before; and waits for what was sent
  // to a place last. What comes back is valid until that place is sent to again.
  virtual void send_samples(int /*place*/, int32_t /*count*/) { leave_to_host(); }
  virtual std::span<const SampleResult> wait_samples(int /*place*/) {
    leave_to_host();
    return {};
  }
  // The same for who waits at once: results[i] of rows[i].
  void sample(std::span<SampleResult> results, Matrix logits, std::span<const SampleRow> rows) {
    const auto count = static_cast<int32_t>(results.size());
    launch_sample(0, count, logits, rows);
    send_samples(0, count);
    std::ranges::copy(wait_samples(0), results.begin());
  }

 private:
  static void leave_to_host() { CHECK(false) << "this backend leaves it to the host"; }
};

struct CpuBackendOptions {
  int threads = 0;  // 0: one per physical core that this process may use
  // Inputs of a gemm with weights of bf16, int8 or int4, and of attention over pages of bf16 or int8, are rounded to bf16. REQUIRES cpu_multiplies_bf16().
  bool bf16_activations = false;
};
std::unique_ptr<Backend> make_cpu_backend(const CpuBackendOptions& options);
bool cpu_multiplies_bf16();  // AVX-512 BF16 and VBMI

}  // namespace headroom
