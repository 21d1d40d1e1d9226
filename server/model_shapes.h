// The published shapes of configs/models, built into the program, so that a deployment can be planned wherever it runs.
// Pure functions.
#pragma once

#include <string>
#include <vector>

#include "engine/model/config.h"

namespace headroom {

std::vector<std::string> shape_names();

// `model`: a model directory, a config.json, or a name of shape_names(). Throws std::runtime_error: one line with the
// nearest name.
ModelConfig load_model_shape(const std::string& model);
// The same; refuses as well what can be planned but not run.
ModelConfig load_runnable_shape(const std::string& model);

}  // namespace headroom
