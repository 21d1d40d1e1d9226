#include "engine/tokenizer/normalizer.h"

#include <utility>

#include "engine/tokenizer/unicode.h"
#include "engine/tokenizer/utf8.h"

namespace headroom {
namespace {

using json_fields::fail;

template <typename... Visitors>
struct Overloaded : Visitors... {
  using Visitors::operator()...;
};
template <typename... Visitors>
Overloaded(Visitors...) -> Overloaded<Visitors...>;

std::string_view strip(std::string_view text, bool left, bool right) {
  size_t begin = 0;
  while (left && begin < text.size()) {
    size_t next = begin;
    if (!is_white_space(next_character(text, &next))) break;
    begin = next;
  }
  size_t end = text.size();
  while (right && end > begin) {
    const size_t previous = previous_boundary(text, end);
    size_t position = previous;
    if (!is_white_space(next_character(text, &position))) break;
    end = previous;
  }
  return text.substr(begin, end - begin);
}

// What a rule may add to a text is bounded, so that the text is.
const std::string& short_string(const nlohmann::json& step, const std::string& where, const char* key) {
  constexpr size_t kBytesMax = 64;
  const std::string& value = json_fields::require_string(step, where, key);
  if (value.size() > kBytesMax) fail(where + "." + key, "is longer than " + std::to_string(kBytesMax) + " bytes");
  return value;
}

template <typename Append>
std::string map_characters(std::string_view text, Append append) {
  std::string out;
  out.reserve(text.size());
  for (size_t position = 0; position < text.size();) append(next_character(text, &position), &out);
  return out;
}

}  // namespace

Replacement Replacement::from_json(const nlohmann::json& step, const std::string& where) {
  Replacement replacement;
  replacement.content_ = short_string(step, where, "content");
  const nlohmann::json& pattern = json_fields::require(step, where, "pattern");
  if (const nlohmann::json* text = json_fields::find(pattern, where + ".pattern", "String")) {
    const std::string& value = json_fields::as_string(*text, where + ".pattern.String");
    if (value.empty()) fail(where, "has an empty pattern");
    replacement.pattern_ = value;
  } else {
    replacement.pattern_.emplace<Regex>(json_fields::require_string(pattern, where + ".pattern", "Regex"));
  }
  return replacement;
}

std::string Replacement::apply(std::string_view text, RegexScratch* scratch) const {
  if (const std::string* pattern = std::get_if<std::string>(&pattern_)) return replace_all(text, *pattern, content_);
  std::string out;
  out.reserve(text.size());
  size_t done = 0;
  for_each_match(std::get<Regex>(pattern_), text, scratch, [&](const TextRange& match) {
    out.append(text.substr(done, match.begin - done)).append(content_);
    done = match.end;
  });
  return out.append(text.substr(done));
}

Normalizer::Step Normalizer::step_from_json(const nlohmann::json& step, const std::string& where) {
  const std::string& type = json_fields::require_string(step, where, "type");
  if (type == "NFC") return UnicodeForm{true, false};
  if (type == "NFD") return UnicodeForm{false, false};
  if (type == "NFKC") return UnicodeForm{true, true};
  if (type == "NFKD") return UnicodeForm{false, true};
  if (type == "Lowercase") return Lowercase{};
  if (type == "StripAccents") return StripAccents{};
  if (type == "Prepend") return Prepend{short_string(step, where, "prepend")};
  if (type == "Replace") return Replacement::from_json(step, where);
  if (type == "Strip") {
    return Strip{json_fields::get_bool(step, where, "strip_left", false),
                 json_fields::get_bool(step, where, "strip_right", false)};
  }
  fail(where, "the normalizer \"" + type + "\" is not supported");
}

Normalizer Normalizer::from_json(const nlohmann::json& root) {
  Normalizer normalizer;
  for (const nlohmann::json* step : json_fields::steps_of(root, "normalizer", "normalizers")) {
    normalizer.steps_.push_back(step_from_json(*step, "normalizer"));
  }
  return normalizer;
}

std::string Normalizer::apply_step(const Step& step, std::string_view text, RegexScratch* scratch) {
  return std::visit(
      Overloaded{
          [&](const Prepend& prepend) { return text.empty() ? std::string() : prepend.text + std::string(text); },
          [&](const Strip& sides) { return std::string(strip(text, sides.left, sides.right)); },
          [&](const Lowercase&) { return map_characters(text, append_lowercase); },
          [&](const StripAccents&) {
            return map_characters(text, [](char32_t c, std::string* out) {
              if (!is_mark(c)) append_utf8(c, out);
            });
          },
          [&](const UnicodeForm& form) { return to_normal_form(text, form.compose, form.compatibility); },
          [&](const Replacement& replacement) { return replacement.apply(text, scratch); },
      },
      step);
}

std::string Normalizer::apply(std::string_view text, RegexScratch* scratch) const {
  constexpr size_t kGrowthMax = 24;  // NFKD makes 18 characters of one
  constexpr size_t kGrowthBytesMax = 4096;
  std::string out(text);
  for (const Step& step : steps_) {
    out = apply_step(step, out, scratch);
    if (out.size() > kGrowthMax * text.size() + kGrowthBytesMax) {
      throw std::runtime_error("the normalizer of the tokenizer makes the text more than 24 times as long");
    }
  }
  return out;
}

}  // namespace headroom
