// The tensors of a checkpoint, whatever its format, under the names that Hugging Face gives them.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "engine/model/safetensors.h"

namespace headroom {

class TensorStore {
 public:
  virtual ~TensorStore() = default;
  virtual std::string source() const = 0;         // what errors begin with
  virtual std::string config_source() const = 0;  // what says which tensors there must be: "config.json"
  virtual std::string spelling(const std::string& name) const = 0;      // of `name` in the file
  virtual const TensorInfo* find(const std::string& name) const = 0;    // null: not there
  // REQUIRES: find(name); `destination` holds its bytes. Rows in the order of Hugging Face.
  virtual void read(const std::string& name, std::byte* destination) const = 0;
  virtual std::vector<const TensorInfo*> tensors() const = 0;           // all of the file
  virtual bool is_bare_trunk() const = 0;                               // names without "model."
};

// Quantised or not, as config.json says.
std::unique_ptr<TensorStore> open_safetensors(const std::filesystem::path& model_dir);

}  // namespace headroom
