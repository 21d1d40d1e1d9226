// A backend that hands every op on to another one: the base of those that watch a forward pass. What is several ops in one (run_step,
// gemm_silu_mul) stays the base's, so that each op is seen. The engine never runs through it, so that watching costs a served request
// nothing. Same thread rules as the backend behind it, which must outlive it.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "kernels/backend.h"

namespace headroom {

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(Backend& inner) : inner_(inner) {}

  std::string description() const override { return inner_.description(); }
  bool host_readable() const override { return inner_.host_readable(); }
  std::optional<DeviceMemoryState> device_memory() const override { return inner_.device_memory(); }
  size_t workspace_bytes(const StepLimits& limits) const override { return inner_.workspace_bytes(limits); }
  void reserve(const StepLimits& limits) override { inner_.reserve(limits); }
  std::unique_ptr<Buffer> allocate_host(size_t bytes) override { return inner_.allocate_host(bytes); }
  std::unique_ptr<Buffer> allocate(size_t bytes) override { return inner_.allocate(bytes); }
  void copy_in(std::byte* destination, const void* host_source, size_t bytes) override {
    inner_.copy_in(destination, host_source, bytes);
  }
  void copy_out(void* host_destination, const std::byte* source, size_t bytes) override {
    inner_.copy_out(host_destination, source, bytes);
  }
  void copy(std::byte* destination, const std::byte* source, size_t bytes) override {
    inner_.copy(destination, source, bytes);
  }
  void synchronize() override { inner_.synchronize(); }
  void begin_step(const BatchView& batch) override { inner_.begin_step(batch); }
  std::unique_ptr<Weight> load_weight(std::span<const HostWeight> parts) override { return inner_.load_weight(parts); }
  std::unique_ptr<Weight> load_gate_up(std::span<const HostWeight> parts) override { return inner_.load_gate_up(parts); }
  void embedding(Matrix out, const Weight& table, std::span<const int32_t> tokens) override {
    inner_.embedding(out, table, tokens);
  }
  void rmsnorm(Matrix out, Matrix x, Vector weight, float eps) override { inner_.rmsnorm(out, x, weight, eps); }
  void add_rmsnorm(Matrix out, Matrix residual, Matrix x, Vector weight, float eps) override {
    inner_.add_rmsnorm(out, residual, x, weight, eps);
  }
  void gemm(Matrix out, Matrix x, const Weight& weight, Vector bias) override { inner_.gemm(out, x, weight, bias); }
  void rope_table(Matrix out, std::span<const int32_t> positions, std::span<const float> inv_freq,
                  float factor) override {
    inner_.rope_table(out, positions, inv_freq, factor);
  }
  void rope_kv_write(Matrix qkv, const KvLayer& layer, const BatchView& batch, const RopeKvParams& params) override {
    inner_.rope_kv_write(qkv, layer, batch, params);
  }
  int64_t key_element(const KvLayer& layer, int64_t row, int64_t i) const override { return inner_.key_element(layer, row, i); }
  void paged_attention(Matrix out, Matrix qkv, const KvLayer& layer, const BatchView& batch,
                       const AttentionParams& params) override {
    inner_.paged_attention(out, qkv, layer, batch, params);
  }
  void silu_mul(Matrix out, Matrix gate_up) override { inner_.silu_mul(out, gate_up); }
  void gather_rows(Matrix out, Matrix x, std::span<const int32_t> rows) override { inner_.gather_rows(out, x, rows); }
  bool samples() const override { return inner_.samples(); }
  void launch_sample(int32_t first, int32_t count, Matrix logits, std::span<const SampleRow> rows) override {
    inner_.launch_sample(first, count, logits, rows);
  }
  void send_samples(int place, int32_t count) override { inner_.send_samples(place, count); }
  std::span<const SampleResult> wait_samples(int place) override { return inner_.wait_samples(place); }

 protected:
  Backend& inner_;
};

}  // namespace headroom
