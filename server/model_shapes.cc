#include "server/model_shapes.h"

#include <algorithm>
#include <filesystem>
#include <stdexcept>

#include "engine/model/open_model.h"
#include "server/options.h"

namespace headroom {
namespace {

struct NamedShape {
  const char* name;
  const char* config_json;
};
constexpr NamedShape kShapes[] = {
#include "server/model_shapes.inc"  // by server/CMakeLists.txt from configs/models
};

template <class OfFile, class OfJson>
ModelConfig load_shape(const std::string& model, const OfFile& of_file, const OfJson& of_json) {
  if (is_gguf_path(model)) throw std::runtime_error(model + " is a GGUF file; a shape is a config.json, a directory with one, or a published name");
  if (std::filesystem::exists(model)) return of_file(model);
  for (const NamedShape& shape : kShapes) {
    if (model == shape.name) return of_json(shape);
  }
  std::string line = model + " is no directory, no config.json and no published shape";
  const std::string nearest = nearest_name(model, shape_names());
  if (!nearest.empty()) throw std::runtime_error(line + "; did you mean " + nearest + "?");
  for (const NamedShape& shape : kShapes) line += (&shape == kShapes ? "; shapes: " : ", ") + std::string(shape.name);
  throw std::runtime_error(line);
}

}  // namespace

std::vector<std::string> shape_names() {
  std::vector<std::string> names;
  for (const NamedShape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

ModelConfig load_model_shape(const std::string& model) {
  return load_shape(model, ModelConfig::shape, [](const NamedShape& shape) { return ModelConfig::shape_from_json(shape.config_json, shape.name); });
}

ModelConfig load_runnable_shape(const std::string& model) {
  return load_shape(model, ModelConfig::load, [](const NamedShape& shape) { return ModelConfig::from_json(shape.config_json, {}, shape.name); });
}

}  // namespace headroom
