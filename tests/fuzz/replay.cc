// fuzz_replay CORPUS [MUTATIONS [SEED]]: runs every input of CORPUS/<target>/ through its target, and each again with bytes changed, put in
// and cut off, so that a build without a fuzzer holds what the fuzzers found. A fault aborts; the input is named before.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "tests/fuzz/targets.h"

namespace {

std::string mutated(std::string input, std::mt19937* random) {
  for (int edits = 1 + static_cast<int>((*random)() % 4); edits > 0 && !input.empty(); --edits) {
    const size_t at = (*random)() % input.size();
    switch ((*random)() % 4) {
      case 0: input[at] = static_cast<char>((*random)()); break;
      case 1: input.resize(at); break;
      case 2: input.insert(at, 1, static_cast<char>((*random)())); break;
      default: input.insert(at, input.substr((*random)() % input.size(), (*random)() % 16)); break;
    }
  }
  return input;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) return std::fputs("usage: fuzz_replay CORPUS [MUTATIONS [SEED]]\n", stderr), 2;
  const long mutations = argc > 2 ? std::strtol(argv[2], nullptr, 10) : 50;
  const auto seed = static_cast<uint32_t>(argc > 3 ? std::strtol(argv[3], nullptr, 10) : 1);
  int inputs = 0;
  for (const headroom::fuzz::Target& target : headroom::fuzz::targets()) {
    std::vector<std::filesystem::path> paths;
    for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(argv[1]) / target.name)) paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());
    std::mt19937 random(seed);
    int taken = 0;
    for (const std::filesystem::path& path : paths) {
      std::fprintf(stderr, "%s\n", path.c_str());
      std::ifstream file(path, std::ios::binary);
      const std::string input{std::istreambuf_iterator<char>(file), {}};
      taken += target.run(input);
      for (long i = 0; i < mutations; ++i) target.run(mutated(input, &random));
      ++inputs;
    }
    if (taken < 2) return std::fprintf(stderr, "%s takes %d of its inputs: they test little\n", target.name.data(), taken), 1;
  }
  std::printf("CHECKS %d passed, 0 failed   (inputs of fuzzers, each with %ld mutations)\n", inputs, mutations);
  return 0;
}
