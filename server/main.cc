// The program `headroom`: one subcommand per file command_*.cc. What a start cannot do ends here, as one line.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "server/command_bench.h"
#include "server/command_convert.h"
#include "server/command_health.h"
#include "server/command_plan.h"
#include "server/command_report.h"
#include "server/command_serve.h"
#include "server/command_version.h"
#include "server/logging.h"
#include "server/options.h"

namespace {

using Arguments = std::vector<std::string>;

struct Command {
  const char* name;
  const char* help;
  int (*run)(const Arguments&);
};

int run_options(const Arguments& arguments) {
  const bool markdown = arguments == Arguments{"--markdown"};
  if (!arguments.empty() && !markdown && arguments != Arguments{"--help"}) throw std::runtime_error("options takes --markdown, or nothing");
  std::fputs((markdown ? headroom::options_markdown() : headroom::options_help()).c_str(), stdout);
  return 0;
}

int run_server(const Arguments& arguments) { return headroom::run_serve(arguments); }

constexpr Command kCommands[] = {
    {"serve", "serve a model over HTTP", run_server},
    {"plan", "say what a deployment takes and what fits, from the shape of a model", headroom::run_plan},
    {"bench", "measure prefill and decode against this machine's limits", headroom::run_bench},
    {"convert", "write a model with another number of KV heads", headroom::run_convert},
    {"health", "ask a running server whether it is ready", headroom::run_health},
    {"report", "measure what grouped-query attention saves, as one HTML file", headroom::run_report},
    {"options", "print the options of serve; --markdown: as a table", run_options},
    {"version", "print the version and what it is built with; --json: as a CycloneDX list", headroom::run_version},
};

void print_usage(std::FILE* out) {
  std::fputs("usage: headroom COMMAND [--help]\n", out);
  for (const Command& command : kCommands) std::fprintf(out, "  %-10s %s\n", command.name, command.help);
}

int run(const Arguments& arguments) {
  if (arguments.empty()) return print_usage(stderr), 2;
  const std::string& name = arguments.front();
  if (name == "--help" || name == "-h" || name == "help") return print_usage(stdout), 0;
  if (name == "--version") return headroom::run_version({});
  std::vector<std::string> known;
  for (const Command& command : kCommands) {
    if (name == command.name) return command.run({arguments.begin() + 1, arguments.end()});
    known.push_back(command.name);
  }
  const std::string nearest = headroom::nearest_name(name, known);
  std::fprintf(stderr, "headroom: command %s is not known; %s\n", headroom::without_control(name).c_str(),
               nearest.empty() ? "see headroom --help" : ("did you mean " + nearest + "?").c_str());
  return 2;
}

// So that no file or socket that is opened becomes one of them, and gets what is printed.
void take_standard_descriptors() {
  int fd = 0;
  while (fd >= 0 && fd <= STDERR_FILENO) fd = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (fd >= 0) close(fd);
}

}  // namespace

int main(int argc, char** argv) {
  take_standard_descriptors();
  signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error of write(), not the end
  try {
    const int status = run({argv + 1, argv + argc});
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) throw std::runtime_error(std::string("cannot print: ") + std::strerror(errno));
    return status;
  } catch (const std::exception& error) {
    std::string line = error.what();
    std::replace(line.begin(), line.end(), '\n', ' ');
    std::fprintf(stderr, "headroom: %s\n", headroom::without_control(line).c_str());
    return 1;
  }
}
