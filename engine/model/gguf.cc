#include "engine/model/gguf.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>

#include "engine/model/json_scanner.h"
#include "engine/model/block_type.h"
#include "kernels/check.h"

namespace headroom {
namespace {

using Json = nlohmann::json;

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint64_t kAlignmentDefault = 32;

enum ValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// Takes the header's fields in order, from a window of the file that moves along.
class HeaderReader {
 public:
  explicit HeaderReader(const CheckedFile& file) : file_(file) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(file_.path().string() + ": " + what);
  }
  uint64_t position() const { return position_; }

  template <class T>
  T take() {
    T value;
    take_bytes(&value, sizeof(T));
    return value;
  }
  std::string take_string(uint64_t bytes_max, const char* what) {
    const auto bytes = take<uint64_t>();
    if (bytes > bytes_max) fail(std::string(what) + " of over " + std::to_string(bytes_max) + " bytes");
    check_left(bytes);
    std::string text(bytes, '\0');
    take_bytes(text.data(), bytes);
    return text;
  }
  // Before anything of that size is allocated.
  void check_left(uint64_t bytes) const {
    if (bytes > file_.bytes() - position_) fail("the header goes past the end of the file; is the download complete?");
    if (bytes > kGgufHeaderBytesMax - std::min(position_, kGgufHeaderBytesMax)) {
      fail("a header of over " + std::to_string(kGgufHeaderBytesMax) + " bytes");
    }
  }
  // An element takes 16 bytes or more of memory, whatever it takes in the file.
  void count_elements(uint64_t count, const std::string& key) {
    if (count > kGgufArrayElementsMax - elements_) {
      fail("\"" + printable(key) + "\" brings the arrays to over " + std::to_string(kGgufArrayElementsMax) + " elements");
    }
    elements_ += count;
  }

 private:
  void take_bytes(void* to, uint64_t bytes) {
    check_left(bytes);
    auto* out = static_cast<char*>(to);
    while (bytes > 0) {
      if (position_ == window_begin_ + window_.size()) {
        constexpr uint64_t kWindowBytes = 1 << 16;
        window_begin_ = position_;
        window_.resize(std::min(kWindowBytes, file_.bytes() - position_));
        file_.read(position_, window_.data(), window_.size());
      }
      const uint64_t at = position_ - window_begin_;
      const uint64_t count = std::min<uint64_t>(bytes, window_.size() - at);
      std::memcpy(out, window_.data() + at, count);
      out += count;
      bytes -= count;
      position_ += count;
    }
  }

  const CheckedFile& file_;
  uint64_t position_ = 0;
  uint64_t elements_ = 0;  // of all arrays so far
  uint64_t window_begin_ = 0;
  std::string window_;
};

uint64_t value_bytes_min(uint32_t type) {
  switch (type) {
    case kUint8:
    case kInt8:
    case kBool:
      return 1;
    case kUint16:
    case kInt16:
      return 2;
    case kUint32:
    case kInt32:
    case kFloat32:
      return 4;
    default:
      return 8;
  }
}

Json take_scalar(HeaderReader& header, uint32_t type, const std::string& key) {
  switch (type) {
    case kUint8:
      return header.take<uint8_t>();
    case kInt8:
      return header.take<int8_t>();
    case kUint16:
      return header.take<uint16_t>();
    case kInt16:
      return header.take<int16_t>();
    case kUint32:
      return header.take<uint32_t>();
    case kInt32:
      return header.take<int32_t>();
    case kUint64:
      return header.take<uint64_t>();
    case kInt64:
      return header.take<int64_t>();
    case kFloat32:
      return header.take<float>();
    case kFloat64:
      return header.take<double>();
    case kString:
      return header.take_string(kGgufStringBytesMax, "a string");
    case kBool: {
      const auto value = header.take<uint8_t>();
      if (value > 1) header.fail("\"" + printable(key) + "\" is neither true nor false");
      return value == 1;
    }
    default:
      header.fail("\"" + printable(key) + "\" has an unknown type (" + std::to_string(type) + ")");
  }
}

Json take_value(HeaderReader& header, const std::string& key) {
  const auto type = header.take<uint32_t>();
  if (type != kArray) return take_scalar(header, type, key);
  const auto element_type = header.take<uint32_t>();
  const auto count = header.take<uint64_t>();
  if (element_type == kArray) header.fail("\"" + printable(key) + "\" is an array of arrays, which is not supported");
  header.count_elements(count, key);
  header.check_left(count * value_bytes_min(element_type));
  Json::array_t values;
  values.reserve(count);
  for (uint64_t i = 0; i < count; ++i) values.push_back(take_scalar(header, element_type, key));
  return values;
}

Json take_metadata(HeaderReader& header, uint64_t count) {
  if (count > kGgufKeysMax) header.fail("over " + std::to_string(kGgufKeysMax) + " keys");
  Json metadata = Json::object();
  for (uint64_t i = 0; i < count; ++i) {
    const std::string key = header.take_string(kGgufKeyBytesMax, "a key");
    if (metadata.contains(key)) header.fail("the key \"" + printable(key) + "\" twice");
    metadata[key] = take_value(header, key);
  }
  return metadata;
}

// size = dimensions × type, without overflow, in whole blocks.
uint64_t tensor_bytes(HeaderReader& header, const TensorInfo& tensor, const BlockType& type) {
  uint64_t elements = 1;
  for (const int64_t dim : tensor.shape()) {
    if (__builtin_mul_overflow(elements, static_cast<uint64_t>(dim), &elements)) {
      header.fail("the size of tensor \"" + printable(tensor.name) + "\" overflows 64 bits");
    }
  }
  const int64_t row = tensor.dims[tensor.rank - 1u];
  if (row % type.elements != 0) {
    header.fail("tensor \"" + printable(tensor.name) + "\" " + tensor.description() + " has rows that are not whole blocks of " +
                std::to_string(type.elements));
  }
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(elements / static_cast<uint64_t>(type.elements), type.bytes, &bytes)) {
    header.fail("the size of tensor \"" + printable(tensor.name) + "\" overflows 64 bits");
  }
  return bytes;
}

TensorInfo take_tensor(HeaderReader& header, uint64_t alignment) {
  constexpr uint32_t kRankMax = 4;  // the format's own limit
  TensorInfo tensor;
  tensor.name = header.take_string(kTensorNameBytesMax, "the name of a tensor");
  const auto rank = header.take<uint32_t>();
  if (rank == 0 || rank > kRankMax) header.fail("tensor \"" + printable(tensor.name) + "\" has " + std::to_string(rank) + " dimensions");
  tensor.rank = static_cast<uint8_t>(rank);
  for (uint32_t i = rank; i-- > 0;) {
    const auto dim = header.take<uint64_t>();
    if (dim == 0 || dim > static_cast<uint64_t>(INT64_MAX)) {
      header.fail("tensor \"" + printable(tensor.name) + "\" has a dimension of " + std::to_string(dim));
    }
    tensor.dims[i] = static_cast<int64_t>(dim);
  }
  const auto type_id = header.take<uint32_t>();
  const BlockType* type = find_gguf_block_type(type_id);
  if (type == nullptr) {
    header.fail("tensor \"" + printable(tensor.name) + "\" has type " + gguf_type_name(type_id) +
                ", which is not supported; supported: " + gguf_types_supported());
  }
  tensor.type = type->name;
  tensor.begin = header.take<uint64_t>();
  if (tensor.begin % alignment != 0) header.fail("tensor \"" + printable(tensor.name) + "\" is not aligned to " + std::to_string(alignment));
  if (__builtin_add_overflow(tensor.begin, tensor_bytes(header, tensor, *type), &tensor.end)) {
    header.fail("the end of tensor \"" + printable(tensor.name) + "\" overflows 64 bits");
  }
  return tensor;
}

uint64_t aligned(uint64_t offset, uint64_t alignment) { return (offset + alignment - 1) / alignment * alignment; }

// Tensors lie one behind the other, each at the next multiple of the alignment; the padding of the last may be missing.
void check_layout(HeaderReader& header, const std::vector<TensorInfo>& tensors, uint64_t data_bytes, uint64_t alignment) {
  std::vector<const TensorInfo*> by_offset;
  by_offset.reserve(tensors.size());
  for (const TensorInfo& tensor : tensors) by_offset.push_back(&tensor);
  std::ranges::sort(by_offset, {}, &TensorInfo::begin);
  uint64_t end = 0;
  for (const TensorInfo* tensor : by_offset) {
    if (tensor->end > data_bytes) {
      header.fail("tensor \"" + printable(tensor->name) + "\" " + tensor->description() +
                  " goes past the end of the file; is the download complete?");
    }
    if (tensor->begin != aligned(end, alignment)) {
      header.fail("tensor \"" + printable(tensor->name) + "\" begins at " + std::to_string(tensor->begin) +
                  ", but the data before it ends at " + std::to_string(end));
    }
    end = tensor->end;
  }
  if (data_bytes != end && data_bytes != aligned(end, alignment)) {
    header.fail("the tensors take " + std::to_string(end) + " bytes, but the file holds " + std::to_string(data_bytes) + " bytes of data");
  }
}

uint64_t read_alignment(HeaderReader& header, const Json& metadata) {
  const auto found = metadata.find("general.alignment");
  if (found == metadata.end()) return kAlignmentDefault;
  const uint64_t alignment = found->is_number_unsigned() ? found->get<uint64_t>() : 0;
  if (alignment == 0 || alignment > kGgufAlignmentMax || (alignment & (alignment - 1)) != 0) {
    header.fail("general.alignment must be a power of two up to " + std::to_string(kGgufAlignmentMax));
  }
  return alignment;
}

}  // namespace

GgufFile::GgufFile(const std::filesystem::path& path) : file_(path), metadata_(std::make_unique<Json>()) {
  HeaderReader header(file_);
  if (file_.bytes() < sizeof(uint32_t) || header.take<uint32_t>() != kMagic) header.fail("not a GGUF file");
  const auto version = header.take<uint32_t>();
  if (version != 2 && version != 3) {
    header.fail("GGUF version " + std::to_string(version) + " is not supported; supported: 2 and 3, little endian");
  }
  const auto tensor_count = header.take<uint64_t>();
  const auto key_count = header.take<uint64_t>();
  if (tensor_count > kTensorsMax) header.fail("over " + std::to_string(kTensorsMax) + " tensors");
  *metadata_ = take_metadata(header, key_count);
  if (metadata_->contains("split.count") && (*metadata_)["split.count"] != 1) {
    header.fail("one of several parts of a model; join them into one file first");
  }
  const uint64_t alignment = read_alignment(header, *metadata_);
  for (uint64_t i = 0; i < tensor_count; ++i) tensors_.push_back(take_tensor(header, alignment));
  std::ranges::sort(tensors_, {}, &TensorInfo::name);
  const auto twice = std::ranges::adjacent_find(tensors_, {}, &TensorInfo::name);
  if (twice != tensors_.end()) header.fail("tensor \"" + printable(twice->name) + "\" twice");
  data_begin_ = aligned(header.position(), alignment);
  if (tensors_.empty() && data_begin_ > file_.bytes()) return;  // a vocabulary alone needs no padding
  if (data_begin_ > file_.bytes()) header.fail("ends before its data; is the download complete?");
  check_layout(header, tensors_, file_.bytes() - data_begin_, alignment);
}

GgufFile::GgufFile(GgufFile&&) noexcept = default;
GgufFile::~GgufFile() = default;

const TensorInfo* GgufFile::find(std::string_view name) const {
  const auto found = std::ranges::lower_bound(tensors_, name, {}, &TensorInfo::name);
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

void GgufFile::read(const TensorInfo& tensor, std::byte* destination) const {
  CHECK(!tensors_.empty() && &tensor >= tensors_.data() && &tensor < tensors_.data() + tensors_.size())
      << " tensor " << tensor.name << " is not of " << path();
  file_.read(data_begin_ + tensor.begin, destination, tensor.bytes());
}

}  // namespace headroom
