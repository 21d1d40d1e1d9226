// What the subcommands share in reading their arguments.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

namespace headroom {

// False: help was asked for, and printed. Throws std::runtime_error, one line, for arguments that cannot be.
inline bool parse_command_line(CLI::App& app, const std::vector<std::string>& arguments) {
  try {
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));  // CLI11 takes them from the back
  } catch (const CLI::CallForHelp&) {
    std::fputs(app.help().c_str(), stdout);
    return false;
  } catch (const CLI::ParseError& error) {
    throw std::runtime_error(std::string(error.what()) + "; see " + app.get_name() + " --help");
  }
  return true;
}

}  // namespace headroom
