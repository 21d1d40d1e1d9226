#include "engine/model/tensor_store.h"

#include "engine/model/quantized_checkpoint.h"
#include "kernels/check.h"

namespace headroom {
namespace {

class SafetensorsStore : public TensorStore {
 public:
  explicit SafetensorsStore(const std::filesystem::path& model_dir) : source_(model_dir.string()), checkpoint_(model_dir) {}

  std::string source() const override { return source_; }
  std::string config_source() const override { return "config.json"; }
  std::string spelling(const std::string& name) const override { return name; }
  const TensorInfo* find(const std::string& name) const override {
    const Checkpoint::Tensor* tensor = checkpoint_.find(name);
    return tensor == nullptr ? nullptr : tensor->info;
  }
  void read(const std::string& name, std::byte* destination) const override {
    const Checkpoint::Tensor* tensor = checkpoint_.find(name);
    CHECK(tensor != nullptr) << " " << name;
    tensor->read(destination);
  }
  std::vector<const TensorInfo*> tensors() const override {
    std::vector<const TensorInfo*> all;
    for (const auto& [name, tensor] : checkpoint_.tensors()) all.push_back(tensor.info);
    return all;
  }
  bool is_bare_trunk() const override { return checkpoint_.find("embed_tokens.weight") != nullptr; }

 private:
  std::string source_;
  Checkpoint checkpoint_;
};

}  // namespace

std::unique_ptr<TensorStore> open_safetensors(const std::filesystem::path& model_dir) {
  if (const auto quantization = quantization_of(model_dir)) return open_quantized_safetensors(model_dir, *quantization);
  return std::make_unique<SafetensorsStore>(model_dir);
}

}  // namespace headroom
