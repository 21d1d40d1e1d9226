// What a type of weights, KV pages or activations costs in quality: prints one JSON object for each combination, against bf16 for weights
// and KV with activations of fp32. Activations of bf16 are left out where the CPU does not multiply them.
//
//   quality MODEL CASES.json    MODEL: a directory or a GGUF file. Cases: {"stories": [text], "recalls": [[prompt, word]]}.
//   quality --shape CONFIG      random weights and random tokens: the difference of logits alone.
// tests/quality/quality.py makes the cases for the demo models, and the table.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "engine/kv/kv_cache.h"
#include "engine/model/open_model.h"
#include "engine/model/transformer.h"
#include "engine/tokenizer/gguf_vocabulary.h"
#include "engine/tokenizer/tokenizer.h"

namespace headroom {
namespace {

using Json = nlohmann::json;
constexpr int32_t kPageTokens = 16;

struct Types {
  DType weights, kv;
  bool bf16_activations = false;
};
constexpr Types kReference{DType::kBF16, DType::kBF16};
constexpr Types kCompared[] = {kReference,
                               {DType::kF16, DType::kBF16},
                               {DType::kI8, DType::kBF16},
                               {DType::kI4, DType::kBF16},
                               {DType::kBF16, DType::kF32},
                               {DType::kBF16, DType::kF16},
                               {DType::kBF16, DType::kI8},
                               {DType::kI8, DType::kI8},
                               {DType::kI4, DType::kI8},
                               {DType::kBF16, DType::kBF16, true},
                               {DType::kI8, DType::kBF16, true},
                               {DType::kI4, DType::kBF16, true},
                               {DType::kI8, DType::kI8, true}};

struct Texts {
  std::vector<std::vector<int32_t>> stories;
  struct Recall {
    std::vector<int32_t> prompt;
    int32_t answer;
  };
  std::vector<Recall> recalls;
};

// One model with one pair of types.
class Subject {
 public:
  Subject(const ModelConfig& config, const TensorStore* tensors, Types types, int32_t tokens_max)
      : config_(config), kv_(types.kv), tokens_max_(tokens_max), backend_(make_cpu_backend({.bf16_activations = types.bf16_activations})) {
    auto weights = tensors != nullptr ? load_weights(*tensors, config, *backend_, {}, WeightTypes::of(types.weights))
                                      : random_weights(config, types.weights, 1, *backend_);
    bytes_ = weights->bytes;
    transformer_ = std::make_unique<Transformer>(
        config, std::move(weights), *backend_,
        TransformerOptions{.step_tokens_max = tokens_max, .logits_rows_max = tokens_max, .served_context_tokens = config.context_tokens});
  }

  size_t weight_bytes() const { return bytes_; }

  // Logits [T, V] of a text; valid until the next call.
  Matrix run(std::span<const int32_t> tokens) {
    const auto count = static_cast<int32_t>(tokens.size());
    std::vector<int32_t> positions(tokens.size()), pages(static_cast<size_t>(pages_for_tokens(count, kPageTokens)));
    std::iota(positions.begin(), positions.end(), 0);
    std::iota(pages.begin(), pages.end(), 0);
    const int32_t first_row[] = {0, count}, table_begin[] = {0, static_cast<int32_t>(pages.size())};
    const KvCache cache(kv_shape(config_, kv_, kPageTokens), static_cast<int64_t>(pages.size()), *backend_);
    transformer_->forward({count, tokens, positions, first_row, pages, table_begin}, cache.layers());
    return transformer_->logits(positions);
  }

 private:
  ModelConfig config_;
  DType kv_;
  int32_t tokens_max_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Transformer> transformer_;
  size_t bytes_ = 0;
};

std::vector<double> log_probabilities(const float* logits, int64_t vocab) {
  const double largest = *std::max_element(logits, logits + vocab);
  double sum = 0.0;
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(logits[i] - largest);
  std::vector<double> result(static_cast<size_t>(vocab));
  for (int64_t i = 0; i < vocab; ++i) result[static_cast<size_t>(i)] = logits[i] - largest - std::log(sum);
  return result;
}

int64_t best_of(const float* logits, int64_t vocab) { return std::max_element(logits, logits + vocab) - logits; }

// Of all rows of the stories: loss, how often the likeliest token is that of the reference, and KL(reference ‖ subject).
struct Comparison {
  double loss = 0, kl = 0, kl_max = 0;
  double noise_gain = 0;  // sum over rows of the variance of the reference's logits · (1 − sum of its squared probabilities)
  int64_t predicted = 0, rows = 0, agreed = 0;

  // `expected`: the reference's logits.
  void add(Subject& subject, const std::vector<float>& expected, const std::vector<int32_t>& story) {
    const Matrix logits = subject.run(story);
    for (int64_t t = 0; t < logits.rows; ++t) {
      const float* expected_row = expected.data() + t * logits.cols;
      const std::vector<double> p = log_probabilities(expected_row, logits.cols), q = log_probabilities(logits.row(t), logits.cols);
      double divergence = 0.0, sum = 0.0, square = 0.0, collision = 0.0;
      for (size_t i = 0; i < p.size(); ++i) {
        const double share = std::exp(p[i]);
        divergence += share * (p[i] - q[i]);
        collision += share * share;
        sum += p[i];
        square += p[i] * p[i];
      }
      kl += divergence;
      const auto vocab = static_cast<double>(p.size());
      noise_gain += (square / vocab - sum / vocab * (sum / vocab)) * (1 - collision);
      kl_max = std::max(kl_max, divergence);
      agreed += best_of(expected_row, logits.cols) == best_of(logits.row(t), logits.cols);
      ++rows;
      if (t + 1 == logits.rows) continue;
      loss -= q[static_cast<size_t>(story[static_cast<size_t>(t) + 1])];
      ++predicted;
    }
  }
};

Json compare(const ModelConfig& config, const TensorStore* tensors, const Texts& texts) {
  size_t longest = 1;
  for (const auto& story : texts.stories) longest = std::max(longest, story.size());
  for (const auto& recall : texts.recalls) longest = std::max(longest, recall.prompt.size());
  const auto tokens_max = static_cast<int32_t>(longest);
  std::vector<std::vector<float>> expected;
  {
    Subject reference(config, tensors, kReference, tokens_max);
    for (const auto& story : texts.stories) {
      const Matrix logits = reference.run(story);
      expected.emplace_back(logits.data, logits.data + logits.rows * logits.cols);
    }
  }
  Json rows = Json::array();
  for (const Types& types : kCompared) {
    if (types.bf16_activations && !cpu_multiplies_bf16()) continue;
    Subject subject(config, tensors, types, tokens_max);
    Comparison comparison;
    for (size_t i = 0; i < texts.stories.size(); ++i) comparison.add(subject, expected[i], texts.stories[i]);
    int64_t right = 0;
    for (const auto& recall : texts.recalls) {
      const Matrix logits = subject.run(recall.prompt);
      right += best_of(logits.row(logits.rows - 1), logits.cols) == recall.answer;
    }
    rows.push_back({{"weights", dtype_name(types.weights)},
                    {"kv", dtype_name(types.kv)},
                    {"activations", types.bf16_activations ? "bf16" : "fp32"},
                    {"weight_bytes", subject.weight_bytes()},
                    {"kv_token_bytes", kv_shape(config, types.kv, kPageTokens).token_bytes()},
                    {"perplexity", std::exp(comparison.loss / static_cast<double>(comparison.predicted))},
                    {"recall", texts.recalls.empty() ? Json() : Json(static_cast<double>(right) / static_cast<double>(texts.recalls.size()))},
                    {"top1", static_cast<double>(comparison.agreed) / static_cast<double>(comparison.rows)},
                    {"kl", comparison.kl / static_cast<double>(comparison.rows)},
                    {"kl_max", comparison.kl_max},
                    {"noise_gain", comparison.noise_gain / static_cast<double>(comparison.rows)},
                    {"rows", comparison.rows}});
  }
  return rows;
}

Texts read_cases(const std::string& path, const Tokenizer& tokenizer) {
  std::ifstream in(path, std::ios::binary);
  const Json cases = Json::parse(std::string(std::istreambuf_iterator<char>(in), {}));
  Texts texts;
  for (const Json& story : cases.at("stories")) texts.stories.push_back(tokenizer.encode(story.get<std::string>(), true));
  for (const Json& recall : cases.at("recalls")) {
    const std::vector<TokenId> answer = tokenizer.encode(" " + recall.at(1).get<std::string>(), false);
    if (answer.size() != 1) throw std::runtime_error("an answer of several tokens: " + recall.at(1).get<std::string>());
    texts.recalls.push_back({tokenizer.encode(recall.at(0).get<std::string>(), true), answer.front()});
  }
  return texts;
}

Texts random_texts(int32_t vocab) {
  constexpr int kTokens = 256;
  std::mt19937_64 random(1);
  std::vector<int32_t> story(kTokens);
  for (int32_t& token : story) token = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab));
  return {.stories = {story}, .recalls = {}};
}

Json run(int argc, char** argv) {
  if (argc != 3) throw std::runtime_error("give MODEL CASES.json, or --shape CONFIG");
  if (std::strcmp(argv[1], "--shape") == 0) {
    const ModelConfig config = ModelConfig::load(argv[2]);
    return compare(config, nullptr, random_texts(config.vocab_size));
  }
  const OpenModel model = open_model(argv[1]);
  const Tokenizer tokenizer = model.gguf != nullptr ? read_gguf_vocabulary(model.gguf->metadata(), argv[1]).tokenizer : Tokenizer::load(argv[1]);
  return compare(model.config, model.tensors.get(), read_cases(argv[2], tokenizer));
}

}  // namespace
}  // namespace headroom

int main(int argc, char** argv) {
  try {
    std::puts(headroom::run(argc, argv).dump(1).c_str());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "quality: %s\n", error.what());
    return 1;
  }
}
