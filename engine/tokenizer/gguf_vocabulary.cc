#include "engine/tokenizer/gguf_vocabulary.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/tokenizer/utf8.h"

namespace headroom {
namespace {

using Json = nlohmann::json;

enum TokenType : int64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

// The rules behind a name in tokenizer.ggml.pre, as the tokenizer.json of the models that it was made for has them.
struct PreTokenizerRules {
  std::string_view name;
  const char* split;   // the pattern; null: that of GPT-2
  bool digits_alone;   // before it
  bool nfc;
  bool ignore_merges;  // a piece that is a token stays whole
  bool adds_bos;       // unless the file says otherwise
};
constexpr const char* kLlama3Split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekkenSplit =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr PreTokenizerRules kPreTokenizers[] = {
    {"gpt-2", nullptr, false, false, false, false},       {"llama-bpe", kLlama3Split, false, false, true, true},
    {"llama3", kLlama3Split, false, false, true, true},   {"llama-v3", kLlama3Split, false, false, true, true},
    {"qwen2", kQwen2Split, false, true, false, false},    {"smollm", nullptr, true, false, false, false},
    {"tekken", kTekkenSplit, false, false, true, false},
};

class VocabularyReader {
 public:
  VocabularyReader(const Json& metadata, const std::string& source) : metadata_(metadata), source_(source) {}

  GgufVocabulary read() {
    tokens_ = &required_array("tokens");
    const size_t size = tokens_->size();
    types_.assign(size, kNormal);
    if (const Json* types = find("token_type")) {
      if (!types->is_array() || types->size() != size) fail("tokenizer.ggml.token_type does not have a type for each token");
      for (size_t i = 0; i < size; ++i) types_[i] = integer_of((*types)[i], "token_type");
    }
    const std::string model = text_of("model");
    const bool is_bpe = model == "gpt2";
    if (!is_bpe && model != "llama") fail("tokenizer.ggml.model \"" + model + "\" is not supported; supported: gpt2, llama");
    Json root = {{"version", "1.0"}, {"added_tokens", added_tokens()}};
    is_bpe ? describe_bpe(root) : describe_sentencepiece(root);
    root["post_processor"] = post_processor();
    std::string text;
    try {
      text = root.dump();
    } catch (const Json::exception&) {
      fail("its tokens are not UTF-8");
    }
    try {
      return {.tokenizer = Tokenizer::from_json(text),
              .chat_template = chat_template(),
              .bos_token = special_text("bos_token_id"),
              .eos_token = special_text("eos_token_id")};
    } catch (const std::runtime_error& error) {
      fail(error.what());
    }
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw std::runtime_error(source_ + ": " + one_line(what)); }

  const Json* find(const char* name) const {
    const auto found = metadata_.find(std::string("tokenizer.ggml.") + name);
    return found == metadata_.end() ? nullptr : &*found;
  }
  const Json& required_array(const char* name) const {
    const Json* array = find(name);
    if (array == nullptr || !array->is_array() || array->empty()) fail(std::string("tokenizer.ggml.") + name + " is missing");
    return *array;
  }
  std::string text_of(const char* name) const {
    const Json* value = find(name);
    return value != nullptr && value->is_string() ? value->get<std::string>() : "";
  }
  int64_t integer_of(const Json& value, const char* name) const {
    if (!value.is_number_integer()) fail(std::string("tokenizer.ggml.") + name + " must be whole numbers");
    return value.get<int64_t>();
  }
  bool flag(const char* name, bool otherwise) const {
    const Json* value = find(name);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) fail(std::string("tokenizer.ggml.") + name + " must be true or false");
    return value->get<bool>();
  }
  std::string token_text(size_t id) const {
    const Json& text = (*tokens_)[id];
    if (!text.is_string()) fail("tokenizer.ggml.tokens must be strings");
    return text.get<std::string>();
  }
  std::optional<size_t> special_id(const char* name) const {
    const Json* value = find(name);
    if (value == nullptr) return std::nullopt;
    const int64_t id = integer_of(*value, name);
    if (id < 0 || static_cast<uint64_t>(id) >= tokens_->size()) fail(std::string("tokenizer.ggml.") + name + " is no token");
    return static_cast<size_t>(id);
  }
  std::string special_text(const char* name) const {
    const auto id = special_id(name);
    return id ? token_text(*id) : "";
  }

  bool is_added(size_t id) const { return types_[id] == kControl || types_[id] == kUserDefined || types_[id] == kUnknown; }

  Json added_tokens() const {
    // Phi-3 strips the space behind its special tokens; the file does not say so, nor does any other model of this style.
    const auto architecture = metadata_.find("general.architecture");
    const bool strips = architecture != metadata_.end() && *architecture == "phi3" && text_of("model") == "llama";
    Json added = Json::array();
    for (size_t id = 0; id < tokens_->size(); ++id) {
      if (!is_added(id)) continue;
      const std::string text = token_text(id);
      const bool keeps_space = text == "<unk>" || text == "<s>" || text == "<|endoftext|>";
      added.push_back({{"id", id}, {"content", text}, {"single_word", false}, {"lstrip", false}, {"rstrip", strips && !keeps_space},
                       {"normalized", false}, {"special", types_[id] != kUserDefined}});
    }
    return added;
  }

  void describe_bpe(Json& root) {
    const std::string pre = text_of("pre");
    const auto* rules = std::ranges::find(kPreTokenizers, std::string_view(pre), &PreTokenizerRules::name);
    if (rules == std::end(kPreTokenizers)) {
      std::string supported;
      for (const PreTokenizerRules& known : kPreTokenizers) supported += (supported.empty() ? "" : ", ") + std::string(known.name);
      fail("tokenizer.ggml.pre \"" + pre + "\" is not supported; supported: " + supported);
    }
    adds_bos_ = rules->adds_bos;
    Json steps = Json::array();
    if (rules->digits_alone) steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
    if (rules->split != nullptr) {
      steps.push_back({{"type", "Split"}, {"pattern", {{"Regex", rules->split}}}, {"behavior", "Isolated"}, {"invert", false}});
    }
    const bool has_split = rules->split != nullptr;
    steps.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", !has_split}});
    root["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
    if (rules->nfc) root["normalizer"] = {{"type", "NFC"}};
    root["decoder"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
    Json vocabulary = Json::object();
    for (size_t id = 0; id < tokens_->size(); ++id) {
      if (types_[id] == kNormal) vocabulary[token_text(id)] = id;
    }
    root["model"] = {{"type", "BPE"}, {"vocab", std::move(vocabulary)}, {"merges", required_array("merges")},
                     {"byte_fallback", false}, {"fuse_unk", false}, {"ignore_merges", rules->ignore_merges}};
  }

  void describe_sentencepiece(Json& root) {
    if (const Json* map = find("precompiled_charsmap"); map != nullptr && !map->empty()) {
      fail("tokenizer.ggml.precompiled_charsmap (a normalisation of its own) is not supported");
    }
    if (flag("remove_extra_whitespaces", false)) fail("tokenizer.ggml.remove_extra_whitespaces is not supported");
    const bool prefix = flag("add_space_prefix", true);
    Json normalizers = Json::array(), decoders = Json::array();
    if (prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", "▁"}});
    normalizers.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}});
    decoders.push_back({{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}});
    decoders.push_back({{"type", "ByteFallback"}});
    decoders.push_back({{"type", "Fuse"}});
    if (prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    root["normalizer"] = {{"type", "Sequence"}, {"normalizers", std::move(normalizers)}};
    root["decoder"] = {{"type", "Sequence"}, {"decoders", std::move(decoders)}};
    adds_bos_ = true;
    Json vocabulary = Json::object();
    std::string unknown;
    for (size_t id = 0; id < tokens_->size(); ++id) {
      if (types_[id] != kUnused) vocabulary[token_text(id)] = id;
      if (types_[id] == kUnknown) unknown = token_text(id);
    }
    root["model"] = {{"type", "BPE"}, {"vocab", std::move(vocabulary)}, {"merges", merges_of_scores()},
                     {"byte_fallback", std::ranges::find(types_, int64_t{kByte}) != types_.end()}, {"fuse_unk", true},
                     {"ignore_merges", false}};
    if (!unknown.empty()) root["model"]["unk_token"] = unknown;
  }

  // SentencePiece merges the pair whose union has the best score. As a list of merges: every way to part a piece into two, by
  // score, then by the longer left part, then by the longer right part, in characters; else in the order of ids.
  Json merges_of_scores() const {
    constexpr size_t kPieceBytesMax = 256;  // the work is the square of a piece's length; SentencePiece makes 16 characters at most
    const Json& scores = required_array("scores");
    if (scores.size() != tokens_->size()) fail("tokenizer.ggml.scores does not have a score for each token");
    std::vector<std::string> texts(tokens_->size());
    std::unordered_map<std::string_view, size_t> ids;
    for (size_t id = 0; id < texts.size(); ++id) {
      if (types_[id] != kNormal) continue;
      texts[id] = token_text(id);
      if (texts[id].size() > kPieceBytesMax) fail("tokenizer.ggml.tokens has one of over " + std::to_string(kPieceBytesMax) + " bytes");
      ids.emplace(texts[id], id);
    }
    struct Merge {
      double score;
      size_t left_characters, right_characters;
      std::string_view left, right;
    };
    const auto begins_character = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; };
    std::vector<Merge> merges;
    for (size_t id = 0; id < texts.size(); ++id) {
      if (!scores[id].is_number() || !std::isfinite(scores[id].get<double>())) fail("tokenizer.ggml.scores must be finite numbers");
      std::vector<std::tuple<size_t, size_t, Merge>> parts;
      const std::string_view text = texts[id];
      const auto characters = static_cast<size_t>(std::ranges::count_if(text, begins_character));
      for (size_t at = 1, left_characters = 1; at < text.size(); ++at) {
        if (!begins_character(text[at])) continue;
        const auto left = ids.find(text.substr(0, at)), right = ids.find(text.substr(at));
        if (left != ids.end() && right != ids.end()) {
          parts.emplace_back(left->second, right->second,
                             Merge{scores[id].get<double>(), left_characters, characters - left_characters, left->first, right->first});
        }
        ++left_characters;
      }
      std::ranges::sort(parts, [](const auto& a, const auto& b) {
        return std::tie(std::get<0>(a), std::get<1>(a)) < std::tie(std::get<0>(b), std::get<1>(b));
      });
      for (const auto& part : parts) merges.push_back(std::get<2>(part));
    }
    std::ranges::stable_sort(merges, [](const Merge& a, const Merge& b) {
      return std::tie(a.score, a.left_characters, a.right_characters) > std::tie(b.score, b.left_characters, b.right_characters);
    });
    Json list = Json::array();
    for (const Merge& merge : merges) list.push_back({std::string(merge.left), std::string(merge.right)});
    return list;
  }

  Json post_processor() const {
    Json single = Json::array(), special = Json::object();
    const auto add = [&](const char* id_key) {
      const auto id = special_id(id_key);
      if (!id) fail(std::string("tokenizer.ggml.") + id_key + " is missing");
      const std::string text = token_text(*id);
      single.push_back({{"SpecialToken", {{"id", text}, {"type_id", 0}}}});
      special[text] = {{"id", text}, {"ids", {*id}}, {"tokens", {text}}};
    };
    if (flag("add_bos_token", adds_bos_ && find("bos_token_id") != nullptr)) add("bos_token_id");
    single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
    if (flag("add_eos_token", false)) add("eos_token_id");
    return {{"type", "TemplateProcessing"}, {"single", std::move(single)}, {"special_tokens", std::move(special)}};
  }

  std::optional<ChatTemplate> chat_template() const {
    const auto found = metadata_.find("tokenizer.chat_template");
    if (found == metadata_.end()) return std::nullopt;
    if (!found->is_string()) fail("tokenizer.chat_template must be a string");
    return ChatTemplate::parse(found->get<std::string>());
  }

  const Json& metadata_;
  const std::string& source_;
  const Json* tokens_ = nullptr;
  std::vector<int64_t> types_;
  bool adds_bos_ = false;
};

}  // namespace

GgufVocabulary read_gguf_vocabulary(const Json& metadata, const std::string& source) {
  return VocabularyReader(metadata, source).read();
}

}  // namespace headroom
