#!/usr/bin/env bash
# Which lines the host's tests reach: builds with gcov, runs them, prints a table a folder and the
# lines never run in build/coverage/uncovered.txt.
set -eu
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
. tools/setup.sh

setup build plot test
configure coverage
build coverage
find build/coverage -name '*.gcda' -delete
step "Test (coverage)" ctest-coverage ctest --preset coverage -L '^host$' -j 2

# gcov --stdout prints each source line as "count:number:text"; a file compiled into several objects
# counts where any of them ran the line.
export_lines() {
  find build/coverage -name '*.gcda' -print0 |
    xargs -0 -n 16 gcov --stdout --source-prefix "$PWD" --relative-only 2>/dev/null
}
export_lines | awk -F: '
  { count = $1; line = $2; gsub(/ /, "", count); gsub(/ /, "", line) }
  line == 0 { if ($3 == "Source") file = $4; next }
  count == "-" { next }
  file ~ /^(core|oracle|stages|tools)\// {
    key = file ":" line
    known[key] = 1
    if (count !~ /^[#=]/) reached[key] = 1
  }
  END {
    for (key in known) {
      split(key, part, "/")
      total[part[1]]++
      if (key in reached) good[part[1]]++
      else print key | "sort -t: -k1,1 -k2,2n > build/coverage/uncovered.txt"
    }
    for (folder in total)
      printf "%-8s %5.1f %% of %5d lines\n", folder, 100 * good[folder] / total[folder], total[folder]
  }'
echo "Never run: build/coverage/uncovered.txt"
