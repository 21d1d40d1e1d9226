// A backend whose k-th call fails, as a device can: out of memory, lost, wrong numbers, or no answer. All else is the backend inside.
#pragma once

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "kernels/backend.h"

namespace headroom {

enum class Fault { none, out_of_memory, sticky, nan, hang };

// Shared with the test, which arms it while no step runs. Calls are counted from then on.
struct FaultPlan {
  Fault fault = Fault::none;
  int64_t at_call = -1;
  bool from_first_step = false;  // calls count from there; else all
  std::atomic<int64_t> calls{0};
  std::atomic<bool> hanging{false};
  std::atomic<bool> released{false};  // lets a call that hangs go on
  std::string op;                     // that was hit
};

class FaultyBackend final : public Backend {
 public:
  FaultyBackend(std::unique_ptr<Backend> inside, std::shared_ptr<FaultPlan> plan) : inside_(std::move(inside)), plan_(std::move(plan)) {}

  std::string description() const override { return "faulty " + inside_->description(); }
  bool host_readable() const override { return inside_->host_readable(); }
  std::optional<DeviceMemoryState> device_memory() const override { return inside_->device_memory(); }
  size_t workspace_bytes(const StepLimits& limits) const override { return inside_->workspace_bytes(limits); }
  void reserve(const StepLimits& limits) override { inside_->reserve(limits); }
  std::unique_ptr<Buffer> allocate_host(size_t bytes) override { return inside_->allocate_host(bytes); }
  std::unique_ptr<Buffer> allocate(size_t bytes) override { return inside_->allocate(bytes); }
  std::unique_ptr<Weight> load_weight(std::span<const HostWeight> parts) override { return inside_->load_weight(parts); }
  std::unique_ptr<Weight> load_gate_up(std::span<const HostWeight> parts) override { return inside_->load_gate_up(parts); }
  void copy_in(std::byte* to, const void* from, size_t bytes) override {
    before("copy_in");
    inside_->copy_in(to, from, bytes);
  }
  void copy_out(void* to, const std::byte* from, size_t bytes) override {
    before("copy_out");
    inside_->copy_out(to, from, bytes);
  }
  void copy(std::byte* to, const std::byte* from, size_t bytes) override {
    before("copy");
    inside_->copy(to, from, bytes);
  }
  void synchronize() override {
    before("synchronize");
    inside_->synchronize();
  }
  void begin_step(const BatchView& batch) override {
    if (!stepped_ && plan_->from_first_step) plan_->calls = 0;
    stepped_ = true;
    before("begin_step");
    inside_->begin_step(batch);
  }
  void embedding(Matrix out, const Weight& table, std::span<const int32_t> tokens) override {
    run("embedding", out, [&] { inside_->embedding(out, table, tokens); });
  }
  void rmsnorm(Matrix out, Matrix x, Vector weight, float eps) override {
    run("rmsnorm", out, [&] { inside_->rmsnorm(out, x, weight, eps); });
  }
  void add_rmsnorm(Matrix out, Matrix residual, Matrix x, Vector weight, float eps) override {
    run("add_rmsnorm", out, [&] { inside_->add_rmsnorm(out, residual, x, weight, eps); });
  }
  void gemm(Matrix out, Matrix x, const Weight& weight, Vector bias) override {
    run("gemm", out, [&] { inside_->gemm(out, x, weight, bias); });
  }
  void rope_table(Matrix out, std::span<const int32_t> positions, std::span<const float> inv_freq, float factor) override {
    run("rope_table", out, [&] { inside_->rope_table(out, positions, inv_freq, factor); });
  }
  void rope_kv_write(Matrix qkv, const KvLayer& layer, const BatchView& batch, const RopeKvParams& params) override {
    run("rope_kv_write", qkv, [&] { inside_->rope_kv_write(qkv, layer, batch, params); });
  }
  void paged_attention(Matrix out, Matrix qkv, const KvLayer& layer, const BatchView& batch, const AttentionParams& params) override {
    run("paged_attention", out, [&] { inside_->paged_attention(out, qkv, layer, batch, params); });
  }
  void silu_mul(Matrix out, Matrix gate_up) override {
    run("silu_mul", out, [&] { inside_->silu_mul(out, gate_up); });
  }
  void gemm_silu_mul(Matrix out, Matrix gate_up, Matrix x, const Weight& weight, Vector bias) override {
    run("gemm_silu_mul", out, [&] { inside_->gemm_silu_mul(out, gate_up, x, weight, bias); });
  }
  void gather_rows(Matrix out, Matrix x, std::span<const int32_t> rows) override {
    run("gather_rows", out, [&] { inside_->gather_rows(out, x, rows); });
  }
  bool samples() const override { return inside_->samples(); }
  void launch_sample(int32_t first, int32_t count, Matrix logits, std::span<const SampleRow> rows) override {
    if (before("launch_sample")) std::fill_n(logits.row(0), logits.cols, std::numeric_limits<float>::quiet_NaN());
    inside_->launch_sample(first, count, logits, rows);
  }
  void send_samples(int place, int32_t count) override {
    before("send_samples");
    inside_->send_samples(place, count);
  }
  std::span<const SampleResult> wait_samples(int place) override {
    before("wait_samples");
    return inside_->wait_samples(place);
  }

 private:
  // True where this call's numbers shall be wrong.
  bool before(const char* op) {
    if (plan_->from_first_step && !stepped_) return false;
    if (plan_->calls.fetch_add(1) != plan_->at_call) return false;
    plan_->op = op;
    switch (plan_->fault) {
      case Fault::none:
        return false;
      case Fault::out_of_memory:
        throw BackendError(BackendError::Kind::out_of_memory, std::string(op) + ": injected");
      case Fault::sticky:
        throw BackendError(BackendError::Kind::sticky, std::string(op) + ": injected");
      case Fault::nan:
        return true;
      case Fault::hang:
        plan_->hanging = true;
        plan_->hanging.notify_all();
        plan_->released.wait(false);
        return false;
    }
    return false;
  }
  template <class Op>
  void run(const char* name, Matrix out, const Op& op) {
    const bool wrong = before(name);
    op();
    if (wrong) std::fill_n(out.row(0), out.cols, std::numeric_limits<float>::quiet_NaN());
  }

  std::unique_ptr<Backend> inside_;
  std::shared_ptr<FaultPlan> plan_;
  bool stepped_ = false;
};

}  // namespace headroom
