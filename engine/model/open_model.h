// A model on disk, of either format: its configuration and its tensors, checked and not yet read.
#pragma once

#include <filesystem>
#include <memory>

#include "engine/model/config.h"
#include "engine/model/gguf.h"
#include "engine/model/tensor_store.h"

namespace headroom {

struct OpenModel {
  ModelConfig config;
  std::unique_ptr<GgufFile> gguf;  // null: a directory in Hugging Face layout
  std::unique_ptr<TensorStore> tensors;
};

// `path`: a directory, or a file named *.gguf. Throws std::runtime_error: one line that names the file.
OpenModel open_model(const std::filesystem::path& path);

bool is_gguf_path(const std::filesystem::path& path);

}  // namespace headroom
