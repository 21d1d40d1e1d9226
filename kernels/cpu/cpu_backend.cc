// The CPU behind the Backend interface: checks shapes, then calls the ops.
#include <cstring>

#include "kernels/backend.h"
#include "kernels/cpu/key_layout.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/packed_weight.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/op_checks.h"

namespace headroom {
namespace {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const CpuBackendOptions& options)
      : pool_(options.threads > 0 ? options.threads : usable_physical_cores()),
        in_pairs_(options.bf16_activations) {
    CHECK(!in_pairs_ || cpu_multiplies_bf16());
  }

  std::string description() const override {
    const int threads = pool_.threads();
    return std::string("cpu: ") + cpu::simd_target_name() + ", " + std::to_string(threads) +
           (threads == 1 ? " thread" : " threads") + (in_pairs_ ? ", bf16 activations" : "");
  }

  std::unique_ptr<Buffer> allocate(size_t bytes) override { return std::make_unique<CpuMemory>(bytes); }
  void copy_in(std::byte* destination, const void* host_source, size_t bytes) override {
    std::memmove(destination, host_source, bytes);
  }
  void copy_out(void* host_destination, const std::byte* source, size_t bytes) override {
    std::memmove(host_destination, source, bytes);
  }
  void copy(std::byte* destination, const std::byte* source, size_t bytes) override {
    std::memmove(destination, source, bytes);
  }
  void synchronize() override {}

  std::unique_ptr<Weight> load_weight(std::span<const HostWeight> parts) override {
    check_load_weight(parts);
    return std::make_unique<PackedWeight>(parts, pool_, weight_memory_, in_pairs_);
  }
  void embedding(Matrix out, const Weight& table, std::span<const int32_t> tokens) override {
    check_embedding(out, table, tokens);
    cpu::embedding(pool_, out, packed(table), tokens);
  }
  void rmsnorm(Matrix out, Matrix x, Vector weight, float eps) override {
    check_rmsnorm(out, x, weight);
    cpu::rmsnorm(pool_, out, x, weight, eps);
  }
  void add_rmsnorm(Matrix out, Matrix residual, Matrix x, Vector weight, float eps) override {
    check_add_rmsnorm(out, residual, x, weight);
    cpu::add_rmsnorm(pool_, out, residual, x, weight, eps);
  }
  void gemm(Matrix out, Matrix x, const Weight& weight, Vector bias) override {
    check_gemm(out, x, weight, bias);
    if (x.rows == 0) return;
    const PackedWeight& w = packed(weight);
    (w.in_pairs() ? cpu::gemm_bf16 : cpu::gemm)(pool_, gemm_scratch_, out, x, w, bias);
  }
  void rope_table(Matrix out, std::span<const int32_t> positions, std::span<const float> inv_freq,
                  float factor) override {
    check_rope_table(out, positions, inv_freq);
    cpu::rope_table(pool_, out, positions, inv_freq, factor);
  }
  int64_t key_element(const KvLayer& layer, int64_t row, int64_t i) const override {
    return cpu::key_element(layer, row, i);
  }
  void rope_kv_write(Matrix qkv, const KvLayer& layer, const BatchView& batch, const RopeKvParams& params) override {
    check_rope_kv_write(qkv, layer, batch, params);
    cpu::rope_kv_write(pool_, qkv, layer, batch, params);
  }
  void paged_attention(Matrix out, Matrix qkv, const KvLayer& layer, const BatchView& batch,
                       const AttentionParams& params) override {
    check_paged_attention(out, qkv, layer, batch, params);
    cpu::paged_attention(pool_, attention_scratch_, out, qkv, layer, batch, params, in_pairs_);
  }
  void silu_mul(Matrix out, Matrix gate_up) override {
    check_silu_mul(out, gate_up);
    cpu::silu_mul(pool_, out, gate_up);
  }
  void gather_rows(Matrix out, Matrix x, std::span<const int32_t> rows) override {
    check_gather_rows(out, x, rows);
    cpu::gather_rows(pool_, out, x, rows);
  }

 private:
  // A weight comes from load_weight of the backend that it is given back to.
  static const PackedWeight& packed(const Weight& weight) { return static_cast<const PackedWeight&>(weight); }

  ThreadPool pool_;
  const bool in_pairs_;  // weights and attention, where their types allow
  CpuMemoryPieces weight_memory_;
  cpu::Scratch gemm_scratch_;
  cpu::AttentionScratch attention_scratch_;
};

}  // namespace

// With the kernels of an older CPU, which tests can ask for, there are none either.
bool cpu_multiplies_bf16() { return cpu::multiplies_bf16_pairs() && std::string_view(cpu::simd_target_name()) == "AVX3"; }

std::unique_ptr<Backend> make_cpu_backend(const CpuBackendOptions& options) {
  return std::make_unique<CpuBackend>(options);
}

}  // namespace headroom
