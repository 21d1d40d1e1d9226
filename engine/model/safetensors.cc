#include "engine/model/safetensors.h"

#include <algorithm>
#include <memory>
#include <set>
#include <stdexcept>
#include <utility>

#include "engine/model/json_scanner.h"
#include "kernels/check.h"

namespace headroom {
namespace {

struct StoredType {
  std::string_view name;
  uint64_t bits;
};

// Every type of the format: a file may hold tensors that no model of ours reads, and their sizes are checked all the
// same.
constexpr StoredType kStoredTypes[] = {
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
};

const StoredType* find_stored_type(std::string_view name) {
  const auto* found = std::ranges::find(kStoredTypes, name, &StoredType::name);
  return found == std::end(kStoredTypes) ? nullptr : found;
}

// The members of one tensor's object, each exactly once.
TensorInfo read_tensor_info(JsonScanner& json, const std::string& name) {
  TensorInfo tensor;
  tensor.name = name;
  bool has_type = false, has_shape = false, has_offsets = false;
  const auto once = [&](bool& seen) {
    if (std::exchange(seen, true)) json.fail("a member twice in tensor \"" + printable(name) + "\"");
  };
  json.read_object(kTensorNameBytesMax, [&](const std::string& key) {
    if (key == "dtype") {
      once(has_type);
      const std::string type = json.read_string(kTensorNameBytesMax);
      const StoredType* stored = find_stored_type(type);
      if (stored == nullptr)
        json.fail("unknown dtype \"" + printable(type) + "\" of tensor \"" + printable(name) + "\"");
      tensor.type = stored->name;
    } else if (key == "shape") {
      once(has_shape);
      json.read_array([&] {
        const uint64_t dim = json.read_unsigned();
        if (dim > static_cast<uint64_t>(INT64_MAX)) json.fail("a dimension over 63 bits");
        if (tensor.rank == kTensorRankMax)
          json.fail("a tensor of over " + std::to_string(kTensorRankMax) + " dimensions");
        tensor.dims[tensor.rank++] = static_cast<int64_t>(dim);
      });
    } else if (key == "data_offsets") {
      once(has_offsets);
      int count = 0;
      json.read_array([&] {
        const uint64_t offset = json.read_unsigned();
        if (count == 2) json.fail("more than two data_offsets of tensor \"" + printable(name) + "\"");
        (count++ == 0 ? tensor.begin : tensor.end) = offset;
      });
      if (count != 2) json.fail("fewer than two data_offsets of tensor \"" + printable(name) + "\"");
    } else {
      json.skip_value();
    }
  });
  if (!has_type || !has_shape || !has_offsets) {
    json.fail("tensor \"" + printable(name) + "\" lacks its dtype, shape or data_offsets");
  }
  return tensor;
}

void read_metadata(JsonScanner& json) {
  std::set<std::string> keys;
  json.read_object(kTensorNameBytesMax, [&](const std::string& key) {
    if (keys.size() == kTensorsMax) json.fail("over " + std::to_string(kTensorsMax) + " entries in __metadata__");
    if (!keys.insert(key).second) json.fail("\"" + printable(key) + "\" twice in __metadata__");
    json.skip_string();
  });
}

// size = shape × type, without overflow.
void check_size(const TensorInfo& tensor, const std::string& source) {
  uint64_t bits = find_stored_type(tensor.type)->bits;
  for (const int64_t dim : tensor.shape()) {
    if (__builtin_mul_overflow(bits, static_cast<uint64_t>(dim), &bits)) {
      throw std::runtime_error(source + ": the size of tensor \"" + printable(tensor.name) + "\" overflows 64 bits");
    }
  }
  if (tensor.begin > tensor.end || bits % 8 != 0 || bits / 8 != tensor.bytes()) {
    throw std::runtime_error(source + ": tensor \"" + printable(tensor.name) + "\" " + tensor.description() +
                             " does not fill its data_offsets [" + std::to_string(tensor.begin) + ", " +
                             std::to_string(tensor.end) + ")");
  }
}

// Together the tensors cover the data exactly: no hole, no overlap, nothing behind the last.
void check_layout(const std::vector<TensorInfo>& tensors, uint64_t data_bytes, const std::string& source) {
  std::vector<const TensorInfo*> by_offset;
  by_offset.reserve(tensors.size());
  for (const TensorInfo& tensor : tensors) by_offset.push_back(&tensor);
  std::ranges::sort(by_offset, {}, [](const TensorInfo* t) { return std::pair(t->begin, t->end); });
  uint64_t at = 0;
  for (const TensorInfo* tensor : by_offset) {
    if (tensor->begin != at) {
      throw std::runtime_error(source + ": tensor \"" + printable(tensor->name) + "\" begins at " +
                               std::to_string(tensor->begin) + ", but the data before it ends at " +
                               std::to_string(at));
    }
    at = tensor->end;
  }
  if (at != data_bytes) {
    throw std::runtime_error(source + ": the tensors take " + std::to_string(at) + " bytes, but the file holds " +
                             std::to_string(data_bytes) + " bytes of data; is the download complete?");
  }
}

// Which shard holds a tensor, and the shards' names.
struct ShardIndex {
  std::vector<std::string> shards;
  std::map<std::string, size_t> shard_of;
};

// A name that stays inside the model's directory.
bool is_plain_file_name(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

ShardIndex read_shard_index(const std::filesystem::path& path) {
  const CheckedFile file(path);
  if (file.bytes() > kIndexBytesMax)
    throw std::runtime_error(path.string() + ": over " + std::to_string(kIndexBytesMax) + " bytes");
  std::string text(file.bytes(), '\0');
  file.read(0, text.data(), text.size());

  ShardIndex index;
  std::map<std::string, size_t> shard_ids;
  bool has_map = false;
  JsonScanner json(text, path.string());
  json.read_object(kTensorNameBytesMax, [&](const std::string& member) {
    if (member != "weight_map") return json.skip_value();
    if (std::exchange(has_map, true)) json.fail("weight_map twice");
    json.read_object(kTensorNameBytesMax, [&](const std::string& tensor) {
      const std::string shard = json.read_string(kTensorNameBytesMax);
      if (!is_plain_file_name(shard)) json.fail("shard \"" + printable(shard) + "\" is not a plain file name");
      const auto [entry, is_new] = shard_ids.try_emplace(shard, index.shards.size());
      if (is_new) index.shards.push_back(shard);
      if (index.shards.size() > kShardsMax) json.fail("over " + std::to_string(kShardsMax) + " shards");
      if (index.shard_of.size() == kTensorsMax) json.fail("over " + std::to_string(kTensorsMax) + " tensors");
      if (!index.shard_of.try_emplace(tensor, entry->second).second)
        json.fail("tensor \"" + printable(tensor) + "\" twice");
    });
  });
  json.expect_end();
  if (!has_map) throw std::runtime_error(path.string() + ": no weight_map");
  return index;
}

}  // namespace

std::optional<DType> TensorInfo::dtype() const {
  if (type == "F32") return DType::kF32;
  if (type == "BF16") return DType::kBF16;
  if (type == "F16") return DType::kF16;
  return std::nullopt;
}

std::string TensorInfo::description() const {
  std::string text = std::string(type) + " [";
  for (size_t i = 0; i < rank; ++i) text += (i == 0 ? "" : ", ") + std::to_string(dims[i]);
  return text + "]";
}

std::vector<TensorInfo> parse_safetensors_header(std::string_view header, uint64_t data_bytes,
                                                 const std::string& source) {
  std::vector<TensorInfo> tensors;
  bool has_metadata = false;
  JsonScanner json(header, source);
  json.read_object(kTensorNameBytesMax, [&](const std::string& key) {
    if (key == "__metadata__") {
      if (std::exchange(has_metadata, true)) json.fail("__metadata__ twice");
      return read_metadata(json);
    }
    if (tensors.size() == kTensorsMax) json.fail("over " + std::to_string(kTensorsMax) + " tensors");
    tensors.push_back(read_tensor_info(json, key));
  });
  json.expect_end();
  std::ranges::sort(tensors, {}, &TensorInfo::name);
  const auto twice = std::ranges::adjacent_find(tensors, {}, &TensorInfo::name);
  if (twice != tensors.end()) throw std::runtime_error(source + ": tensor \"" + printable(twice->name) + "\" twice");
  for (const TensorInfo& tensor : tensors) check_size(tensor, source);
  check_layout(tensors, data_bytes, source);
  return tensors;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) {
  std::array<unsigned char, 8> length_bytes{};
  if (file_.bytes() < length_bytes.size()) throw std::runtime_error(path.string() + ": too short for a safetensors file");
  file_.read(0, length_bytes.data(), length_bytes.size());
  uint64_t header_bytes = 0;
  for (size_t i = length_bytes.size(); i-- > 0;) header_bytes = header_bytes << 8 | length_bytes[i];
  if (header_bytes > kHeaderBytesMax) {
    throw std::runtime_error(path.string() + ": a header of " + std::to_string(header_bytes) + " bytes (limit " +
                             std::to_string(kHeaderBytesMax) + "); is this a safetensors file?");
  }
  if (header_bytes > file_.bytes() - length_bytes.size()) {
    throw std::runtime_error(path.string() + ": the header's " + std::to_string(header_bytes) +
                             " bytes go past the end of the file; is the download complete?");
  }
  const auto header = std::make_unique_for_overwrite<char[]>(header_bytes);
  file_.read(length_bytes.size(), header.get(), header_bytes);
  data_begin_ = length_bytes.size() + header_bytes;
  tensors_ = parse_safetensors_header({header.get(), header_bytes}, file_.bytes() - data_begin_, path.string());
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto found = std::ranges::lower_bound(tensors_, name, {}, &TensorInfo::name);
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

void SafetensorsFile::read(const TensorInfo& tensor, std::byte* destination) const {
  read_part(tensor, 0, {destination, tensor.bytes()});
}

void SafetensorsFile::read_part(const TensorInfo& tensor, uint64_t begin, std::span<std::byte> destination) const {
  CHECK(!tensors_.empty() && &tensor >= tensors_.data() && &tensor < tensors_.data() + tensors_.size())
      << " tensor " << tensor.name << " is not of " << path();
  CHECK(begin <= tensor.bytes() && destination.size() <= tensor.bytes() - begin) << " of " << tensor.name;
  file_.read(data_begin_ + tensor.begin + begin, destination.data(), destination.size());
}

Checkpoint::Checkpoint(const std::filesystem::path& model_dir) {
  const std::filesystem::path single = model_dir / "model.safetensors";
  const std::filesystem::path index = model_dir / "model.safetensors.index.json";
  if (std::filesystem::exists(single)) {
    files_.emplace_back(single);
    for (const TensorInfo& tensor : files_[0].tensors()) tensors_[tensor.name] = {&tensor, files_.data()};
  } else if (std::filesystem::exists(index)) {
    open_shards(model_dir, index);
  } else {
    throw std::runtime_error(model_dir.string() +
                             ": no model.safetensors and no model.safetensors.index.json; put the weights there");
  }
}

void Checkpoint::open_shards(const std::filesystem::path& model_dir, const std::filesystem::path& index_path) {
  const ShardIndex index = read_shard_index(index_path);
  files_.reserve(index.shards.size());
  for (const std::string& shard : index.shards) files_.emplace_back(model_dir / shard);
  for (const SafetensorsFile& file : files_) {
    for (const TensorInfo& tensor : file.tensors()) {
      const auto [entry, is_new] = tensors_.try_emplace(tensor.name, Tensor{&tensor, &file});
      if (!is_new) {
        throw std::runtime_error(file.path().string() + ": tensor \"" + printable(tensor.name) + "\" is in " +
                                 entry->second.file->path().filename().string() + " too");
      }
    }
  }
  for (const auto& [name, shard] : index.shard_of) {
    if (files_[shard].find(name) == nullptr) {
      throw std::runtime_error(index_path.string() + ": tensor \"" + printable(name) + "\" is not in " +
                               index.shards[shard] + ", where the index puts it");
    }
  }
}

const Checkpoint::Tensor* Checkpoint::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

}  // namespace headroom
