#include "server/bench_peer.h"

#include <sys/wait.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <stdexcept>

#include "kernels/check.h"

namespace headroom {
namespace {

using Json = nlohmann::json;
constexpr size_t kOutputBytesMax = 1 << 20;

// One figure of a peer, and what it says it measured.
struct PeerResult {
  PeerTest test;
  double tokens_per_second = 0;
};

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

std::optional<double> as_number(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

int32_t integer(const Json& row, const char* key) {
  const auto found = row.find(key);
  if (found == row.end() || !found->is_number_integer()) return 0;
  return found->get<int32_t>();
}

double number(const Json& row, const char* key) {
  const auto found = row.find(key);
  if (found == row.end() || !found->is_number()) throw std::runtime_error(std::string("a result without the number ") + key);
  return found->get<double>();
}

// The fork's -gp says "tg24@pp8192": tokens drawn at that depth. "pp512+tg128" is the mean of both, which nothing here measures.
void add_llama_bench(const Json& row, std::vector<PeerResult>& results) {
  const int32_t prompt = integer(row, "n_prompt"), steps = integer(row, "n_gen"), depth = integer(row, "n_depth");
  double rate = number(row, "avg_ts");
  if (const auto samples = row.find("samples_ts"); samples != row.end() && samples->is_array() && !samples->empty()) {
    std::vector<double> rates;
    for (const Json& sample : *samples) {
      if (!sample.is_number()) throw std::runtime_error("samples_ts with something that is no number");
      rates.push_back(sample.get<double>());
    }
    rate = spread_of(std::move(rates)).median;
  }
  if (prompt > 0 && steps > 0) {
    const auto label = row.find("test");
    if (label == row.end() || !label->is_string() || label->get<std::string>().find("@pp") == std::string::npos) return;
    results.push_back({{.depth = prompt, .steps = steps}, rate});
  } else {
    results.push_back({{.prompt_tokens = prompt, .depth = depth, .steps = steps}, rate});
  }
}

// `row` by the names of llama-batched-bench's JSONL. All prompts are computed before the first step.
void add_batched_bench(const Json& row, std::vector<PeerResult>& results) {
  const int32_t prompt = integer(row, "pp"), steps = integer(row, "tg"), batch = integer(row, "pl");
  if (prompt > 0) results.push_back({{.prompt_tokens = prompt, .batch = batch}, number(row, "speed_pp")});
  if (steps > 0) results.push_back({{.batch = batch, .depth = prompt, .steps = steps}, number(row, "speed_tg")});
}

// A row of llama-sweep-bench: with n_kv tokens in the cache it computes a prompt of pp more, and draws tg.
void add_sweep_bench(const Json& row, std::vector<PeerResult>& results) {
  const int32_t depth = integer(row, "n_kv");
  results.push_back({{.prompt_tokens = integer(row, "pp"), .depth = depth}, number(row, "speed_pp")});
  results.push_back({{.depth = depth, .steps = integer(row, "tg")}, number(row, "speed_tg")});
}

// The cells of "| a | b |". Empty for any other line.
std::vector<std::string> table_cells(const std::string& line) {
  std::vector<std::string> cells;
  if (line.size() < 2 || line.front() != '|' || line.back() != '|') return cells;
  std::istringstream text(line.substr(1, line.size() - 2));
  for (std::string cell; std::getline(text, cell, '|');) cells.push_back(trimmed(cell));
  return cells;
}

// A row of a Markdown table as an object by the names of the JSONL; null where it is no row of numbers.
Json table_row(const std::vector<std::string>& columns, const std::vector<std::string>& cells) {
  static const std::map<std::string, std::string> kNames = {{"PP", "pp"}, {"TG", "tg"}, {"B", "pl"}, {"N_KV", "n_kv"},
                                                            {"S_PP t/s", "speed_pp"}, {"S_TG t/s", "speed_tg"}};
  Json row;
  if (cells.size() != columns.size()) return row;
  for (size_t i = 0; i < cells.size(); ++i) {
    const auto name = kNames.find(columns[i]);
    if (name == kNames.end()) continue;
    const std::optional<double> value = as_number(cells[i]);
    if (!value) return {};
    const bool counts = std::floor(*value) == *value && std::abs(*value) <= std::numeric_limits<int32_t>::max();
    row[name->second] = counts && name->second.rfind("speed", 0) != 0 ? Json(static_cast<int32_t>(*value)) : Json(*value);
  }
  return row;
}

void add_json(const Json& row, std::vector<PeerResult>& results) {
  if (row.is_object() && row.contains("avg_ts")) {
    add_llama_bench(row, results);
  } else if (row.is_object() && row.contains("speed_tg")) {
    add_batched_bench(row, results);
  } else {
    throw std::runtime_error("JSON with neither avg_ts nor speed_tg");
  }
}

std::vector<PeerResult> parsed_results(const std::string& output) {
  std::vector<PeerResult> results;
  if (const Json whole = Json::parse(output, nullptr, false); !whole.is_discarded()) {
    if (!whole.is_array()) add_json(whole, results);
    if (whole.is_array()) std::for_each(whole.begin(), whole.end(), [&](const Json& row) { add_json(row, results); });
    return results;
  }
  std::istringstream text(output);
  std::vector<std::string> columns;
  for (std::string line; std::getline(text, line);) {
    line = trimmed(line);
    if (!line.empty() && line.front() == '{') {
      const Json row = Json::parse(line, nullptr, false);
      if (row.is_discarded()) throw std::runtime_error("a line that begins like JSON and is not: " + line.substr(0, 60));
      add_json(row, results);
    } else if (const auto cells = table_cells(line); !cells.empty() && cells.front() == "PP") {
      columns = cells;
    } else if (const Json row = table_row(columns, cells); !row.is_null()) {
      (row.contains("pl") ? add_batched_bench : add_sweep_bench)(row, results);
    }
  }
  return results;
}

bool same(const PeerTest& a, const PeerTest& b) {
  return a.prompt_tokens == b.prompt_tokens && a.batch == b.batch && a.depth == b.depth && a.steps == b.steps;
}

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) text.replace(at, from.size(), to);
}

}  // namespace

std::string PeerTest::name() const {
  const std::string where = (batch == 1 ? "" : std::to_string(batch) + " sequences, ") + "depth " + std::to_string(depth);
  if (prompt_tokens == 0) return std::to_string(steps) + " decode steps, " + where;
  return "prefill of " + std::to_string(prompt_tokens) + (batch == 1 && depth == 0 ? "" : ", " + where);
}

std::string peer_command(std::string command, const PeerTest& test) {
  replace_all(command, "{prompt}", std::to_string(test.prompt_tokens));
  replace_all(command, "{batch}", std::to_string(test.batch));
  replace_all(command, "{depth}", std::to_string(test.depth));
  replace_all(command, "{steps}", std::to_string(test.steps));
  replace_all(command, "{threads}", std::to_string(test.threads));
  return command;
}

double peer_tokens_per_second(const std::string& output, const PeerTest& test) {
  std::string found;
  double best = 0;
  if (const std::string text = trimmed(output); text.empty()) {
    throw std::runtime_error("it printed nothing");
  } else if (const std::optional<double> value = as_number(text)) {
    best = *value;
    found = "the number " + text;
  } else {
    for (const PeerResult& result : parsed_results(text)) {
      found += (found.empty() ? "" : "; ") + result.test.name();
      if (same(result.test, test)) best = std::max(best, result.tokens_per_second);
    }
    if (found.empty()) throw std::runtime_error("neither a number nor a table or JSON of llama-bench, llama-batched-bench or llama-sweep-bench");
  }
  if (!(best > 0) || !std::isfinite(best)) throw std::runtime_error("no speed above 0 for \"" + test.name() + "\"; it has: " + found.substr(0, 400));
  return best;
}

double run_peer(const std::string& command, const PeerTest& test) {
  // A shell is what --compare promises: pipes, cd, quotes. Its text comes from the command line of `headroom bench` alone, never from a request.
  std::FILE* pipe = popen(command.c_str(), "r");  // NOLINT(cert-env33-c)
  if (pipe == nullptr) throw std::runtime_error("the shell cannot be started for: " + command);
  std::string output;
  char block[4096];
  for (size_t count = 0; (count = std::fread(block, 1, sizeof(block), pipe)) > 0;) {
    if (output.size() <= kOutputBytesMax) output.append(block, count);  // what is too much is read and dropped: it would wait for ever
  }
  const int status = pclose(pipe);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    const std::string how = WIFEXITED(status) ? "status " + std::to_string(WEXITSTATUS(status)) : "signal " + std::to_string(WTERMSIG(status));
    throw std::runtime_error("--compare: ended with " + how + ": " + command);
  }
  if (output.size() > kOutputBytesMax) throw std::runtime_error("--compare: printed more than 1 MiB: " + command);
  try {
    return peer_tokens_per_second(output, test);
  } catch (const std::exception& error) {  // the JSON library's own among them: a number out of range
    throw std::runtime_error("--compare: " + std::string(error.what()) + ", printed by: " + command);
  }
}

Spread spread_of(std::vector<double> values) {
  CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  const double median = values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
  return {median, values.front(), values.back()};
}

}  // namespace headroom
