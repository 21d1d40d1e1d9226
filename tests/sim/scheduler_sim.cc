// scheduler_sim [--steps N] [--seed S] [--jobs J] [--episode-steps E] [--expect-violation]
// Runs episodes of the simulation until N steps are done, in J processes that share the seeds out among them. The same
// seed and number of jobs give the same run. Prints what happened how often, and every ten minutes how far it is;
// SIGTERM ends it early. Exit code 0: as expected; 1: a violation (or none, with --expect-violation), which is printed
// with the seed of its episode, or something that never happened in a long run.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "tests/sim/simulation.h"

namespace {

using headroom::sim::Coverage;
using headroom::sim::Event;
using headroom::sim::Simulation;
using Clock = std::chrono::steady_clock;

constexpr int64_t kStepsThatReachEverything = 1000000;
constexpr std::chrono::minutes kBetweenReports{10};

struct Arguments {
  int64_t steps = 1000000;
  uint64_t seed = 1;
  int64_t jobs = 1;
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
    } else if (name == "--jobs" && value > 0 && value <= 1024) {
      arguments.jobs = value;
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

volatile std::sig_atomic_t g_stop = 0;
std::vector<pid_t> g_children;

extern "C" void on_terminate(int) {
  g_stop = 1;
  for (const pid_t child : g_children) kill(child, SIGTERM);
}
extern "C" void on_abort(int) { _exit(report_violation("a CHECK of the scheduler failed, see above")); }

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Every jobs-th episode, beginning with the job's own. Returns the exit code of a violation, -1 if there was none.
int run_job(int64_t job, Coverage& total) {
  const int64_t steps = (g_arguments.steps + g_arguments.jobs - 1) / g_arguments.jobs;
  const auto start = Clock::now();
  auto reported = start;
  for (int64_t episode = job; total.steps < steps && g_stop == 0; episode += g_arguments.jobs) {
    g_episode_seed = g_arguments.seed * 1000000007ULL + static_cast<uint64_t>(episode);
    g_steps_before = total.steps;
    Simulation simulation(g_episode_seed);
    g_simulation = &simulation;
    try {
      simulation.run(std::min(g_arguments.episode_steps, steps - total.steps));
    } catch (const headroom::sim::Violation& violation) {
      return report_violation(violation.what());
    }
    g_simulation = nullptr;
    total.add(simulation.coverage());
    if (Clock::now() < reported + kBetweenReports) continue;
    reported = Clock::now();
    std::fprintf(stderr, "job %lld: %lld of %lld steps in %.0f s\n", static_cast<long long>(job),
                 static_cast<long long>(total.steps), static_cast<long long>(steps), seconds_since(start));
  }
  return -1;
}

// In processes of their own: a failed CHECK ends one, and they share no memory to wait for.
int run_jobs(Coverage& total) {
  if (g_arguments.jobs == 1) return run_job(0, total);
  std::vector<int> results;
  g_children.reserve(static_cast<size_t>(g_arguments.jobs));
  for (int64_t job = 0; job < g_arguments.jobs; ++job) {
    int ends[2];
    if (pipe(ends) != 0) return 1;
    const pid_t child = fork();
    if (child < 0) return 1;
    if (child == 0) {
      g_children.clear();
      Coverage coverage;
      const int violation = run_job(job, coverage);
      if (violation >= 0) _exit(violation);
      _exit(write(ends[1], &coverage, sizeof(coverage)) == sizeof(coverage) ? 0 : 1);
    }
    close(ends[1]);
    g_children.push_back(child);
    results.push_back(ends[0]);
  }
  int result = -1;
  for (size_t job = 0; job < results.size(); ++job) {
    Coverage coverage;
    const bool is_whole = read(results[job], &coverage, sizeof(coverage)) == sizeof(coverage);
    int status = 0;
    waitpid(g_children[job], &status, 0);
    if (is_whole) {
      total.add(coverage);
    } else {
      result = std::max(result, WIFEXITED(status) ? WEXITSTATUS(status) : 1);
    }
  }
  return result;
}

// Returns whether everything happened.
bool print(const Coverage& coverage, double seconds) {
  std::printf("%lld steps in %.1f s (%.0f per second), %lld processes, seed %llu: no violation\n",
              static_cast<long long>(coverage.steps), seconds, static_cast<double>(coverage.steps) / seconds,
              static_cast<long long>(g_arguments.jobs), static_cast<unsigned long long>(g_arguments.seed));
  bool everything = true;
  for (size_t i = 0; i < headroom::sim::kEvents; ++i) {
    const int64_t count = coverage.count(static_cast<Event>(i));
    std::printf("%15lld  %s\n", static_cast<long long>(count), headroom::sim::kEventNames[i]);
    everything = everything && count > 0;
  }
  return everything;
}

}  // namespace

int main(int argc, char** argv) {
  if (!parse(argc, argv, g_arguments)) {
    std::fprintf(stderr, "usage: scheduler_sim [--steps N] [--seed S] [--jobs J] [--episode-steps E] [--expect-violation]\n");
    return 2;
  }
  std::signal(SIGABRT, on_abort);
  std::signal(SIGTERM, on_terminate);
  const auto start = Clock::now();
  Coverage total;
  const int violation = run_jobs(total);
  if (violation >= 0) return violation;
  const bool everything = print(total, seconds_since(start));
  if (!everything && total.steps >= kStepsThatReachEverything) {
    std::fprintf(stderr, "something never happened, see the counts above\n");
    return 1;
  }
  return g_arguments.expect_violation ? 1 : 0;
}
