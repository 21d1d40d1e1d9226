// The "normalizer" of tokenizer.json: rewrites a section of text before it is split. Immutable, shared by threads.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/tokenizer/json_fields.h"
#include "engine/tokenizer/regex.h"

namespace headroom {

// Every occurrence of a text or of a pattern becomes `content`, literally.
class Replacement {
 public:
  // {"pattern": {"String": ...} or {"Regex": ...}, "content": ...}
  static Replacement from_json(const nlohmann::json& step, const std::string& where);
  std::string apply(std::string_view text, RegexScratch* scratch) const;

 private:
  std::variant<std::string, Regex> pattern_;
  std::string content_;
};

class Normalizer {
 public:
  // `root` is the whole file. Throws std::runtime_error for a kind that is not supported.
  static Normalizer from_json(const nlohmann::json& root);

  bool is_identity() const { return steps_.empty(); }
  // REQUIRES: text is well-formed UTF-8. So is the result.
  std::string apply(std::string_view text, RegexScratch* scratch) const;

 private:
  struct Prepend {
    std::string text;
  };
  struct Strip {
    bool left;
    bool right;
  };
  struct Lowercase {};
  struct StripAccents {};
  struct UnicodeForm {
    bool compose;
    bool compatibility;
  };
  using Step = std::variant<Prepend, Strip, Lowercase, StripAccents, UnicodeForm, Replacement>;

  static Step step_from_json(const nlohmann::json& step, const std::string& where);
  static std::string apply_step(const Step& step, std::string_view text, RegexScratch* scratch);

  std::vector<Step> steps_;
};

}  // namespace headroom
