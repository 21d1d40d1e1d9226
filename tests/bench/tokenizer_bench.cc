// Encoding and decoding speed, on one thread, of each style of tokenizer.json under tests/golden/tokenizer: on
// English-like text, and on a mebibyte of one thing, where an implementation that is not linear stands still.
//
//   tokenizer_bench [--benchmark_filter=...]
//   HEADROOM_TOKENIZER=dir tokenizer_bench    the English benchmarks with dir/tokenizer.json and, if there is one,
//                                             dir/text.txt as the text
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "engine/tokenizer/tokenizer.h"

namespace headroom {
namespace {

const std::filesystem::path kGoldens = std::filesystem::path(HEADROOM_SOURCE_DIR) / "tests/golden/tokenizer";
constexpr size_t kTextBytes = 1 << 20;

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Sentences of words whose frequency falls as that of English words does (rank^-1), the frequent ones short. The small
// vocabularies of the goldens know few of them, so that most take several merges: slower than a real model's file.
std::string english_like() {
  uint64_t state = 1;
  const auto below = [&](uint64_t bound) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % bound;
  };
  const std::vector<std::string> syllables = {"the", "an", "er", "in",  "re", "on", "at", "ing",
                                              "to",  "st", "en", "or",  "al", "ti", "ar", "se",
                                              "ou",  "de", "ve", "com", "is", "ch", "ly", "ent"};
  constexpr size_t kWords = 8000;
  std::vector<std::string> words(kWords);
  for (size_t rank = 0; rank < kWords; ++rank) {
    const size_t count = 1 + static_cast<size_t>(std::log10(1.0 + static_cast<double>(rank)) * 0.7) + below(2);
    for (size_t i = 0; i < count; ++i) words[rank] += syllables[below(syllables.size())];
  }
  std::string text;
  while (text.size() < kTextBytes) {
    std::string sentence;
    for (uint64_t length = 5 + below(20); length > 0; --length) {
      const double uniform = static_cast<double>(below(1 << 20)) / (1 << 20);
      if (!sentence.empty()) sentence += below(12) == 0 ? ", " : " ";
      sentence += below(40) == 0 ? std::to_string(below(3000))
                                 : words[static_cast<size_t>(std::pow(static_cast<double>(kWords), uniform)) - 1];
    }
    sentence[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(sentence[0])));
    text += sentence + (below(6) == 0 ? ".\n\n" : ". ");
  }
  return text;
}

void encode(benchmark::State& state, const Tokenizer& tokenizer, const std::string& text) {
  size_t tokens = 0;
  for (auto _ : state) {
    const std::vector<TokenId> ids = tokenizer.encode(text, false);
    tokens = ids.size();
    benchmark::DoNotOptimize(ids.data());
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
  state.counters["bytes/token"] = static_cast<double>(text.size()) / static_cast<double>(tokens);
}

void decode(benchmark::State& state, const Tokenizer& tokenizer, const std::string& text) {
  const std::vector<TokenId> ids = tokenizer.encode(text, false);
  for (auto _ : state) {
    const std::string decoded = tokenizer.decode(ids, false);
    benchmark::DoNotOptimize(decoded.data());
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
}

void load(benchmark::State& state, const std::string& file) {
  for (auto _ : state) {
    const Tokenizer tokenizer = Tokenizer::from_json(file);
    benchmark::DoNotOptimize(tokenizer.vocab_size());
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * file.size()));
}

void register_english(const std::string& name, const std::filesystem::path& path, const std::string& text) {
  const std::string file = read_file(path);
  const auto* tokenizer = new Tokenizer(Tokenizer::from_json(file));  // lives as long as the benchmarks: the process
  benchmark::RegisterBenchmark((name + "/load").c_str(), [=](benchmark::State& state) { load(state, file); });
  benchmark::RegisterBenchmark((name + "/encode/english").c_str(),
                               [=](benchmark::State& state) { encode(state, *tokenizer, text); });
  benchmark::RegisterBenchmark((name + "/decode/english").c_str(),
                               [=](benchmark::State& state) { decode(state, *tokenizer, text); });
}

void register_runs(const std::string& name) {
  const auto* tokenizer = new Tokenizer(Tokenizer::from_json(read_file(kGoldens / (name + ".json"))));
  const std::vector<std::pair<std::string, std::string>> units = {{"a", "a"},
                                                                  {"A", "A"},
                                                                  {"space", " "},
                                                                  {"newline", "\n"},
                                                                  {"digit", "7"},
                                                                  {"space_newline", " \n"},
                                                                  {"emoji", "\U0001F600"},
                                                                  {"mark", "\u0301"},
                                                                  {"two_marks", "\u0301\u0323"},
                                                                  {"underscore", "_"},
                                                                  {"less", "<"},
                                                                  {"han", "\u4F60"}};
  for (const auto& [unit_name, unit] : units) {
    std::string text;
    while (text.size() < kTextBytes) text += unit;
    benchmark::RegisterBenchmark((name + "/encode/1MiB_of_" + unit_name).c_str(), [=](benchmark::State& state) {
      encode(state, *tokenizer, text);
    })->Unit(benchmark::kMillisecond);
  }
}

void register_all() {
  if (const char* directory = std::getenv("HEADROOM_TOKENIZER")) {
    const std::filesystem::path path(directory);
    const std::string text = read_file(path / "text.txt");
    register_english("tokenizer", path / "tokenizer.json", text.empty() ? english_like() : text);
    return;
  }
  const std::vector<std::string> styles = {"gpt2",   "llama3", "qwen2",   "smollm2", "o200k",
                                           "tekken", "llama2", "mistral", "deepseek"};
  const std::string text = english_like();
  for (const std::string& style : styles) register_english(style, kGoldens / (style + ".json"), text);
  for (const std::string& style : styles) register_runs(style);
}

}  // namespace
}  // namespace headroom

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  try {
    headroom::register_all();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "tokenizer_bench: %s\n", error.what());
    return 1;
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
