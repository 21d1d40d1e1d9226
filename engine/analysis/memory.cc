#include "engine/analysis/memory.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "engine/engine.h"
#include "engine/transformer_runner.h"
#include "kernels/check.h"

namespace headroom {
namespace {

constexpr int32_t kStepTokens = 512;
constexpr int32_t kGeneratedTokens = 8;  // or fewer: the rest of the positions is prompt
constexpr std::chrono::seconds kEventSecondsMax{300};

// What no page that was written holds, element by element: NaN, and in int8 a number beyond its 127.
std::vector<std::byte> blank_page(const KvLayer& layer) {
  std::vector<std::byte> page(layer.page_bytes(), std::byte{0xFF});
  if (layer.dtype == DType::kI8) std::fill_n(page.begin(), layer.scales_offset(), std::byte{0x80});
  return page;
}

// Calls visit(page's bytes in the pool) for every page of every layer.
template <typename Visit>
void for_each_page(const KvCache& cache, const Visit& visit) {
  for (const KvLayer& layer : cache.layers()) {
    for (int64_t p = 0; p < cache.pages(); ++p) visit(layer.data + static_cast<size_t>(p) * layer.page_stride_bytes);
  }
}

// Bytes of the pool that are no longer blank, in whole elements and scales.
int64_t written_bytes(const KvCache& cache, Backend& backend) {
  const KvLayer& layer = cache.layers().front();
  const std::vector<std::byte> blank = blank_page(layer);
  std::vector<std::byte> page(blank.size());
  size_t bytes = 0;
  for_each_page(cache, [&](const std::byte* at_page) {
    backend.copy_out(page.data(), at_page, page.size());
    for (size_t at = 0, width = 0; at < page.size(); at += width) {
      width = at < layer.scales_offset() ? dtype_bytes(layer.dtype) : sizeof(float);
      if (std::memcmp(&page[at], &blank[at], width) != 0) bytes += width;
    }
  });
  return static_cast<int64_t>(bytes);
}

Finished wait_for_end(TokenStream& stream) {
  while (std::optional<StreamEvent> event = stream.next(kEventSecondsMax)) {
    if (const auto* finished = std::get_if<Finished>(&*event)) return *finished;
  }
  throw std::runtime_error("the model gave no token for five minutes: choose a smaller one");
}

}  // namespace

CacheMeasurement measure_cache(const VariantModel& model, const BackendMaker& make_backend, DType kv_dtype,
                               int32_t page_tokens, int32_t tokens) {
  const ModelConfig& config = model.config;
  CHECK_GT(tokens, 1);
  CHECK_LT(tokens, config.context_tokens);
  CHECK_EQ(config.window_tokens, 0);
  const KvShape shape = kv_shape(config, kv_dtype, page_tokens);
  const int64_t pages = pages_for_tokens(tokens, page_tokens) + 3;  // a few that must stay untouched
  CacheMeasurement result{.kv_heads = config.kv_heads,
                          .tokens = tokens,
                          .token_bytes = shape.token_bytes(),
                          .mha_token_bytes = shape.mha_token_bytes(),
                          .pool_bytes = plan_capacity(shape, pages * shape.page_bytes(), tokens).pool_bytes,
                          .request_pages = pages_for_tokens(tokens, page_tokens),
                          .page_bytes = shape.page_bytes(),
                          .written_bytes_predicted = tokens * shape.token_bytes()};

  auto backend = make_backend();
  Backend& memory = *backend;
  auto owned_cache = std::make_unique<KvCache>(shape, pages, memory);
  KvCache& cache = *owned_cache;
  result.pool_bytes_allocated = cache.pool_bytes();
  const std::vector<std::byte> blank = blank_page(cache.layers().front());
  for_each_page(cache, [&](std::byte* at_page) { memory.copy_in(at_page, blank.data(), blank.size()); });
  auto transformer = std::make_unique<Transformer>(
      config, model.weights, memory,
      TransformerOptions{
          .step_tokens_max = kStepTokens, .logits_rows_max = 1, .served_context_tokens = config.context_tokens});
  EngineOptions options;
  options.scheduler.pages_total = pages;
  options.scheduler.page_tokens = page_tokens;
  options.scheduler.step_tokens_max = kStepTokens;
  options.scheduler.context_tokens_max = config.context_tokens;
  options.scheduler.prefix_cache = false;
  Engine engine(
      options, shape,
      std::make_unique<TransformerRunner>(std::move(backend), std::move(owned_cache), std::move(transformer), 1),
      nullptr);

  GenerateRequest request;
  request.generated_tokens_max = std::min(kGeneratedTokens, tokens - 1);
  request.ignore_eos = true;
  request.sampling.temperature = 0;
  // The last token that is generated is never computed: it has no K and V.
  const int32_t prompt_tokens = tokens + 1 - request.generated_tokens_max;
  for (int32_t t = 0; t < prompt_tokens; ++t) request.prompt.push_back(t % config.vocab_size);
  const Engine::SubmitResult submitted = engine.submit(std::move(request));
  if (const auto* error = std::get_if<SubmitError>(&submitted)) throw std::runtime_error(error->message);
  const Finished finished = wait_for_end(*std::get<std::shared_ptr<TokenStream>>(submitted));
  if (finished.reason != FinishReason::length) throw std::runtime_error("a request failed: " + finished.message);
  result.request_pages_held = finished.usage.kv_pages;
  result.written_bytes = written_bytes(cache, memory);
  return result;
}

}  // namespace headroom
