// libFuzzer's entry: HEADROOM_FUZZ names the target. See tests/fuzz/run.sh.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "tests/fuzz/targets.h"

namespace {

const headroom::fuzz::Target& chosen_target() {
  const char* name = std::getenv("HEADROOM_FUZZ");
  for (const headroom::fuzz::Target& target : headroom::fuzz::targets()) {
    if (name != nullptr && target.name == name) return target;
  }
  std::fputs("set HEADROOM_FUZZ to the name of a folder in tests/fuzz/corpus\n", stderr);
  std::exit(2);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const headroom::fuzz::Target& target = chosen_target();
  target.run({reinterpret_cast<const char*>(data), size});
  return 0;
}
