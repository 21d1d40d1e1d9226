#include "server/api_error.h"

#include <algorithm>
#include <cmath>

#include "server/json_writer.h"

namespace headroom {
namespace {

void write_nullable(JsonWriter* json, std::string_view key, std::string_view value) {
  json->key(key);
  if (value.empty()) {
    json->null();
  } else {
    json->string(value);
  }
}

ApiError refused(const SubmitError& error, int status, std::string_view code) {
  return {.status = status,
          .message = error.message,
          .type = std::string(error_type(status)),
          .code = std::string(code),
          .retry_after_seconds = error.retry_after_seconds};
}

}  // namespace

std::string_view error_type(int status) {
  if (status == 401) return "authentication_error";
  if (status == 404) return "not_found_error";
  if (status == 429) return "rate_limit_error";
  if (status == 503) return "service_unavailable_error";
  return status >= 500 ? "internal_server_error" : "invalid_request_error";
}

ApiError invalid_field(std::string_view param, std::string message) {
  return {.message = std::move(message), .param = std::string(param)};
}

ApiError unavailable(std::string message, double retry_after_seconds) {
  return {.status = 503,
          .message = std::move(message),
          .type = std::string(error_type(503)),
          .code = "unavailable",
          .retry_after_seconds = retry_after_seconds};
}

ApiError client_closed() { return {.status = 499, .message = "the client went away"}; }

ApiError from_submit_error(const SubmitError& error, int64_t prompt_tokens, int64_t context_tokens) {
  switch (error.kind) {
    case SubmitError::Kind::invalid:
      return invalid_field("", error.message);
    case SubmitError::Kind::context_exceeded:
    case SubmitError::Kind::pool_exceeded:
    case SubmitError::Kind::share_exceeded:
      return {.message = error.message,
              .code = error.kind == SubmitError::Kind::pool_exceeded    ? "kv_pool_exceeded"
                      : error.kind == SubmitError::Kind::share_exceeded ? "kv_share_exceeded"
                                                                        : "context_length_exceeded",
              .numbers = {{"n_prompt_tokens", prompt_tokens}, {"n_ctx", context_tokens}}};
    case SubmitError::Kind::queue_full:
      return refused(error, 429, "queue_full");
    case SubmitError::Kind::too_fast:
      return refused(error, 429, "rate_limit_exceeded");
    case SubmitError::Kind::draining:
      return refused(error, 503, "draining");
    case SubmitError::Kind::faulted:
      return refused(error, 503, "engine_faulted");
  }
  return unavailable("the engine refused the request");
}

std::string api_error_body(const ApiError& error) {
  std::string body;
  JsonWriter json(&body);
  json.begin_object().key("error").begin_object();
  json.key("message").string(error.message).key("type").string(error.type);
  write_nullable(&json, "param", error.param);
  write_nullable(&json, "code", error.code);
  for (const auto& [name, value] : error.numbers) json.key(name).integer(value);
  json.end_object().end_object();
  return body;
}

void respond_with_error(const ApiError& error, HttpResponse* response) {
  response->status = error.status;
  response->content_type = "application/json";
  response->body = api_error_body(error);
  response->stream = nullptr;
  if (error.retry_after_seconds) {
    // Whole seconds: several clients parse the header as an integer.
    const double seconds = std::clamp(std::ceil(*error.retry_after_seconds), 1.0, 3600.0);
    response->headers.emplace_back("Retry-After", std::to_string(static_cast<int64_t>(seconds)));
  }
}

}  // namespace headroom
