// From the tokens of one choice to the text that a client may see: whole characters, nothing of a stop string.
// Used by one HTTP worker; not thread-safe.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/tokenizer/tokenizer.h"

namespace headroom {

class OutputText {
 public:
  struct Options {
    std::vector<std::string> stop;         // each non-empty
    bool include_stop_in_output = false;
    bool skip_special_tokens = true;
  };
  OutputText(const Tokenizer& tokenizer, Options options);

  // Adds a token; returns the text that has become certain. After a stop string was met, stopped() is true and nothing more comes.
  std::string push(TokenId token);
  // The choice has ended: what was held back.
  std::string finish();
  bool stopped() const { return stopped_; }
  const std::string& stop_string() const { return stop_string_; }  // the one that was met

 private:
  std::string release(std::string_view incoming, bool at_end);

  Options options_;
  StreamDecoder decoder_;
  std::string held_;  // a suffix that may be the beginning of a stop string
  bool stopped_ = false;
  std::string stop_string_;
};

}  // namespace headroom
