#!/usr/bin/env bash
# Fuzzes one target for a while, from its committed corpus and what earlier runs found.
#
#   tests/fuzz/run.sh SECONDS TARGET     after: cmake --preset fuzz && cmake --build --preset fuzz
#
# Prints one line: runs a second, and edges of the code reached. Fails where an input broke
# something, and says which and how to run it again.
set -eu
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

seconds=$1 target=$2
fuzzer=build/fuzz/bin/tilewise_fuzz_$target
seeds=tests/fuzz/corpus/$target grown=build/fuzz/corpus/$target found=build/fuzz/found
log=build/fuzz/$target.log
mkdir -p "$grown" "$found"

dictionary=''
if [ -f "tests/fuzz/$target.dict" ]; then dictionary=-dict=tests/fuzz/$target.dict; fi
# Freed blocks are kept for a while so that late uses show; the default 256 MB is slow to walk over.
export ASAN_OPTIONS=quarantine_size_mb=8 UBSAN_OPTIONS=print_stacktrace=1
status=0
# shellcheck disable=SC2086
"$fuzzer" $dictionary -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=512 \
  -len_control=0 -print_final_stats=1 -artifact_prefix="$found/$target-" "$grown" "$seeds" \
  >"$log" 2>&1 || status=$?

runs=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
printf '%-12s %8s runs/s %6s edges  %s\n' "$target" "${runs:-?}" "${edges:-?}" \
  "$([ $status -eq 0 ] && echo passed || echo FAILED)"
[ $status -eq 0 ] && exit 0

input=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
grep -E 'ERROR: |runtime error:|^broken promise:|^SUMMARY: ' "$log" | head -n 5 || tail -n 20 "$log"
if [ -n "$input" ]; then
  echo "Input:    $input"
  echo "Again:    $fuzzer $input"
  echo "Once it is mended, it belongs into $seeds/ under a name that says what it was."
fi
echo "Log:      $log"
exit 1
