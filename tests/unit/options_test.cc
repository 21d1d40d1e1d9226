#include "server/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace headroom {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string error_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}
std::string flags_error(std::vector<std::string> arguments) {
  return error_of([&] { parse_serve_options(arguments); });
}
std::string json_error(const std::string& json) {
  ServeOptions options;
  return error_of([&] { apply_json_options(json, "o.json", options); });
}

class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& text) : path_(std::filesystem::temp_directory_path() / ("headroom_" + std::to_string(getpid()))) {
    std::ofstream(path_) << text;
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

TEST(Options, FlagsSetFields) {
  const ServeOptions options =
      parse_serve_options({"--model", "m", "--port=9", "--kv", "fp16", "--kv-memory", "1.5GiB", "--page-tokens", "32", "--prefix-cache",
                           "false", "--served-model-name", "a,b/c", "--write-seconds-max", "2.5", "--body-bytes-max", "1MiB"})
          .options;
  EXPECT_EQ(options.model, "m");
  EXPECT_EQ(options.http.port, 9);
  EXPECT_EQ(options.kv, DType::kF16);
  EXPECT_EQ(options.kv_memory->bytes, 3LL << 29);
  EXPECT_EQ(options.page_tokens, 32);
  EXPECT_FALSE(options.prefix_cache);
  EXPECT_THAT(options.served_model_names, testing::ElementsAre("a", "b/c"));
  EXPECT_EQ(options.http.write_seconds_max, 2.5);
  EXPECT_EQ(options.http.body_bytes_max, 1 << 20);
}

TEST(Options, TheFileSetsTheSameNamesAndFlagsWin) {
  const TemporaryFile file(R"({"model": "from-file", "port": 7, "prefix_cache": false, "kv_memory": "25%", "step_tokens_max": 64})");
  const ServeOptions options = parse_serve_options({"--port", "8", "--config", file.path()}).options;
  EXPECT_EQ(options.model, "from-file");
  EXPECT_EQ(options.http.port, 8);
  EXPECT_FALSE(options.prefix_cache);
  EXPECT_EQ(options.kv_memory->share, 0.25);
  EXPECT_EQ(options.step_tokens_max, 64);
}

TEST(Options, AnUnknownNameIsAnErrorWithTheNearestOne) {
  EXPECT_EQ(flags_error({"--model", "m", "--kv-memroy", "1GiB"}), "option --kv-memroy is not known; did you mean --kv-memory?");
  EXPECT_EQ(flags_error({"--model", "m", "--prot=1"}), "option --prot is not known; did you mean --port?");
  EXPECT_EQ(flags_error({"--model", "m", "--xyzzyxyzzy"}), "option --xyzzyxyzzy is not known; see headroom serve --help");
  EXPECT_EQ(json_error(R"({"kv_memry": 1})"), "o.json: option kv_memry is not known; did you mean kv_memory?");
  EXPECT_THAT(json_error(R"({"kv-memory": 1})"), HasSubstr("did you mean kv_memory?"));
}

TEST(Options, AnImpossibleValueIsAnErrorThatSaysWhatWouldDo) {
  const auto with = [](const char* flag, const char* value) { return flags_error({"--model", "m", flag, value}); };
  EXPECT_EQ(with("--port", "65536"), "--port: \"65536\" must be a whole number from 0 to 65535");
  EXPECT_THAT(with("--port", "80x"), HasSubstr("whole number"));
  EXPECT_THAT(with("--port", ""), HasSubstr("--port"));
  EXPECT_THAT(with("--threads", "1.5"), HasSubstr("whole number"));
  EXPECT_THAT(with("--streams-max", "0"), HasSubstr("from 1 to"));
  EXPECT_THAT(with("--read-seconds-max", "nan"), HasSubstr("a number from"));
  EXPECT_THAT(with("--page-tokens", "17"), HasSubstr("one of 16, 32, 64"));
  EXPECT_THAT(with("--kv", "int3"), HasSubstr("one of fp32, bf16, fp16"));
  EXPECT_THAT(with("--prefix-cache", "perhaps"), HasSubstr("true or false"));
  EXPECT_THAT(with("--kv-memory", "many"), HasSubstr("512MiB"));
  EXPECT_THAT(with("--body-bytes-max", "50%"), HasSubstr("16MiB"));
  EXPECT_THAT(with("--served-model-name", "a,,b"), HasSubstr("names"));
  EXPECT_THAT(flags_error({"--model"}), HasSubstr("--model"));
  EXPECT_THAT(flags_error({}), HasSubstr("set --model"));
  EXPECT_EQ(json_error(R"({"port": "80x"})"), "o.json: port: \"80x\" must be a whole number from 0 to 65535");
  EXPECT_EQ(json_error(R"({"port": [1]})"), "o.json: port must be a string, a number, true or false");
  EXPECT_EQ(json_error("{\n\"port\": 1,\n}"), "o.json: line 3 is not valid JSON");
  EXPECT_THAT(json_error("[]"), HasSubstr("JSON object"));
  for (const std::string& line : {with("--port", "x\ny"), flags_error({"--model", "m", "--config", "/nowhere"})}) {
    EXPECT_THAT(line, Not(testing::IsEmpty()));
  }
}

TEST(Options, MemoryIsBytesOrAShare) {
  EXPECT_EQ(parse_memory_amount("1536").bytes, 1536);
  EXPECT_EQ(parse_memory_amount("4KiB").bytes, 4096);
  EXPECT_EQ(parse_memory_amount("512 MiB").bytes, 512LL << 20);
  EXPECT_EQ(parse_memory_amount("2GB").bytes, 2000000000);
  EXPECT_EQ(parse_memory_amount("1TiB").bytes, 1LL << 40);
  EXPECT_EQ(parse_memory_amount("50%").share, 0.5);
  EXPECT_EQ(parse_memory_amount("50%").bytes, 0);
  for (const char* text : {"", "-1", "0", "101%", "1PiB", "1e30", "inf", "nan", "GiB", "1GiBx", "0x10"}) {
    EXPECT_THROW(parse_memory_amount(text), std::runtime_error) << text;
  }
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1LL << 30), "1 GiB");
  EXPECT_EQ(format_bytes(1610612736), "1.50 GiB");
}

TEST(Options, NearestNameWantsAtMostAThirdOfTheLettersWrong) {
  EXPECT_EQ(nearest_name("srve", {"serve", "options"}), "serve");
  EXPECT_EQ(nearest_name("optoins", {"serve", "options"}), "options");
  EXPECT_EQ(nearest_name("bananas", {"serve", "options"}), "");
}

TEST(Options, KeysComeWithTheirTenantsAndAnEmptyFileIsNotAnOpenServer) {
  const TemporaryFile file("alice " + std::string(64, 'a') + " weight=3\n");
  const ServeOptions options = parse_serve_options({"--model", "m", "--api-keys-file", file.path()}).options;
  ASSERT_EQ(options.http.api_keys.size(), 1u);
  EXPECT_EQ(options.tenants.at(0).limits.weight, 3);
  EXPECT_THAT(error_of([] { load_api_keys("/dev/null"); }), HasSubstr("holds no key"));
  EXPECT_THAT(error_of([] { load_api_keys("/nowhere"); }), HasSubstr("cannot be read"));
}

TEST(Options, HelpHasGroupsAndEveryOption) {
  EXPECT_TRUE(parse_serve_options({"--help"}).help);
  const std::string help = options_help();
  for (const char* part : {"Model:", "KV cache:", "Scheduling:", "HTTP:", "Logs:", "--kv-memory", "--drain-seconds-max", "--config"}) {
    EXPECT_THAT(help, HasSubstr(part));
  }
}

TEST(Options, PresetsAreValid) {
  int presets = 0;
  for (const auto& entry : std::filesystem::directory_iterator(HEADROOM_SOURCE_DIR "/configs/server")) {
    std::ifstream in(entry.path());
    const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    ServeOptions options;
    EXPECT_NO_THROW(apply_json_options(text, entry.path().string(), options)) << entry.path();
    ++presets;
  }
  EXPECT_GT(presets, 0);
}

// The table of the README is what `headroom options --markdown` prints.
TEST(Options, TheReadmeHasTheCurrentTable) {
  std::ifstream in(HEADROOM_SOURCE_DIR "/README.md");
  const std::string readme{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  EXPECT_THAT(readme, HasSubstr(options_markdown())) << "run: headroom options --markdown";
}

}  // namespace
}  // namespace headroom
