// Decode attention and gemm alone, through the Backend interface, each beside the bytes per second that a copy within the device
// reaches just before and after. Prints one JSON object per line as soon as it is known.
//
// Usage: gpu_bench attention|gemm|copy [--tiny]      --tiny: sizes for the layer on the CPU, to try the program itself
//
// A time is the median of samples; a sample is many launches in a row, by the host's clock around them and a synchronize, long enough
// that both ends do not count. Caches stay cold: launches take turns over more data than they hold. Contents are random.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "tests/kernels/backend_floats.h"

namespace headroom {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int32_t kQueryHeads = 32, kHeadDim = 128;  // Llama 3 8B
constexpr size_t kColdBytes = size_t{256} << 20;     // more than a device's caches hold

struct Sizes {
  std::vector<int32_t> contexts{8192, 32768, 131072}, batches{1, 16, 64};
  std::vector<std::pair<int64_t, int64_t>> weights{{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}, {128256, 4096}};  // [N, K]
  std::vector<int64_t> rows{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 8192};
  size_t pool_bytes = size_t{40} << 30, copy_bytes = size_t{1} << 30, cold_bytes = kColdBytes;
  double sample_seconds = 5e-3;
  int samples = 15;
};
Sizes tiny() {
  return {.contexts = {40}, .batches = {1}, .weights = {{48, 64}}, .rows = {1, 9}, .pool_bytes = size_t{32} << 20,
          .copy_bytes = size_t{1} << 20, .cold_bytes = size_t{1} << 16, .sample_seconds = 1e-6, .samples = 2};
}

struct Times {
  double median = 0, low = 0, high = 0;
};

class Bench {
 public:
  explicit Bench(Sizes sizes) : sizes_(std::move(sizes)), backend_(make_cuda_backend({})) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    noise_.resize(size_t{1} << 22);
    for (uint16_t& value : noise_) value = f32_to_bf16(normal(random));
  }

  // Bytes read and written per second.
  double copy_rate() {
    const auto from = filled(sizes_.copy_bytes), to = backend_->allocate(sizes_.copy_bytes);
    const Times times = timed([&](int) { backend_->copy(to->data(), from->data(), sizes_.copy_bytes); });
    return 2.0 * static_cast<double>(sizes_.copy_bytes) / times.median;
  }

  void attention() {
    const int64_t free_bytes = backend_->device_memory().value_or(DeviceMemoryState{int64_t{1} << 40, 0}).free_bytes;
    const size_t pool_bytes = std::min(sizes_.pool_bytes, static_cast<size_t>(free_bytes / 10 * 7));
    const auto pool = filled(pool_bytes);
    double before = copy_rate();
    for (const int32_t kv_heads : {32, 8, 1}) {
      for (const int32_t context : sizes_.contexts) {
        for (const int32_t batch : sizes_.batches) {
          for (const auto& [page_tokens, shuffled] : {std::pair{16, true}, {64, true}, {16, false}}) {
            if (!shuffled && (batch != 16 || kv_heads != 8)) continue;
            const size_t bytes = size_t{4} * kv_heads * kHeadDim * static_cast<size_t>(context) * static_cast<size_t>(batch);
            if (bytes > pool_bytes) {
              std::printf("{\"test\": \"attention\", \"kv_heads\": %d, \"context_tokens\": %d, \"batch\": %d, \"page_tokens\": %d, "
                          "\"does_not_fit\": true}\n", kv_heads, context, batch, page_tokens);
              continue;
            }
            const Times times = time_attention(*pool, kv_heads, context, batch, page_tokens, shuffled);
            const double after = copy_rate();
            std::printf("{\"test\": \"attention\", \"kv_heads\": %d, \"context_tokens\": %d, \"batch\": %d, \"page_tokens\": %d, "
                        "\"pages\": \"%s\", \"kv_bytes\": %zu, \"seconds\": %.4e, \"seconds_min\": %.4e, \"seconds_max\": %.4e, "
                        "\"copy_bytes_per_second\": %.5e}\n",
                        kv_heads, context, batch, page_tokens, shuffled ? "shuffled" : "in order", bytes, times.median, times.low,
                        times.high, (before + after) / 2);
            std::fflush(stdout);
            before = after;
          }
        }
      }
    }
  }

  void gemm() {
    double before = copy_rate();
    for (const auto& [outputs, inputs] : sizes_.weights) {
      std::vector<std::unique_ptr<Weight>> weights;
      const std::vector<std::byte> stored = repeated_noise(static_cast<size_t>(outputs * inputs) * 2);
      const HostWeight part{stored.data(), DType::kBF16, outputs, inputs};
      while (weights.size() < 2 || weights.size() * stored.size() < sizes_.cold_bytes) weights.push_back(backend_->load_weight({&part, 1}));
      for (const int64_t rows : sizes_.rows) {
        if (outputs > 100000 && rows > 512) continue;  // an output weight sees no prompt
        std::vector<float> x(static_cast<size_t>(rows * inputs));
        for (size_t i = 0; i < x.size(); ++i) x[i] = bf16_to_f32(noise_[i % (noise_.size() - 1)]);
        const BackendFloats in(*backend_, x);
        const auto out = backend_->allocate(static_cast<size_t>(rows * outputs) * sizeof(float));
        const Times times = timed([&](int i) {
          backend_->gemm({reinterpret_cast<float*>(out->data()), rows, outputs}, in.matrix(rows, inputs),
                         *weights[static_cast<size_t>(i) % weights.size()], {});
        });
        const double after = copy_rate();
        std::printf("{\"test\": \"gemm\", \"outputs\": %lld, \"inputs\": %lld, \"rows\": %lld, \"bytes\": %lld, \"flops\": %.4e, "
                    "\"seconds\": %.4e, \"seconds_min\": %.4e, \"seconds_max\": %.4e, \"copy_bytes_per_second\": %.5e}\n",
                    static_cast<long long>(outputs), static_cast<long long>(inputs), static_cast<long long>(rows),
                    static_cast<long long>(2 * outputs * inputs + 2 * rows * inputs + 4 * rows * outputs),
                    2.0 * static_cast<double>(outputs) * static_cast<double>(inputs) * static_cast<double>(rows), times.median, times.low,
                    times.high, (before + after) / 2);
        std::fflush(stdout);
        before = after;
      }
    }
  }

 private:
  std::vector<std::byte> repeated_noise(size_t bytes) const {
    std::vector<std::byte> values(bytes);
    for (size_t at = 0; at < bytes; at += noise_.size() * 2) {
      std::memcpy(&values[at], noise_.data(), std::min(bytes - at, noise_.size() * 2));
    }
    return values;
  }

  // Memory of the device with noise in it, which doubles until it is full.
  std::unique_ptr<Buffer> filled(size_t bytes) {
    auto buffer = backend_->allocate(bytes);
    size_t done = std::min(bytes, noise_.size() * 2);
    backend_->copy_in(buffer->data(), noise_.data(), done);
    for (; done < bytes; done *= 2) backend_->copy(buffer->data() + done, buffer->data(), std::min(done, bytes - done));
    backend_->synchronize();
    return buffer;
  }

  Times timed(const std::function<void(int)>& launch) {
    int turn = 0;
    const auto sample = [&](int launches) {
      backend_->synchronize();
      const auto start = Clock::now();
      for (int i = 0; i < launches; ++i) launch(turn++);
      backend_->synchronize();
      return std::chrono::duration<double>(Clock::now() - start).count() / launches;
    };
    sample(2);
    const int launches = std::clamp(static_cast<int>(sizes_.sample_seconds / std::max(sample(4), 1e-9)), 2, 2000);
    std::vector<double> seconds;
    for (int i = 0; i < sizes_.samples; ++i) seconds.push_back(sample(launches));
    std::sort(seconds.begin(), seconds.end());
    return {seconds[seconds.size() / 2], seconds.front(), seconds.back()};
  }

  // One layer's decode step: every sequence attends with one token. Layers of a model take turns in the pool.
  Times time_attention(const Buffer& pool, int32_t kv_heads, int32_t context, int32_t batch, int32_t page_tokens, bool shuffled) {
    const int32_t pages_each = (context + page_tokens - 1) / page_tokens, pages = pages_each * batch;
    KvLayer layer{pool.data(), 0, DType::kBF16, kv_heads, page_tokens, kHeadDim};
    layer.page_stride_bytes = layer.page_bytes();
    const size_t layer_bytes = layer.page_stride_bytes * static_cast<size_t>(pages);
    const size_t wanted = std::max<size_t>(1, (4 * sizes_.cold_bytes + layer_bytes - 1) / layer_bytes);
    const size_t layers = std::clamp<size_t>(pool.bytes() / layer_bytes, 1, wanted);
    std::vector<int32_t> tables(static_cast<size_t>(pages)), first_row(static_cast<size_t>(batch) + 1), begin(first_row.size());
    std::iota(tables.begin(), tables.end(), 0);
    if (shuffled) std::shuffle(tables.begin(), tables.end(), std::mt19937(2));
    std::iota(first_row.begin(), first_row.end(), 0);
    for (size_t s = 0; s < begin.size(); ++s) begin[s] = static_cast<int32_t>(s) * pages_each;
    const std::vector<int32_t> tokens(static_cast<size_t>(batch)), positions(static_cast<size_t>(batch), context - 1);
    const BatchView view{batch, tokens, positions, first_row, tables, begin};
    const int64_t cols = int64_t{kQueryHeads + 2 * kv_heads} * kHeadDim, out_cols = int64_t{kQueryHeads} * kHeadDim;
    std::vector<float> qkv(static_cast<size_t>(batch * cols));
    for (size_t i = 0; i < qkv.size(); ++i) qkv[i] = bf16_to_f32(noise_[i % (noise_.size() - 1)]);
    const BackendFloats q(*backend_, qkv);
    const auto out = backend_->allocate(static_cast<size_t>(batch * out_cols) * sizeof(float));
    backend_->begin_step(view);
    return timed([&](int i) {
      KvLayer turn = layer;
      turn.data += (static_cast<size_t>(i) % layers) * layer_bytes;
      backend_->paged_attention({reinterpret_cast<float*>(out->data()), batch, out_cols}, q.matrix(batch, cols), turn, view,
                                {kQueryHeads, kv_heads, kHeadDim, 0.08838834764f, 0});
    });
  }

  Sizes sizes_;
  std::unique_ptr<Backend> backend_;
  std::vector<uint16_t> noise_;
};

int run(const std::string& what, bool is_tiny) {
  Bench bench(is_tiny ? tiny() : Sizes{});
  if (what == "copy") {
    std::printf("{\"test\": \"copy\", \"bytes_per_second\": %.5e}\n", bench.copy_rate());
  } else if (what == "attention") {
    bench.attention();
  } else if (what == "gemm") {
    bench.gemm();
  } else {
    throw std::runtime_error("unknown benchmark '" + what + "'; use attention, gemm or copy");
  }
  return 0;
}

}  // namespace
}  // namespace headroom

int main(int argc, char** argv) {
  try {
    if (argc < 2) throw std::runtime_error("say what to measure: attention, gemm or copy");
    return headroom::run(argv[1], argc > 2 && std::string(argv[2]) == "--tiny");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_bench: %s\n", error.what());
    return 1;
  }
}
