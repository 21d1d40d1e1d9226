// Another program's benchmark beside a measurement of ours: its command for the same test, what it printed, and the ratio.
//
// Recognised: llama-bench (`-o json`, `-o jsonl`; also the fork's, with its `-gp`), llama-batched-bench (its table or
// `--output-format jsonl`), llama-sweep-bench (its table), and any command that prints one number, tokens per second.
// All but the number say what they measured, and only the same test counts: prompt, depth, steps and sequences.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace headroom {

// What is measured: a prefill of prompt_tokens, or `steps` decode steps of `batch` sequences with `depth` tokens each.
struct PeerTest {
  int32_t prompt_tokens = 0;  // 0: decode
  int32_t batch = 1, depth = 0, steps = 0;
  int threads = 1;

  std::string name() const;
};

// `command` with {prompt}, {batch}, {depth}, {steps} and {threads} filled in: for prefill depth and steps are 0, for decode
// the prompt is.
std::string peer_command(std::string command, const PeerTest& test);

// Tokens per second of `test` in what a benchmark printed: the median of its samples where it gives them; of several results
// for the same test (llama-bench -fa 0,1) the fastest. Throws std::runtime_error, one line that says what was found instead.
double peer_tokens_per_second(const std::string& output, const PeerTest& test);

// Runs the command by the shell, with its stderr as ours. Throws std::runtime_error, one line that names the command, where
// it fails, prints more than 1 MiB, or nothing of this test.
double run_peer(const std::string& command, const PeerTest& test);

// Values of repetitions, which are not empty.
struct Spread {
  double median = 0, low = 0, high = 0;
};
Spread spread_of(std::vector<double> values);

}  // namespace headroom
