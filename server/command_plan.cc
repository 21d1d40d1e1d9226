#include "server/command_plan.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "engine/model/quantized_checkpoint.h"
#include "server/capacity_plan.h"
#include "server/command_line.h"
#include "server/json_reader.h"
#include "server/model_shapes.h"
#include "server/options.h"

namespace headroom {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;
constexpr size_t kBudgetsMax = 8;
// Memories that are sold, for whoever names none: the first two that hold the weights are planned.
constexpr int64_t kMemoriesGiB[] = {8, 16, 24, 48, 80, 141, 192, 288, 640, 1128, 1536};

struct PlanOptions {
  std::string model;
  std::string weights;
  std::vector<std::string> memories, kv_memories;  // of machines; of pools
  std::string context, concurrency, kv_dtype, kv_heads;
  int32_t page_tokens = 16;
  int32_t step_tokens = kStepTokensDefault;
  bool json = false;
  std::string svg;
};

int64_t parse_bytes(const std::string& flag, const std::string& text) {
  try {
    const MemoryAmount amount = parse_memory_amount(text);
    if (amount.bytes > 0) return amount.bytes;
  } catch (const std::runtime_error&) {
  }
  throw std::runtime_error(flag + ": \"" + text + "\" must be bytes above 0, such as 512MiB or 80GiB");
}

void add_budgets(const PlanOptions& options, CapacityQuestion& question) {
  const int64_t weight_bytes = question.weight_bytes();
  for (const std::string& text : options.kv_memories) {
    question.budgets.push_back({.memory_bytes = 0, .pool_bytes_max = parse_bytes("--kv-memory", text)});
  }
  for (const std::string& text : options.memories) {
    const int64_t memory = parse_bytes("--memory", text);
    if (memory <= weight_bytes) {
      throw std::runtime_error("--memory: " + format_bytes(memory) + " does not hold the weights, which take " +
                               format_bytes(weight_bytes) + ": give more, or the pool alone as --kv-memory");
    }
    question.budgets.push_back({.memory_bytes = memory, .pool_bytes_max = memory - weight_bytes});
  }
  for (const int64_t gib : kMemoriesGiB) {
    if (!options.memories.empty() || !options.kv_memories.empty() || question.budgets.size() == 2) break;
    if (gib * kGiB > weight_bytes) {
      question.budgets.push_back({.memory_bytes = gib * kGiB, .pool_bytes_max = gib * kGiB - weight_bytes});
    }
  }
  if (question.budgets.size() > kBudgetsMax) {
    throw std::runtime_error("at most " + std::to_string(kBudgetsMax) + " budgets can be planned at once");
  }
  std::ranges::sort(question.budgets, {}, &MemoryBudget::pool_bytes_max);
}

void set_parameter(const char* flag, const char* name, const std::string& value, CapacityQuestion& question) {
  if (value.empty()) return;
  const std::string fault = set_capacity_parameter(name, value, &question);
  if (!fault.empty()) throw std::runtime_error(std::string(flag) + ": \"" + value + "\" " + fault);
}

// How a directory or a file is called in what is printed.
std::string model_name(const std::string& model) {
  if (!std::filesystem::exists(model)) return model;
  std::filesystem::path path = std::filesystem::path(model).lexically_normal();
  if (!path.has_filename() || path.filename() == "config.json") path = path.parent_path();
  return path.extension() == ".json" ? path.stem().string() : path.filename().string();
}

CapacityQuestion make_question(const PlanOptions& options) {
  CapacityQuestion question;
  question.model = model_name(options.model);
  question.config = load_model_shape(options.model);
  question.weight_dtype = question.kv_dtype = question.config.dtype;
  if (std::filesystem::exists(options.model) && quantization_of(options.model)) question.weight_dtype = DType::kI8;  // what any of them fits
  question.page_tokens = options.page_tokens;
  question.step_tokens = options.step_tokens;
  question.context_tokens = question.config.context_tokens;
  if (!options.weights.empty()) {
    CapacityQuestion weights;
    set_parameter("--weights", "kv_dtype", options.weights, weights);  // their names are the same
    question.weight_dtype = weights.kv_dtype;
  }
  set_parameter("--context", "context", options.context, question);
  set_parameter("--concurrency", "concurrency", options.concurrency, question);
  set_parameter("--kv", "kv_dtype", options.kv_dtype, question);
  set_parameter("--kv-heads", "kv_heads", options.kv_heads, question);
  add_budgets(options, question);
  return question;
}

void write_svg(const std::string& path, const CapacityAnswer& answer) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << to_svg(capacity_heatmap(answer));
  out.close();
  if (!out) throw std::runtime_error("--svg: " + path + " cannot be written");
}

}  // namespace

int run_plan(const std::vector<std::string>& arguments) {
  PlanOptions options;
  CLI::App app(
      "Plans memory from the shape of a model: bytes, pages, tokens and requests that fit, beside MHA and MQA.\n"
      "Counted are the KV pool, in whole pages, and of --memory the weights; activations and the program are not.",
      "headroom plan");
  app.add_option("model,--model", options.model,
                 "model directory, config.json, or a name of configs/models, such as llama-3-8b")
      ->required();
  app.add_option("--memory", options.memories, "of a machine, such as 24GiB,80GiB; the weights are taken from it")
      ->delimiter(',');
  app.add_option("--kv-memory", options.kv_memories, "of the KV pool alone")->delimiter(',');
  app.add_option("--context", options.context, "tokens of a request [the model's]");
  app.add_option("--concurrency", options.concurrency, "requests at once [1]");
  app.add_option("--kv", options.kv_dtype, "element type of the KV cache: fp32, bf16, fp16, int8 [the model's]");
  app.add_option("--kv-heads", options.kv_heads, "plan the model with this number of KV heads");
  app.add_option("--weights", options.weights, "element type of the weights: fp32, bf16, fp16 [the model's]")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}));
  app.add_option("--page-tokens", options.page_tokens, "tokens of a page")
      ->check(CLI::IsMember({16, 32, 64}))
      ->capture_default_str();
  app.add_option("--step-tokens-max", options.step_tokens, "of serve; layers with a window hold what one step sees")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_flag("--json", options.json, "print JSON, as GET /v1/capacity answers");
  app.add_option("--svg", options.svg, "write the heatmap of KV heads and context to this file");
  if (!parse_command_line(app, arguments)) return 0;
  const CapacityAnswer answer = answer_capacity(make_question(options));
  if (!options.svg.empty()) write_svg(options.svg, answer);
  std::string out;
  if (options.json) {
    append_capacity_json(answer, &out);
    out = Json::parse(out).dump(2) + "\n";
  } else {
    out = capacity_table(answer);
  }
  std::fputs(out.c_str(), stdout);
  return 0;
}

}  // namespace headroom
