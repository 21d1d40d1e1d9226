#include "server/capacity_plan.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <optional>
#include <set>

#include "server/json_writer.h"
#include "server/options.h"

namespace headroom {
namespace {

constexpr int64_t kConcurrencyMax = 1 << 16;  // as running_sequences_max
constexpr DType kKvTypes[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kI8};

std::optional<int64_t> whole_number(std::string_view text, int64_t min, int64_t max) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < min || value > max) return std::nullopt;
  return value;
}

std::string range_text(int64_t max, const std::string& of_what) {
  return "must be a whole number from 1 to " + std::to_string(max) + of_what;
}

std::vector<int32_t> divisors(int32_t number) {
  std::vector<int32_t> found;
  for (int32_t i = number; i >= 1; --i) {
    if (number % i == 0) found.push_back(i);
  }
  return found;
}

std::string set_kv_heads(std::string_view value, ModelConfig* config) {
  const int32_t query_heads = config->query_heads;
  const auto heads = whole_number(value, 1, query_heads);
  if (!heads) return range_text(query_heads, ", the query heads (MHA)");
  if (query_heads % *heads == 0) {
    config->kv_heads = static_cast<int32_t>(*heads);
    return "";
  }
  const std::vector<int32_t> possible = divisors(query_heads);
  const auto below = std::ranges::find_if(possible, [&](int32_t divisor) { return divisor < *heads; });
  return "does not divide the " + std::to_string(query_heads) + " query heads; nearest: " + std::to_string(*below) +
         " or " + std::to_string(*(below - 1));
}

CapacityVariant make_variant(const CapacityQuestion& question, int32_t kv_heads) {
  CapacityVariant variant;
  variant.shape =
      kv_shape(question.config, question.kv_dtype, question.page_tokens, question.step_tokens).with_kv_heads(kv_heads);
  variant.request_bytes = variant.shape.request_bytes(question.context_tokens);
  if (__builtin_mul_overflow(variant.request_bytes, question.concurrency, &variant.needed_bytes)) {
    variant.needed_bytes = std::numeric_limits<int64_t>::max();
  }
  for (const MemoryBudget& budget : question.budgets) {
    Capacity capacity = plan_capacity(variant.shape, budget.pool_bytes_max, question.context_tokens);
    // The longest that the pool could hold, not the longest that was asked for.
    capacity.longest_request_tokens =
        plan_capacity(variant.shape, budget.pool_bytes_max, question.config.context_tokens).longest_request_tokens;
    variant.capacities.push_back(capacity);
  }
  return variant;
}

// Powers of two up to the model's context, and the context that was asked for.
std::vector<int64_t> heat_contexts(const CapacityQuestion& question) {
  const int64_t model = question.config.context_tokens;
  std::set<int64_t> contexts = {question.context_tokens, model};
  for (int64_t tokens = 1024; tokens <= model; tokens *= 2) {
    if (tokens * 128 >= model) contexts.insert(tokens);
  }
  return {contexts.begin(), contexts.end()};
}

void append_variant(const CapacityQuestion& question, const CapacityVariant& variant, JsonWriter* json) {
  const KvShape& shape = variant.shape;
  json->begin_object().key("kv_heads").integer(shape.kv_heads).key("token_bytes").integer(shape.token_bytes());
  json->key("page_bytes").integer(shape.page_bytes());
  json->key("request_pages").integer(shape.request_pages(question.context_tokens));
  json->key("request_bytes").integer(variant.request_bytes).key("needed_bytes").integer(variant.needed_bytes);
  json->key("budgets").begin_array();
  for (size_t i = 0; i < variant.capacities.size(); ++i) {
    const Capacity& capacity = variant.capacities[i];
    json->begin_object().key("memory_bytes");
    const int64_t memory_bytes = question.budgets[i].memory_bytes;
    memory_bytes > 0 ? json->integer(memory_bytes) : json->null();
    json->key("pool_bytes_max").integer(question.budgets[i].pool_bytes_max);
    json->key("pool_bytes").integer(capacity.pool_bytes).key("pages").integer(capacity.pages);
    json->key("tokens").integer(capacity.tokens);
    json->key("longest_request_tokens").integer(capacity.longest_request_tokens);
    json->key("concurrency_max").integer(capacity.full_requests);
    json->key("fits").boolean(capacity.full_requests >= question.concurrency).end_object();
  }
  json->end_array().end_object();
}

// 1234567 → "1,234,567".
std::string grouped(int64_t value) {
  std::string text = std::to_string(value);
  for (auto at = static_cast<std::ptrdiff_t>(text.size()) - 3; at > (value < 0 ? 1 : 0); at -= 3) {
    text.insert(static_cast<size_t>(at), 1, ',');
  }
  return text;
}

// `text` to the right end of a column; counts characters, not bytes.
std::string right(const std::string& text, size_t width) {
  const auto size = static_cast<size_t>(std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; }));
  return std::string(width > size ? width - size : 0, ' ') + text;
}
std::string left(const std::string& text, size_t width) {
  return text + right("", width).substr(std::min(width, text.size()));
}

std::string requests_text(const CapacityQuestion& question) {
  return grouped(question.concurrency) + (question.concurrency == 1 ? " request of " : " requests of ") +
         grouped(question.context_tokens) + " tokens";
}

std::string budget_text(const CapacityQuestion& question, const MemoryBudget& budget) {
  const std::string pool = "pool of " + format_bytes(budget.pool_bytes_max);
  if (budget.memory_bytes == 0) return pool;
  return pool + " (" + format_bytes(budget.memory_bytes) + " − " + format_bytes(question.weight_bytes()) +
         " of weights)";
}

// One row per context of the heatmap; a mark says which is the first budget that holds it.
std::string heat_table(const CapacityAnswer& answer) {
  constexpr std::string_view kMarks = "abcdefgh";
  const CapacityQuestion& question = answer.question;
  std::string out = "\nKV cache of " + grouped(question.concurrency) +
                    (question.concurrency == 1 ? " request" : " requests") + ", by KV heads and context\n";
  for (size_t i = 0; i < question.budgets.size(); ++i) {
    out += "  " + std::string(1, kMarks[i]) + " fits into the " + budget_text(question, question.budgets[i]) + "\n";
  }
  out += "  - fits into none\n" + right("", 8);
  for (const int64_t& tokens : answer.heat_context_tokens) {
    const bool is_first = &tokens == answer.heat_context_tokens.data();
    out += right(format_value(static_cast<double>(tokens), ChartUnit::kTokens), is_first ? 11 : 13);
  }
  for (size_t row = 0; row < answer.heat_kv_heads.size(); ++row) {
    out += "\n" + right(grouped(answer.heat_kv_heads[row]), 8);
    for (size_t column = 0; column < answer.heat_context_tokens.size(); ++column) {
      const int64_t bytes = answer.heat_bytes[row * answer.heat_context_tokens.size() + column];
      const auto fits = std::ranges::find_if(
          question.budgets, [bytes](const MemoryBudget& budget) { return bytes <= budget.pool_bytes_max; });
      const auto index = static_cast<size_t>(fits - question.budgets.begin());
      out += right(format_bytes(bytes), 11) + " " + (fits == question.budgets.end() ? '-' : kMarks[index]);
    }
  }
  return out + "\n";
}

}  // namespace

int64_t CapacityQuestion::weight_bytes() const {
  return static_cast<int64_t>(weight_row_bytes(weight_dtype, config.parameters()));
}

std::string set_capacity_parameter(std::string_view name, std::string_view value, CapacityQuestion* question) {
  if (name == "context") {
    const int64_t max = question->config.context_tokens;
    const auto tokens = whole_number(value, 1, max);
    if (!tokens) return range_text(max, ", the context of " + question->model);
    question->context_tokens = *tokens;
  } else if (name == "concurrency") {
    const auto requests = whole_number(value, 1, kConcurrencyMax);
    if (!requests) return range_text(kConcurrencyMax, "");
    question->concurrency = *requests;
  } else if (name == "kv_dtype") {
    const auto* type = std::ranges::find(kKvTypes, value, dtype_name);
    if (type == std::end(kKvTypes)) return "must be one of fp32, bf16, fp16, int8";
    question->kv_dtype = *type;
  } else if (name == "kv_heads") {
    return set_kv_heads(value, &question->config);
  } else {
    const std::string nearest = nearest_name(name, {"context", "concurrency", "kv_dtype", "kv_heads"});
    return "is not known; " +
           (nearest.empty() ? "use context, concurrency, kv_dtype or kv_heads" : "did you mean " + nearest + "?");
  }
  return "";
}

CapacityAnswer answer_capacity(CapacityQuestion question) {
  CapacityAnswer answer;
  answer.planned = make_variant(question, question.config.kv_heads);
  answer.mha = make_variant(question, question.config.query_heads);
  answer.mqa = make_variant(question, 1);
  answer.heat_context_tokens = heat_contexts(question);
  answer.heat_kv_heads = divisors(question.config.query_heads);
  CapacityQuestion cell = question;
  cell.budgets.clear();
  for (const int32_t heads : answer.heat_kv_heads) {
    for (const int64_t tokens : answer.heat_context_tokens) {
      cell.context_tokens = tokens;
      answer.heat_bytes.push_back(make_variant(cell, heads).needed_bytes);
    }
  }
  answer.question = std::move(question);
  return answer;
}

void append_capacity_json(const CapacityAnswer& answer, std::string* out) {
  const CapacityQuestion& question = answer.question;
  const ModelConfig& config = question.config;
  JsonWriter json(out);
  json.begin_object().key("model").string(question.model).key("architecture").string(config.architecture);
  json.key("is_served").boolean(config.is_served).key("parameters").integer(config.parameters());
  json.key("weight_dtype").string(dtype_name(question.weight_dtype));
  json.key("weight_bytes").integer(question.weight_bytes());
  json.key("layers").integer(config.layers).key("query_heads").integer(config.query_heads);
  json.key("kv_heads").integer(config.kv_heads).key("head_dim").integer(config.head_dim);
  json.key("window_layers").integer(config.window_layers).key("window_tokens").integer(config.window_tokens);
  json.key("context_tokens_max").integer(config.context_tokens);
  json.key("kv_dtype").string(dtype_name(question.kv_dtype)).key("page_tokens").integer(question.page_tokens);
  json.key("context_tokens").integer(question.context_tokens).key("concurrency").integer(question.concurrency);
  json.key("planned");
  append_variant(question, answer.planned, &json);
  json.key("mha");
  append_variant(question, answer.mha, &json);
  json.key("mqa");
  append_variant(question, answer.mqa, &json);
  json.key("heatmap").begin_object().key("context_tokens").begin_array();
  for (const int64_t tokens : answer.heat_context_tokens) json.integer(tokens);
  json.end_array().key("kv_heads").begin_array();
  for (const int32_t heads : answer.heat_kv_heads) json.integer(heads);
  json.end_array().key("bytes").begin_array();
  for (size_t row = 0; row < answer.heat_kv_heads.size(); ++row) {
    json.begin_array();
    for (size_t column = 0; column < answer.heat_context_tokens.size(); ++column) {
      json.integer(answer.heat_bytes[row * answer.heat_context_tokens.size() + column]);
    }
    json.end_array();
  }
  json.end_array().end_object().end_object();
}

std::string capacity_table(const CapacityAnswer& answer) {
  const CapacityQuestion& question = answer.question;
  const ModelConfig& config = question.config;
  const CapacityVariant* const variants[] = {&answer.planned, &answer.mha, &answer.mqa};
  std::string out = question.model + ": " + config.architecture +
                    (config.is_served ? "" : " (planned only: not served)") + ", " + grouped(config.layers) +
                    " layers, " + grouped(config.query_heads) + " query heads, head_dim " + grouped(config.head_dim) +
                    ", context " + grouped(config.context_tokens) + "\n";
  if (config.window_layers > 0) {
    out += "a window of " + grouped(config.window_tokens) + " tokens in " + grouped(config.window_layers) + " of " +
           grouped(config.layers) + " layers, steps of " + grouped(question.step_tokens) + "\n";
  }
  out += "weights   " + grouped(config.parameters()) + " parameters, " +
         std::string(dtype_name(question.weight_dtype)) + ", " + format_bytes(question.weight_bytes()) +
         "\nKV cache  " + std::string(dtype_name(question.kv_dtype)) + ", pages of " + grouped(question.page_tokens) +
         " tokens\n\n";
  const auto row = [&](const std::string& name, const auto& value) {
    out += left(name, 34);
    for (const CapacityVariant* variant : variants) out += right(value(*variant), 16);
    out += "\n";
  };
  const std::string planned = config.kv_heads == config.query_heads ? "as MHA"
                              : config.kv_heads == 1                ? "as MQA"
                                                                    : "as GQA";
  out += left("", 34) + right("planned, " + planned, 16) + right("MHA", 16) + right("MQA", 16) + "\n";
  row("KV heads", [](const CapacityVariant& v) { return grouped(v.shape.kv_heads); });
  row("bytes per token", [](const CapacityVariant& v) { return grouped(v.shape.token_bytes()); });
  row("pages per request",
      [&](const CapacityVariant& v) { return grouped(v.shape.request_pages(question.context_tokens)); });
  row("bytes per request", [](const CapacityVariant& v) { return format_bytes(v.request_bytes); });
  row(requests_text(question), [](const CapacityVariant& v) { return format_bytes(v.needed_bytes); });
  for (size_t i = 0; i < question.budgets.size(); ++i) {
    const auto capacity = [i](const CapacityVariant& v) -> const Capacity& { return v.capacities[i]; };
    out += "\n" + budget_text(question, question.budgets[i]) + "\n";
    row("  tokens that fit", [&](const CapacityVariant& v) { return grouped(capacity(v).tokens); });
    row("  longest request", [&](const CapacityVariant& v) { return grouped(capacity(v).longest_request_tokens); });
    row("  requests of " + grouped(question.context_tokens) + " at once",
        [&](const CapacityVariant& v) { return grouped(capacity(v).full_requests); });
  }
  return out + heat_table(answer);
}

Heatmap capacity_heatmap(const CapacityAnswer& answer) {
  const CapacityQuestion& question = answer.question;
  Heatmap map{.title = question.model + ": KV cache of " + grouped(question.concurrency) +
                       (question.concurrency == 1 ? " request, " : " requests, ") +
                       std::string(dtype_name(question.kv_dtype)),
              .x_label = "context of a request (tokens)",
              .y_label = "KV heads",
              .unit = ChartUnit::kBytes,
              .scale = ChartScale::kLog2};
  for (const int64_t tokens : answer.heat_context_tokens)
    map.columns.push_back(format_value(static_cast<double>(tokens), ChartUnit::kTokens));
  for (const int32_t heads : answer.heat_kv_heads) map.rows.push_back(std::to_string(heads));
  map.values.assign(answer.heat_bytes.begin(), answer.heat_bytes.end());
  for (const MemoryBudget& budget : question.budgets) {
    map.lines.push_back({.name = budget_text(question, budget), .value = static_cast<double>(budget.pool_bytes_max)});
  }
  return map;
}

}  // namespace headroom
