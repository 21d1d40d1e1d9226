// Renders chat templates for tests/golden/check_templates.py: one JSON object a line on stdin, one on stdout.
//   in:  {"template", "messages", "tools", "add_generation_prompt", "extra", "bos_token", "eos_token", "now"}
//   out: {"text", "spans": [[begin, end, is_control], …]}  or  {"error"}
#include <iostream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <variant>

#include "engine/tokenizer/chat_template.h"

namespace {

using Json = nlohmann::ordered_json;

Json render_line(const Json& request) {
  headroom::ChatTemplateInput input;
  input.messages = request.value("messages", Json::array());
  input.tools = request.value("tools", Json());
  input.add_generation_prompt = request.value("add_generation_prompt", true);
  input.extra = request.value("extra", Json());
  input.bos_token = request.value("bos_token", "");
  input.eos_token = request.value("eos_token", "");
  if (request.contains("now")) input.now_unix_seconds = request["now"].get<int64_t>();
  const auto result = headroom::ChatTemplate::parse(request["template"].get<std::string>()).render(input);
  if (const auto* error = std::get_if<headroom::ChatTemplateError>(&result)) return {{"error", error->message}};
  const auto& prompt = std::get<headroom::RenderedPrompt>(result);
  Json spans = Json::array();
  for (const auto& span : prompt.spans) spans.push_back({span.begin, span.end, span.is_control});
  return {{"text", prompt.text}, {"spans", spans}};
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    Json answer;
    try {
      answer = render_line(Json::parse(line));
    } catch (const std::runtime_error& error) {
      answer = {{"error", error.what()}};
    }
    std::cout << answer.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n';
  }
}
