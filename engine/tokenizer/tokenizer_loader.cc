// Reading tokenizer.json into a Tokenizer: everything that can be wrong with a file is found here.
#include <algorithm>
#include <stdexcept>

#include "engine/files/checked_file.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/tokenizer_data.h"
#include "engine/tokenizer/utf8.h"

namespace headroom {
namespace {

using json_fields::fail;
using Json = nlohmann::json;

constexpr size_t kFileBytesMax = size_t{64} << 20;  // the largest published ones have 34 MB

// The ids of a special token that a template names.
void append_template_ids(const Json& processor, const std::string& name, std::vector<TokenId>* ids) {
  const std::string where = "post_processor.special_tokens";
  const Json& special =
      json_fields::require(json_fields::require(processor, "post_processor", "special_tokens"), where, name.c_str());
  for (const Json& id : json_fields::require_array(special, where, "ids")) {
    ids->push_back(static_cast<TokenId>(json_fields::as_integer(id, where + ".ids", kTokenIdMax)));
  }
}

}  // namespace

class TokenizerBuilder {
 public:
  explicit TokenizerBuilder(const Json& root) : root_(root), data_(std::make_unique<Tokenizer::Data>()) {}

  Tokenizer build() {
    if (!root_.is_object()) fail("tokenizer.json", "must be an object");
    if (const Json* version = json_fields::find(root_, "tokenizer.json", "version")) {
      if (json_fields::as_string(*version, "version") != "1.0") fail("version", "must be \"1.0\"");
    }
    data_->normalizer = Normalizer::from_json(root_);
    data_->pre_tokenizer = PreTokenizer::from_json(root_);
    data_->bpe =
        Bpe::from_json(json_fields::require(root_, "tokenizer.json", "model"), data_->pre_tokenizer.pieces_are_bytes());
    data_->decoder = TokenDecoder::from_json(root_);
    data_->added_tokens = added_tokens_from_json(root_);
    make_table();
    add_vocabulary();
    add_added_tokens();
    for (const Json* step : json_fields::steps_of(root_, "post_processor", "processors")) add_post_processor(*step);
    check_ids(data_->prefix);
    check_ids(data_->suffix);
    describe_tokens();
    return Tokenizer(std::move(data_));
  }

 private:
  TokenEntry& token_at(TokenId id) { return data_->tokens[static_cast<size_t>(id)]; }

  // The table of tokens is by id: one far beyond the number of tokens would cost memory that the file did not.
  void make_table() {
    constexpr size_t kGapMax = size_t{1} << 16;
    size_t last = 0;
    for (const auto& [text, id] : data_->bpe.vocabulary()) last = std::max(last, static_cast<size_t>(id));
    for (const AddedToken& added : data_->added_tokens) last = std::max(last, static_cast<size_t>(added.id));
    const size_t count = data_->bpe.vocabulary().size() + data_->added_tokens.size();
    if (last >= 2 * count + kGapMax) {
      fail("tokenizer.json", "has the id " + std::to_string(last) + ", far beyond its " + std::to_string(count) + " tokens");
    }
    data_->tokens.resize(count == 0 ? 0 : last + 1);
  }

  void add_vocabulary() {
    for (const auto& [text, id] : data_->bpe.vocabulary()) {
      TokenEntry& token = token_at(id);
      token.text = text;
      token.spelling = text;
      token.present = true;
    }
  }

  void add_added_tokens() {
    RegexScratch scratch;
    for (const AddedToken& added : data_->added_tokens) {
      const auto where = [&] { return "added_tokens: the token \"" + added.content + "\""; };
      const std::optional<TokenId> known = data_->bpe.token_to_id(added.content);
      if (known.has_value() && *known != added.id) {
        fail(where(), "has the id " + std::to_string(added.id) + ", in the vocabulary " + std::to_string(*known));
      }
      if (!data_->added_ids.emplace(added.content, added.id).second) fail(where(), "is there twice");
      TokenEntry& token = token_at(added.id);
      if (token.present && token.text != added.content) {
        fail(where(), "shares the id " + std::to_string(added.id) + " with \"" + token.text + "\"");
      }
      token.text = added.content;
      token.spelling = added.normalized ? data_->normalizer.apply(added.content, &scratch) : added.content;
      token.present = true;
      token.special = added.special;
    }
    const auto normalized = [](const AddedToken& token) { return token.normalized; };
    const auto normalized_in_spans = [](const AddedToken& token) { return token.normalized && !token.special; };
    data_->matcher = make_matcher(normalized, false);
    data_->normalized_matcher = make_matcher(normalized, true);
    data_->span_matcher = make_matcher(normalized_in_spans, false);
    data_->span_normalized_matcher = make_matcher(normalized_in_spans, true);
  }

  // A matcher of the tokens for which is_normalized(token) == wanted.
  template <typename IsNormalized>
  AddedTokenMatcher make_matcher(IsNormalized is_normalized, bool wanted) {
    std::vector<const AddedToken*> tokens;
    std::vector<std::string> patterns;
    for (const AddedToken& token : data_->added_tokens) {
      if (is_normalized(token) != wanted) continue;
      tokens.push_back(&token);
      patterns.push_back(wanted ? token_at(token.id).spelling : token.content);
    }
    return AddedTokenMatcher(tokens, patterns);
  }

  void add_post_processor(const Json& step) {
    const std::string where = "post_processor";
    const std::string& type = json_fields::require_string(step, where, "type");
    if (type == "ByteLevel") return;  // it trims offsets, of which there are none here
    if (type != "TemplateProcessing") fail(where, "the post-processor \"" + type + "\" is not supported");
    std::vector<TokenId> before;
    std::vector<TokenId> after;
    bool seen = false;
    for (const Json& piece : json_fields::require_array(step, where, "single")) {
      if (const Json* special = json_fields::find(piece, where + ".single", "SpecialToken")) {
        append_template_ids(step, json_fields::require_string(*special, where + ".single", "id"),
                            seen ? &after : &before);
        continue;
      }
      const Json& sequence = json_fields::require(piece, where + ".single", "Sequence");
      if (seen || json_fields::require_string(sequence, where + ".single", "id") != "A") {
        fail(where + ".single", "must hold the sequence A once and no other");
      }
      seen = true;
    }
    if (!seen) fail(where + ".single", "must hold the sequence A");
    data_->prefix.insert(data_->prefix.begin(), before.begin(), before.end());
    data_->suffix.insert(data_->suffix.end(), after.begin(), after.end());
  }

  void check_ids(const std::vector<TokenId>& ids) const {
    constexpr size_t kTemplateTokensMax = 64;
    if (ids.size() > kTemplateTokensMax) fail("post_processor", "adds more than 64 tokens");
    for (const TokenId id : ids) {
      if (static_cast<size_t>(id) < data_->tokens.size() && data_->tokens[static_cast<size_t>(id)].present) continue;
      fail("post_processor", "adds the id " + std::to_string(id) + ", which no token has");
    }
  }

  void describe_tokens() {
    RegexScratch scratch;
    for (TokenEntry& token : data_->tokens) {
      if (!token.present) continue;
      TokenDecoder::Contribution contribution = data_->decoder.contribute(token.spelling, false, &scratch);
      token.bytes = std::move(contribution.bytes);
      token.raw = contribution.raw;
      data_->token_bytes_max = std::max(data_->token_bytes_max, token.bytes.size());
    }
  }

  const Json& root_;
  std::unique_ptr<Tokenizer::Data> data_;
};

Tokenizer Tokenizer::from_json(std::string_view tokenizer_json) {
  if (tokenizer_json.size() > kFileBytesMax) throw std::runtime_error("tokenizer.json is larger than 64 MiB");
  try {
    return TokenizerBuilder(Json::parse(tokenizer_json)).build();
  } catch (const Json::parse_error& error) {
    throw std::runtime_error("tokenizer.json is not valid JSON at byte " + std::to_string(error.byte));
  } catch (const Json::exception& error) {
    throw std::runtime_error(one_line(std::string("tokenizer.json is not valid JSON: ") + error.what()));
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(one_line(error.what()));
  }
}

Tokenizer Tokenizer::load(const std::filesystem::path& model_dir) {
  const std::filesystem::path path = model_dir / "tokenizer.json";
  const std::string text = read_text_file(path, kFileBytesMax);
  try {
    return from_json(text);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(one_line(path.string() + ": " + error.what()));
  }
}

}  // namespace headroom
