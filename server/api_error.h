// What a refused request gets: a status and the error object that OpenAI's clients read. Plain values, any thread.
// A message is written for the client: it names the field and the allowed range, and never holds a library's own text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/request.h"
#include "server/http_server.h"

namespace headroom {

struct ApiError {
  int status = 400;
  std::string message;
  std::string type = "invalid_request_error";
  std::string param;                                       // the field at fault; null when empty
  std::string code;                                        // for programs; null when empty
  std::vector<std::pair<std::string, int64_t>> numbers{};  // further members: n_prompt_tokens, n_ctx
  std::optional<double> retry_after_seconds{};             // a Retry-After header, rounded up
};

// 400 for a field.
ApiError invalid_field(std::string_view param, std::string message);
// 503: there is no model to serve, or none yet.
ApiError unavailable(std::string message, double retry_after_seconds = 1);
// 499: nobody reads it; the metrics count it.
ApiError client_closed();
ApiError from_submit_error(const SubmitError& error, int64_t prompt_tokens = 0, int64_t context_tokens = 0);

// The `type` of errors that have no closer one.
std::string_view error_type(int status);
// {"error":{"message":…,"type":…,"param":…,"code":…}}
std::string api_error_body(const ApiError& error);
void respond_with_error(const ApiError& error, HttpResponse* response);

}  // namespace headroom
