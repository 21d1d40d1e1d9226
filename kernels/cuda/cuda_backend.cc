// CUDA behind the Backend interface: checks shapes, keeps the arrays of a step on the device, calls the ops in one stream.
#include "kernels/cuda/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kernels/cuda/decode_step.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/errors.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/recording.h"
#include "kernels/cuda/work_list.h"
#include "kernels/cuda/workspace_sizes.h"
#include "kernels/op_checks.h"

namespace headroom {
namespace {

using cuda::check_cuda;

constexpr size_t kLoadBytesMax = size_t{64} << 20;  // of a weight on its way to its place
constexpr int32_t kAttentionBlocksPerMultiprocessor = 2;
constexpr float kLog2E = 1.44269504f;

class CudaWeight final : public Weight {
 public:
  CudaWeight(DType dtype, int64_t rows, int64_t cols, int64_t gate_rows, cudaStream_t stream)
      : memory_(static_cast<size_t>(cuda::weight_tiles(rows) * cuda::depth_tiles(cols) * cuda::kWeightTileElements) * 2),
        packed_{reinterpret_cast<const uint16_t*>(memory_.data()), dtype, rows, cols, gate_rows} {
    check_cuda(cudaMemsetAsync(memory_.data(), 0, memory_.bytes(), stream), "cudaMemsetAsync");
  }
  int64_t rows() const override { return packed_.rows; }
  int64_t cols() const override { return packed_.cols; }
  size_t bytes() const override { return memory_.bytes(); }
  const cuda::PackedWeight& packed() const { return packed_; }
  uint16_t* data() { return reinterpret_cast<uint16_t*>(memory_.data()); }

 private:
  cuda::DeviceMemory memory_;
  cuda::PackedWeight packed_;
};

cuda::Rows rows_of(const Matrix& matrix) { return {matrix.data, matrix.rows, matrix.cols, matrix.stride}; }
const float* data_or_null(Vector vector) { return vector.empty() ? nullptr : vector.data(); }

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaBackendOptions& options) : graphs_(options.graphs) {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    multiprocessors_ = options.multiprocessors > 0 ? options.multiprocessors : device_.multiProcessorCount;
    attention_.block_shared_bytes = static_cast<int32_t>(device_.sharedMemPerBlockOptin);
    attention_.grid_blocks =
        options.attention_blocks > 0 ? options.attention_blocks : kAttentionBlocksPerMultiprocessor * multiprocessors_;
  }
  ~CudaBackend() override {
    static_cast<void>(cudaStreamSynchronize(stream_));  // fails only on a device that is lost already
    recordings_.clear();
    static_cast<void>(cudaStreamDestroy(stream_));
  }

  std::string description() const override {
    return std::string("cuda: ") + device_.name + ", " + std::to_string(device_.multiProcessorCount) +
           " multiprocessors, compute capability " + std::to_string(device_.major) + "." + std::to_string(device_.minor);
  }
  bool host_readable() const override { return false; }

  std::optional<DeviceMemoryState> device_memory() const override {
    size_t free_bytes = 0, total_bytes = 0;
    check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
    return DeviceMemoryState{static_cast<int64_t>(free_bytes), static_cast<int64_t>(total_bytes)};
  }
  size_t workspace_bytes(const StepLimits& limits) const override { return cuda::workspace_sizes(limits, multiprocessors_).total(); }
  void reserve(const StepLimits& limits) override {
    const cuda::WorkspaceSizes sizes = cuda::workspace_sizes(limits, multiprocessors_);
    for (cuda::Workspace& packed : packed_) packed.reserve<std::byte>(static_cast<int64_t>(sizes.packed), stream_);
    gemm_partials_.reserve<std::byte>(static_cast<int64_t>(sizes.gemm_partials), stream_);
    gemm_arrivals_.reserve<std::byte>(static_cast<int64_t>(sizes.gemm_arrivals), stream_);
    attention_partials_.reserve<std::byte>(static_cast<int64_t>(sizes.attention_partials), stream_);
    attention_arrivals_.reserve<std::byte>(static_cast<int64_t>(sizes.attention_arrivals), stream_);
    synchronize();
    reserve_samples(static_cast<int64_t>(sizes.samples / sizeof(SampleResult)));
    staging_.reserve(sizes.staging);
    recordings_.clear();
    decode_.emplace(sizes.decode);
    synchronize();
  }
  std::unique_ptr<Buffer> allocate(size_t bytes) override { return std::make_unique<cuda::DeviceMemory>(bytes); }
  std::unique_ptr<Buffer> allocate_host(size_t bytes) override { return std::make_unique<cuda::PinnedMemory>(bytes); }
  void copy_in(std::byte* destination, const void* host_source, size_t bytes) override {
    wrote(destination, bytes);
    check_cuda(cudaMemcpyAsync(destination, host_source, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync to the device");
    synchronize();  // the source may go as soon as this returns
  }
  void copy_out(void* host_destination, const std::byte* source, size_t bytes) override {
    check_cuda(cudaMemcpyAsync(host_destination, source, bytes, cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync to the host");
    synchronize();
  }
  void copy(std::byte* destination, const std::byte* source, size_t bytes) override {
    wrote(destination, bytes);
    check_cuda(cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDeviceToDevice, stream_), "cudaMemcpyAsync within the device");
  }
  void synchronize() override { check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

  void begin_step(const BatchView& batch) override {
    staging_.begin(stream_);
    step_ = {};
    step_.batch = batch;
    step_.tokens = staging_.put(batch.tokens, stream_);
    step_.positions = staging_.put(batch.positions, stream_);
    step_.page_tables = staging_.put(batch.page_tables, stream_);
  }

  // A program's first step shows how its attention is cut; the first step of a bucket, that all its memory and code is there; the second
  // is recorded; all later ones are replayed.
  void run_step(const BatchView& batch, uint64_t program, const std::function<void(const BatchView&)>& ops) override {
    if (program != program_) {
      program_ = program;
      attention_of_program_.reset();
      recordings_.clear();
    }
    if (!graphs_ || !decode_ || !attention_of_program_ || !decode_->takes(batch)) {
      begin_step(batch);
      ops(batch);
      if (step_.attention && step_.attention_cuts == 1) attention_of_program_ = {step_.attention->options, step_.page_tokens};
      return;
    }
    begin_decode_step(batch);
    packed_source_ = {};
    const auto found = recordings_.find(step_.batch.rows);
    if (found == recordings_.end()) {
      ops(step_.batch);
      recordings_.try_emplace(step_.batch.rows);
      return;
    }
    cuda::Recording& recording = found->second;
    if (recording.empty()) recording.record(stream_, [&] { ops(step_.batch); });
    recording.launch(stream_);
    packed_source_ = {};
  }

  std::unique_ptr<Weight> load_weight(std::span<const HostWeight> parts) override { return load(parts, rows_of_all(parts), 0); }
  std::unique_ptr<Weight> load_gate_up(std::span<const HostWeight> parts) override {
    const int64_t rows = rows_of_all(parts);
    CHECK_EQ(rows % 2, 0) << "gate and up have as many rows";
    return load(parts, rows, rows / 2);
  }

  void embedding(Matrix out, const Weight& table, std::span<const int32_t> tokens) override {
    check_embedding(out, table, tokens, drawn_count_);
    CHECK_EQ(packed(table).gate_rows, 0) << "a table's rows lie in order";
    wrote(out);
    cuda::embedding({.out = rows_of(out), .table = packed(table), .tokens = on_device(tokens), .results = drawn_}, stream_);
  }
  void rmsnorm(Matrix out, Matrix x, Vector weight, float eps) override {
    check_rmsnorm(out, x, weight);
    cuda::rmsnorm({.out = rows_of(out), .packed = pack_with(out), .x = rows_of(x), .residual = {}, .weight = weight.data(), .eps = eps},
                  stream_);
  }
  void add_rmsnorm(Matrix out, Matrix residual, Matrix x, Vector weight, float eps) override {
    check_add_rmsnorm(out, residual, x, weight);
    wrote(residual);
    cuda::rmsnorm({.out = rows_of(out),
                   .packed = pack_with(out),
                   .x = rows_of(x),
                   .residual = rows_of(residual),
                   .weight = weight.data(),
                   .eps = eps},
                  stream_);
  }
  void gemm(Matrix out, Matrix x, const Weight& weight, Vector bias) override {
    check_gemm(out, x, weight, bias);
    const uint16_t* packed_x = packed_input(x, packed(weight).dtype);
    wrote(out);
    launch_gemm(out, packed_x, packed(weight), bias, {}, false);
  }
  void gemm_silu_mul(Matrix out, Matrix gate_up, Matrix x, const Weight& weight, Vector bias) override {
    check_gemm_silu_mul(out, gate_up, x, weight, bias);
    const cuda::PackedWeight& w = packed(weight);
    CHECK_EQ(w.gate_rows, out.cols) << "a weight of load_gate_up";
    const uint16_t* packed_x = packed_input(x, w.dtype);
    launch_gemm(out, packed_x, w, bias, pack_with(out), true);
  }
  void rope_table(Matrix out, std::span<const int32_t> positions, std::span<const float> inv_freq, float factor) override {
    check_rope_table(out, positions, inv_freq);
    wrote(out);
    cuda::rope_table({.out = rows_of(out),
                      .positions = on_device(positions),
                      .inv_freq = constant(inv_freq),
                      .factor = factor},
                     stream_);
  }
  void rope_kv_write(Matrix qkv, const KvLayer& layer, const BatchView& batch, const RopeKvParams& params) override {
    check_rope_kv_write(qkv, layer, batch, params);
    wrote(qkv);
    cuda::rope_kv_write({.qkv = rows_of(qkv),
                         .rope = rows_of(params.rope_table),
                         .pages = pages_of(layer),
                         .query_heads = params.query_heads,
                         .row_pages = row_pages(batch, layer.page_tokens),
                         .positions = on_device(batch.positions),
                         .q_norm = data_or_null(params.q_norm),
                         .k_norm = data_or_null(params.k_norm),
                         .norm_eps = params.norm_eps},
                        stream_);
  }
  void paged_attention(Matrix out, Matrix qkv, const KvLayer& layer, const BatchView& batch, const AttentionParams& params) override {
    check_paged_attention(out, qkv, layer, batch, params);
    CHECK(qkv.stride % 2 == 0 && out.stride % 2 == 0) << "rows of qkv and out are read in pairs";
    const AttentionWork& work = attention_work(batch, params);
    cuda::paged_attention({.out = rows_of(out),
                           .packed = pack_with(out),
                           .qkv = rows_of(qkv),
                           .pages = pages_of(layer),
                           .group = params.query_heads / params.kv_heads,
                           .scale_log2 = params.scale * kLog2E,
                           .window_tokens = params.window_tokens,
                           .page_tables = step_.page_tables,
                           .tiles = work.tiles,
                           .units = work.units,
                           .units_of = {work.list.units_of[0], work.list.units_of[1], work.list.units_of[2]},
                           .unit_count = 0,
                           .recorded_unit_count = work.unit_count,
                           .partials = attention_partials_.reserve<float>(work.list.partial_floats, stream_),
                           .arrivals = attention_arrivals_.reserve<int32_t>(
                               static_cast<int64_t>(work.list.tiles.size()) * params.kv_heads, stream_)},
                          attention_, stream_);
  }
  void silu_mul(Matrix out, Matrix gate_up) override {
    check_silu_mul(out, gate_up);
    cuda::silu_mul({.out = rows_of(out), .packed = pack_with(out), .gate_up = rows_of(gate_up)}, stream_);
  }
  void gather_rows(Matrix out, Matrix x, std::span<const int32_t> rows) override {
    check_gather_rows(out, x, rows);
    cuda::gather_rows({.out = rows_of(out), .packed = pack_with(out), .x = rows_of(x), .rows = on_device(rows)}, stream_);
  }
  bool samples() const override { return true; }
  void launch_sample(int32_t first, int32_t count, Matrix logits, std::span<const SampleRow> rows) override {
    check_sample(first, count, logits, rows);
    reserve_samples(count);
    drawn_count_ = count;
    cuda::sample({.logits = logits.data,
                  .stride = logits.stride,
                  .vocab = static_cast<int32_t>(logits.cols),
                  .count = static_cast<int32_t>(rows.size()),
                  .rows = staging_.put(rows, stream_),
                  .results = drawn_ + first},
                 stream_);
  }
  void send_samples(int place, int32_t count) override {
    reserve_samples(count);
    SentSamples& sent = sent_[place];
    sent.count = static_cast<size_t>(count);
    if (count > 0) {
      check_cuda(cudaMemcpyAsync(sent.memory->data(), drawn_, sent.count * sizeof(SampleResult), cudaMemcpyDeviceToHost, stream_),
                 "cudaMemcpyAsync of samples");
    }
    sent.there.record(stream_);
  }
  std::span<const SampleResult> wait_samples(int place) override {
    sent_[place].there.wait();
    return {reinterpret_cast<const SampleResult*>(sent_[place].memory->data()), sent_[place].count};
  }

 private:
  // The attention calls of a step that are cut alike: all layers of most models.
  struct AttentionWork {
    cuda::WorkListOptions options;
    cuda::WorkList list;
    const cuda::AttentionTile* tiles = nullptr;
    const cuda::AttentionUnit* units = nullptr;
    const int32_t* unit_count = nullptr;  // where a recorded launch reads it
  };
  struct Constant {
    std::vector<float> values;
    std::unique_ptr<cuda::DeviceMemory> memory;
  };
  // What begin_step and the first op that needs it brought to the device.
  struct Step {
    BatchView batch;
    bool is_decode = false;  // its arrays are those of decode_
    const int32_t* tokens = nullptr;
    const int32_t* positions = nullptr;
    const int32_t* page_tables = nullptr;
    int32_t page_tokens = 0;
    const int32_t* row_pages = nullptr;
    std::optional<AttentionWork> attention;
    int32_t attention_cuts = 0;  // how often it was made; more than once where layers differ
  };

  static cudaDeviceProp properties() {
    cudaDeviceProp device{};
    check_cuda(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
    return device;
  }

  // Room for so many results, on the device and at both places of the host, which keep what they have.
  void reserve_samples(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(SampleResult);
    if (sent_[0].memory != nullptr && bytes <= sent_[0].memory->bytes()) return;
    synchronize();
    recordings_.clear();  // they know where the tokens are
    drawn_ = samples_.reserve<SampleResult>(count, stream_);
    for (SentSamples& sent : sent_) {
      const auto before = std::exchange(sent.memory, std::make_unique<cuda::PinnedMemory>(std::max<size_t>(bytes, 1)));
      if (before != nullptr) std::memcpy(sent.memory->data(), before->data(), before->bytes());
    }
  }

  // A weight comes from load_weight of the backend that it is given back to.
  static const cuda::PackedWeight& packed(const Weight& weight) { return static_cast<const CudaWeight&>(weight).packed(); }

  static cuda::Pages pages_of(const KvLayer& layer) {
    CHECK(layer.dtype != DType::kF32) << "the CUDA backend keeps KV in bf16, fp16 or int8";
    CHECK(layer.dtype != DType::kI8 || layer.head_dim % cuda::kChunkBytes == 0) << "a head of int8 is whole chunks of 16 bytes";
    return {layer.data, layer.page_stride_bytes, layer.dtype, layer.kv_heads, layer.page_tokens, layer.head_dim};
  }

  static int64_t rows_of_all(std::span<const HostWeight> parts) {
    check_load_weight(parts);
    int64_t rows = 0;
    for (const HostWeight& part : parts) {
      if (part.dtype == DType::kF32 || part.dtype != parts.front().dtype) {
        throw std::runtime_error("the CUDA backend takes weights in bf16 or fp16, all parts in the same type: use --device cpu");
      }
      rows += part.rows;
    }
    return rows;
  }

  std::unique_ptr<CudaWeight> load(std::span<const HostWeight> parts, int64_t rows, int64_t gate_rows) {
    weight_type_ = parts.front().dtype;
    auto weight = std::make_unique<CudaWeight>(weight_type_, rows, parts.front().cols, gate_rows, stream_);
    cuda::Workspace stored_rows;
    int64_t first_row = 0;
    for (const HostWeight& part : parts) {
      const size_t row_bytes = static_cast<size_t>(part.cols) * 2;
      const auto rows_at_once = static_cast<int64_t>(std::max<size_t>(1, kLoadBytesMax / row_bytes));
      for (int64_t row = 0; row < part.rows; row += rows_at_once) {
        const int64_t slice_rows = std::min(rows_at_once, part.rows - row);
        const size_t bytes = static_cast<size_t>(slice_rows) * row_bytes;
        auto* stored = stored_rows.reserve<std::byte>(static_cast<int64_t>(bytes), stream_);
        copy_in(stored, static_cast<const std::byte*>(part.data) + static_cast<size_t>(row) * row_bytes, bytes);
        cuda::pack_weight({.to = weight->data(),
                           .from = reinterpret_cast<const uint16_t*>(stored),
                           .first_row = first_row,
                           .rows = slice_rows,
                           .cols = part.cols,
                           .gate_rows = gate_rows},
                          stream_);
        first_row += slice_rows;
      }
    }
    synchronize();  // other backends may read it from now on
    return weight;
  }

  void launch_gemm(const Matrix& out, const uint16_t* packed_x, const cuda::PackedWeight& weight, Vector bias, cuda::Packed packed_out,
                   bool silu_mul) {
    cuda::gemm({.out = rows_of(out),
                .x = packed_x,
                .weight = weight,
                .bias = data_or_null(bias),
                .silu_mul = silu_mul,
                .packed = packed_out,
                .partials = gemm_partials_.reserve<float>(
                    cuda::gemm_partial_floats(out.rows, weight.rows, weight.cols, multiprocessors_), stream_),
                .arrivals = gemm_arrivals_.reserve<int32_t>(cuda::gemm_tiles(out.rows, weight.rows), stream_),
                .multiprocessors = multiprocessors_},
               stream_);
  }

  // The next step has its arrays where recordings look for them.
  void begin_decode_step(const BatchView& batch) {
    staging_.begin(stream_);
    const auto& [options, page_tokens] = *attention_of_program_;
    decode_->put(batch, options, page_tokens, stream_);
    step_ = {.batch = decode_->batch(),
             .is_decode = true,
             .tokens = decode_->tokens(),
             .positions = decode_->positions(),
             .page_tables = decode_->page_tables(),
             .page_tokens = page_tokens,
             .row_pages = decode_->row_pages(),
             .attention = AttentionWork{.options = options,
                                        .list = decode_->work(),
                                        .tiles = decode_->tiles(),
                                        .units = decode_->units(),
                                        .unit_count = decode_->unit_count()}};
  }

  // Copies what is the same in all steps once.
  const float* constant(std::span<const float> values) {
    for (const Constant& known : constants_) {
      if (std::ranges::equal(known.values, values)) return reinterpret_cast<const float*>(known.memory->data());
    }
    auto memory = std::make_unique<cuda::DeviceMemory>(values.size_bytes());
    copy_in(memory->data(), values.data(), values.size_bytes());
    constants_.push_back({{values.begin(), values.end()}, std::move(memory)});
    return reinterpret_cast<const float*>(constants_.back().memory->data());
  }

  const int32_t* on_device(std::span<const int32_t> values) {
    if (values.data() == step_.batch.tokens.data() && values.size() == step_.batch.tokens.size()) return step_.tokens;
    if (values.data() == step_.batch.positions.data() && values.size() == step_.batch.positions.size()) return step_.positions;
    return staging_.put(values, stream_);
  }

  void check_begun(const BatchView& batch) const {
    CHECK(batch.positions.data() == step_.batch.positions.data() && batch.rows == step_.batch.rows &&
          batch.page_tables.data() == step_.batch.page_tables.data())
        << "begin_step comes before the ops that take the batch";
  }

  // The page that each row writes to.
  const int32_t* row_pages(const BatchView& batch, int32_t page_tokens) {
    check_begun(batch);
    if (step_.page_tokens == page_tokens) return step_.row_pages;
    std::vector<int32_t> pages;
    for (size_t s = 0; s + 1 < batch.sequence_first_row.size(); ++s) {
      for (int32_t row = batch.sequence_first_row[s]; row < batch.sequence_first_row[s + 1]; ++row) {
        const int32_t position = batch.positions[static_cast<size_t>(row)];
        if (position < 0) {  // padding
          pages.push_back(-1);
          continue;
        }
        const int32_t entry = batch.page_table_begin[s] + position / page_tokens;
        pages.push_back(batch.page_tables[static_cast<size_t>(entry)]);
        CHECK_GE(pages.back(), 0) << "a row's own page must be there";
      }
    }
    step_.page_tokens = page_tokens;
    step_.row_pages = staging_.put(std::span<const int32_t>(pages), stream_);
    return step_.row_pages;
  }

  const AttentionWork& attention_work(const BatchView& batch, const AttentionParams& params) {
    check_begun(batch);
    const cuda::WorkListOptions options{.group = params.query_heads / params.kv_heads,
                                        .kv_heads = params.kv_heads,
                                        .head_dim = params.head_dim,
                                        .window_tokens = params.window_tokens,
                                        .grid_blocks = attention_.grid_blocks,
                                        .partial_floats_max = cuda::kPartialFloatsMax};
    if (!step_.attention || step_.attention->options != options) {
      CHECK(!step_.is_decode) << "a program's layers cut attention as its first step showed";
      ++step_.attention_cuts;
      AttentionWork& work = step_.attention.emplace(AttentionWork{.options = options, .list = {}});
      cuda::make_work_list(batch, options, work.list);
      work.tiles = staging_.put(std::span<const cuda::AttentionTile>(work.list.tiles), stream_);
      work.units = staging_.put(std::span<const cuda::AttentionUnit>(work.list.units), stream_);
    }
    return *step_.attention;
  }

  // ---- The packed form of the matrix that was made last: what the next gemm reads. Two places in turn, as a gemm that reads one form
  // may write the next.
  cuda::Packed pack_with(const Matrix& out) { return pack_with(out, weight_type_); }
  cuda::Packed pack_with(const Matrix& source, DType dtype) {
    const int64_t elements = cuda::token_tiles(source.rows) * cuda::depth_tiles(source.cols) * cuda::kTokenTileElements;
    packed_turn_ ^= 1;
    packed_x_ = packed_[packed_turn_].reserve<uint16_t>(elements, stream_);
    packed_source_ = source;
    packed_type_ = dtype;
    return {packed_x_, dtype, source.cols};
  }
  // What gemm reads for x.
  const uint16_t* packed_input(const Matrix& x, DType dtype) {
    if (!is_packed(x, dtype)) {
      cuda::gather_rows({.out = {nullptr, x.rows, x.cols, 0}, .packed = pack_with(x, dtype), .x = rows_of(x), .rows = nullptr}, stream_);
    }
    return packed_x_;
  }
  bool is_packed(const Matrix& x, DType dtype) const {
    return packed_source_.data == x.data && packed_source_.rows == x.rows && packed_source_.cols == x.cols &&
           packed_source_.stride == x.stride && packed_type_ == dtype && x.data != nullptr;
  }
  void wrote(const Matrix& matrix) {
    wrote(matrix.data, static_cast<size_t>(std::max<int64_t>(matrix.rows * matrix.stride, 0)) * sizeof(float));
  }
  void wrote(const void* begin, size_t bytes) {
    const auto* first = static_cast<const std::byte*>(begin);
    const auto* source = reinterpret_cast<const std::byte*>(packed_source_.data);
    const auto source_bytes = static_cast<size_t>(packed_source_.rows * packed_source_.stride) * sizeof(float);
    if (first < source + source_bytes && source < first + bytes) packed_source_ = {};
  }

  const cudaDeviceProp device_ = properties();  // asked before anything else is
  cudaStream_t stream_ = nullptr;
  int32_t multiprocessors_ = 1;
  cuda::AttentionDevice attention_;
  const bool graphs_;
  cuda::Staging staging_;
  Step step_;
  // Steps that are recorded and replayed.
  std::optional<cuda::DecodeStep> decode_;  // from reserve() on
  uint64_t program_ = 0;                    // that the following is of
  std::optional<std::pair<cuda::WorkListOptions, int32_t>> attention_of_program_;  // and the page_tokens
  std::map<int32_t, cuda::Recording> recordings_;                                  // by the rows of a bucket
  std::vector<Constant> constants_;

  // What was drawn last, and what of it and of the step before is on its way to the host.
  struct SentSamples {
    std::unique_ptr<cuda::PinnedMemory> memory;
    size_t count = 0;
    cuda::Event there;
  };
  SampleResult* drawn_ = nullptr;
  int32_t drawn_count_ = 0;
  SentSamples sent_[2];

  cuda::Workspace packed_[2], gemm_partials_, gemm_arrivals_, attention_partials_, attention_arrivals_, samples_;
  DType weight_type_ = DType::kBF16;
  size_t packed_turn_ = 0;
  uint16_t* packed_x_ = nullptr;
  Matrix packed_source_;
  DType packed_type_ = DType::kBF16;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options) {
  // All kernels are taken to the device now instead of each at its first launch: once the pool is taken there may be no room for them. Read by
  // the runtime's first call, which is the next one.
  setenv("CUDA_MODULE_LOADING", "EAGER", 0);
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) throw std::runtime_error(std::string("no CUDA device: ") + cudaGetErrorString(error));
  if (devices == 0) throw std::runtime_error("no CUDA device: the driver lists none");
  return std::make_unique<CudaBackend>(options);
}

}  // namespace headroom
