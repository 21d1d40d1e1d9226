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
  CHECK_LT(matched, stop.string.size());
  while (matched > 0 && stop.string[matched] != byte) matched = stop.fallback[matched];
  return stop.string[matched] == byte ? matched + 1 : matched;
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
  if (tokens_ > options_.unstopped_tokens) {
    for (size_t i = 0; i < incoming.size(); ++i) {
      size_t met_bytes = 0;
      for (size_t s = 0; s < matched_.size(); ++s) {
        matched_[s] = options_.stop->advance(s, matched_[s], incoming[i]);
        const std::string& stop = options_.stop->string(s);
        if (matched_[s] == stop.size() && stop.size() > met_bytes) {
          met_bytes = stop.size();
          stop_string_ = stop;
        }
      }
      if (met_bytes == 0) continue;
      stopped_ = true;
      text.append(incoming.substr(0, i + 1));
      if (!options_.include_stop_in_output) text.resize(text.size() - met_bytes);
      return text;
    }
  }
  text.append(incoming);
  if (at_end || matched_.empty()) return text;
  const size_t held = *std::max_element(matched_.begin(), matched_.end());
  held_ = text.substr(text.size() - held);
  text.resize(text.size() - held);
  return text;
}

}  // namespace headroom
