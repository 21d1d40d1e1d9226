#include "engine/tokenizer/bpe.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "engine/tokenizer/pretokenizer.h"
#include "engine/tokenizer/utf8.h"

namespace headroom {
namespace {

using json_fields::as_string;
using json_fields::fail;

// Up to this many symbols, looking for the lowest rank anew after each merge is faster than a heap.
constexpr size_t kShortSymbolsMax = 48;
// Longer tokens are found by their merges; none is a word.
constexpr size_t kWholePieceBytesMax = 64;
constexpr size_t kMergesMax = size_t{1} << 22;

std::string byte_token_name(int byte) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  return {'<', '0', 'x', kDigits[byte >> 4], kDigits[byte & 15], '>'};
}

bool refuse_unless_empty(const nlohmann::json& model, const char* key) {
  const nlohmann::json* value = json_fields::find(model, "model", key);
  if (value == nullptr || as_string(*value, std::string("model.") + key).empty()) return true;
  fail("model", std::string(key) + " is not supported");
}

uint64_t joint_key(char32_t left, char32_t right) { return static_cast<uint64_t>(left) << 32 | right; }

}  // namespace

Bpe Bpe::from_json(const nlohmann::json& model, bool pieces_are_bytes) {
  const nlohmann::json* type = json_fields::find(model, "model", "type");
  if (type != nullptr && as_string(*type, "model.type") != "BPE") {
    fail("model", "the type \"" + type->get<std::string>() + "\" is not supported, only BPE");
  }
  Bpe bpe;
  bpe.pieces_are_bytes_ = pieces_are_bytes;
  bpe.read_vocabulary(model);
  bpe.read_options(model);
  bpe.find_symbols();
  bpe.read_merges(model);
  bpe.find_whole_pieces();
  return bpe;
}

void Bpe::read_vocabulary(const nlohmann::json& model) {
  const nlohmann::json& vocabulary = json_fields::require(model, "model", "vocab");
  if (!vocabulary.is_object()) fail("model.vocab", "must be an object");
  vocabulary_.reserve(vocabulary.size());
  std::vector<bool> taken;
  for (const auto& [token, value] : vocabulary.items()) {
    const auto id = static_cast<size_t>(json_fields::as_integer(value, "model.vocab[\"" + token + "\"]", kTokenIdMax));
    if (id >= taken.size()) taken.resize(id + 1);
    if (taken[id]) fail("model.vocab", "has two tokens with the id " + std::to_string(id));
    taken[id] = true;
    vocabulary_.emplace(token, static_cast<TokenId>(id));
  }
}

void Bpe::read_options(const nlohmann::json& model) {
  refuse_unless_empty(model, "continuing_subword_prefix");
  refuse_unless_empty(model, "end_of_word_suffix");
  if (const nlohmann::json* dropout = json_fields::find(model, "model", "dropout")) {
    if (!dropout->is_number()) fail("model.dropout", "must be a number");
    if (dropout->get<double>() != 0) fail("model", "dropout is not supported");
  }
  ignore_merges_ = json_fields::get_bool(model, "model", "ignore_merges", false);
  byte_fallback_ = json_fields::get_bool(model, "model", "byte_fallback", false);
  fuse_unknown_ = json_fields::get_bool(model, "model", "fuse_unk", false);
  for (int byte = 0; byte < 256; ++byte) {
    byte_tokens_[byte] = token_to_id(byte_token_name(byte)).value_or(kNoToken);
  }
}

void Bpe::find_symbols() {
  for (const auto& [token, id] : vocabulary_) {
    std::string piece;
    if (token.empty() || !spell(token, &piece)) continue;
    size_t end = 0;
    const char32_t character =
        pieces_are_bytes_ ? static_cast<unsigned char>(piece[end++]) : next_character(piece, &end);
    if (end != piece.size()) continue;
    if (character >= characters_.size()) characters_.resize(character + 1, kNoToken);
    characters_[character] = id;
  }
}

bool Bpe::covers_all_bytes() const {
  const auto known = [](TokenId id) { return id != kNoToken; };
  if (pieces_are_bytes_) return characters_.size() == 256 && std::all_of(characters_.begin(), characters_.end(), known);
  return byte_fallback_ && std::all_of(byte_tokens_.begin(), byte_tokens_.end(), known);
}

void Bpe::read_merges(const nlohmann::json& model) {
  if (const nlohmann::json* unknown = json_fields::find(model, "model", "unk_token")) {
    const std::string& token = as_string(*unknown, "model.unk_token");
    unknown_ = token_to_id(token).value_or(kNoToken);
    if (unknown_ == kNoToken && !covers_all_bytes()) fail("model.vocab", "lacks the unk_token \"" + token + "\"");
  }
  const nlohmann::json& merges = json_fields::require_array(model, "model", "merges");
  if (merges.size() > kMergesMax) fail("model.merges", "holds more than " + std::to_string(kMergesMax) + " merges");
  merges_.reserve(merges.size());
  uint32_t rank = 0;
  for (const nlohmann::json& merge : merges) {
    const auto where = [&] { return "model.merges[" + std::to_string(rank) + "]"; };
    if (merge.is_string()) {
      const auto& line = merge.get_ref<const std::string&>();
      if (line.starts_with("#version")) continue;
      const size_t space = line.find(' ');
      if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) {
        fail(where(), "must be two tokens with one space between them");
      }
      add_merge(line.substr(0, space), line.substr(space + 1), rank);
    } else if (merge.is_array() && merge.size() == 2) {
      add_merge(as_string(merge[0], where()), as_string(merge[1], where()), rank);
    } else {
      fail(where(), "must be a string or a pair of strings");
    }
    ++rank;
  }
}

void Bpe::add_merge(const std::string& left, const std::string& right, uint32_t rank) {
  const auto id_of = [&](const std::string& token) {
    const auto it = vocabulary_.find(token);
    if (it == vocabulary_.end()) {
      fail("model.merges[" + std::to_string(rank) + "]", "names \"" + token + "\", which is not in the vocabulary");
    }
    return it->second;
  };
  if (left.empty() || right.empty()) fail("model.merges[" + std::to_string(rank) + "]", "merges an empty token");
  const uint64_t key = static_cast<uint64_t>(id_of(left)) << 32 | static_cast<uint32_t>(id_of(right));
  merges_[key] = {rank, id_of(left + right)};
  if (!pieces_are_bytes_) {
    size_t last = previous_boundary(left, left.size());
    size_t first = 0;
    const char32_t last_character = next_character(left, &last);
    joints_[joint_key(last_character, next_character(right, &first))] = true;
  }
}

bool Bpe::spell(const std::string& token, std::string* piece) const {
  if (pieces_are_bytes_) return ByteAlphabet::instance().to_bytes(token, piece);
  *piece = token;
  return true;
}

// Every token that may answer for a whole piece goes into one table. Without ignore_merges those are the tokens to
// which their own merges lead; asking once instead of merging is what makes ordinary words fast.
void Bpe::find_whole_pieces() {
  std::vector<WholePiece> pieces;
  BpeScratch scratch;
  std::string spelling;
  for (const auto& [token, id] : vocabulary_) {
    if (!spell(token, &spelling) || spelling.empty()) continue;
    if (spelling.size() > kWholePieceBytesMax && !ignore_merges_) continue;
    if (whole_piece_text_.size() + spelling.size() > UINT32_MAX) fail("model.vocab", "is larger than 4 GiB");
    bool merges_to_itself = false;
    if (spelling.size() <= kWholePieceBytesMax) {
      scratch.symbols.clear();
      read_symbols(spelling, &scratch.symbols);
      merge(&scratch);
      merges_to_itself = scratch.symbols.size() == 1 && scratch.symbols[0] == id;
    }
    if (!merges_to_itself && !ignore_merges_) continue;
    pieces.push_back({static_cast<uint32_t>(whole_piece_text_.size()), static_cast<uint32_t>(spelling.size()), id,
                      merges_to_itself});
    whole_piece_text_ += spelling;
    whole_piece_bytes_max_ = std::max(whole_piece_bytes_max_, spelling.size());
  }
  constexpr uint64_t kSeedsMax = 64;  // two pieces collide about once in 2^30 tries for the largest vocabularies
  while (whole_pieces_collide(pieces)) {
    if (++hash_seed_ == kSeedsMax) fail("model.vocab", "cannot be hashed");
  }
}

// Fills the table under the present seed.
bool Bpe::whole_pieces_collide(const std::vector<WholePiece>& pieces) {
  whole_pieces_ = FlatMap<WholePiece>();
  whole_pieces_.reserve(pieces.size());
  for (const WholePiece& piece : pieces) {
    const uint64_t key = hash(std::string_view(whole_piece_text_).substr(piece.offset, piece.length));
    if (key == FlatMap<WholePiece>::kNoKey || whole_pieces_.find(key) != nullptr) return true;
    whole_pieces_[key] = piece;
  }
  return false;
}

uint64_t Bpe::hash(std::string_view piece) const {
  constexpr uint64_t kFactor = 0x9E3779B97F4A7C15u;
  uint64_t state = (hash_seed_ + piece.size()) * kFactor;
  uint64_t word = 0;
  for (; piece.size() >= sizeof(word); piece.remove_prefix(sizeof(word))) {
    std::memcpy(&word, piece.data(), sizeof(word));
    state = (state ^ word) * kFactor;
    state ^= state >> 32;
  }
  word = 0;
  std::memcpy(&word, piece.data(), piece.size());
  return (state ^ word) * kFactor;
}

const Bpe::WholePiece* Bpe::find_whole_piece(std::string_view piece) const {
  if (piece.empty() || piece.size() > whole_piece_bytes_max_) return nullptr;
  const WholePiece* found = whole_pieces_.find(hash(piece));
  if (found == nullptr || found->length != piece.size()) return nullptr;
  return std::memcmp(whole_piece_text_.data() + found->offset, piece.data(), piece.size()) == 0 ? found : nullptr;
}

std::optional<TokenId> Bpe::token_to_id(const std::string& token) const {
  const auto it = vocabulary_.find(token);
  return it == vocabulary_.end() ? std::nullopt : std::optional(it->second);
}

bool Bpe::is_joint(char32_t left, char32_t right) const {
  if (character_token(left) == kNoToken || character_token(right) == kNoToken) return true;
  return joints_.find(joint_key(left, right)) != nullptr;
}

void Bpe::encode(std::string_view piece, BpeScratch* scratch, std::vector<TokenId>* ids) const {
  constexpr size_t kPieceBytesMax = size_t{1} << 31;  // positions are 32 bits wide
  if (piece.size() > kPieceBytesMax) throw std::runtime_error("a piece of the text is longer than 2 GiB");
  if (const WholePiece* whole = find_whole_piece(piece)) {
    if (ignore_merges_ || whole->merges_to_itself) {
      ids->push_back(whole->id);
      return;
    }
  }
  if (pieces_are_bytes_) {
    encode_run(piece, scratch, ids);
    return;
  }
  size_t run_begin = 0;
  const auto end_run = [&](size_t end) {
    const std::string_view run = piece.substr(run_begin, end - run_begin);
    const WholePiece* whole = find_whole_piece(run);
    if (whole != nullptr && whole->merges_to_itself) {
      ids->push_back(whole->id);
    } else {
      encode_run(run, scratch, ids);
    }
    run_begin = end;
  };
  char32_t previous = 0;
  for (size_t position = 0; position < piece.size();) {
    const size_t begin = position;
    const char32_t character = next_character(piece, &position);
    if (begin > run_begin && !is_joint(previous, character)) end_run(begin);
    previous = character;
  }
  end_run(piece.size());
}

void Bpe::encode_run(std::string_view run, BpeScratch* scratch, std::vector<TokenId>* ids) const {
  scratch->symbols.clear();
  read_symbols(run, &scratch->symbols);
  merge(scratch);
  ids->insert(ids->end(), scratch->symbols.begin(), scratch->symbols.end());
}

bool Bpe::append_byte_tokens(std::string_view character, std::vector<TokenId>* symbols) const {
  const auto token = [&](char byte) { return byte_tokens_[static_cast<unsigned char>(byte)]; };
  if (!byte_fallback_ ||
      std::any_of(character.begin(), character.end(), [&](char c) { return token(c) == kNoToken; })) {
    return false;
  }
  for (const char byte : character) symbols->push_back(token(byte));
  return true;
}

// One symbol per character. An unknown one becomes its byte tokens, else the unknown token (one for a run of them if
// fused, put down where the run ends, as in the reference), else nothing.
void Bpe::read_symbols(std::string_view run, std::vector<TokenId>* symbols) const {
  bool unknown_pending = false;
  for (size_t position = 0; position < run.size();) {
    const size_t begin = position;
    const char32_t character =
        pieces_are_bytes_ ? static_cast<unsigned char>(run[position++]) : next_character(run, &position);
    const TokenId id = character_token(character);
    if (id != kNoToken) {
      if (unknown_pending) symbols->push_back(unknown_);
      unknown_pending = false;
      symbols->push_back(id);
      continue;
    }
    const std::string_view spelling = pieces_are_bytes_
                                          ? ByteAlphabet::instance().character(static_cast<unsigned char>(run[begin]))
                                          : run.substr(begin, position - begin);
    if (append_byte_tokens(spelling, symbols) || unknown_ == kNoToken) continue;
    if (unknown_pending && !fuse_unknown_) symbols->push_back(unknown_);
    unknown_pending = true;
  }
  if (unknown_pending) symbols->push_back(unknown_);
}

void Bpe::merge(BpeScratch* scratch) const {
  if (scratch->symbols.size() < 2) return;
  scratch->ranks.resize(scratch->symbols.size());
  if (scratch->symbols.size() <= kShortSymbolsMax) {
    merge_short(scratch);
  } else {
    merge_long(scratch);
  }
}

void Bpe::merge_short(BpeScratch* scratch) const {
  TokenId* symbols = scratch->symbols.data();
  uint32_t* ranks = scratch->ranks.data();
  size_t size = scratch->symbols.size();
  for (size_t i = 0; i + 1 < size; ++i) ranks[i] = rank_of(symbols[i], symbols[i + 1]);
  while (size > 1) {
    const size_t at = static_cast<size_t>(std::min_element(ranks, ranks + size - 1) - ranks);
    if (ranks[at] == kNoRank) break;
    symbols[at] = find_merge(symbols[at], symbols[at + 1])->id;
    std::copy(symbols + at + 2, symbols + size, symbols + at + 1);
    std::copy(ranks + at + 1, ranks + size - 1, ranks + at);
    --size;
    if (at > 0) ranks[at - 1] = rank_of(symbols[at - 1], symbols[at]);
    if (at + 1 < size) ranks[at] = rank_of(symbols[at], symbols[at + 1]);
  }
  scratch->symbols.resize(size);
}

// A heap of (rank, position). Entries are not removed when their pair changes: ranks[] holds the present rank of the
// pair that begins at a position, and an entry that disagrees with it is stale.
void Bpe::merge_long(BpeScratch* scratch) const {
  std::vector<TokenId>& symbols = scratch->symbols;
  std::vector<uint32_t>& ranks = scratch->ranks;
  std::vector<uint64_t>& heap = scratch->heap;
  const auto size = static_cast<uint32_t>(symbols.size());
  scratch->previous.resize(size);
  scratch->next.resize(size);
  heap.clear();
  const auto entry = [&](uint32_t at) { return static_cast<uint64_t>(ranks[at]) << 32 | at; };
  for (uint32_t i = 0; i < size; ++i) {
    scratch->previous[i] = i - 1;  // of the first one: never read
    scratch->next[i] = i + 1;
    ranks[i] = i + 1 < size ? rank_of(symbols[i], symbols[i + 1]) : kNoRank;
    if (ranks[i] != kNoRank) heap.push_back(entry(i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto update = [&](uint32_t at, uint32_t right) {
    ranks[at] = right < size ? rank_of(symbols[at], symbols[right]) : kNoRank;
    if (ranks[at] == kNoRank) return;
    heap.push_back(entry(at));
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto at = static_cast<uint32_t>(heap.back());
    const auto rank = static_cast<uint32_t>(heap.back() >> 32);
    heap.pop_back();
    if (ranks[at] != rank) continue;
    const uint32_t right = scratch->next[at];
    symbols[at] = find_merge(symbols[at], symbols[right])->id;
    symbols[right] = kNoToken;
    ranks[right] = kNoRank;
    const uint32_t after = scratch->next[right];
    scratch->next[at] = after;
    if (after < size) scratch->previous[after] = at;
    if (at > 0) update(scratch->previous[at], at);
    update(at, after);
  }
  std::erase(symbols, kNoToken);
}

}  // namespace headroom
