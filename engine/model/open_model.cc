#include "engine/model/open_model.h"

#include <string>
#include <utility>

#include "engine/model/gguf_model.h"

namespace headroom {

bool is_gguf_path(const std::filesystem::path& path) {
  const std::string extension = path.extension().string();
  return extension == ".gguf" || extension == ".GGUF";
}

OpenModel open_model(const std::filesystem::path& path) {
  OpenModel model;
  if (is_gguf_path(path)) {
    model.gguf = std::make_unique<GgufFile>(path);
    model.config = config_of_gguf(*model.gguf);
    model.tensors = tensors_of_gguf(*model.gguf, model.config);
  } else {
    model.config = ModelConfig::load(path);
    model.tensors = open_safetensors(path);
  }
  return model;
}

}  // namespace headroom
