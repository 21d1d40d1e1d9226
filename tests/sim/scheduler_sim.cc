// scheduler_sim [--steps N] [--seed S] [--episode-steps E] [--expect-violation]
// Runs episodes of the simulation until N steps are done. The same seed gives the same run. Exit code 0: as expected;
// 1: a violation (or none, with --expect-violation), which is printed with the seed of its episode.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "tests/sim/simulation.h"

namespace {

using headroom::sim::Coverage;
using headroom::sim::Simulation;

struct Arguments {
  int64_t steps = 1000000;
  uint64_t seed = 1;
  int64_t episode_steps = 1000;
  bool expect_violation = false;
};

bool parse(int argc, char** argv, Arguments& arguments) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--expect-violation") {
      arguments.expect_violation = true;
      continue;
    }
    if (i + 1 == argc) return false;
    const long long value = std::strtoll(argv[++i], nullptr, 10);
    if (name == "--steps" && value > 0) {
      arguments.steps = value;
    } else if (name == "--seed" && value >= 0) {
      arguments.seed = static_cast<uint64_t>(value);
    } else if (name == "--episode-steps" && value > 0) {
      arguments.episode_steps = value;
    } else {
      return false;
    }
  }
  return true;
}

// What a CHECK inside the scheduler needs to be reported like any other violation.
Arguments g_arguments;
uint64_t g_episode_seed = 0;
int64_t g_steps_before = 0;
const Simulation* g_simulation = nullptr;

int report_violation(const char* what) {
  const int64_t steps = g_steps_before + (g_simulation != nullptr ? g_simulation->coverage().steps : 0);
  std::fprintf(stderr, "violation at step %lld (episode seed %llu): %s\n", static_cast<long long>(steps),
               static_cast<unsigned long long>(g_episode_seed), what);
  return g_arguments.expect_violation ? 0 : 1;
}

extern "C" void on_abort(int) { _exit(report_violation("a CHECK of the scheduler failed, see above")); }

void print(const Coverage& c, double seconds) {
  const auto count = [](int64_t n) { return static_cast<long long>(n); };
  std::printf("%lld steps in %.1f s (%.0f per second), no violation\n", count(c.steps), seconds,
              static_cast<double>(c.steps) / seconds);
  std::printf("requests: %lld accepted, %lld refused for ever, %lld refused by a full queue, %lld cancelled\n",
              count(c.accepted), count(c.refused_for_ever), count(c.refused_full), count(c.cancelled));
  std::printf("sequences: %lld finished, %lld preempted, %lld forks, %lld copies on write, %lld steps abandoned\n",
              count(c.finished_choices), count(c.preempted), count(c.forks), count(c.copies), count(c.abandoned));
  std::printf("tokens: %lld found in the prefix cache, %lld recomputed, %lld slots verified\n", count(c.hit_tokens),
              count(c.recomputed_tokens), count(c.slots_verified));
  std::printf("pages: %lld evicted, %lld dropped below a window\n", count(c.evictions), count(c.window_drops));
}

// A run in which something never happened shows nothing about it.
bool covers_everything(const Coverage& c) {
  const int64_t rarest =
      std::min({c.accepted, c.refused_for_ever, c.refused_full, c.finished_choices, c.cancelled, c.preempted,
                c.abandoned, c.forks, c.copies, c.hit_tokens, c.recomputed_tokens, c.evictions, c.window_drops});
  return rarest > 0 || c.steps < 100000;
}

}  // namespace

int main(int argc, char** argv) {
  if (!parse(argc, argv, g_arguments)) {
    std::fprintf(stderr, "usage: scheduler_sim [--steps N] [--seed S] [--episode-steps E] [--expect-violation]\n");
    return 2;
  }
  std::signal(SIGABRT, on_abort);
  const auto start = std::chrono::steady_clock::now();
  Coverage total;
  for (uint64_t episode = 0; total.steps < g_arguments.steps; ++episode) {
    g_episode_seed = g_arguments.seed * 1000000007ULL + episode;
    g_steps_before = total.steps;
    Simulation simulation(g_episode_seed);
    g_simulation = &simulation;
    try {
      simulation.run(std::min(g_arguments.episode_steps, g_arguments.steps - total.steps));
    } catch (const headroom::sim::Violation& violation) {
      return report_violation(violation.what());
    }
    g_simulation = nullptr;
    total.add(simulation.coverage());
  }
  print(total, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  if (!covers_everything(total)) {
    std::fprintf(stderr, "something was never exercised, see the counts above\n");
    return 1;
  }
  return g_arguments.expect_violation ? 1 : 0;
}
