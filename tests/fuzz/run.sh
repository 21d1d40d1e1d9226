#!/bin/sh
# Fuzzes what reads bytes of clients and model files, with clang's libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer, one target
# after the other, and prints a table: target, executions, findings. Exit status 1 when anything was found.
#   tests/fuzz/run.sh [--runs N] [--seconds N] [TARGET...]    all targets if none is named; a release runs --runs 10000000
# A target ends at its first finding, which is left in build/fuzz/found/TARGET: mend the fault and put the input into
# tests/fuzz/corpus/TARGET under a name that says what it was. What the fuzzer learns is kept in build/fuzz/corpus.
set -eu
cd "$(dirname "$0")/../.."
runs=10000000 seconds=0
while [ $# -gt 0 ]; do
  case "$1" in
    --runs) runs=$2; shift 2 ;;
    --seconds) seconds=$2; runs=-1; shift 2 ;;
    -*) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2 ;;
    *) break ;;
  esac
done
command -v clang++ >/dev/null || { echo "clang++ is needed: install the packages clang and libclang-rt-dev" >&2; exit 1; }
cmake --preset fuzz >/dev/null
cmake --build build/fuzz --target fuzz
[ $# -gt 0 ] || set -- $(ls tests/fuzz/corpus)

# Long inputs are slow, and most of what there is to find is in short ones; the corpus in the repository, replayed by every build, has long ones.
bytes_max() {
  case "$1" in
    tokenizer_text | stream) echo 64 ;;
    stop | request | chat_template) echo 256 ;;
    http | safetensors) echo 512 ;;
    config) echo 768 ;;
    *) echo 2048 ;;
  esac
}

findings_in() { find "$1" -type f ! -name 'slow-unit-*' | wc -l; }

mkdir -p build/fuzz/logs
table=$(printf '%-16s %12s %8s %8s %9s' target executions seconds per-sec findings)
status=0
for target in "$@"; do
  found=build/fuzz/found/$target log=build/fuzz/logs/$target
  mkdir -p "build/fuzz/corpus/$target" "$found"
  before=$(findings_in "$found")
  words=tests/fuzz/dictionaries/$target
  [ -f "$words" ] && words=-dict=$words || words=
  echo "==> $target" >&2
  begin=$(date +%s)
  # A unit takes microseconds; 100 s by the clock are a hang even where other work has the cores.
  # For speed: no stack of each allocation (a finding is looked at by running its input alone), a short quarantine, pages that stay, and
  # neither a search for shorter inputs nor weights of them.
  HEADROOM_FUZZ=$target ASAN_OPTIONS=malloc_context_size=0:quarantine_size_mb=1:allocator_release_to_os_interval_ms=-1:detect_leaks=1 \
    build/fuzz/tests/fuzz -runs="$runs" -max_total_time="$seconds" -max_len="$(bytes_max "$target")" -timeout=100 -rss_limit_mb=2048 \
    -reduce_inputs=0 -entropic=0 -print_final_stats=1 -verbosity=0 ${words:+"$words"} -artifact_prefix="$found/" \
    "build/fuzz/corpus/$target" "tests/fuzz/corpus/$target" >"$log" 2>&1 || { status=1; tail -40 "$log" >&2; }
  taken=$(($(date +%s) - begin))
  executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  table=$(printf '%s\n%-16s %12s %8s %8s %9s' "$table" "$target" "${executions:-?}" "$taken" \
    "$((${executions:-0} / (taken > 0 ? taken : 1)))" "$(($(findings_in "$found") - before))")
done
printf '%s\n' "$table"
exit "$status"
