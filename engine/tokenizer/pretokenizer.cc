#include "engine/tokenizer/pretokenizer.h"

#include <algorithm>
#include <utility>

#include "engine/tokenizer/unicode.h"
#include "engine/tokenizer/utf8.h"

namespace headroom {
namespace {

using json_fields::fail;

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// \w of the reference's second engine, which holds the two joiners as well.
constexpr std::string_view kWordsPattern = R"([\w\x{200C}\x{200D}]+|[^\w\x{200C}\x{200D}\s]+)";

bool is_self_mapped(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

}  // namespace

ByteAlphabet::ByteAlphabet() {
  bytes_.fill(-1);
  char32_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const char32_t character = is_self_mapped(byte) ? static_cast<char32_t>(byte) : next++;
    append_utf8(character, &characters_[byte]);
    bytes_[character] = byte;
  }
}

const ByteAlphabet& ByteAlphabet::instance() {
  static const ByteAlphabet alphabet;
  return alphabet;
}

bool ByteAlphabet::to_bytes(std::string_view text, std::string* bytes) const {
  bytes->clear();
  for (size_t position = 0; position < text.size();) {
    const int value = byte(next_character(text, &position));
    if (value < 0) return false;
    bytes->push_back(static_cast<char>(value));
  }
  return true;
}

PreTokenizer::Behavior PreTokenizer::behavior_from_json(const nlohmann::json& step, const std::string& where) {
  const std::string& name = json_fields::require_string(step, where, "behavior");
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  fail(where, "the behavior \"" + name + "\" is not known");
}

PreTokenizer::Cut PreTokenizer::cut_from_json(const nlohmann::json& step, const std::string& where) {
  const Behavior behavior = behavior_from_json(step, where);
  const bool invert = json_fields::get_bool(step, where, "invert", false);
  const nlohmann::json& pattern = json_fields::require(step, where, "pattern");
  if (const nlohmann::json* text = json_fields::find(pattern, where + ".pattern", "String")) {
    const std::string& value = json_fields::as_string(*text, where + ".pattern.String");
    if (value.empty()) fail(where, "has an empty pattern");
    return {value, behavior, invert};
  }
  return {Regex(json_fields::require_string(pattern, where + ".pattern", "Regex")), behavior, invert};
}

void PreTokenizer::add_metaspace(const nlohmann::json& step, const std::string& where) {
  const std::string& replacement = json_fields::require_string(step, where, "replacement");
  size_t end = 0;
  if (!replacement.empty()) next_character(replacement, &end);
  if (replacement.empty() || end != replacement.size()) fail(where, "the replacement must be one character");
  const nlohmann::json* scheme_field = json_fields::find(step, where, "prepend_scheme");
  std::string scheme = scheme_field ? json_fields::as_string(*scheme_field, where + ".prepend_scheme") : "always";
  if (!json_fields::get_bool(step, where, "add_prefix_space", true)) {
    if (scheme_field != nullptr && scheme != "never") fail(where, "add_prefix_space contradicts prepend_scheme");
    scheme = "never";
  }
  if (scheme != "always" && scheme != "first" && scheme != "never") {
    fail(where, "the prepend_scheme \"" + scheme + "\" is not known");
  }
  steps_.push_back(ReplaceSpaces{replacement});
  if (scheme != "never") steps_.push_back(Prefix{replacement, scheme == "first"});
  if (json_fields::get_bool(step, where, "split", true)) {
    steps_.push_back(Cut{replacement, Behavior::kMergedWithNext, false});
  }
}

void PreTokenizer::add_byte_level(const nlohmann::json& step, const std::string& where) {
  if (json_fields::get_bool(step, where, "add_prefix_space", true)) steps_.push_back(Prefix{" ", false});
  if (json_fields::get_bool(step, where, "use_regex", true)) {
    steps_.push_back(Cut{Regex(kGpt2Pattern), Behavior::kIsolated, false});
  }
  steps_.push_back(MapBytes{});
}

void PreTokenizer::add_step(const nlohmann::json& step) {
  const std::string where = "pre_tokenizer";
  const std::string& type = json_fields::require_string(step, where, "type");
  if (type == "ByteLevel") return add_byte_level(step, where);
  if (type == "Metaspace") return add_metaspace(step, where);
  if (type == "Split") return steps_.push_back(cut_from_json(step, where));
  if (type == "Digits") {
    const bool individual = json_fields::get_bool(step, where, "individual_digits", false);
    return steps_.push_back(Cut{&is_numeric, individual ? Behavior::kIsolated : Behavior::kContiguous, false});
  }
  if (type == "Punctuation") {
    const bool has_behavior = json_fields::find(step, where, "behavior") != nullptr;
    return steps_.push_back(
        Cut{&is_punctuation, has_behavior ? behavior_from_json(step, where) : Behavior::kIsolated, false});
  }
  if (type == "Whitespace") return steps_.push_back(Cut{Regex(kWordsPattern), Behavior::kRemoved, true});
  if (type == "WhitespaceSplit") return steps_.push_back(Cut{&is_white_space, Behavior::kRemoved, false});
  fail(where, "the pre-tokenizer \"" + type + "\" is not supported");
}

PreTokenizer PreTokenizer::from_json(const nlohmann::json& root) {
  PreTokenizer pre_tokenizer;
  for (const nlohmann::json* step : json_fields::steps_of(root, "pre_tokenizer", "pretokenizers")) {
    pre_tokenizer.add_step(*step);
  }
  std::vector<Step>& steps = pre_tokenizer.steps_;
  const auto maps_bytes = [](const Step& step) { return std::holds_alternative<MapBytes>(step); };
  if (std::count_if(steps.begin(), steps.end(), maps_bytes) > 1) fail("pre_tokenizer", "maps bytes more than once");
  if (!steps.empty() && maps_bytes(steps.back())) {
    steps.pop_back();
    pre_tokenizer.pieces_are_bytes_ = true;
  }
  return pre_tokenizer;
}

// Covers the piece with ranges, each a match or what lies between two: visit(range, matched).
template <typename Visit>
void PreTokenizer::for_each_cut(const Cut& cut, std::string_view text, const TextRange& piece, RegexScratch* regex,
                                Visit visit) {
  const std::string_view inside = text.substr(piece.begin, piece.end - piece.begin);
  size_t done = 0;
  const auto add = [&](const TextRange& match) {
    if (done != match.begin) visit(TextRange{piece.begin + done, piece.begin + match.begin}, cut.invert);
    visit(TextRange{piece.begin + match.begin, piece.begin + match.end}, !cut.invert);
    done = match.end;
  };
  if (const Regex* pattern = std::get_if<Regex>(&cut.pattern)) {
    for_each_match(*pattern, inside, regex, add);
  } else if (const std::string* separator = std::get_if<std::string>(&cut.pattern)) {
    for (size_t at = inside.find(*separator); at != std::string_view::npos; at = inside.find(*separator, done)) {
      add({at, at + separator->size()});
    }
  } else {
    const Predicate predicate = std::get<Predicate>(cut.pattern);
    for (size_t position = 0; position < inside.size();) {
      const size_t begin = position;
      if (predicate(next_character(inside, &position))) add({begin, position});
    }
  }
  if (done != inside.size()) visit(TextRange{piece.begin + done, piece.end}, cut.invert);
}

// Turns the cuts of one piece into pieces where neighbours are joined. Empty matches take part, as in the reference.
void PreTokenizer::merge_cuts(Behavior behavior, PreTokenizerScratch* scratch) {
  std::vector<TextRange>& pieces = scratch->next_pieces;
  const size_t first = pieces.size();
  bool previous = false;
  const auto joins = [&](bool matched) {
    if (pieces.size() == first) return false;
    return behavior == Behavior::kContiguous ? matched == previous : matched && !previous;
  };
  if (behavior == Behavior::kMergedWithNext) {
    for (auto it = scratch->cuts.rbegin(); it != scratch->cuts.rend(); ++it) {
      if (joins(it->second)) {
        pieces.back().begin = it->first.begin;
      } else {
        pieces.push_back(it->first);
      }
      previous = it->second;
    }
    std::reverse(pieces.begin() + static_cast<ptrdiff_t>(first), pieces.end());
    return;
  }
  for (const auto& [range, matched] : scratch->cuts) {
    if (joins(matched)) {
      pieces.back().end = range.end;
    } else {
      pieces.push_back(range);
    }
    previous = matched;
  }
}

void PreTokenizer::run_cut(const Cut& cut, std::string_view text, PreTokenizerScratch* scratch) {
  scratch->next_pieces.clear();
  const bool keeps_matches = cut.behavior == Behavior::kIsolated;
  for (const TextRange& piece : scratch->pieces) {
    if (keeps_matches || cut.behavior == Behavior::kRemoved) {
      for_each_cut(cut, text, piece, &scratch->regex, [&](const TextRange& range, bool matched) {
        if (keeps_matches || !matched) scratch->next_pieces.push_back(range);
      });
      continue;
    }
    scratch->cuts.clear();
    for_each_cut(cut, text, piece, &scratch->regex,
                 [&](const TextRange& range, bool matched) { scratch->cuts.emplace_back(range, matched); });
    merge_cuts(cut.behavior, scratch);
  }
  std::erase_if(scratch->next_pieces, [](const TextRange& piece) { return piece.begin == piece.end; });
  scratch->pieces.swap(scratch->next_pieces);
}

// Builds the next text piece by piece: append(piece, out).
template <typename Append>
void PreTokenizer::rewrite(std::string_view text, PreTokenizerScratch* scratch, Append append) {
  scratch->next_text.clear();
  scratch->next_text.reserve(text.size() + text.size() / 4 + 16);
  for (TextRange& piece : scratch->pieces) {
    const size_t begin = scratch->next_text.size();
    append(piece, &scratch->next_text);
    piece = {begin, scratch->next_text.size()};
  }
  scratch->text.swap(scratch->next_text);
}

std::string_view PreTokenizer::split(std::string_view text, bool at_start, PreTokenizerScratch* scratch) const {
  scratch->pieces.clear();
  if (!text.empty()) scratch->pieces.push_back({0, text.size()});
  const auto content = [&](const TextRange& piece) { return text.substr(piece.begin, piece.end - piece.begin); };
  for (const Step& step : steps_) {
    if (const Cut* cut = std::get_if<Cut>(&step)) {
      const size_t begin = scratch->pieces.empty() ? 0 : scratch->pieces.front().begin;
      run_cut(*cut, text, scratch);
      at_start = at_start && !scratch->pieces.empty() && scratch->pieces.front().begin == begin;
      continue;
    }
    if (const Prefix* prefix = std::get_if<Prefix>(&step)) {
      rewrite(text, scratch, [&](const TextRange& piece, std::string* out) {
        const bool applies = !prefix->first_only || (at_start && &piece == scratch->pieces.data());
        if (applies && !content(piece).starts_with(prefix->text)) out->append(prefix->text);
        out->append(content(piece));
      });
    } else if (const ReplaceSpaces* spaces = std::get_if<ReplaceSpaces>(&step)) {
      rewrite(text, scratch, [&](const TextRange& piece, std::string* out) {
        for (const char c : content(piece)) {
          if (c == ' ') {
            out->append(spaces->replacement);
          } else {
            out->push_back(c);
          }
        }
      });
    } else {
      rewrite(text, scratch, [&](const TextRange& piece, std::string* out) {
        for (const char c : content(piece)) {
          out->append(ByteAlphabet::instance().character(static_cast<unsigned char>(c)));
        }
      });
    }
    text = scratch->text;
  }
  return text;
}

}  // namespace headroom
