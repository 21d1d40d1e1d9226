#!/bin/sh
# Fuzzes what reads bytes of clients and model files, with clang's libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer.
#   tests/fuzz/run.sh [--runs N] [--seconds N] [TARGET...]    all targets if none is named; a release runs --runs 10000000
# An input that aborts is left in build/fuzz/found/TARGET: mend the fault and put the input into tests/fuzz/corpus/TARGET.
set -eu
cd "$(dirname "$0")/../.."
runs=10000000 seconds=0
while [ $# -gt 0 ]; do
  case "$1" in
    --runs) runs=$2; shift 2 ;;
    --seconds) seconds=$2; runs=-1; shift 2 ;;
    -*) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 2 ;;
    *) break ;;
  esac
done
command -v clang++ >/dev/null || { echo "clang++ is needed: install the packages clang and libclang-rt-dev" >&2; exit 1; }
cmake --preset fuzz >/dev/null
cmake --build build/fuzz --target fuzz
[ $# -gt 0 ] || set -- $(ls tests/fuzz/corpus)
for target in "$@"; do
  mkdir -p "build/fuzz/corpus/$target" "build/fuzz/found/$target"
  echo "==> $target"
  HEADROOM_FUZZ=$target build/fuzz/tests/fuzz -runs="$runs" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 \
    -print_final_stats=1 -verbosity=0 -artifact_prefix="build/fuzz/found/$target/" "build/fuzz/corpus/$target" "tests/fuzz/corpus/$target"
done
