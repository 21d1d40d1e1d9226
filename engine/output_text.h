// From the tokens of one choice to the text that a client may see: whole characters, nothing of a stop string.
// An OutputText belongs to one HTTP worker; the StopStrings that it looks for are immutable and shared by the choices.
//
// Of several stop strings the one that ends first is met; of those that end together, the longest. So the text depends
// on the tokens' characters alone, not on how they were grouped into tokens. What may still become a stop string is
// held back: the longest suffix of the text that begins one. Time is linear in the text for each stop string.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tokenizer/tokenizer.h"

namespace headroom {

// Stop strings, prepared for a text that comes byte by byte (Knuth, Morris, Pratt 1977).
class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> strings);  // REQUIRES: none is empty

  size_t size() const { return stops_.size(); }
  const std::string& string(size_t index) const { return stops_[index].string; }
  // How many bytes of string `index` a text ends with, given that number before `byte` came.
  // All of it: the text ends with the stop string.
  uint32_t advance(size_t index, uint32_t matched, char byte) const;
  // How many of these bytes may begin an occurrence that is still to come.
  uint32_t pending(size_t index, uint32_t matched) const;

 private:
  struct Stop {
    std::string string;
    std::vector<uint32_t> fallback;  // [bytes matched]: the next shorter beginning that the text then ends with too
  };
  std::vector<Stop> stops_;
};

class OutputText {
 public:
  struct Options {
    std::shared_ptr<const StopStrings> stop{};  // null: none
    bool include_stop_in_output = false;
    bool skip_special_tokens = true;
    int32_t unstopped_tokens = 0;  // a stop string that ends in one of the first tokens, this many, is not met
  };
  OutputText(const Tokenizer& tokenizer, Options options);

  // The text goes on after these tokens: their last ones decide whether a first space is kept, and may begin a
  // character. Call it before the first push.
  void continue_from(std::span<const TokenId> prompt);

  // Adds a token; returns the text that has become certain. After a stop string was met, stopped() is true and nothing
  // more comes.
  std::string push(TokenId token);
  // The choice has ended: what was held back.
  std::string finish();

  bool stopped() const { return stopped_; }
  const std::string& stop_string() const { return stop_string_; }  // the one that was met
  // Characters of all tokens pushed so far, those held back or cut off included.
  int64_t characters() const { return characters_; }

 private:
  std::string release(std::string_view incoming, bool at_end);

  Options options_;
  StreamDecoder decoder_;
  std::vector<uint32_t> matched_;  // [stop strings]: how much of each the text ends with
  std::string held_;               // a suffix that may be the beginning of a stop string
  int32_t tokens_ = 0;
  int64_t characters_ = 0;
  bool stopped_ = false;
  std::string stop_string_;
};

// Code points of well-formed UTF-8.
int64_t count_characters(std::string_view text);

}  // namespace headroom
