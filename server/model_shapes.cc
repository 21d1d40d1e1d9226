#include "server/model_shapes.h"

#include <algorithm>
#include <filesystem>
#include <stdexcept>

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

}  // namespace

std::vector<std::string> shape_names() {
  std::vector<std::string> names;
  for (const NamedShape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

ModelConfig load_model_shape(const std::string& model) {
  if (std::filesystem::exists(model)) return ModelConfig::shape(model);
  for (const NamedShape& shape : kShapes) {
    if (model == shape.name) return ModelConfig::shape_from_json(shape.config_json, shape.name);
  }
  std::string line = model + " is no directory, no config.json and no published shape";
  const std::string nearest = nearest_name(model, shape_names());
  if (!nearest.empty()) throw std::runtime_error(line + "; did you mean " + nearest + "?");
  for (const NamedShape& shape : kShapes) line += (&shape == kShapes ? "; shapes: " : ", ") + std::string(shape.name);
  throw std::runtime_error(line);
}

}  // namespace headroom
