// Chat templates: from the messages of a request to the text of a prompt, by the Jinja template that a model ships.
// The template is interpreted under bounds (JinjaLimits): it cannot run away, whatever it and the request contain.
// Every part of the prompt knows whether the template wrote it or the request: only what the template wrote may be read
// as a control token by the tokenizer, so no message can end its own turn.
// A ChatTemplate never changes after parse; any thread may render with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "engine/tokenizer/jinja_limits.h"

namespace headroom {

struct RenderedPrompt {
  struct Span {
    size_t begin, end;  // bytes of text
    bool is_control;    // written by the template; false: came from the request
  };
  std::string text;
  std::vector<Span> spans;  // in order, none empty, covering text without gaps; neighbours differ
};

// A request that the template refuses or that exceeds a bound. The text is safe to show to the client.
struct ChatTemplateError {
  std::string message;
};

struct ChatTemplateInput {
  nlohmann::ordered_json messages;
  nlohmann::ordered_json tools;  // null or an array
  bool add_generation_prompt = true;
  nlohmann::ordered_json extra;      // further variables of the request (chat_template_kwargs): null or an object
  std::string bos_token, eos_token;  // empty: undefined in the template
  std::optional<int64_t> now_unix_seconds;  // for strftime_now, read as UTC
};

namespace jinja {
struct Template;
}

class ChatTemplate {
 public:
  // Throws std::runtime_error: one line with the line number of the template.
  static ChatTemplate parse(std::string source);

  // From a model directory: chat_template.jinja, else "chat_template" of tokenizer_config.json (a string, or a list of
  // {name, template} of which "default" counts), else of chat_template.json; nullopt if there is none.
  // Throws std::runtime_error that names the file, if one is broken.
  static std::optional<ChatTemplate> load(const std::filesystem::path& model_dir);

  std::variant<RenderedPrompt, ChatTemplateError> render(const ChatTemplateInput& input,
                                                         const JinjaLimits& limits = {}) const;

 private:
  explicit ChatTemplate(std::shared_ptr<const jinja::Template> parsed) : template_(std::move(parsed)) {}

  std::shared_ptr<const jinja::Template> template_;
};

}  // namespace headroom
