#include "tests/fuzz/targets.h"

#include <sys/mman.h>
#include <unistd.h>
#include <utf8proc.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "engine/model/config.h"
#include "engine/model/gguf.h"
#include "engine/model/gguf_model.h"
#include "engine/model/safetensors.h"
#include "engine/output_text.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/gguf_vocabulary.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"
#include "kernels/check.h"
#include "server/http_framing.h"
#include "server/json_writer.h"
#include "server/openai_request.h"
#include "server/sse.h"
#include "tests/unit/byte_tokenizer.h"

namespace headroom::fuzz {
namespace {

const Tokenizer& byte_tokenizer() {
  static const Tokenizer tokenizer = Tokenizer::from_json(byte_tokenizer_json());
  return tokenizer;
}

// The first byte of an input is for choices of the target.
unsigned char take_byte(std::string_view* input) {
  if (input->empty()) return 0;
  const auto byte = static_cast<unsigned char>(input->front());
  input->remove_prefix(1);
  return byte;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t end = std::min(text.find(separator), text.size());
    parts.push_back(text.substr(0, end));
    if (end == text.size()) return parts;
    text.remove_prefix(end + 1);
  }
}

// By a library, which has no part in the code under test's own decoding.
bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    utf8proc_int32_t code_point;
    const utf8proc_ssize_t bytes = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()), &code_point);
    if (bytes <= 0) return false;
    text.remove_prefix(static_cast<size_t>(bytes));
  }
  return true;
}

// What a file is refused with: one line.
template <typename Load>
bool load_or_one_line(const Load& load) {
  try {
    load();
    return true;
  } catch (const std::runtime_error& error) {
    const std::string_view line = error.what();
    CHECK(!line.empty() && line.find('\n') == std::string_view::npos) << line;
    return false;
  }
}

// --- server ------------------------------------------------------------------------------------------------------------------------------

struct Framed {
  RequestFrame::State state;
  int status;
  std::string head, body;
  size_t taken;
  bool operator==(const Framed&) const = default;
};

Framed frame(std::string_view input, size_t piece) {
  const FramingLimits limits{.request_line_bytes_max = 64, .head_bytes_max = 256, .headers_max = 8, .body_bytes_max = 512};
  RequestFrame request(limits);
  size_t taken = 0;
  while (taken < input.size() && (request.state() == RequestFrame::State::head || request.state() == RequestFrame::State::body)) {
    taken += request.consume(input.substr(taken, piece));
    CHECK_LE(request.body().size(), limits.body_bytes_max);
  }
  const bool failed = request.state() == RequestFrame::State::failed;
  CHECK(failed == (request.status() >= 400 && request.status() < 500));
  return {request.state(), request.status(), failed ? "" : request.head(), failed ? "" : request.body(), failed ? 0 : taken};
}

// A request is the same however its bytes arrive.
bool http(std::string_view input) {
  const Framed whole = frame(input, input.size());
  for (const size_t piece : {1, 2, 7}) CHECK(frame(input, piece) == whole) << "in pieces of " << piece;
  const bool complete = whole.state == RequestFrame::State::complete;
  CHECK(!complete || whole.head.ends_with("\r\n\r\n"));
  return complete;
}

void check_error(const ApiError& error) {
  CHECK(error.status >= 400 && error.status < 500 && !error.message.empty());
  CHECK(!nlohmann::json::parse(api_error_body(error), nullptr, false).is_discarded());
}

// A body becomes values within their limits, or an error that can be sent.
bool request(std::string_view input) {
  const unsigned char kind = take_byte(&input);
  const ApiLimits limits{.context_tokens_max = 512, .vocab_size = 260, .prompt_bytes_max = 4096};
  const auto check = [&](const auto& parsed, const auto& accept) {
    if (const auto* error = std::get_if<ApiError>(&parsed)) return check_error(*error), false;
    accept(std::get<0>(parsed));
    return true;
  };
  const auto check_generation = [&](const GenerationFields& fields) {
    CHECK(fields.choices >= 1 && fields.choices <= limits.choices_max);
    CHECK(fields.stop.size() <= static_cast<size_t>(limits.stop_strings_max));
    CHECK(std::none_of(fields.stop.begin(), fields.stop.end(), [](const auto& stop) { return stop.empty(); }));
    CHECK(fields.top_logprobs >= -1 && fields.top_logprobs <= limits.top_logprobs_max);
    CHECK(fields.sampling.temperature >= 0 && fields.sampling.top_p > 0 && fields.sampling.top_p <= 1);
    for (const auto& [token, bias] : fields.sampling.logit_bias) CHECK(token >= 0 && token < limits.vocab_size && bias == bias);
    for (const TokenId token : fields.stop_token_ids) CHECK(token >= 0 && token < limits.vocab_size);
  };
  switch (kind % 4) {
    case 0:
      return check(parse_completion_request(input, limits, {}), [&](const CompletionRequest& completion) {
        check_generation(completion.generation);
        CHECK(!completion.prompts.empty());
        for (const Prompt& prompt : completion.prompts) {
          const auto* ids = std::get_if<std::vector<TokenId>>(&prompt);
          if (ids == nullptr) continue;
          for (const TokenId token : *ids) CHECK(token >= 0 && token < limits.vocab_size);
        }
      });
    case 1:
      return check(parse_chat_request(input, limits, {}), [&](const ChatRequest& chat) {
        check_generation(chat.generation);
        CHECK(chat.chat.messages.is_array() && !chat.chat.messages.empty());
      });
    case 2: return check(parse_tokenize_request(input, limits), [](const auto&) {});
    default: return check(parse_detokenize_request(input, limits), [&](const DetokenizeRequest& asked) {
      for (const TokenId token : asked.tokens) CHECK(token >= 0 && token < limits.vocab_size);
    });
  }
}

// Any bytes as tokens: what is streamed is UTF-8, is what decode() gives, and survives its way through an event.
bool stream(std::string_view input) {
  const bool skip_special = take_byte(&input) % 2 == 0;
  std::vector<TokenId> ids;
  for (size_t i = 0; i < input.size(); ++i) {
    const auto byte = static_cast<unsigned char>(input[i]);
    ids.push_back(byte == 0xFF ? 255 + static_cast<TokenId>(i % 6) : byte);  // special ones and some that do not exist
  }
  StreamDecoder decoder(byte_tokenizer(), skip_special);
  std::string text, events;
  size_t sent = 0;
  const auto take = [&](const std::string& part) {
    CHECK(is_utf8(part));
    text += part;
  };
  const auto send = [&] {
    std::string json;
    JsonWriter(&json).begin_object().key("text").string(std::string_view(text).substr(sent)).end_object();
    append_sse_event(json, &events);
    sent = text.size();
  };
  for (size_t i = 0; i < ids.size(); ++i) {
    take(decoder.push(ids[i]));
    if (i % 8 == 7) send();
  }
  take(decoder.finish());
  send();
  CHECK(text == byte_tokenizer().decode(ids, skip_special));
  std::string received;
  for (std::string_view rest = events; !rest.empty();) {
    const size_t end = rest.find("\n\n");
    CHECK(end != std::string_view::npos && rest.starts_with("data: "));
    received += nlohmann::json::parse(rest.substr(6, end - 6)).at("text").get<std::string>();
    rest.remove_prefix(end + 2);
  }
  CHECK(received == text);
  return true;
}

// Stop strings, separated by bytes 0xFE, then the text behind a byte 0xFF: against the definition, which looks at every end.
bool stop(std::string_view input) {
  const bool include = take_byte(&input) % 2 == 0;
  const size_t divide = std::min(input.find('\xff'), input.size());
  const std::string_view bytes = input.substr(std::min(divide + 1, input.size())).substr(0, 512);
  std::vector<std::string> stops;
  for (const std::string_view one : split(input.substr(0, divide), '\xfe')) {
    if (!one.empty() && stops.size() < 16) stops.emplace_back(one.substr(0, 64));
  }
  std::vector<TokenId> ids;
  for (const char byte : bytes) ids.push_back(static_cast<unsigned char>(byte));
  const std::string whole = byte_tokenizer().decode(ids, true);
  size_t end = 0, longest = 0;
  while (longest == 0 && end < whole.size()) {
    ++end;
    for (const std::string& one : stops) {
      if (std::string_view(whole).substr(0, end).ends_with(one)) longest = std::max(longest, one.size());
    }
  }
  OutputText output(byte_tokenizer(), {.stop = std::make_shared<const StopStrings>(stops), .include_stop_in_output = include});
  std::string shown;
  for (const TokenId id : ids) {
    if (output.stopped()) break;
    shown += output.push(id);
  }
  if (!output.stopped()) shown += output.finish();
  CHECK(output.stopped() == (longest > 0));
  CHECK(shown == whole.substr(0, longest == 0 ? whole.size() : include ? end : end - longest));
  return true;
}

// --- model files -------------------------------------------------------------------------------------------------------------------------

// Returns the ids of the text as a user's, which holds no special token.
std::vector<TokenId> check_round_trip(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<TokenId> ids;
  for (const bool special : {true, false}) {
    ids = tokenizer.encode(text, special, special);
    for (const TokenId id : ids) CHECK(id >= 0 && id < tokenizer.vocab_size());
    StreamDecoder decoder(tokenizer, false);
    std::string streamed;
    for (const TokenId id : ids) streamed += decoder.push(id);
    streamed += decoder.finish();
    CHECK(streamed == tokenizer.decode(ids, false));
  }
  return ids;
}

// The tokenizer of the small models: text that is UTF-8 comes back as it was, and text of users holds no special token.
bool tokenizer_text(std::string_view input) {
  static const Tokenizer tokenizer = Tokenizer::load(HEADROOM_SOURCE_DIR "/configs/models/demo-gqa");
  const std::vector<TokenId> ids = check_round_trip(tokenizer, input);
  for (const TokenId id : ids) CHECK(!tokenizer.is_special(id));
  const std::string back = tokenizer.decode(ids, false);
  CHECK(is_utf8(back));
  if (is_utf8(input)) CHECK(back == input);
  std::vector<TextSpan> spans;
  for (const std::string_view part : split(input, ' ')) {
    if (is_utf8(part)) spans.push_back({part, spans.size() % 2 == 0});
  }
  for (const TokenId id : tokenizer.encode_spans(spans)) CHECK(id >= 0 && id < tokenizer.vocab_size());
  return true;
}

bool tokenizer_json(std::string_view input) {
  return load_or_one_line([&] {
    const Tokenizer tokenizer = Tokenizer::from_json(input);
    check_round_trip(tokenizer, "a b\tc 12 \u00e9\u4e2d\U0001f600 <|eos|>\n\n ");
  });
}

// Tensors lie in the data, in order, without touching.
bool safetensors(std::string_view input) {
  const uint64_t data_bytes = uint64_t{take_byte(&input)} * 4;
  return load_or_one_line([&] {
    std::vector<TensorInfo> tensors = parse_safetensors_header(input, data_bytes, "x");
    CHECK(std::is_sorted(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.name < b.name; }));
    std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
    uint64_t end = 0;
    for (const TensorInfo& tensor : tensors) {
      CHECK(tensor.begin >= end && tensor.end >= tensor.begin) << tensor.name;
      end = tensor.end;
    }
    CHECK_LE(end, data_bytes);
  });
}

// A file in memory, by a name that can be opened: what reads GGUF reads files.
class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("input", MFD_CLOEXEC)), path_("/proc/self/fd/" + std::to_string(fd_)) { CHECK_GE(fd_, 0); }
  const std::string& holding(std::string_view bytes) {
    const auto size = static_cast<ssize_t>(bytes.size());
    CHECK(pwrite(fd_, bytes.data(), bytes.size(), 0) == size && ftruncate(fd_, size) == 0);
    return path_;
  }

 private:
  const int fd_;
  const std::string path_;
};

// What is declared can be read, and what it becomes are a model's shape and a tokenizer.
bool gguf(std::string_view input) {
  static MemoryFile memory;
  return load_or_one_line([&] {
    const GgufFile file(memory.holding(input));
    std::vector<std::byte> data;
    for (const TensorInfo& tensor : file.tensors()) {
      CHECK_LE(tensor.bytes(), input.size());
      data.resize(tensor.bytes());
      file.read(tensor, data.data());
    }
    load_or_one_line([&] { CHECK(config_of_gguf(file).parameters() > 0); });
    const GgufVocabulary vocabulary = read_gguf_vocabulary(file.metadata(), "input");
    check_round_trip(vocabulary.tokenizer, "a b\tc 12 \u00e9\u4e2d\U0001f600 <s>\n\n ");
  });
}

bool config(std::string_view input) {
  const size_t divide = std::min(input.find('\xff'), input.size());
  return load_or_one_line([&] {
    const ModelConfig model = ModelConfig::from_json(input.substr(0, divide), input.substr(std::min(divide + 1, input.size())));
    CHECK(model.layers > 0 && model.kv_heads > 0 && model.query_heads % model.kv_heads == 0 && model.head_dim > 0);
    CHECK(model.layer_has_rope.size() == static_cast<size_t>(model.layers) && model.context_tokens > 0 && model.parameters() > 0);
    const RopeTable table = make_rope_table(model.rope, model.context_tokens);
    CHECK(table.inv_freq.size() == static_cast<size_t>(model.rope.rotary_dim / 2));
  });
}

// What a template writes is covered by spans without gaps, and what the request says is never control.
bool chat_template(std::string_view input) {
  constexpr size_t kOutputBytesMax = 1 << 14;
  static const nlohmann::ordered_json messages = nlohmann::ordered_json::parse(
      R"([{"role":"system","content":"one"},{"role":"user","content":"two <|eos|>"},{"role":"assistant","content":""}])");
  return load_or_one_line([&] {
    const ChatTemplate parsed = ChatTemplate::parse(std::string(input));
    const auto rendered = parsed.render({.messages = messages, .bos_token = "<s>", .eos_token = "</s>", .now_unix_seconds = 0},
                                        {.operations_max = 2'000, .output_bytes_max = kOutputBytesMax, .live_bytes_max = 1 << 18});
    const auto* prompt = std::get_if<RenderedPrompt>(&rendered);
    if (prompt == nullptr) return;
    CHECK_LE(prompt->text.size(), kOutputBytesMax);
    size_t end = 0;
    for (const RenderedPrompt::Span& span : prompt->spans) {
      CHECK(span.begin == end && span.end > span.begin);
      end = span.end;
    }
    CHECK_EQ(end, prompt->text.size());
  });
}

constexpr Target kTargets[] = {{"http", http},
                               {"request", request},
                               {"stream", stream},
                               {"stop", stop},
                               {"tokenizer_text", tokenizer_text},
                               {"tokenizer_json", tokenizer_json},
                               {"safetensors", safetensors},
                               {"gguf", gguf},
                               {"config", config},
                               {"chat_template", chat_template}};

}  // namespace

std::span<const Target> targets() { return kTargets; }

}  // namespace headroom::fuzz
