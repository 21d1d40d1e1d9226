#include "server/command_report.h"

#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <system_error>

#include "kernels/device.h"
#include "server/command_line.h"
#include "server/options.h"
#include "server/report.h"
#include "server/report_html.h"

namespace headroom {
namespace {

// In the form of the demo models' training; any model has something to look back at.
constexpr const char* kPrompt =
    "The password for Anna is walnut. The password for Clara is stone. The password for Anna is";

// A file that appears whole or not at all. Opened before anything is measured: a path that cannot be written should not cost a minute.
class OutputFile {
 public:
  explicit OutputFile(const std::string& path) : path_(path) {
    // What is no file, such as a terminal, is written as it is.
    std::error_code ignored;
    const bool is_special = std::filesystem::exists(path, ignored) && !std::filesystem::is_regular_file(path, ignored);
    draft_ = is_special ? path : path + ".draft-" + std::to_string(getpid());
    out_.open(draft_, std::ios::binary);
    if (!out_) throw std::runtime_error("--output: " + path + " cannot be written; name a file in a directory that exists");
  }
  ~OutputFile() {
    std::error_code ignored;
    if (draft_ != path_) std::filesystem::remove(draft_, ignored);
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(const std::string& text) {
    out_ << text;
    out_.close();
    if (!out_) throw std::runtime_error("--output: " + path_ + " could not be written to its end; is the disk full?");
    if (draft_ != path_) std::filesystem::rename(draft_, path_);
  }

 private:
  const std::string path_;
  std::string draft_;
  std::ofstream out_;
};

}  // namespace

int run_report(const std::vector<std::string>& arguments) {
  ReportOptions options{.prompt = kPrompt};
  std::string output = "report.html", kv;
  CLI::App app("Measures what grouped-query attention saves with a model, and writes it as one HTML file",
               "headroom report");
  app.add_option("--model", options.model, "model directory in Hugging Face layout")->required();
  app.add_option("--output", output, "the file to write")->capture_default_str();
  app.add_option("--kv", kv, "element type of the KV cache; else as config.json's")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16", "int8"}));
  app.add_option("--device", options.device, "what computes")->check(CLI::IsMember(device_names()))->capture_default_str();
  app.add_option("--threads", options.threads,
                 "of what is timed; one is the least disturbed by others; 0: one per physical core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--context-tokens", options.context_tokens, "the longest at which decoding is measured")
      ->check(CLI::Range(64, 1 << 20))
      ->capture_default_str();
  app.add_option("--prompt", options.prompt, "whose attention is shown; its first 40 tokens")->capture_default_str();
  if (!parse_command_line(app, arguments)) return 0;
  for (const DType type : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8}) {
    if (kv == dtype_name(type)) options.kv = type;
  }
  if (!std::filesystem::is_directory(options.model)) {
    throw std::runtime_error("--model: " + options.model +
                             " is not a directory; name one with config.json, tokenizer.json and model.safetensors");
  }
  OutputFile out(output);
  const Report report = make_report(options, [](int step, int steps, const std::string& what) {
    std::fprintf(stderr, "[%d/%d] %s\n", step, steps, what.c_str());
  });
  out.write(report_html(report));
  std::fprintf(stderr, "%s: measured in %.1f s\n", output.c_str(), report.seconds);
  return 0;
}

}  // namespace headroom
