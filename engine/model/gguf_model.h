// What a GGUF file says of a model: its configuration, and its tensors under the names of Hugging Face.
//
// llama.cpp's converter stores the rows of q and k of llama and smollm3 in an order of its own (pairs that RoPE turns are
// neighbours); here they come in the order of the original. Errors are std::runtime_error, one line that names the file.
#pragma once

#include <memory>

#include "engine/model/config.h"
#include "engine/model/gguf.h"
#include "engine/model/tensor_store.h"

namespace headroom {

// Architectures llama (with Mistral, SmolLM2), qwen2, qwen3, phi3 and smollm3; any other is refused by name.
ModelConfig config_of_gguf(const GgufFile& file);

// `file` must outlive the store.
std::unique_ptr<TensorStore> tensors_of_gguf(const GgufFile& file, const ModelConfig& config);

}  // namespace headroom
