#include "server/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>

#include "kernels/device.h"

namespace headroom {
namespace {

struct OptionRow {
  std::string name;         // with underscores
  std::string group;
  std::string value;        // what stands behind the flag
  std::string default_text;
  std::string effect;
  std::function<void(ServeOptions&, const std::string&)> set;  // throws std::runtime_error: what would do
};

std::string flag_of(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return "--" + name;
}

std::string number_text(double value) {
  std::array<char, 32> buffer;
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr;
  return {buffer.data(), end};
}

template <typename Number>
Number parse_number(const std::string& text, Number min, Number max) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !(value >= min && value <= max)) {
    throw std::runtime_error("must be " + std::string(std::is_integral_v<Number> ? "a whole number" : "a number") + " from " +
                             number_text(static_cast<double>(min)) + " to " + number_text(static_cast<double>(max)));
  }
  return value;
}

bool parse_bool(const std::string& text) {
  if (text == "true" || text == "1" || text == "on") return true;
  if (text == "false" || text == "0" || text == "off") return false;
  throw std::runtime_error("must be true or false");
}

std::string parse_choice(const std::string& text, const std::vector<std::string>& choices) {
  std::string all;
  for (const std::string& choice : choices) {
    if (text == choice) return text;
    all += (all.empty() ? "" : ", ") + choice;
  }
  throw std::runtime_error("must be one of " + all);
}

DType parse_dtype(const std::string& text, std::initializer_list<DType> choices) {
  std::vector<std::string> names;
  for (const DType type : choices) names.emplace_back(dtype_name(type));
  parse_choice(text, names);
  return *std::find_if(choices.begin(), choices.end(), [&](DType type) { return dtype_name(type) == text; });
}

std::vector<std::string> parse_names(const std::string& text) {
  std::vector<std::string> names;
  std::istringstream in(text);
  for (std::string name; std::getline(in, name, ',');) {
    const bool fine = !name.empty() && name.size() <= 256 &&
                      std::all_of(name.begin(), name.end(), [](unsigned char c) { return c > ' ' && c != '"' && c != '\\' && c < 0x7f; });
    if (!fine) throw std::runtime_error("must be names of printable characters, with commas between them");
    names.push_back(name);
  }
  return names;
}

// A row whose value is a number within limits. `get` yields the field.
template <typename Field>
OptionRow number_row(std::string name, std::string group, std::string unit, double min, double max, std::string effect, Field get) {
  using Number = std::remove_reference_t<decltype(get(std::declval<ServeOptions&>()))>;
  ServeOptions defaults;
  return {std::move(name), std::move(group), std::move(unit), number_text(static_cast<double>(get(defaults))), std::move(effect),
          [get, min, max](ServeOptions& options, const std::string& text) {
            get(options) = parse_number<Number>(text, static_cast<Number>(min), static_cast<Number>(max));
          }};
}

template <typename Field>
OptionRow text_row(std::string name, std::string group, std::string value, std::string default_text, std::string effect, Field get) {
  return {std::move(name), std::move(group), std::move(value), std::move(default_text), std::move(effect),
          [get](ServeOptions& options, const std::string& text) { get(options) = text; }};
}

template <typename Field>
OptionRow choice_row(std::string name, std::string group, std::vector<std::string> choices, std::string effect, Field get) {
  ServeOptions defaults;
  std::string value;
  for (const std::string& choice : choices) value += (value.empty() ? "" : "|") + choice;
  return {std::move(name), std::move(group), std::move(value), get(defaults), std::move(effect),
          [get, choices](ServeOptions& options, const std::string& text) { get(options) = parse_choice(text, choices); }};
}

template <typename Field>
OptionRow bool_row(std::string name, std::string group, std::string effect, Field get) {
  ServeOptions defaults;
  return {std::move(name), std::move(group), "true|false", get(defaults) ? "true" : "false", std::move(effect),
          [get](ServeOptions& options, const std::string& text) { get(options) = parse_bool(text); }};
}

// A row of bytes that must be absolute.
template <typename Field>
OptionRow bytes_row(std::string name, std::string group, std::string effect, Field get) {
  ServeOptions defaults;
  return {std::move(name), std::move(group), "BYTES", format_bytes(get(defaults)), std::move(effect),
          [get](ServeOptions& options, const std::string& text) {
            const MemoryAmount amount = parse_memory_amount(text);
            if (amount.bytes <= 0) throw std::runtime_error("must be bytes, such as 16MiB");
            get(options) = amount.bytes;
          }};
}

// What `get` must be: a reference to the field of the options that it is given.
#define FIELD(name) ([](ServeOptions& o) -> auto& { return o.name; })

void add_model_rows(std::vector<OptionRow>& rows) {
  rows.push_back(text_row("model", "Model", "DIR|FILE.gguf", "", "model directory in Hugging Face layout, or a GGUF file; must be set",
                          FIELD(model)));
  rows.push_back({"served_model_name", "Model", "NAME,…", "the directory's name", "what clients call the model; the first is shown",
                  [](ServeOptions& o, const std::string& text) { o.served_model_names = parse_names(text); }});
  rows.push_back({"weights", "Model", "fp32|bf16|fp16|int8|int4", "as stored",
                  "what matrices are kept as; int8 and int4 have a scale for each 32 of a row, int4 keeps the embedding in int8",
                  [](ServeOptions& o, const std::string& text) {
                    o.weights = parse_dtype(text, {DType::kF32, DType::kBF16, DType::kF16, DType::kI8, DType::kI4});
                  }});
  rows.push_back(choice_row("device", "Model", device_names(), "what computes; auto: CUDA where it can be had, and the log says why not",
                            FIELD(device)));
  rows.push_back(choice_row("activations", "Model", activation_names(),
                            "what a CPU rounds the inputs of matrix products to, attention's over bf16 and int8 pages among them; auto: bf16 where it multiplies that at twice the speed", FIELD(activations)));
  rows.push_back(bool_row("cuda_graphs", "Model", "decode steps on a device are recorded once and replayed", FIELD(cuda_graphs)));
  rows.push_back(number_row("threads", "Model", "N", 0, 1024, "threads of the CPU backend; 0: one per physical core", FIELD(threads)));
}

void add_kv_rows(std::vector<OptionRow>& rows) {
  rows.push_back({"kv_memory", "KV cache", "BYTES|SHARE%", "what all sequences need, at most 25% of the free memory; of a device, 90%",
                  "size of the KV pool: 4GiB, 512MiB, or a share of what is free (of a device: beside weights and workspaces)",
                  [](ServeOptions& o, const std::string& text) { o.kv_memory = parse_memory_amount(text); }});
  rows.push_back({"kv", "KV cache", "fp32|bf16|fp16|int8", "as config.json's",
                  "element type of the KV cache; int8 has a scale for each token and head",
                  [](ServeOptions& o, const std::string& text) {
                    o.kv = parse_dtype(text, {DType::kF32, DType::kBF16, DType::kF16, DType::kI8});
                  }});
  rows.push_back({"page_tokens", "KV cache", "16|32|64", "16", "tokens of a page: fewer wastes less, more is faster",
                  [](ServeOptions& o, const std::string& text) { o.page_tokens = std::stoi(parse_choice(text, {"16", "32", "64"})); }});
  rows.push_back(number_row("context_tokens", "KV cache", "N", 0, 1 << 27,
                            "prompt and answer of one request; 0: the model's, or what the pool holds if that is less",
                            FIELD(context_tokens)));
  rows.push_back(bool_row("prefix_cache", "KV cache", "prompts reuse the pages of earlier ones with the same beginning",
                          FIELD(prefix_cache)));
}

void add_scheduling_rows(std::vector<OptionRow>& rows) {
  rows.push_back(bool_row("async_scheduling", "Scheduling", "a device's next step is planned and launched while it is at work on the last",
                          FIELD(async_scheduling)));
  rows.push_back(number_row("step_tokens_max", "Scheduling", "N", 1, 1 << 20,
                            "tokens of one step: more is faster, fewer makes others wait less", FIELD(step_tokens_max)));
  rows.push_back(number_row("step_slowdown_max", "Scheduling", "N", 0, 1000,
                            "prompts make a step that generates at most so many times as long, and 1 + (N - 1) / 4 times as long as one of all that write or wait would be; 0: no bound",
                            FIELD(step_slowdown_max)));
  rows.push_back(number_row("running_sequences_max", "Scheduling", "N", 1, 1 << 16, "sequences that run at the same time",
                            FIELD(running_sequences_max)));
  rows.push_back(number_row("queue_requests_max", "Scheduling", "N", 1, 1 << 20, "requests that wait; one more is answered 429",
                            FIELD(queue_requests_max)));
  rows.push_back(number_row("queue_tokens_max", "Scheduling", "N", 1, 0x1p40, "tokens of the prompts of those that wait; more is answered 429",
                            FIELD(queue_tokens_max)));
  rows.push_back(number_row("stalled_seconds_max", "Scheduling", "SECONDS", 1, 3600, "of work without progress, then /readyz says 503",
                            FIELD(stalled_seconds_max)));
}

void add_http_rows(std::vector<OptionRow>& rows) {
  rows.push_back(text_row("host", "HTTP", "ADDRESS", ServeOptions().http.host, "where to listen; 0.0.0.0: every address", FIELD(http.host)));
  rows.push_back(number_row("port", "HTTP", "N", 0, 65535, "where to listen; 0: any free port", FIELD(http.port)));
  rows.push_back({"host_names", "HTTP", "NAME,…", "",
                  "that may ask a server which listens on this machine alone, besides localhost and addresses: a web page could be behind another",
                  [](ServeOptions& o, const std::string& text) { o.http.host_names = parse_names(text); }});
  rows.push_back(text_row("api_keys_file", "HTTP", "FILE", "", "names, SHA-256 of keys, limits (see Security); without it no key is needed", FIELD(api_keys_file)));
  rows.push_back(bool_row("metrics_public", "HTTP", "/metrics needs no key", FIELD(http.metrics_public)));
  rows.push_back(bool_row("introspection", "HTTP", "/v1/attention shows what the heads look at; computed beside the engine",
                          FIELD(introspection)));
  rows.push_back(number_row("streams_max", "HTTP", "N", 1, 4096, "requests that generate at the same time; one more is answered 503",
                            FIELD(http.streams_max)));
  rows.push_back(number_row("reserve_workers", "HTTP", "N", 1, 256, "threads kept for /livez, /metrics and other short answers",
                            FIELD(http.reserve_workers)));
  rows.push_back(number_row("connections_max", "HTTP", "N", 1, 1 << 17, "one more closes the one that is idle, or slow, for longest; it waits where all are being answered",
                            FIELD(http.connections_max)));
  rows.push_back(bytes_row("body_bytes_max", "HTTP", "of a request; more is answered 413", FIELD(http.body_bytes_max)));
  rows.push_back(bytes_row("buffered_bytes_max", "HTTP", "of all bodies that are received, and of all that are parsed; more is answered 503, or 413 where one alone is more",
                           FIELD(http.buffered_bytes_max)));
  rows.push_back(number_row("read_seconds_max", "HTTP", "SECONDS", 0.1, 3600,
                            "for a request to arrive; a large body may take longer at 16 KiB/s", FIELD(http.read_seconds_max)));
  rows.push_back(number_row("write_seconds_max", "HTTP", "SECONDS", 0.1, 3600, "of one write: a client that does not read is cut",
                            FIELD(http.write_seconds_max)));
  rows.push_back(number_row("keep_alive_seconds_max", "HTTP", "SECONDS", 0.1, 3600, "of an idle connection",
                            FIELD(http.keep_alive_seconds_max)));
  rows.push_back(number_row("keep_alive_requests_max", "HTTP", "N", 1, 1 << 30, "on one connection", FIELD(http.keep_alive_requests_max)));
  rows.push_back(number_row("drain_seconds_max", "HTTP", "SECONDS", 0, 86400, "after SIGTERM, for what runs", FIELD(drain_seconds_max)));
}

std::vector<Peer> parse_peers(const std::string& text) {
  std::vector<Peer> peers;
  std::istringstream in(text);
  for (std::string item; std::getline(in, item, ',');) {
    const size_t equals = item.find('=');
    if (equals == std::string::npos) throw std::runtime_error("must be NAME=URL, with commas between several");
    peers.push_back(make_peer(item.substr(0, equals), item.substr(equals + 1)));
  }
  if (peers.size() > kPeersMax) throw std::runtime_error("must be at most " + std::to_string(kPeersMax) + " servers");
  return peers;
}

void add_page_rows(std::vector<OptionRow>& rows) {
  rows.push_back(number_row("live_watchers_max", "Page", "N", 0, 1024, "that watch the engine at the same time; one more is answered 503",
                            FIELD(live_watchers_max)));
  rows.push_back(choice_row("live_requests", "Page", {"auto", "all", "none"},
                            "whether watchers see each request's size and speed; auto: unless there are API keys", FIELD(live_requests)));
  rows.push_back({"peers", "Page", "NAME=URL,…", "",
                  "servers that the page shows beside this one, and whose pages may watch this one; =:PORT means the same host",
                  [](ServeOptions& o, const std::string& text) { o.peers = parse_peers(text); }});
}

void add_log_rows(std::vector<OptionRow>& rows) {
  rows.push_back(choice_row("log_level", "Logs", {"debug", "info", "warn", "error", "off"}, "debug has a line for each request",
                            FIELD(log_level)));
  rows.push_back(choice_row("log_format", "Logs", {"text", "json"}, "to stderr", FIELD(log_format)));
}
#undef FIELD

const std::vector<OptionRow>& option_rows() {
  static const std::vector<OptionRow> rows = [] {
    std::vector<OptionRow> made;
    add_model_rows(made);
    add_kv_rows(made);
    add_scheduling_rows(made);
    add_http_rows(made);
    add_page_rows(made);
    add_log_rows(made);
    return made;
  }();
  return rows;
}

std::string unknown_name(const std::string& what, const std::string& name, const std::vector<std::string>& known) {
  const std::string nearest = nearest_name(name, known);
  return what + " " + name + " is not known" + (nearest.empty() ? "; see headroom serve --help" : "; did you mean " + nearest + "?");
}

void set_option(const OptionRow& row, const std::string& shown_name, const std::string& value, ServeOptions& options) {
  try {
    row.set(options, value);
  } catch (const std::exception& error) {
    throw std::runtime_error(shown_name + ": \"" + value + "\" " + error.what());
  }
}

// What JSON's value would be as the argument of a flag.
std::string json_as_text(const nlohmann::json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number() || value.is_boolean()) return value.dump();
  throw std::runtime_error("must be a string, a number, true or false");
}

}  // namespace

std::string read_own_file(const std::string& path, const std::string& what) {
  constexpr std::streamsize kBytesMax = 1 << 20;
  std::ifstream in(path, std::ios::binary);
  std::string text(kBytesMax + 1, '\0');
  in.read(text.data(), kBytesMax + 1);
  if (!in.is_open() || in.bad()) throw std::runtime_error(what + " " + path + " cannot be read");
  if (in.gcount() > kBytesMax) throw std::runtime_error(what + " " + path + " is larger than 1 MiB");
  text.resize(static_cast<size_t>(in.gcount()));
  if (text.find('\0') != text.npos) throw std::runtime_error(what + " " + path + " is not text: it holds a zero byte");
  return text;
}

void apply_json_options(std::string_view json, const std::string& source, ServeOptions& options) {
  nlohmann::json object;
  try {
    object = nlohmann::json::parse(json);
  } catch (const nlohmann::json::parse_error& error) {
    const auto end = json.begin() + static_cast<std::ptrdiff_t>(std::min(error.byte, json.size()));
    throw std::runtime_error(source + ": line " + std::to_string(std::count(json.begin(), end, '\n') + 1) + " is not valid JSON");
  }
  if (!object.is_object()) throw std::runtime_error(source + ": must be a JSON object of options");
  std::vector<std::string> known;
  for (const OptionRow& row : option_rows()) known.push_back(row.name);
  for (const auto& [key, value] : object.items()) {
    const auto row = std::find(known.begin(), known.end(), key) - known.begin() + option_rows().begin();
    if (row == option_rows().end()) throw std::runtime_error(unknown_name(source + ": option", key, known));
    std::string text;
    try {
      text = json_as_text(value);
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(source + ": " + key + " " + error.what());
    }
    set_option(*row, source + ": " + key, text, options);
  }
}

namespace {

// Flags as given, in order; names resolved by CLI11, values by the rows.
struct Flags {
  CLI::App app{"Serves a model over HTTP, with the API of OpenAI.", "headroom serve"};
  std::string config;
  std::vector<std::pair<const OptionRow*, std::string>> given;

  Flags() {
    app.option_defaults()->always_capture_default(false);
    app.allow_extras();
    app.add_option("--config", config, "JSON file of options: the names below with underscores; flags win")->type_name("FILE");
    for (const OptionRow& row : option_rows()) {
      std::string help = row.effect;
      if (!row.default_text.empty()) help += " [" + row.default_text + "]";
      app.add_option_function<std::string>(flag_of(row.name), [this, &row](const std::string& value) { given.emplace_back(&row, value); },
                                           help)
          ->type_name(row.value)
          ->group(row.group)
          ->take_last();
    }
  }
};

}  // namespace

ParsedOptions parse_serve_options(const std::vector<std::string>& arguments) {
  Flags flags;
  ParsedOptions parsed;
  try {
    flags.app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::CallForHelp&) {
    parsed.help = true;
    return parsed;
  } catch (const CLI::ParseError& error) {
    std::string line = error.what();
    std::replace(line.begin(), line.end(), '\n', ' ');
    throw std::runtime_error(line + "; see headroom serve --help");
  }
  std::vector<std::string> known = {"--config"};
  for (const OptionRow& row : option_rows()) known.push_back(flag_of(row.name));
  for (const std::string& extra : flags.app.remaining()) {
    throw std::runtime_error(unknown_name("option", extra.substr(0, extra.find('=')), known));
  }
  ServeOptions& options = parsed.options;
  if (!flags.config.empty()) apply_json_options(read_own_file(flags.config, "the options file"), flags.config, options);
  for (const auto& [row, value] : flags.given) set_option(*row, flag_of(row->name), value, options);
  if (options.model.empty()) throw std::runtime_error("no model: set --model to a directory with config.json and model.safetensors");
  if (!options.api_keys_file.empty()) {
    ApiKeys file = load_api_keys(options.api_keys_file);
    options.http.api_keys = std::move(file.keys);
    options.tenants = std::move(file.tenants);
  }
  options.http.check_host_name = true;
  return parsed;
}

std::string options_help() { return Flags().app.help(); }

std::string options_markdown() {
  std::string table = "| option | value | default | effect |\n|---|---|---|---|\n";
  std::string group;
  for (const OptionRow& row : option_rows()) {
    if (row.group != group) table += "| **" + (group = row.group) + "** | | | |\n";
    std::string value = row.value;
    for (size_t at = 0; (at = value.find('|', at)) != std::string::npos; at += 2) value.insert(at, "\\");
    table += "| `" + flag_of(row.name) + "` | " + value + " | " + row.default_text + " | " + row.effect + " |\n";
  }
  return table;
}

MemoryAmount parse_memory_amount(std::string_view text) {
  const auto fail = [] { throw std::runtime_error("must be bytes (512MiB, 4GiB) or a share of the free memory (50%)"); };
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || !std::isfinite(value) || value <= 0) fail();
  std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  if (unit == "%") {
    if (value > 100) fail();
    return {.bytes = 0, .share = value / 100};
  }
  constexpr std::array<std::pair<std::string_view, double>, 10> kUnits = {{{"", 1},
                                                                          {"B", 1},
                                                                          {"KiB", 0x1p10},
                                                                          {"MiB", 0x1p20},
                                                                          {"GiB", 0x1p30},
                                                                          {"TiB", 0x1p40},
                                                                          {"KB", 1e3},
                                                                          {"MB", 1e6},
                                                                          {"GB", 1e9},
                                                                          {"TB", 1e12}}};
  const auto found = std::find_if(kUnits.begin(), kUnits.end(), [unit](const auto& known) { return known.first == unit; });
  if (found == kUnits.end() || value * found->second > 0x1p50) fail();
  return {.bytes = static_cast<int64_t>(value * found->second), .share = 0};
}

std::string format_bytes(int64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) value /= 1024, ++unit;
  std::array<char, 48> text;
  const bool whole = value == std::floor(value) && value < 1e6;
  const int length = std::snprintf(text.data(), text.size(), whole ? "%.0f %s" : "%.2f %s", value, kUnits[unit]);
  return {text.data(), static_cast<size_t>(length)};
}

std::string nearest_name(std::string_view word, const std::vector<std::string>& known) {
  std::string nearest;
  size_t least = std::max<size_t>(2, word.size() / 3) + 1;  // further away is no typing error
  for (const std::string& name : known) {
    // Levenshtein's distance, one row at a time.
    std::vector<size_t> row(name.size() + 1);
    for (size_t j = 0; j <= name.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= word.size(); ++i) {
      size_t diagonal = std::exchange(row[0], i);
      for (size_t j = 1; j <= name.size(); ++j) {
        const size_t replaced = diagonal + (word[i - 1] == name[j - 1] ? 0 : 1);
        diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, replaced}));
      }
    }
    if (row.back() < least) {
      least = row.back();
      nearest = name;
    }
  }
  return nearest;
}

}  // namespace headroom
