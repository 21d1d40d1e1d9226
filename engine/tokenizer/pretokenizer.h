// The "pre_tokenizer" of tokenizer.json: cuts a section of text into the pieces that the model encodes one by one.
// Immutable, shared by threads; each thread brings its own PreTokenizerScratch.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/tokenizer/json_fields.h"
#include "engine/tokenizer/regex.h"

namespace headroom {

// The byte-level alphabet (GPT-2): every byte is one printable character, so that any text is made of known characters.
class ByteAlphabet {
 public:
  static const ByteAlphabet& instance();
  // One character of at most two bytes.
  std::string_view character(unsigned char byte) const { return characters_[byte]; }
  // The byte that `character` stands for, or -1.
  int byte(char32_t character) const { return character < bytes_.size() ? bytes_[character] : -1; }
  // All of `text` back to bytes; false if it holds a character outside the alphabet. REQUIRES: well-formed UTF-8.
  bool to_bytes(std::string_view text, std::string* bytes) const;

 private:
  ByteAlphabet();
  std::array<std::string, 256> characters_;
  std::array<int, 0x144> bytes_;
};

struct PreTokenizerScratch {
  std::string text;
  std::string next_text;
  std::vector<TextRange> pieces;  // ranges of `text`, in order
  std::vector<TextRange> next_pieces;
  std::vector<std::pair<TextRange, bool>> cuts;  // of one piece; true: matched
  RegexScratch regex;
};

class PreTokenizer {
 public:
  // `root` is the whole file. Throws std::runtime_error for a kind that is not supported.
  static PreTokenizer from_json(const nlohmann::json& root);

  // Leaves the pieces of `text` in scratch->pieces, ranges of the returned text, which lives until the next call or is
  // `text` itself. `at_start`: the section begins the whole input. REQUIRES: text is well-formed UTF-8.
  std::string_view split(std::string_view text, bool at_start, PreTokenizerScratch* scratch) const;

  // The pieces are plain bytes, though the file's vocabulary is written in ByteAlphabet: the mapping is left out.
  bool pieces_are_bytes() const { return pieces_are_bytes_; }

 private:
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  using Predicate = bool (*)(char32_t);
  // What cuts: a regular expression, a text, or a class of characters.
  struct Cut {
    std::variant<Regex, std::string, Predicate> pattern;
    Behavior behavior;
    bool invert;
  };
  // Puts `text` before a piece that does not begin with it.
  struct Prefix {
    std::string text;
    bool first_only;  // only before the piece that begins the whole input
  };
  struct ReplaceSpaces {
    std::string replacement;
  };
  struct MapBytes {};  // into ByteAlphabet
  using Step = std::variant<Cut, Prefix, ReplaceSpaces, MapBytes>;

  static Behavior behavior_from_json(const nlohmann::json& step, const std::string& where);
  static Cut cut_from_json(const nlohmann::json& step, const std::string& where);
  void add_metaspace(const nlohmann::json& step, const std::string& where);
  void add_byte_level(const nlohmann::json& step, const std::string& where);
  void add_step(const nlohmann::json& step);

  template <typename Visit>
  static void for_each_cut(const Cut& cut, std::string_view text, const TextRange& piece, RegexScratch* regex,
                           Visit visit);
  static void merge_cuts(Behavior behavior, PreTokenizerScratch* scratch);
  static void run_cut(const Cut& cut, std::string_view text, PreTokenizerScratch* scratch);
  template <typename Append>
  static void rewrite(std::string_view text, PreTokenizerScratch* scratch, Append append);

  std::vector<Step> steps_;
  bool pieces_are_bytes_ = false;
};

}  // namespace headroom
