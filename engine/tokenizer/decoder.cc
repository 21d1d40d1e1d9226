#include "engine/tokenizer/decoder.h"

#include "engine/tokenizer/pretokenizer.h"
#include "engine/tokenizer/utf8.h"

namespace headroom {
namespace {

using json_fields::fail;

std::string require_character(const nlohmann::json& step, const std::string& where, const char* key) {
  const std::string& value = json_fields::require_string(step, where, key);
  size_t end = 0;
  if (!value.empty()) next_character(value, &end);
  if (value.empty() || end != value.size()) fail(where + "." + key, "must be one character");
  return value;
}

int hexadecimal_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// The byte that a token of the form <0x41> stands for, or -1.
int fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const int high = hexadecimal_digit(token[3]);
  const int low = hexadecimal_digit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

}  // namespace

void TokenDecoder::add_strip(const nlohmann::json& step, const std::string& where) {
  constexpr int64_t kStripMax = 1024;
  const std::string character = require_character(step, where, "content");
  const auto count = [&](const char* key) {
    return static_cast<size_t>(
        json_fields::as_integer(json_fields::require(step, where, key), where + "." + key, kStripMax));
  };
  const size_t start = count("start");
  const size_t stop = count("stop");
  if (!fused_) {
    if (byte_fallback_) fail(where, "Strip between ByteFallback and Fuse is not supported");
    steps_.push_back(Strip{character, start, stop});
    return;
  }
  // The end of the text is not known while it streams, and a second Strip would see what the first one left.
  if (stop != 0 || stripped_count_ != 0) fail(where, "only one Strip, of the start, is supported behind Fuse");
  stripped_character_ = character;
  stripped_count_ = start;
}

void TokenDecoder::add_step(const nlohmann::json& step) {
  const std::string where = "decoder";
  const std::string& type = json_fields::require_string(step, where, "type");
  if (type == "Fuse") {
    fused_ = true;
    return;
  }
  if (type == "Strip") return add_strip(step, where);
  const bool known = type == "ByteLevel" || type == "ByteFallback" || type == "Replace" || type == "Metaspace";
  if (!known) fail(where, "the decoder \"" + type + "\" is not supported");
  if (fused_ || byte_fallback_) fail(where, "\"" + type + "\" in this place of the sequence is not supported");
  if (type == "ByteLevel") {
    byte_level_ = fused_ = true;
  } else if (type == "ByteFallback") {
    byte_fallback_ = true;
  } else if (type == "Replace") {
    steps_.push_back(Replacement::from_json(step, where));
  } else {
    const nlohmann::json* scheme = json_fields::find(step, where, "prepend_scheme");
    const bool never = (scheme != nullptr && json_fields::as_string(*scheme, where + ".prepend_scheme") == "never") ||
                       !json_fields::get_bool(step, where, "add_prefix_space", true);
    steps_.push_back(Metaspace{require_character(step, where, "replacement"), !never});
    first_differs_ = first_differs_ || !never;
  }
}

TokenDecoder TokenDecoder::from_json(const nlohmann::json& root) {
  TokenDecoder decoder;
  const std::vector<const nlohmann::json*> steps = json_fields::steps_of(root, "decoder", "decoders");
  for (const nlohmann::json* step : steps) decoder.add_step(*step);
  if (json_fields::find(root, "tokenizer.json", "decoder") == nullptr) decoder.separator_ = " ";
  return decoder;
}

std::string TokenDecoder::strip(const Strip& strip, std::string_view token) {
  for (size_t i = 0; i < strip.start && token.starts_with(strip.character); ++i) {
    token.remove_prefix(strip.character.size());
  }
  for (size_t i = 0; i < strip.stop && token.ends_with(strip.character); ++i) {
    token.remove_suffix(strip.character.size());
  }
  return std::string(token);
}

TokenDecoder::Contribution TokenDecoder::contribute(const std::string& token, bool first, RegexScratch* scratch) const {
  std::string text = token;
  for (const Step& step : steps_) {
    if (const Replacement* replacement = std::get_if<Replacement>(&step)) {
      text = replacement->apply(text, scratch);
    } else if (const Strip* ends = std::get_if<Strip>(&step)) {
      text = strip(*ends, text);
    } else {
      const Metaspace& metaspace = std::get<Metaspace>(step);
      text = replace_all(text, metaspace.replacement, first && metaspace.drops_first ? "" : " ");
    }
  }
  if (byte_level_) {
    std::string bytes;
    const bool mapped = ByteAlphabet::instance().to_bytes(text, &bytes);
    return {mapped ? bytes : text, true};
  }
  if (byte_fallback_) {
    const int byte = fallback_byte(text);
    if (byte >= 0) return {std::string(1, static_cast<char>(byte)), true};
  }
  return {text, false};
}

}  // namespace headroom
