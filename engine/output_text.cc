#include "engine/output_text.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace headroom {
namespace {

// A character has at most four bytes, so no more tokens can share one; some may add no text at all.
constexpr size_t kContextTokens = 8;

}  // namespace

int64_t count_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; });
}

StopStrings::StopStrings(std::vector<std::string> strings) {
  stops_.reserve(strings.size());
  for (std::string& string : strings) {
    CHECK(!string.empty());
    std::vector<uint32_t> fallback(string.size() + 1, 0);
    for (size_t length = 2; length <= string.size(); ++length) {
      const char last = string[length - 1];
      uint32_t shorter = fallback[length - 1];
      while (shorter > 0 && string[shorter] != last) shorter = fallback[shorter];
      fallback[length] = shorter + (string[shorter] == last ? 1 : 0);
    }
    stops_.push_back({std::move(string), std::move(fallback)});
  }
}

uint32_t StopStrings::advance(size_t index, uint32_t matched, char byte) const {
  const Stop& stop = stops_[index];
  if (matched == stop.string.size()) matched = stop.fallback[matched];
  while (matched > 0 && stop.string[matched] != byte) matched = stop.fallback[matched];
  return stop.string[matched] == byte ? matched + 1 : matched;
}

uint32_t StopStrings::pending(size_t index, uint32_t matched) const {
  const Stop& stop = stops_[index];
  return matched == stop.string.size() ? stop.fallback[matched] : matched;
}

OutputText::OutputText(const Tokenizer& tokenizer, Options options)
    : options_(std::move(options)),
      decoder_(tokenizer, options_.skip_special_tokens),
      matched_(options_.stop == nullptr ? 0 : options_.stop->size(), 0) {}

void OutputText::continue_from(std::span<const TokenId> prompt) {
  for (const TokenId token : prompt.last(std::min(prompt.size(), kContextTokens))) decoder_.push(token);
}

std::string OutputText::push(TokenId token) {
  if (stopped_) return "";
  ++tokens_;
  return release(decoder_.push(token), false);
}

std::string OutputText::finish() {
  if (stopped_) return "";
  return release(decoder_.finish(), true);
}

std::string OutputText::release(std::string_view incoming, bool at_end) {
  characters_ += count_characters(incoming);
  std::string text = std::exchange(held_, {});
  for (size_t i = 0; i < incoming.size(); ++i) {
    const std::string* met = nullptr;
    for (size_t s = 0; s < matched_.size(); ++s) {
      matched_[s] = options_.stop->advance(s, matched_[s], incoming[i]);
      const std::string& stop = options_.stop->string(s);
      if (matched_[s] == stop.size() && (met == nullptr || stop.size() > met->size())) met = &stop;
    }
    if (met == nullptr || tokens_ <= options_.unstopped_tokens) continue;
    stopped_ = true;
    stop_string_ = *met;
    text.append(incoming.substr(0, i + 1));
    if (!options_.include_stop_in_output) text.resize(text.size() - met->size());
    return text;
  }
  text.append(incoming);
  if (at_end || matched_.empty()) return text;
  size_t held = 0;
  for (size_t s = 0; s < matched_.size(); ++s) held = std::max<size_t>(held, options_.stop->pending(s, matched_[s]));
  held_ = text.substr(text.size() - held);
  text.resize(text.size() - held);
  return text;
}

}  // namespace headroom
