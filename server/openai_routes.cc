#include "server/openai_routes.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <utility>

#include "engine/model/json_scanner.h"
#include "kernels/check.h"
#include "server/attention_view.h"
#include "server/generation.h"
#include "server/json_writer.h"
#include "server/openai_response.h"
#include "server/parse_room.h"
#include "server/prompts.h"
#include "server/sse.h"

namespace headroom {
namespace {

using Clock = SseStream::Clock;
using ServedPtr = std::shared_ptr<const ServedModel>;

constexpr std::chrono::seconds kAttentionWaitMax{2};
constexpr std::chrono::seconds kParseWaitMax{10};

// Which prefixes may be shared: those of one tenant, or of one salt within it. The length keeps (tenant, salt)
// unambiguous.
std::string cache_salt(const std::string& tenant, const std::string& salt) {
  return std::to_string(tenant.size()) + ':' + tenant + salt;
}

// splitmix64: a bijection, so that different counts give different seeds.
uint64_t mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

// What a handler has once its request was understood and given to the engine.
struct Answer {
  ServedPtr served;  // keeps the tokenizer and the engine
  Generation generation;
  ResponseFormat format;
  bool stream;
  bool include_usage;
  std::function<bool()> client_gone;
};

class Api {
 public:
  explicit Api(ApiOptions options)
      : options_(std::move(options)), created_(options_.now_unix_seconds()), parse_room_(options_.parsed_bytes_max) {
    CHECK(!options_.model_names.empty());
  }

  void completions(HttpRequest& request, HttpResponse& response);
  void chat_completions(HttpRequest& request, HttpResponse& response);
  void tokenize(HttpRequest& request, HttpResponse& response);
  void detokenize(HttpRequest& request, HttpResponse& response);
  void attention(HttpRequest& request, HttpResponse& response);
  void models(HttpResponse& response);
  void model(const std::string& name, HttpResponse& response);
  void capacity(const HttpRequest& request, HttpResponse& response);
  void version(HttpResponse& response);
  void ready(HttpResponse& response);
  void metrics(HttpResponse& response);
  const ApiOptions& options() const { return options_; }

 private:
  // The model, if it is loaded; else the answer is a 503.
  ServedPtr served_or_refuse(HttpResponse* response) const;
  // The body as `parse` understands it, with the model; or nothing, and the answer says why. It has its share of the room for that long.
  template <class T>
  struct Understood {
    ParseRoom::Share share;
    ServedPtr served;
    T value;
  };
  template <class Parse>
  auto understand(HttpRequest& request, HttpResponse* response, const Parse& parse);
  std::optional<ApiError> check_model(const std::string& name) const;
  std::string tenant_name(TenantId tenant) const { return options_.tenant_names.empty() ? "" : options_.tenant_names.at(index_of(tenant)); }
  Parsed<std::vector<TokenId>> tokenize_input(const ServedModel& served, const TokenizeRequest& asked) const;
  void write_model(const ServedModel& served, const std::string& name, JsonWriter* json) const;

  struct Kind {
    bool is_chat;
    bool echo;
  };
  void generate(const HttpRequest& request, Kind kind, ServedPtr served, GenerationFields fields,
                std::vector<TokenizedPrompt> prompts, Engine::Reservation places, HttpResponse* response);
  void answer_whole(Answer* answer, HttpResponse* response) const;
  void answer_stream(Answer* answer, HttpStream* stream) const;

  const ApiOptions options_;
  const int64_t created_;
  std::atomic<uint64_t> unseeded_requests_{0};
  ParseRoom parse_room_;
  std::timed_mutex attention_turn_;  // one at a time: bounds the memory and the threads that it takes from the engine
};

ServedPtr Api::served_or_refuse(HttpResponse* response) const {
  ServedPtr served = options_.served();
  if (served == nullptr) respond_with_error(unavailable("the model is being loaded"), response);
  return served;
}

std::optional<ApiError> Api::check_model(const std::string& name) const {
  const auto& names = options_.model_names;
  if (name.empty() || std::find(names.begin(), names.end(), name) != names.end()) return std::nullopt;
  return ApiError{.status = 404,
                  .message = "this server has no model of that name; it serves " + names.front(),
                  .type = "not_found_error",
                  .param = "model",
                  .code = "model_not_found"};
}

const std::string& model_of(const CompletionRequest& asked) { return asked.generation.model; }
const std::string& model_of(const ChatRequest& asked) { return asked.generation.model; }
const std::string& model_of(const TokenizeRequest& asked) { return asked.model; }
const std::string& model_of(const DetokenizeRequest& asked) { return asked.model; }
const std::string& model_of(const AttentionRequest& asked) { return asked.text.model; }

template <class Parse>
auto Api::understand(HttpRequest& request, HttpResponse* response, const Parse& parse) {
  using Value = std::variant_alternative_t<0, std::invoke_result_t<Parse, const std::string&, const ServedModel&>>;
  std::optional<Understood<Value>> understood;
  ServedPtr served = served_or_refuse(response);
  if (served == nullptr) return understood;
  const int64_t bytes = parsed_bytes_max(request.body, served->limits.json.values_max);
  if (bytes > parse_room_.bytes_max()) {
    respond_with_error({.status = 413, .message = "the body may take " + std::to_string(bytes) + " bytes once it is parsed; at most " +
                                                  std::to_string(parse_room_.bytes_max()) + " are allowed: send less at once"}, response);
    return understood;
  }
  std::optional<ParseRoom::Share> share = parse_room_.take(bytes, kParseWaitMax);
  if (!share) {
    respond_with_error(unavailable("too many large bodies are being read; try again"), response);
    return understood;
  }
  auto parsed = parse(request.body, *served);
  request.drop_body();
  if (const auto* error = std::get_if<ApiError>(&parsed)) {
    respond_with_error(*error, response);
  } else if (const auto unknown = check_model(model_of(std::get<Value>(parsed)))) {
    respond_with_error(*unknown, response);
  } else {
    understood = Understood<Value>{std::move(*share), std::move(served), std::move(std::get<Value>(parsed))};
  }
  return understood;
}

Parsed<std::vector<TokenId>> Api::tokenize_input(const ServedModel& served, const TokenizeRequest& asked) const {
  const auto* chat = std::get_if<ChatInput>(&asked.input);
  return chat != nullptr ? tokenize_chat(served, *chat, options_.now_unix_seconds())
                         : tokenize_text(served, std::get<std::string>(asked.input), asked.add_special_tokens, "prompt");
}

void Api::completions(HttpRequest& request, HttpResponse& response) {
  auto understood = understand(request, &response, [](const std::string& body, const ServedModel& served) {
    return parse_completion_request(body, served.limits, served.defaults);
  });
  if (!understood) return;
  auto& [share, served, completion] = *understood;

  // Before the work of tokenising: what a full queue refuses costs next to nothing.
  Engine::ReserveResult places = served->engine.reserve(request.tenant, static_cast<int32_t>(completion.prompts.size()));
  if (const auto* error = std::get_if<SubmitError>(&places)) return respond_with_error(from_submit_error(*error), &response);
  std::vector<TokenizedPrompt> prompts;
  for (Prompt& prompt : completion.prompts) {
    if (auto* ids = std::get_if<std::vector<TokenId>>(&prompt)) {
      std::string text;
      // Ids beyond the context are refused below, and their text could be long.
      const bool fits = static_cast<int64_t>(ids->size()) <= served->limits.context_tokens_max;
      if (completion.echo && fits) text = served->tokenizer.decode(*ids, completion.generation.skip_special_tokens);
      prompts.push_back({std::move(*ids), std::move(text)});
      continue;
    }
    std::string& text = std::get<std::string>(prompt);
    auto tokens = tokenize_text(*served, text, completion.add_special_tokens, "prompt");
    if (const auto* error = std::get_if<ApiError>(&tokens)) return respond_with_error(*error, &response);
    prompts.push_back({std::move(std::get<std::vector<TokenId>>(tokens)), completion.echo ? std::move(text) : ""});
  }
  share.give_back();
  generate(request, {.is_chat = false, .echo = completion.echo}, std::move(served), std::move(completion.generation),
           std::move(prompts), std::move(std::get<Engine::Reservation>(places)), &response);
}

void Api::chat_completions(HttpRequest& request, HttpResponse& response) {
  auto understood = understand(request, &response, [](const std::string& body, const ServedModel& served) {
    return parse_chat_request(body, served.limits, served.defaults);
  });
  if (!understood) return;
  auto& [share, served, chat] = *understood;
  Engine::ReserveResult places = served->engine.reserve(request.tenant, 1);
  if (const auto* error = std::get_if<SubmitError>(&places)) return respond_with_error(from_submit_error(*error), &response);
  auto tokens = tokenize_chat(*served, chat.chat, options_.now_unix_seconds());
  if (const auto* error = std::get_if<ApiError>(&tokens)) return respond_with_error(*error, &response);
  std::vector<TokenizedPrompt> prompts(1);
  prompts.front().tokens = std::move(std::get<std::vector<TokenId>>(tokens));
  chat.chat = {};
  share.give_back();
  generate(request, {.is_chat = true, .echo = false}, std::move(served), std::move(chat.generation), std::move(prompts),
           std::move(std::get<Engine::Reservation>(places)), &response);
}

void Api::generate(const HttpRequest& request, Kind kind, ServedPtr served, GenerationFields fields,
                   std::vector<TokenizedPrompt> prompts, Engine::Reservation places, HttpResponse* response) {
  if (!fields.is_seeded) fields.sampling.seed = mix(options_.seed_key + mix(unseeded_requests_.fetch_add(1)));
  ResponseStyle style{.is_chat = kind.is_chat,
                      .id = (kind.is_chat ? "chatcmpl-" : "cmpl-") + request.request_id,
                      .created = options_.now_unix_seconds(),
                      .model = options_.model_names.front(),
                      .system_fingerprint = served->device.empty() ? options_.system_fingerprint : options_.system_fingerprint + "_" + served->device,
                      .top_logprobs = fields.top_logprobs,
                      .tokens_as_ids = fields.tokens_as_ids,
                      .return_token_ids = fields.return_token_ids,
                      .include_usage = fields.include_usage,
                      .continuous_usage = fields.continuous_usage};
  Generation::Options options{.echo = kind.echo,
                              .cache_salt = cache_salt(tenant_name(request.tenant), fields.cache_salt),
                              .context_tokens_max = served->limits.context_tokens_max,
                              .tenant = request.tenant};
  const bool is_stream = fields.stream;
  const bool include_usage = fields.include_usage;
  const ServedModel& model = *served;
  std::shared_ptr<Answer> answer(
      new Answer{.served = std::move(served),
                 .generation = Generation(model.engine, model.tokenizer, std::move(fields), std::move(options)),
                 .format = ResponseFormat(model.tokenizer, std::move(style)),
                 .stream = is_stream,
                 .include_usage = include_usage,
                 .client_gone = request.client_gone});
  // Whatever can be refused is refused here, before the head of a stream goes out.
  if (const auto error = answer->generation.submit(std::move(prompts), std::move(places))) return respond_with_error(*error, response);
  if (!answer->stream) return answer_whole(answer.get(), response);
  response->content_type = std::string(kSseContentType);
  response->headers.emplace_back("Cache-Control", "no-cache");
  response->headers.emplace_back("X-Accel-Buffering", "no");  // proxies that buffer would hold tokens back
  response->stream = [this, answer](HttpStream& stream) { answer_stream(answer.get(), &stream); };
  append_sse_event(api_error_body({.status = 500, .message = "internal error", .type = "internal_server_error"}),
                   &response->stream_failure);
  append_sse_done(&response->stream_failure);
}

void Api::answer_whole(Answer* answer, HttpResponse* response) const {
  Generation& generation = answer->generation;
  Clock::time_point next_look = Clock::now() + options_.client_poll_period;
  while (!generation.ended()) {
    generation.pump(options_.client_poll_period);
    if (Clock::now() < next_look) continue;
    if (answer->client_gone && answer->client_gone()) {
      generation.cancel();
      return respond_with_error(client_closed(), response);
    }
    next_look = Clock::now() + options_.client_poll_period;
  }
  if (generation.failure()) return respond_with_error(*generation.failure(), response);
  response->body = answer->format.body(generation.take_outputs(), generation.usage());
}

void Api::answer_stream(Answer* answer, HttpStream* stream) const {
  Generation& generation = answer->generation;
  SseStream sse(stream, options_.ping_after, Clock::now());
  const auto wait_max = std::min(options_.client_poll_period, options_.ping_after);
  std::string events;
  const auto is_done = [&] {
    return generation.failure() || (answer->include_usage ? generation.ended() : generation.choices_ended());
  };
  for (bool done = false; !done;) {
    generation.pump(wait_max);
    done = is_done();
    events.clear();
    for (size_t i = 0; i < generation.choice_count(); ++i) {
      if (generation.output(i).is_empty()) continue;
      answer->format.append_chunk(generation.output(i), generation.usage(), &events);
      generation.clear_output(i);
    }
    if (generation.failure()) {
      append_sse_event(api_error_body(*generation.failure()), &events);
    } else if (done && answer->include_usage) {
      answer->format.append_usage_chunk(generation.usage(), &events);
    }
    if (done) append_sse_done(&events);
    const bool is_heard = events.empty()
                              ? !(answer->client_gone && answer->client_gone()) && sse.ping_if_silent(Clock::now())
                              : sse.send(events, Clock::now());
    if (!is_heard) return generation.cancel();
  }
}

void Api::tokenize(HttpRequest& request, HttpResponse& response) {
  const auto understood = understand(request, &response, [](const std::string& body, const ServedModel& served) {
    return parse_tokenize_request(body, served.limits);
  });
  if (!understood) return;
  const auto& [share, served, asked] = *understood;
  const auto tokens = tokenize_input(*served, asked);
  if (const auto* error = std::get_if<ApiError>(&tokens)) return respond_with_error(*error, &response);
  const auto& ids = std::get<std::vector<TokenId>>(tokens);
  JsonWriter json(&response.body);
  json.begin_object().key("count").integer(static_cast<int64_t>(ids.size()));
  json.key("max_model_len").integer(served->limits.context_tokens_max);
  json.key("tokens").begin_array();
  for (const TokenId id : ids) json.integer(id);
  json.end_array().key("token_strs");
  if (asked.return_token_strings) {
    json.begin_array();
    for (const TokenId id : ids) json.string(served->tokenizer.token_text(id));
    json.end_array();
  } else {
    json.null();
  }
  json.end_object();
}

void Api::detokenize(HttpRequest& request, HttpResponse& response) {
  const auto understood = understand(request, &response, [](const std::string& body, const ServedModel& served) {
    return parse_detokenize_request(body, served.limits);
  });
  if (!understood) return;
  const auto& [share, served, asked] = *understood;
  JsonWriter json(&response.body);
  json.begin_object().key("prompt").string(served->tokenizer.decode(asked.tokens, false)).end_object();
}

void Api::attention(HttpRequest& request, HttpResponse& response) {
  const ServedPtr model = served_or_refuse(&response);
  if (model == nullptr) return;
  if (model->attention == nullptr) {
    return respond_with_error({.status = 403,
                               .message = "this server does not show attention: start it with --introspection true",
                               .type = "permission_error",
                               .code = "introspection_off"},
                              &response);
  }
  auto understood = understand(request, &response, [](const std::string& body, const ServedModel& served) {
    return parse_attention_request(body, served.limits, served.attention->config().layers);
  });
  if (!understood) return;
  auto& [share, served, asked] = *understood;
  const auto tokens = tokenize_input(*served, asked.text);
  if (const auto* error = std::get_if<ApiError>(&tokens)) return respond_with_error(*error, &response);
  share.give_back();
  const std::unique_lock turn(attention_turn_, kAttentionWaitMax);
  if (!turn.owns_lock()) return respond_with_error(unavailable("another attention is being computed"), &response);
  answer_attention(*served, std::get<std::vector<TokenId>>(tokens), asked.layer, request.client_gone, &response);
}

void Api::write_model(const ServedModel& served, const std::string& name, JsonWriter* json) const {
  json->begin_object().key("id").string(name).key("object").string("model").key("created").integer(created_);
  json->key("owned_by").string("headroom").key("root").string(options_.model_names.front()).key("parent").null();
  json->key("max_model_len").integer(served.limits.context_tokens_max).end_object();
}

void Api::models(HttpResponse& response) {
  const ServedPtr served = served_or_refuse(&response);
  if (served == nullptr) return;
  JsonWriter json(&response.body);
  json.begin_object().key("object").string("list").key("data").begin_array();
  for (const std::string& name : options_.model_names) write_model(*served, name, &json);
  json.end_array().end_object();
}

void Api::model(const std::string& name, HttpResponse& response) {
  const ServedPtr served = served_or_refuse(&response);
  if (served == nullptr) return;
  JsonWriter json(&response.body);
  write_model(*served, name, &json);
}

void Api::version(HttpResponse& response) {
  JsonWriter(&response.body).begin_object().key("version").string(options_.version).end_object();
}

// The query's parameters set those of the plan, each at most once.
void Api::capacity(const HttpRequest& request, HttpResponse& response) {
  const ServedPtr served = served_or_refuse(&response);
  if (served == nullptr) return;
  CapacityQuestion question = served->capacity;
  question.model = options_.model_names.front();
  std::set<std::string_view> seen;
  for (std::string_view rest = request.query; !rest.empty();) {
    const std::string_view pair = rest.substr(0, rest.find('&'));
    rest.remove_prefix(std::min(rest.size(), pair.size() + 1));
    const std::string_view name = pair.substr(0, pair.find('='));
    const std::string_view value = pair.substr(std::min(pair.size(), name.size() + 1));
    const std::string fault = seen.insert(name).second ? set_capacity_parameter(name, value, &question) : "is given twice";
    if (fault.empty()) continue;
    return respond_with_error(invalid_field(printable(name), printable(name) + " " + fault), &response);
  }
  append_capacity_json(answer_capacity(std::move(question)), &response.body);
}

void Api::ready(HttpResponse& response) {
  const std::string reason = options_.not_ready_reason();
  JsonWriter json(&response.body);
  json.begin_object().key("status").string(reason.empty() ? "ready" : "not ready");
  if (!reason.empty()) {
    json.key("reason").string(reason);
    response.status = 503;
  }
  json.end_object();
}

void Api::metrics(HttpResponse& response) {
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  response.body = options_.metrics_text();
}

}  // namespace

std::vector<Route> api_routes(ApiOptions options) {
  const auto api = std::make_shared<Api>(std::move(options));
  std::vector<Route> routes;
  const auto post = [&](const char* path, void (Api::*handler)(HttpRequest&, HttpResponse&)) {
    routes.push_back({.method = "POST",
                      .path = path,
                      .generates = true,
                      .handle = [api, handler](HttpRequest& request, HttpResponse& response) {
                        (api.get()->*handler)(request, response);
                      }});
  };
  const auto get = [&](const std::string& path, bool is_public, auto handler) {
    routes.push_back(
        {.method = "GET",
         .path = path,
         .is_public = is_public,
         .handle = [api, handler](const HttpRequest&, HttpResponse& response) { handler(*api, response); }});
  };
  post("/v1/completions", &Api::completions);
  post("/v1/chat/completions", &Api::chat_completions);
  // These generate nothing, but a long text keeps a worker busy, and must not keep one that answers probes.
  post("/tokenize", &Api::tokenize);
  post("/detokenize", &Api::detokenize);
  post("/v1/attention", &Api::attention);
  get("/v1/models", false, [](Api& a, HttpResponse& response) { a.models(response); });
  for (const std::string& name : api->options().model_names) {
    get("/v1/models/" + name, false, [name](Api& a, HttpResponse& response) { a.model(name, response); });
  }
  routes.push_back({.method = "GET",
                    .path = "/v1/capacity",
                    .handle = [api](const HttpRequest& request, HttpResponse& response) { api->capacity(request, response); }});
  get("/version", false, [](Api& a, HttpResponse& response) { a.version(response); });
  get("/readyz", true, [](Api& a, HttpResponse& response) { a.ready(response); });
  get("/metrics", api->options().metrics_public, [](Api& a, HttpResponse& response) { a.metrics(response); });
  const auto alive = [](Api&, HttpResponse& response) { response.body = R"({"status":"alive"})"; };
  get("/livez", true, alive);
  get("/health", false, alive);
  return routes;
}

std::string engine_not_ready_reason(const EngineStats& stats, double stalled_seconds_max) {
  if (stats.faulted) return "faulted: " + stats.fault;
  if (stats.draining) return "draining";
  if (stats.work_pending && stats.seconds_since_progress > stalled_seconds_max)
    return "stalled: the model does not get on";
  return "";
}

}  // namespace headroom
