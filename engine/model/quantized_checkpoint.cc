#include "engine/model/quantized_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/model/block_type.h"
#include "engine/model/config_fields.h"
#include "engine/model/json_scanner.h"
#include "kernels/check.h"
#include "kernels/quantize.h"

namespace headroom {
namespace {

using Method = CheckpointQuantization::Method;

constexpr int64_t kTileRows = 128;  // of a matrix, unpacked at a time: whole cache lines of every layout

// Where the codes of a matrix [N, K] are.
enum class Layout : uint8_t { kGptq, kAwq, kPacked, kInt8 };

// The place in its word of each of 8 neighbouring rows of AWQ.
constexpr int kAwqPlace[] = {0, 4, 1, 5, 2, 6, 3, 7};

struct QuantizedMatrix {
  TensorInfo info;  // as it is read: groups of 32, or values
  Layout layout = Layout::kGptq;
  int32_t bits = 4;
  int32_t zero_added = 0;
  int64_t rows = 0, cols = 0, groups = 0;  // N, K, G
  Checkpoint::Tensor codes, scales;
  std::optional<Checkpoint::Tensor> zeros, group_of_column;

  int64_t codes_per_word() const { return 32 / bits; }
  int32_t middle() const { return 1 << (bits - 1); }
};

template <class T>
std::vector<T> read_all(const Checkpoint::Tensor& tensor) {
  std::vector<T> values(static_cast<size_t>(tensor.info->bytes()) / sizeof(T));
  tensor.read(reinterpret_cast<std::byte*>(values.data()));
  return values;
}

// The tensors of the checkpoint under one prefix, with errors that name them.
class Module {
 public:
  Module(const Checkpoint& checkpoint, const std::string& source, std::string prefix)
      : checkpoint_(checkpoint), source_(source), prefix_(std::move(prefix)) {}

  const std::string& prefix() const { return prefix_; }
  [[noreturn]] void fail(const std::string& what) const { throw std::runtime_error(source_ + ": " + what); }
  std::optional<Checkpoint::Tensor> find(std::string_view suffix) const {
    const Checkpoint::Tensor* tensor = checkpoint_.find(prefix_ + std::string(suffix));
    return tensor == nullptr ? std::nullopt : std::optional(*tensor);
  }
  Checkpoint::Tensor need(std::string_view suffix) const {
    auto tensor = find(suffix);
    if (!tensor) fail("tensor " + printable(prefix_ + std::string(suffix)) + " is missing");
    return *tensor;
  }
  void expect(const Checkpoint::Tensor& tensor, std::string_view type, std::vector<int64_t> shape) const {
    if (tensor.info->type == type && std::ranges::equal(tensor.info->shape(), shape)) return;
    std::string text;
    for (const int64_t dim : shape) text += (text.empty() ? "" : ", ") + std::to_string(dim);
    fail("tensor " + printable(tensor.info->name) + " is " + tensor.info->description() + ", expected " +
         std::string(type) + " [" + text + "]");
  }
  void expect_matrix(const Checkpoint::Tensor& tensor, std::string_view type) const {
    if (tensor.info->type == type && tensor.info->rank == 2 && tensor.info->dims[0] > 0 && tensor.info->dims[1] > 0)
      return;
    fail("tensor " + printable(tensor.info->name) + " is " + tensor.info->description() + ", expected a matrix of " +
         std::string(type));
  }
  void expect_scales(const Checkpoint::Tensor& tensor) const {
    const std::string_view type = tensor.info->type;
    if (type != "F16" && type != "BF16" && type != "F32")
      fail("tensor " + printable(tensor.info->name) + " has type " + std::string(type) +
           "; scales are F16, BF16 or F32");
  }

 private:
  const Checkpoint& checkpoint_;
  const std::string& source_;
  std::string prefix_;
};

// Scales and zero points [groups, rows] and the group of each column: small beside the codes.
struct Groups {
  std::vector<float> scales;
  std::vector<int16_t> zeros;  // as a code is stored, unsigned
  std::vector<int32_t> group_of_column;

  size_t at(const QuantizedMatrix& m, int64_t group, int64_t row) const {
    return static_cast<size_t>(group * m.rows + row);
  }
};

int32_t code_in(uint32_t word, int64_t place, int32_t bits) {
  return static_cast<int32_t>(word >> (place * bits) & ((1u << bits) - 1u));
}

void read_zeros(const QuantizedMatrix& m, Groups& groups) {
  groups.zeros.assign(static_cast<size_t>(m.groups * m.rows),
                      static_cast<int16_t>(m.layout == Layout::kInt8 ? 0 : m.middle()));
  if (!m.zeros) return;
  if (m.layout == Layout::kInt8) {
    const auto stored = read_all<int8_t>(*m.zeros);
    for (int64_t n = 0; n < m.rows; ++n) {
      for (int64_t g = 0; g < m.groups; ++g) {
        const int8_t zero = stored[static_cast<size_t>(n * m.groups + g)];
        groups.zeros[groups.at(m, g, n)] = zero;
      }
    }
    return;
  }
  const auto words = read_all<uint32_t>(*m.zeros);
  const int64_t per_word = m.codes_per_word();
  const int64_t words_of_group = m.rows / per_word;
  for (int64_t g = 0; g < m.groups; ++g) {
    for (int64_t n = 0; n < m.rows; ++n) {
      const int64_t word =
          m.layout == Layout::kPacked ? n / per_word * m.groups + g : g * words_of_group + n / per_word;
      const int64_t place = m.layout == Layout::kAwq ? kAwqPlace[n % 8] : n % per_word;
      const int32_t zero = code_in(words[static_cast<size_t>(word)], place, m.bits) + m.zero_added;
      groups.zeros[groups.at(m, g, n)] = static_cast<int16_t>(zero & ((1 << m.bits) - 1));
    }
  }
}

Groups read_groups(const Module& module, const QuantizedMatrix& m) {
  Groups groups;
  std::vector<std::byte> stored(m.scales.info->bytes());
  m.scales.read(stored.data());
  std::vector<float> scales(static_cast<size_t>(
      std::accumulate(m.scales.info->shape().begin(), m.scales.info->shape().end(), int64_t{1}, std::multiplies<>())));
  find_block_type(m.scales.info->type)->decode(stored.data(), static_cast<int64_t>(scales.size()), scales.data());
  if (m.layout == Layout::kGptq || m.layout == Layout::kAwq) {
    groups.scales = std::move(scales);
  } else {
    groups.scales.resize(static_cast<size_t>(m.groups * m.rows));
    for (int64_t n = 0; n < m.rows; ++n) {
      for (int64_t g = 0; g < m.groups; ++g) {
        groups.scales[groups.at(m, g, n)] =
            scales.size() == 1 ? scales[0] : scales[static_cast<size_t>(n * m.groups + g)];
      }
    }
  }
  read_zeros(m, groups);
  if (m.group_of_column) {
    groups.group_of_column = read_all<int32_t>(*m.group_of_column);
    for (const int32_t g : groups.group_of_column) {
      if (g < 0 || g >= m.groups)
        module.fail("tensor " + printable(m.group_of_column->info->name) + " names group " + std::to_string(g) +
                    " of " + std::to_string(m.groups));
    }
  } else {
    for (int64_t k = 0; k < m.cols; ++k)
      groups.group_of_column.push_back(static_cast<int32_t>(k / (m.cols / m.groups)));
  }
  return groups;
}

bool fits_fp16(float scale) { return std::abs(f16_to_f32(f32_to_f16(scale)) - scale) <= 0x1p-11f * std::abs(scale); }

// As what the matrix is read.
std::string_view type_of(const QuantizedMatrix& m, const Groups& groups) {
  const int64_t group_cols = m.cols / m.groups;
  bool whole_groups = group_cols % kQuantGroup == 0;
  for (int64_t k = 0; k < m.cols && whole_groups; ++k)
    whole_groups = groups.group_of_column[static_cast<size_t>(k)] == k / group_cols;
  if (!whole_groups || !std::ranges::all_of(groups.scales, fits_fp16)) return kRequantized;
  const int16_t middle = m.layout == Layout::kInt8 ? int16_t{0} : static_cast<int16_t>(m.middle());
  const bool symmetric = std::ranges::all_of(groups.zeros, [&](int16_t zero) { return zero == middle; });
  if (m.bits == 4) return symmetric ? "Q4_0" : "Q8_0";
  return symmetric ? "Q8_0" : kRequantized;
}

// code − zero of rows [first, first + count), [count, K]. Words are read in the order in which they lie.
void unpack_rows(const QuantizedMatrix& m, const Groups& groups, const std::vector<std::byte>& codes, int64_t first,
                 int64_t count, int16_t* out) {
  const auto* words = reinterpret_cast<const uint32_t*>(codes.data());
  const int64_t per_word = m.codes_per_word();
  const auto put = [&](int64_t r, int64_t k, int32_t code) {
    out[r * m.cols + k] = static_cast<int16_t>(
        code - groups.zeros[groups.at(m, groups.group_of_column[static_cast<size_t>(k)], first + r)]);
  };
  switch (m.layout) {
    case Layout::kGptq:
      for (int64_t k = 0; k < m.cols; k += per_word) {
        for (int64_t r = 0; r < count; ++r) {
          const uint32_t word = words[k / per_word * m.rows + first + r];
          for (int64_t i = 0; i < per_word; ++i) put(r, k + i, code_in(word, i, m.bits));
        }
      }
      return;
    case Layout::kAwq:
      for (int64_t k = 0; k < m.cols; ++k) {
        for (int64_t r = 0; r < count; ++r)
          put(r, k, code_in(words[k * (m.rows / 8) + (first + r) / 8], kAwqPlace[r % 8], m.bits));
      }
      return;
    case Layout::kPacked:
      for (int64_t r = 0; r < count; ++r) {
        const uint32_t* row = words + (first + r) * ((m.cols + per_word - 1) / per_word);
        for (int64_t k = 0; k < m.cols; ++k) put(r, k, code_in(row[k / per_word], k % per_word, m.bits));
      }
      return;
    case Layout::kInt8:
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t k = 0; k < m.cols; ++k)
          put(r, k, static_cast<int8_t>(codes[static_cast<size_t>((first + r) * m.cols + k)]));
      }
      return;
  }
}

void store_row(const QuantizedMatrix& m, const Groups& groups, int64_t n, const int16_t* codes, std::byte* out) {
  if (m.info.type == kRequantized) {
    for (int64_t k = 0; k < m.cols; ++k) {
      const float value = codes[k] * groups.scales[groups.at(m, groups.group_of_column[static_cast<size_t>(k)], n)];
      std::memcpy(out + k * static_cast<int64_t>(sizeof value), &value, sizeof value);
    }
    return;
  }
  const bool is_int4 = m.info.type == "Q4_0";
  for (int64_t k = 0; k < m.cols;
       k += kQuantGroup, codes += kQuantGroup, out += is_int4 ? kInt4GroupBytes : kInt8GroupBytes) {
    const uint16_t scale = f32_to_f16(groups.scales[groups.at(m, groups.group_of_column[static_cast<size_t>(k)], n)]);
    std::memcpy(out, &scale, sizeof scale);
    for (int64_t i = 0; i < (is_int4 ? kQuantGroup / 2 : kQuantGroup); ++i) {
      const int value = is_int4 ? (codes[i] + 8) | (codes[i + kQuantGroup / 2] + 8) << 4 : codes[i];
      out[2 + i] = static_cast<std::byte>(value);
    }
  }
}

// ---- What a module's tensors are, by the method.
QuantizedMatrix gptq_or_awq_matrix(const Module& module, const CheckpointQuantization& quantization) {
  QuantizedMatrix m;
  m.layout = quantization.method == Method::kAwq ? Layout::kAwq : Layout::kGptq;
  m.bits = quantization.bits;
  m.zero_added = quantization.zero_added;
  m.codes = module.need(".qweight");
  m.scales = module.need(".scales");
  module.expect_matrix(m.codes, "I32");
  module.expect_scales(m.scales);
  const int64_t per_word = m.codes_per_word();
  m.cols = m.codes.info->dims[0] * (m.layout == Layout::kGptq ? per_word : 1);
  m.rows = m.codes.info->dims[1] * (m.layout == Layout::kAwq ? per_word : 1);
  m.groups = m.scales.info->rank == 2 ? m.scales.info->dims[0] : 0;
  if (m.groups < 1 || m.groups > m.cols)
    module.fail("tensor " + printable(m.scales.info->name) + " is " + m.scales.info->description() +
                ", which are no groups of " + std::to_string(m.cols) + " columns");
  module.expect(m.scales, m.scales.info->type, {m.groups, m.rows});
  m.zeros = module.need(".qzeros");
  if (m.rows % per_word != 0)
    module.fail("tensor " + printable(m.codes.info->name) + " has " + std::to_string(m.rows) +
                " rows, which are no whole words");
  module.expect(*m.zeros, "I32", {m.groups, m.rows / per_word});
  m.group_of_column = module.find(".g_idx");
  if (m.group_of_column) module.expect(*m.group_of_column, "I32", {m.cols});
  return m;
}

QuantizedMatrix packed_matrix(const Module& module) {
  QuantizedMatrix m;
  m.layout = Layout::kPacked;
  m.codes = module.need(".weight_packed");
  module.expect_matrix(m.codes, "I32");
  const Checkpoint::Tensor shape = module.need(".weight_shape");
  if (shape.info->type == "I64") {
    module.expect(shape, "I64", {2});
    const auto dims = read_all<int64_t>(shape);
    m.rows = dims[0], m.cols = dims[1];
  } else {
    module.expect(shape, "I32", {2});
    const auto dims = read_all<int32_t>(shape);
    m.rows = dims[0], m.cols = dims[1];
  }
  const int64_t words = m.codes.info->dims[1];
  m.bits = m.cols <= words * 4 ? 8 : 4;
  if (m.cols < 1 || m.cols > words * 8 || m.rows != m.codes.info->dims[0] ||
      words != (m.cols + m.codes_per_word() - 1) / m.codes_per_word()) {
    module.fail("tensor " + printable(m.codes.info->name) + " is " + m.codes.info->description() +
                ", which are no codes of 4 or 8 bits of [" + std::to_string(m.rows) + ", " + std::to_string(m.cols) +
                "]");
  }
  return m;
}

QuantizedMatrix compressed_matrix(const Module& module) {
  QuantizedMatrix m;
  if (module.find(".weight_packed")) {
    m = packed_matrix(module);
  } else {
    m.layout = Layout::kInt8;
    m.bits = 8;
    m.codes = module.need(".weight");
    module.expect_matrix(m.codes, "I8");
    m.rows = m.codes.info->dims[0], m.cols = m.codes.info->dims[1];
  }
  m.scales = module.need(".weight_scale");
  module.expect_scales(m.scales);
  const bool one_scale = m.scales.info->rank == 1 && m.scales.info->dims[0] == 1;
  m.groups = m.scales.info->rank == 2 ? m.scales.info->dims[1] : 1;
  if (m.groups < 1 || m.groups > m.cols)
    module.fail("tensor " + printable(m.scales.info->name) + " is " + m.scales.info->description() +
                ", which are no groups of " + std::to_string(m.cols) + " columns");
  if (!one_scale) module.expect(m.scales, m.scales.info->type, {m.rows, m.groups});
  m.zeros = module.find(".weight_zero_point");
  if (m.zeros && m.layout == Layout::kInt8) module.expect(*m.zeros, "I8", {m.rows, m.groups});
  if (m.zeros && m.layout == Layout::kPacked)
    module.expect(*m.zeros, "I32", {(m.rows + m.codes_per_word() - 1) / m.codes_per_word(), m.groups});
  return m;
}

QuantizedMatrix matrix_of(const Module& module, const CheckpointQuantization& quantization) {
  QuantizedMatrix m = quantization.method == Method::kCompressedTensors ? compressed_matrix(module)
                                                                        : gptq_or_awq_matrix(module, quantization);
  if (m.cols % m.groups != 0)
    module.fail("tensor " + printable(m.codes.info->name) + ": " + std::to_string(m.cols) + " columns are no " +
                std::to_string(m.groups) + " whole groups");
  m.info.name = module.prefix() + ".weight";
  m.info.type = type_of(m, read_groups(module, m));
  m.info.dims = {m.rows, m.cols};
  m.info.rank = 2;
  m.info.end = static_cast<uint64_t>(m.rows) * find_block_type(m.info.type)->row_bytes(m.cols);
  return m;
}

constexpr std::string_view kPartSuffixes[] = {
    ".qweight",       ".qzeros",          ".scales",       ".g_idx",
    ".weight_packed", ".weight_shape",    ".weight_scale", ".weight_zero_point",
    ".input_scale",   ".input_zero_point"};

class QuantizedStore : public TensorStore {
 public:
  QuantizedStore(const std::filesystem::path& model_dir, const CheckpointQuantization& quantization)
      : source_(model_dir.string()), checkpoint_(model_dir) {
    constexpr std::string_view kWeight = ".weight";
    const bool compressed = quantization.method == Method::kCompressedTensors;
    for (const auto& [name, tensor] : checkpoint_.tensors()) {
      const std::string_view codes = compressed ? (tensor.info->type == "I8" ? kWeight : ".weight_packed") : ".qweight";
      if (!name.ends_with(codes)) continue;
      const Module module(checkpoint_, source_, std::string(name.substr(0, name.size() - codes.size())));
      if (codes != kWeight && module.find(kWeight))
        module.fail("tensor " + printable(std::string(name)) + " has a weight that is not quantised beside it");
      matrices_.emplace(module.prefix() + ".weight", matrix_of(module, quantization));
    }
  }

  std::string source() const override { return source_; }
  std::string config_source() const override { return "config.json"; }
  std::string spelling(const std::string& name) const override { return name; }
  const TensorInfo* find(const std::string& name) const override {
    const auto matrix = matrices_.find(name);
    if (matrix != matrices_.end()) return &matrix->second.info;
    const Checkpoint::Tensor* tensor = checkpoint_.find(name);
    return tensor == nullptr ? nullptr : tensor->info;
  }

  void read(const std::string& name, std::byte* destination) const override {
    const auto found = matrices_.find(name);
    if (found == matrices_.end()) {
      const Checkpoint::Tensor* tensor = checkpoint_.find(name);
      CHECK(tensor != nullptr) << " " << name;
      return tensor->read(destination);
    }
    const QuantizedMatrix& m = found->second;
    const Groups groups = read_groups(Module(checkpoint_, source_, name), m);
    const auto codes = read_all<std::byte>(m.codes);
    const size_t row_bytes = m.info.bytes() / static_cast<size_t>(m.rows);
    std::vector<int16_t> tile(static_cast<size_t>(kTileRows * m.cols));
    for (int64_t first = 0; first < m.rows; first += kTileRows) {
      const int64_t count = std::min(kTileRows, m.rows - first);
      unpack_rows(m, groups, codes, first, count, tile.data());
      for (int64_t r = 0; r < count; ++r)
        store_row(m, groups, first + r, tile.data() + r * m.cols,
                  destination + static_cast<size_t>(first + r) * row_bytes);
    }
  }

  std::vector<const TensorInfo*> tensors() const override {
    std::vector<const TensorInfo*> all;
    for (const auto& [name, matrix] : matrices_) all.push_back(&matrix.info);
    for (const auto& [name, tensor] : checkpoint_.tensors()) {
      if (!is_part(name)) all.push_back(tensor.info);
    }
    return all;
  }
  bool is_bare_trunk() const override { return checkpoint_.find("embed_tokens.weight") != nullptr; }

 private:
  // Of a matrix that was found whole.
  bool is_part(std::string_view name) const {
    if (matrices_.contains(std::string(name))) return true;
    return std::ranges::any_of(kPartSuffixes, [&](std::string_view suffix) {
      return name.ends_with(suffix) &&
             matrices_.contains(std::string(name.substr(0, name.size() - suffix.size())) + ".weight");
    });
  }

  std::string source_;
  Checkpoint checkpoint_;
  std::map<std::string, QuantizedMatrix> matrices_;
};

CheckpointQuantization read_gptq(const ConfigFields& fields) {
  CheckpointQuantization quantization{.method = Method::kGptq};
  quantization.bits = fields.required_integer("bits", 8);
  if (quantization.bits != 4 && quantization.bits != 8)
    fields.fail("gptq with " + std::to_string(quantization.bits) + " bits is not supported; supported: 4, 8");
  const std::string format = fields.string("checkpoint_format").value_or(fields.string("format").value_or("gptq"));
  if (format != "gptq" && format != "gptq_v2")
    fields.fail("gptq in the format " + printable(format) + " is not supported; supported: gptq, gptq_v2");
  if (fields.string("pack_dtype").value_or("int32") != "int32")
    fields.fail("pack_dtype is not supported; supported: int32");
  quantization.zero_added = format == "gptq" ? 1 : 0;
  return quantization;
}

CheckpointQuantization read_awq(const ConfigFields& fields) {
  if (fields.required_integer("bits", 8) != 4) fields.fail("awq is supported with 4 bits alone");
  const std::string version = fields.string("version").value_or("gemm");
  if (version != "gemm" && version != "GEMM")
    fields.fail("awq of the version " + printable(version) + " is not supported; supported: gemm");
  if (fields.string("backend").value_or("autoawq") == "llm-awq")
    fields.fail("awq of the backend llm-awq is not supported; supported: autoawq");
  return {.method = Method::kAwq};
}

CheckpointQuantization read_compressed_tensors(const ConfigFields& fields) {
  const std::string format = fields.string("format").value_or("unnamed");
  if (format != "pack-quantized" && format != "int-quantized" && format != "mixed-precision") {
    fields.fail("compressed-tensors in the format " + printable(format) +
                " is not supported; supported: pack-quantized, int-quantized");
  }
  for (const char* key : {"transform_config", "sparsity_config"}) {
    const auto object = fields.object(key);
    if (object && !object->json().empty()) fields.fail(std::string(key) + " is not supported");
  }
  if (fields.has("kv_cache_scheme"))
    fields.fail("kv_cache_scheme is not supported; use --kv int8 with a checkpoint that has none");
  return {.method = Method::kCompressedTensors};
}

}  // namespace

CheckpointQuantization read_quantization(const ConfigFields& fields) {
  const std::string method = fields.string("quant_method").value_or("unnamed");
  if (method == "gptq") return read_gptq(fields);
  if (method == "awq") return read_awq(fields);
  if (method == "compressed-tensors") return read_compressed_tensors(fields);
  fields.fail("quant_method " + printable(method) +
              " is not supported; supported: gptq, awq, compressed-tensors; or use the fp32, fp16 or bf16 checkpoint");
}

std::optional<CheckpointQuantization> quantization_of(const std::filesystem::path& model) {
  const std::filesystem::path path = std::filesystem::is_directory(model) ? model / "config.json" : model;
  if (!std::filesystem::exists(path)) return std::nullopt;
  const auto json = parse_config_object(read_config_text(path), path.string());
  const auto fields = ConfigFields(json, path.string()).object("quantization_config");
  return fields ? std::optional(read_quantization(*fields)) : std::nullopt;
}

std::unique_ptr<TensorStore> open_quantized_safetensors(const std::filesystem::path& model_dir,
                                                        const CheckpointQuantization& quantization) {
  return std::make_unique<QuantizedStore>(model_dir, quantization);
}

}  // namespace headroom
