#include "engine/tokenizer/chat_template.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <string_view>

#include "engine/files/checked_file.h"
#include "engine/tokenizer/jinja_interpreter.h"
#include "engine/tokenizer/jinja_json.h"
#include "engine/tokenizer/jinja_lexer.h"
#include "engine/tokenizer/jinja_parser.h"
#include "engine/tokenizer/utf8.h"

namespace headroom {
namespace {

using Json = nlohmann::ordered_json;

// Templates write the role of a message into control tokens: '<|' + message.role + '|>'. A role that is one of these
// words is therefore text of the template's vocabulary, not of the client; any other role stays user text.
constexpr std::string_view kKnownRoles[] = {"system", "user", "assistant", "tool", "developer", "function"};

jinja::Value message_value(jinja::Runtime& runtime, const Json& message) {
  if (!message.is_object()) throw jinja::Error("each message must be an object");
  const auto dict = runtime.new_dict(true);
  for (const auto& [key, value] : message.items()) {
    jinja::Value converted = jinja::from_json(runtime, value);
    if (key == "role" && value.is_string()) {
      const auto known = std::find(std::begin(kKnownRoles), std::end(kKnownRoles), value.get_ref<const std::string&>());
      if (known != std::end(kKnownRoles)) converted = runtime.string(*known, false);
    }
    dict->set(jinja::from_json(runtime, key), std::move(converted));
  }
  return runtime.dict(dict);
}

jinja::Value messages_value(jinja::Runtime& runtime, const Json& messages) {
  if (!messages.is_array()) throw jinja::Error("messages must be a list");
  std::vector<jinja::Value> items;
  for (const Json& message : messages) items.push_back(message_value(runtime, message));
  return runtime.sequence(jinja::SequenceKind::kList, std::move(items), true);
}

void define_variables(jinja::Runtime& runtime, const ChatTemplateInput& input, jinja::Interpreter* interpreter) {
  static constexpr std::string_view kReserved[] = {"messages", "tools", "add_generation_prompt", "bos_token",
                                                   "eos_token"};
  interpreter->define("documents", jinja::Value::none());
  if (!input.extra.is_null() && !input.extra.is_object()) throw jinja::Error("chat_template_kwargs must be an object");
  for (const auto& [name, value] : input.extra.items()) {
    if (std::find(std::begin(kReserved), std::end(kReserved), name) != std::end(kReserved)) {
      throw jinja::Error("chat_template_kwargs must not set '" + name + "'");
    }
    interpreter->define(name, jinja::from_json(runtime, value));
  }
  if (!input.tools.is_null() && !input.tools.is_array()) throw jinja::Error("tools must be a list");
  interpreter->define("messages", messages_value(runtime, input.messages));
  interpreter->define("tools", jinja::from_json(runtime, input.tools));
  interpreter->define("add_generation_prompt", jinja::Value::boolean(input.add_generation_prompt));
  if (!input.bos_token.empty()) interpreter->define("bos_token", runtime.string(input.bos_token, false));
  if (!input.eos_token.empty()) interpreter->define("eos_token", runtime.string(input.eos_token, false));
}

// Errors quote pieces of the template and of the request: one line of well-formed text, whatever was cut out of them.
std::string readable(std::string_view message) {
  constexpr size_t kMessageBytesMax = 4096;
  std::string text = replace_invalid_utf8(message.substr(0, kMessageBytesMax));
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, ' ');
  return text;
}

RenderedPrompt to_prompt(jinja::Text text) {
  RenderedPrompt prompt;
  size_t position = 0;
  const auto add = [&](size_t end, bool is_control) {
    if (end > position) prompt.spans.push_back({position, end, is_control});
    position = end;
  };
  for (const jinja::ByteRange range : text.user) {
    add(range.begin, true);
    add(range.end, false);
  }
  add(text.bytes.size(), true);
  prompt.text = std::move(text.bytes);
  return prompt;
}

// ---- files ----

constexpr size_t kFileBytesMax = 16 << 20;  // the largest published ones have 1 MB

std::optional<std::string> template_in(const std::filesystem::path& path) {
  const std::optional<std::string> content = read_text_file_if_there(path, kFileBytesMax);
  if (!content) return std::nullopt;
  const Json config = Json::parse(*content, nullptr, false);
  if (!config.is_object()) throw std::runtime_error(path.string() + ": is not a JSON object");
  const auto field = config.find("chat_template");
  if (field == config.end() || field->is_null()) return std::nullopt;
  if (field->is_string()) return field->get<std::string>();
  if (field->is_array()) {
    for (const Json& entry : *field) {
      if (!entry.is_object() || entry.value("name", Json()) != "default") continue;
      const Json source = entry.value("template", Json());
      if (source.is_string()) return source.get<std::string>();
    }
    throw std::runtime_error(path.string() + ": \"chat_template\" has no entry named \"default\"");
  }
  throw std::runtime_error(path.string() + ": \"chat_template\" must be a string or a list");
}

ChatTemplate parse_file(const std::filesystem::path& path, std::string source) {
  try {
    return ChatTemplate::parse(std::move(source));
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(path.string() + ": " + error.what());
  }
}

}  // namespace

ChatTemplate ChatTemplate::parse(std::string source) {
  try {
    return ChatTemplate(std::make_shared<const jinja::Template>(jinja::parse_template(source)));
  } catch (const jinja::SyntaxError& error) {
    throw std::runtime_error(readable(std::string("the chat template cannot be read: ") + error.what()));
  }
}

std::optional<ChatTemplate> ChatTemplate::load(const std::filesystem::path& model_dir) {
  const std::filesystem::path jinja_file = model_dir / "chat_template.jinja";
  if (std::optional<std::string> source = read_text_file_if_there(jinja_file, kFileBytesMax)) return parse_file(jinja_file, std::move(*source));
  for (const char* name : {"tokenizer_config.json", "chat_template.json"}) {
    if (std::optional<std::string> source = template_in(model_dir / name))
      return parse_file(model_dir / name, std::move(*source));
  }
  return std::nullopt;
}

std::variant<RenderedPrompt, ChatTemplateError> ChatTemplate::render(const ChatTemplateInput& input,
                                                                     const JinjaLimits& limits) const {
  jinja::Runtime runtime(limits, input.now_unix_seconds);
  std::string place;
  try {
    jinja::Interpreter interpreter(*template_, runtime);
    define_variables(runtime, input, &interpreter);
    try {
      return to_prompt(interpreter.run());
    } catch (const jinja::Error&) {
      place = "chat template, line " + std::to_string(interpreter.line()) + ": ";
      throw;
    }
  } catch (const jinja::RaisedByTemplate& error) {
    return ChatTemplateError{readable(error.what())};
  } catch (const jinja::Error& error) {
    return ChatTemplateError{readable(place + error.what())};
  }
}

}  // namespace headroom
