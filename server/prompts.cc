#include "server/prompts.h"

#include <algorithm>
#include <exception>
#include <string>

namespace headroom {
namespace {

constexpr std::string_view kWhiteSpace = " \t\n\v\f\r";

ApiError too_long(const ServedModel& served, int64_t bytes, std::string_view param) {
  ApiError error =
      invalid_field(param, "this model's maximum context length is " + std::to_string(served.limits.context_tokens_max) +
                               " tokens, which hold at most " + std::to_string(served.limits.prompt_bytes_max) +
                               " bytes of text; the prompt has " + std::to_string(bytes));
  error.code = "context_length_exceeded";
  error.numbers = {{"n_prompt_bytes", bytes}, {"n_ctx", served.limits.context_tokens_max}};
  return error;
}

int64_t string_bytes(const Json& value) {
  if (value.is_string()) return static_cast<int64_t>(value.get_ref<const std::string&>().size());
  int64_t bytes = 0;
  if (value.is_structured()) {
    for (const Json& element : value) bytes += string_bytes(element);
  }
  return bytes;
}

// Runs an encoding. It throws where a text would cost the tokenizer more than its bounds: a fault of that text.
template <typename Encode>
Parsed<std::vector<TokenId>> encode_bounded(std::string_view param, const Encode& encode) {
  try {
    return encode();
  } catch (const std::exception&) {
    return invalid_field(param, "the text exceeds what the tokenizer may spend on one request");
  }
}

// Ends the prompt with the text of the last message, so that the model goes on with it. False if the template does not
// show that text as it is.
bool cut_after_final_message(std::string_view content, RenderedPrompt* prompt) {
  const size_t begin = content.find_first_not_of(kWhiteSpace);
  if (begin == std::string_view::npos) return false;
  const std::string_view without_start = content.substr(begin);
  const std::string_view stripped = content.substr(begin, content.find_last_not_of(kWhiteSpace) + 1 - begin);
  const size_t found = prompt->text.rfind(stripped);
  if (found == std::string::npos) return false;
  // Templates that strip contents lose the white space at the end.
  const bool keeps_space = prompt->text.compare(found, without_start.size(), without_start) == 0;
  const size_t end = found + (keeps_space ? without_start : stripped).size();
  prompt->text.resize(end);
  std::erase_if(prompt->spans, [end](const auto& span) { return span.begin >= end; });
  for (auto& span : prompt->spans) span.end = std::min(span.end, end);
  return true;
}

}  // namespace

int64_t prompt_bytes_max(const Tokenizer& tokenizer, int32_t context_tokens_max) {
  constexpr int64_t kShorteningMax = 4;
  return kShorteningMax * context_tokens_max * static_cast<int64_t>(std::max<size_t>(tokenizer.token_bytes_max(), 1));
}

Parsed<std::vector<TokenId>> tokenize_text(const ServedModel& served, std::string_view text, bool add_special_tokens,
                                           std::string_view param) {
  const auto bytes = static_cast<int64_t>(text.size());
  if (bytes > served.limits.prompt_bytes_max) return too_long(served, bytes, param);
  return encode_bounded(param, [&] { return served.tokenizer.encode(text, add_special_tokens); });
}

Parsed<std::vector<TokenId>> tokenize_chat(const ServedModel& served, const ChatInput& chat, int64_t now_unix_seconds) {
  constexpr std::string_view kParam = "messages";
  if (served.chat_template == nullptr) {
    return invalid_field(kParam, "this model has no chat template: use /v1/completions");
  }
  const int64_t bytes = string_bytes(chat.messages) + string_bytes(chat.tools);
  if (bytes > served.limits.prompt_bytes_max) return too_long(served, bytes, kParam);
  auto rendered = served.chat_template->render({.messages = chat.messages,
                                                .tools = chat.tools,
                                                .add_generation_prompt = chat.add_generation_prompt,
                                                .extra = chat.template_arguments,
                                                .bos_token = served.bos_token,
                                                .eos_token = served.eos_token,
                                                .now_unix_seconds = now_unix_seconds});
  if (const auto* error = std::get_if<ChatTemplateError>(&rendered)) {
    return invalid_field(kParam, "the model's chat template refuses the conversation: " + error->message);
  }
  RenderedPrompt& prompt = std::get<RenderedPrompt>(rendered);
  if (chat.continue_final_message &&
      !cut_after_final_message(chat.messages.back()["content"].get_ref<const std::string&>(), &prompt)) {
    return invalid_field("continue_final_message",
                         "the model's chat template does not show the final message as it is");
  }
  const std::string_view text = prompt.text;
  std::vector<TextSpan> spans;
  spans.reserve(prompt.spans.size());
  for (const auto& span : prompt.spans) {
    spans.push_back({text.substr(span.begin, span.end - span.begin), span.is_control});
  }
  return encode_bounded(kParam, [&] { return served.tokenizer.encode_spans(spans); });
}

}  // namespace headroom
