#include "server/command_convert.h"

#include <cstdio>

#include "engine/model/capacity.h"
#include "engine/model/convert_kv_heads.h"
#include "server/command_line.h"
#include "server/logging.h"

namespace headroom {

int run_convert(const std::vector<std::string>& arguments) {
  std::string in, out;
  ConvertOptions options;
  CLI::App app(
      "Writes a model with another number of KV heads. More heads repeat those that are there: the model stays the "
      "same, up to\n"
      "multi-head attention. Fewer heads are the means of those that are merged: answers get worse until it is trained "
      "further.",
      "headroom convert");
  app.add_option("in", in, "model directory")->required()->type_name("IN");
  app.add_option("out", out, "new directory")->required()->type_name("OUT");
  app.add_option("--kv-heads", options.kv_heads, "of the new model")->required()->type_name("N");
  app.add_flag("--force", options.force, "merge heads of a model with k_norm all the same");
  if (!parse_command_line(app, arguments)) return 0;
  convert_kv_heads(in, out, options, make_progress("converting"));
  const auto token_bytes = [](const std::string& model) {
    const ModelConfig config = ModelConfig::load(model);
    return static_cast<long long>(kv_shape(config, config.dtype, 16).token_bytes());
  };
  std::printf("%s: %d KV heads, %lld KV bytes per token (%s: %lld)\n", out.c_str(), options.kv_heads, token_bytes(out),
              in.c_str(), token_bytes(in));
  return 0;
}

}  // namespace headroom
