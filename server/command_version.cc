#include "server/command_version.h"

#include <cstdio>
#include <stdexcept>

#include "server/json_writer.h"

namespace headroom {
namespace {

struct Dependency {
  const char* name;
  const char* version;
};
constexpr Dependency kDependencies[] = {
#include "server/dependencies.inc"
};

#if defined(__clang__)
constexpr char kCompiler[] = "clang " __clang_version__;
#else
constexpr char kCompiler[] = "gcc " __VERSION__;
#endif

std::string cyclonedx() {
  std::string text;
  JsonWriter json(&text);
  const auto component = [&](const char* type, const char* name, const char* version) {
    json.begin_object().key("type").string(type).key("name").string(name).key("version").string(version).end_object();
  };
  json.begin_object().key("bomFormat").string("CycloneDX").key("specVersion").string("1.5").key("version").integer(1);
  json.key("metadata").begin_object().key("component");
  component("application", "headroom", HEADROOM_VERSION);
  json.end_object().key("components").begin_array();
  for (const Dependency& dependency : kDependencies) component("library", dependency.name, dependency.version);
  json.end_array().end_object();
  return text;
}

}  // namespace

int run_version(const std::vector<std::string>& arguments) {
  if (arguments == std::vector<std::string>{"--json"}) return std::puts(cyclonedx().c_str()) < 0;
  if (!arguments.empty()) throw std::runtime_error("version takes nothing but --json");
  std::printf("headroom " HEADROOM_VERSION "\nbuilt by %s with\n", kCompiler);
  for (const Dependency& dependency : kDependencies) std::printf("  %-15s %s\n", dependency.name, dependency.version);
  return 0;
}

}  // namespace headroom
