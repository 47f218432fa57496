#!/usr/bin/env bash
# The tests. Installs what is missing, builds, runs.
#
#   ./test.sh             the host's tests, in five minutes or less
#   ./test.sh --all       what continuous integration runs, 40 minutes or less: all but not_in_all
#   ./test.sh LABEL...    only these
#   ./test.sh --list      the labels, with their time budgets
#
# Each label's time is shown beside its budget. One that takes longer is warned of, never failed:
# machines differ. TILEWISE_NO_INSTALL=1 installs nothing and prints the line that would.
set -eu
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
. tools/setup.sh

# label | budget in seconds | what it needs (groups of tools/setup.sh) | what it is
labels_table() {
  cat <<'EOT'
host|270|build plot test|g++ or this machine's compiler, warnings as errors, every test
emulated|90|build test|CUDA kernels on the CPU: the emulator's own tests, and the kernels that are shipped
python|10|build test|tools/tilewise.py with numpy
consumer|100|build test consumer|outside projects, with Tilewise installed, beside them, renamed
abi|30|build abi|the CPU library's binary interface, compared with tests/abi/tilewise.abi
format|10|format|clang-format over every source
tidy|350|build test tidy|clang-tidy over every source
clang|360|build test clang|clang++, warnings as errors, every test
asan-ubsan|520|build test clang|address and undefined-behaviour sanitizers, with clang
tsan|240|build test clang|thread sanitizer, with clang's OpenMP
fuzz|210|build clang|libFuzzer on the C interface, the problem line and the file readers, 60 s each
qemu|230|build test qemu|emulated processors: x86 without AVX, 64- and 32-bit ARM, RISC-V
cuda|210|build|nvcc, where there is one: the kernels for a GPU, warnings as errors
tour|120|build plot|./tour.sh --quick
EOT
}

# What --all leaves out: the sanitizer labels build the same tree with clang, warnings as errors, and
# run the same tests.
not_in_all='clang'

field() { labels_table | awk -F'|' -v label="$1" -v field="$2" '$1 == label { print $field }'; }

passed=0 failed=0 skipped=0
count() { if [ "$1" -eq 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi; }

processors() { getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2; }

# sources PATTERN...: the project's files of these names, as git knows them or, outside git, as found.
sources() {
  if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git ls-files --cached --others --exclude-standard -- "$@"
  else
    local pattern
    for pattern in "$@"; do find . -path ./build -prune -o -type f -name "$pattern" -print; done
  fi | while read -r file; do [ -f "$file" ] && echo "$file"; done | sort
}

# --- What a label runs ----------------------------------------------------------------------------
# ctest_label TITLE PRESET LABEL: the tests with this ctest label, counted one by one.
ctest_label() {
  local title=$1 preset=$2 label=$3 status=0 report
  report=$PWD/build/logs/ctest-$preset-$label.xml
  rm -f "$report"
  step "$title" "ctest-$preset-$label" ctest --preset "$preset" -L "^$label\$" --no-tests=error \
    -j "$(processors)" --output-on-failure --output-junit "$report" || status=$?
  count_report "$report" $status
  # What the tests of the judge counted.
  grep -hE '^[0-9]+ (planted bugs|correct runs) ' "build/$preset/Testing/Temporary/LastTest.log" \
    2>/dev/null | sed 's/^/  /' || true
  return $status
}

# The report's second line: <testsuite name="..." tests="9" failures="0" disabled="0" skipped="1" ...
count_report() {
  local suite tests failures ignored
  if [ ! -f "$1" ]; then count "$2"; return; fi
  suite=$(tr '\n\t' '  ' <"$1" | sed 's/^.*<testsuite \([^>]*\)>.*$/\1/')
  attribute() { sed -n "s/.* *$1=\"\([0-9]*\)\".*/\1/p" <<<" $suite"; }
  tests=$(attribute tests) failures=$(attribute failures)
  ignored=$(($(attribute disabled) + $(attribute skipped)))
  passed=$((passed + tests - failures - ignored))
  failed=$((failed + failures))
  skipped=$((skipped + ignored))
  # ctest can fail without a failed test.
  if [ "$2" -ne 0 ] && [ "$failures" -eq 0 ]; then failed=$((failed + 1)); fi
}

# preset_built PRESET: configured and built. Counts only when that fails: the tests are counted.
preset_built() {
  local status=0
  { configure "$1" && build "$1"; } || status=$?
  [ $status -eq 0 ] || count $status
  return $status
}

emulated_built() {
  local status=0
  { configure dev && build dev tilewise_emulated_tests; } || status=$?
  [ $status -eq 0 ] || count $status
  return $status
}

run_format() {
  local status=0 version
  version=$(clang-format --version | sed 's/.*version \([0-9]*\).*/\1/')
  [ "$version" = 14 ] || echo "clang-format $version may format otherwise than 14, which we go by."
  format_all() { sources '*.cpp' '*.hpp' '*.cu' | xargs clang-format --dry-run -Werror; }
  step "Check the format" format format_all || status=$?
  count $status
  return $status
}

run_tidy() {
  local status=0
  # As in dev, but for the precompiled headers: those of g++ are nothing to clang, and a file that
  # forgets an #include is found here.
  configure tidy || { count 1 && return 1; }
  # The consumers and the kernel to start from are other projects, with flags of their own; the fuzz
  # programs are built under a preset of theirs.
  tidy_all() {
    sources '*.cpp' | grep -vE '^(\./)?(tests/consumer/|tools/new_kernel/|tests/fuzz/fuzz\.cpp)' |
      xargs -n 1 -P "$(processors)" clang-tidy -p build/tidy --quiet 2>&1 |
      grep -v '^[0-9]* warnings\{0,1\} generated\.$'
    # grep finds nothing when all is well: xargs says how it went.
    return "${PIPESTATUS[2]}"
  }
  step "clang-tidy" tidy tidy_all || status=$?
  count $status
  return $status
}

run_abi() {
  local status=0
  step "Compare the ABI" abi tests/abi/abi.sh || status=$?
  count $status
  return $status
}

# Each target's line, and what it found, stands in the log.
run_fuzz() {
  local status=0 lines
  preset_built fuzz || return 1
  fuzz_all() {
    find tests/fuzz/corpus -mindepth 1 -maxdepth 1 -type d | sed 's|.*/||' | sort |
      xargs -n 1 -P "$(processors)" tests/fuzz/run.sh 60
  }
  step "Fuzz, 60 s a target" fuzz fuzz_all || status=$?
  lines=$(grep -E ' edges +(passed|FAILED)$' build/logs/fuzz.log || true)
  sed 's/^/  /' <<<"$lines"
  passed=$((passed + $(grep -c 'passed$' <<<"$lines" || true)))
  failed=$((failed + $(grep -c 'FAILED$' <<<"$lines" || true)))
  if [ $status -ne 0 ] && ! grep -q 'FAILED$' <<<"$lines"; then failed=$((failed + 1)); fi
  return $status
}

# Cross compilers are Debian's; the toolchain files of cmake/toolchains name them.
run_qemu() {
  local status=0 preset
  for preset in debug aarch64 armhf riscv64; do
    { preset_built "$preset" && ctest_label "Test ($preset)" "$preset" qemu; } || status=1
  done
  return $status
}

# What the kernels compute, the host's tests ask the emulator. Here they only have to compile.
run_cuda() {
  local status=0
  if ! command -v nvcc >/dev/null 2>&1 && [ -z "${CUDACXX:-}" ]; then
    echo "There is no nvcc: kernels are not compiled for a GPU."
    skipped=$((skipped + 1))
    return
  fi
  # The steps for the oldest GPU that any of them runs on and for the newest; the shipped kernels,
  # which are many, for the newest alone.
  configure gpu "-DCMAKE_CUDA_ARCHITECTURES=75;90a" && build gpu tilewise_gpu_stages tilewise_gpu_kernels || status=$?
  count $status
  # A kernel whose wgmma wait for each other must not compile (cmake/nvcc_launcher.sh).
  refuse_serialized() {
    ! cmake --build --preset gpu --target tilewise_gpu_serialized >build/logs/serialized.log 2>&1 &&
      grep -F '(C7510)' build/logs/serialized.log
  }
  local refused=0 sass=0
  step "Refuse serialised wgmma" refuse refuse_serialized || refused=$?
  count $refused
  if python3 tools/check_sass.py --find >/dev/null 2>&1; then
    step "Check the machine code" sass python3 tools/check_sass.py --rules cuda/kernels/sass.txt \
      --arch sm_90a build/gpu/cuda/kernels/gpu/libtilewise_gpu_kernels.a || sass=$?
    count $sass
  else
    echo "There is no cuobjdump: the machine code is not looked at."
    skipped=$((skipped + 1))
  fi
  return $((status + refused + sass > 0))
}

run_tour() {
  local status=0
  step "./tour.sh --quick" tour ./tour.sh --quick || status=$?
  count $status
  return $status
}

run_label() {
  case $1 in
    host) preset_built dev && ctest_label "Test (dev)" dev host ;;
    emulated) emulated_built && ctest_label "Test (emulated)" dev emulated ;;
    python) preset_built dev && ctest_label "Test (python)" dev python ;;
    consumer) preset_built dev && ctest_label "Test (consumer)" dev consumer ;;
    clang | asan-ubsan | tsan) preset_built "$1" && ctest_label "Test ($1)" "$1" host ;;
    format) run_format ;;
    tidy) run_tidy ;;
    abi) run_abi ;;
    fuzz) run_fuzz ;;
    qemu) run_qemu ;;
    cuda) run_cuda ;;
    tour) run_tour ;;
  esac
}

# --- Which labels ---------------------------------------------------------------------------------
chosen=''
for argument in "$@"; do
  case $argument in
    --all) chosen=$(labels_table | cut -d'|' -f1 | grep -vxE "$not_in_all" | tr '\n' ' ') ;;
    --list)
      labels_table | while IFS='|' read -r label budget needs what; do
        printf '%-12s %4d s   %s\n' "$label" "$budget" "$what"
      done
      labels_table | grep -vE "^($not_in_all)\|" |
        awk -F'|' '{ sum += $2 } END { printf "%-12s %4d s\n", "--all", sum }'
      exit 0
      ;;
    -h | --help)
      sed -n '2,/^set/s/^# \{0,1\}//p' test.sh
      exit 0
      ;;
    *)
      if [ -z "$(field "$argument" 1)" ]; then
        echo "'$argument' is no label: expected --all, --list or" \
          "$(labels_table | cut -d'|' -f1 | tr '\n' ' ')" >&2
        exit 2
      fi
      chosen="$chosen $argument"
      ;;
  esac
done
chosen=${chosen:-host}

needs=''
for label in $chosen; do needs="$needs $(field "$label" 3)"; done
# shellcheck disable=SC2086
setup $needs

# --- Run, and say how it went ---------------------------------------------------------------------
table=''
for label in $chosen; do
  began=$SECONDS result=passed
  run_label "$label" || result=FAILED
  table="$table$label|$result|$((SECONDS - began))|$(field "$label" 2)
"
done

printf '\n%-12s %-8s %8s %8s\n' label result seconds budget
printf '%s' "$table" | while IFS='|' read -r label result seconds budget; do
  printf '%-12s %-8s %8d %8d\n' "$label" "$result" "$seconds" "$budget"
done
printf '%s' "$table" | while IFS='|' read -r label result seconds budget; do
  [ "$seconds" -le "$budget" ] ||
    echo "warning: $label took $seconds s, more than its budget of $budget s"
done

summary="$passed passed, $failed failed"
[ $skipped -eq 0 ] || summary="$summary, $skipped skipped"
printf '\n%s\n' "$summary"
[ $failed -eq 0 ]
