// The byte-pair-encoding model of tokenizer.json: a piece of text becomes the ids that remain when adjacent symbols are
// merged, lowest rank first, leftmost first. Immutable after construction, shared by threads; each thread brings its
// own BpeScratch. O(n log n) in the length of a piece.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/tokenizer/flat_map.h"
#include "engine/tokenizer/json_fields.h"
#include "engine/tokenizer/token_id.h"

namespace headroom {

// Ids index arrays, so a file with an id in the billions must not make one of that size. The largest vocabularies
// published have about 262,000 tokens.
inline constexpr int64_t kTokenIdMax = (1 << 21) - 1;

struct BpeScratch {
  std::vector<TokenId> symbols;
  std::vector<uint32_t> ranks;  // of the pair that begins at a symbol
  std::vector<uint32_t> previous;
  std::vector<uint32_t> next;
  std::vector<uint64_t> heap;
};

class Bpe {
 public:
  using Vocabulary = std::unordered_map<std::string, TokenId>;

  // `model` is the object "model" of the file. `pieces_are_bytes`: see PreTokenizer.
  // Throws std::runtime_error for anything that is malformed or not supported.
  static Bpe from_json(const nlohmann::json& model, bool pieces_are_bytes);

  // Appends the ids of `piece`. REQUIRES: piece is well-formed UTF-8 unless the pieces are bytes; at most 2^31 bytes.
  void encode(std::string_view piece, BpeScratch* scratch, std::vector<TokenId>* ids) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  std::optional<TokenId> token_to_id(const std::string& token) const;

 private:
  struct Merge {
    uint32_t rank;
    TokenId id;
  };
  static constexpr TokenId kNoToken = -1;
  static constexpr uint32_t kNoRank = ~uint32_t{0};

  // A token as the text of a piece.
  struct WholePiece {
    uint32_t offset;  // in whole_piece_text_
    uint32_t length;
    TokenId id;
    bool merges_to_itself;  // its merges lead to this one token, wherever it stands
  };

  void read_options(const nlohmann::json& model);
  void read_vocabulary(const nlohmann::json& model);
  void read_merges(const nlohmann::json& model);
  void add_merge(const std::string& left, const std::string& right, uint32_t rank);
  void find_symbols();
  void find_whole_pieces();
  bool whole_pieces_collide(const std::vector<WholePiece>& pieces);
  bool covers_all_bytes() const;
  // `token` as a piece would spell it; false if no piece can.
  bool spell(const std::string& token, std::string* piece) const;

  uint64_t hash(std::string_view piece) const;
  const WholePiece* find_whole_piece(std::string_view piece) const;
  const Merge* find_merge(TokenId left, TokenId right) const {
    return merges_.find(static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right));
  }
  uint32_t rank_of(TokenId left, TokenId right) const {
    const Merge* merge = find_merge(left, right);
    return merge == nullptr ? kNoRank : merge->rank;
  }
  TokenId character_token(char32_t character) const {
    return character < characters_.size() ? characters_[character] : kNoToken;
  }
  bool is_joint(char32_t left, char32_t right) const;

  void encode_run(std::string_view run, BpeScratch* scratch, std::vector<TokenId>* ids) const;
  void read_symbols(std::string_view run, std::vector<TokenId>* symbols) const;
  bool append_byte_tokens(std::string_view character, std::vector<TokenId>* symbols) const;
  void merge(BpeScratch* scratch) const;
  void merge_short(BpeScratch* scratch) const;
  void merge_long(BpeScratch* scratch) const;

  bool pieces_are_bytes_ = false;
  bool ignore_merges_ = false;
  bool byte_fallback_ = false;
  bool fuse_unknown_ = false;
  TokenId unknown_ = kNoToken;
  Vocabulary vocabulary_;
  FlatMap<Merge> merges_;                   // of left << 32 | right
  std::vector<TokenId> characters_;         // of a code point, or of a byte if the pieces are bytes
  std::array<TokenId, 256> byte_tokens_{};  // <0x00> to <0xFF>
  // The pairs of characters at which some merge joins two tokens. A piece falls apart at every other boundary of known
  // characters, since no merge crosses it: so the whole text that a SentencePiece file has as its piece is words again.
  FlatMap<bool> joints_;
  FlatMap<WholePiece> whole_pieces_;  // by hash(), whose seed is such that no two have the same
  std::string whole_piece_text_;
  size_t whole_piece_bytes_max_ = 0;
  uint64_t hash_seed_ = 0;
};

}  // namespace headroom
