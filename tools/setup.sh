# What tour.sh and test.sh share: finding and installing what is missing, configuring, building,
# and showing each of these as one line. Sourced from the root of the tree; bash 3.2 is enough.
#
#   setup GROUP...           everything these groups need is there afterwards, or we exit 2
#   configure PRESET         cmake --preset, unless that is done
#   build PRESET [TARGET...] cmake --build
#   step TITLE LOG CMD...    run CMD into build/logs/LOG.log behind one line with its progress
#
# TILEWISE_NO_INSTALL=1 installs nothing: it prints the line that would.

# --- What is needed -------------------------------------------------------------------------------
# need | group | what for | apt-get | dnf | pacman | brew
# The apt-get names are tested on Debian 12; the others are the same libraries under the names of
# Fedora, Arch Linux and Homebrew. '-': comes with something else in the list.
needs_table() {
  cat <<'EOT'
cxx|build|a C++20 compiler|g++|gcc-c++|gcc|gcc
cmake|build|configures the build (3.25 or newer)|cmake|cmake|cmake|cmake
ninja|build|builds|ninja-build|ninja-build|ninja|ninja
fmt|build|text formatting (libfmt)|libfmt-dev|fmt-devel|fmt|fmt
json|build|JSON reports and safetensors headers|nlohmann-json3-dev|json-devel|nlohmann-json|nlohmann-json
eigen|build|matrices in the first steps|libeigen3-dev|eigen3-devel|eigen|eigen
xsimd|build|SIMD in step 2c|libxsimd-dev|xsimd-devel|xsimd|xsimd
cli11|build|arguments of the tilewise command|libcli11-dev|cli11-devel|cli11|cli11
boost_context|build|fibers of the CUDA emulator (Boost.Context)|libboost-context-dev|boost-devel|boost|boost
dw|build|lines in the emulator's reports (libdw)|libdw-dev|elfutils-devel|libelf|-
gnuplot|plot|plots in the report|gnuplot-nox|gnuplot|gnuplot|gnuplot
gtest|test|the tests (GoogleTest)|libgtest-dev|gtest-devel|gtest|googletest
benchmark|test|the benchmarks (Google Benchmark)|libbenchmark-dev|google-benchmark-devel|benchmark|google-benchmark
python|test|tests of tools/tilewise.py|python3|python3|python|python
numpy|test|arrays from outside, judged in the tests|python3-numpy|python3-numpy|python-numpy|numpy
pkg_config|consumer|reads tilewise.pc|pkgconf|pkgconf-pkg-config|pkgconf|pkgconf
gxx|abi|the compiler whose library is compared|g++|gcc-c++|gcc|-
abidiff|abi|compares binary interfaces (libabigail)|abigail-tools|libabigail|libabigail|-
clang|clang|the second compiler|clang|clang|clang|llvm
omp|clang|OpenMP for clang|libomp-dev|libomp-devel|openmp|libomp
tsan|clang|clang's thread sanitizer|libclang-rt-dev|compiler-rt|compiler-rt|-
symbolizer|clang|names in sanitizer reports|llvm|llvm|llvm|-
qemu|qemu|runs programs of other processors|qemu-user|qemu-user|qemu-user|-
aarch64|qemu|a compiler for 64-bit ARM|g++-aarch64-linux-gnu|-|-|-
armhf|qemu|a compiler for 32-bit ARM|g++-arm-linux-gnueabihf|-|-|-
riscv64|qemu|a compiler for 64-bit RISC-V|g++-riscv64-linux-gnu|-|-|-
gtest_source|qemu|the tests (GoogleTest's source, to be compiled for them)|googletest|-|-|-
clang_format|format|checks the format|clang-format|clang-tools-extra|clang|clang-format
clang_tidy|tidy|static analysis|clang-tidy|clang-tools-extra|clang|llvm
EOT
}

# --- Probes: look for the thing itself, whoever installed it --------------------------------------
find_cxx() {
  local name
  if [ -n "${CXX:-}" ]; then echo "$CXX" && return; fi
  for name in c++ g++ clang++; do
    command -v "$name" >/dev/null 2>&1 && echo "$name" && return
  done
  return 1
}

# One run of the preprocessor answers for the compiler and every library: it prints found_NAME.
probe_headers() {
  local cxx flags='' prefix
  cxx=$(find_cxx) || return 0
  for prefix in $(tr ';:' '  ' <<<"${CMAKE_PREFIX_PATH:-}") ${CONDA_PREFIX:-} /opt/homebrew \
    /opt/local /usr/local; do
    [ -d "$prefix/include" ] && flags="$flags -isystem $prefix/include"
  done
  # shellcheck disable=SC2086
  $cxx -std=c++20 $flags -E -P -x c++ - 2>/dev/null <<'EOT' | grep '^found_'
#if !__has_include(<span>)
#error no C++20 library
#endif
found_cxx
#if __has_include(<fmt/core.h>)
found_fmt
#endif
#if __has_include(<nlohmann/json.hpp>)
found_json
#endif
#if __has_include(<eigen3/Eigen/Core>) || __has_include(<Eigen/Core>)
found_eigen
#endif
#if __has_include(<xsimd/xsimd.hpp>)
found_xsimd
#endif
#if __has_include(<CLI/CLI.hpp>)
found_cli11
#endif
#if __has_include(<boost/context/fiber.hpp>)
found_boost_context
#endif
#if __has_include(<elfutils/libdwfl.h>)
found_dw
#endif
#if __has_include(<gtest/gtest.h>)
found_gtest
#endif
#if __has_include(<benchmark/benchmark.h>)
found_benchmark
#endif
EOT
  return 0
}

# cmake 3.25 or newer; `cmake --version` opens with "cmake version 3.25.1".
probe_cmake() {
  local version
  version=$(cmake --version 2>/dev/null | sed -n '1s/[^0-9]*\([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
  # shellcheck disable=SC2086
  set -- $version
  [ $# -eq 2 ] && { [ "$1" -gt 3 ] || { [ "$1" -eq 3 ] && [ "$2" -ge 25 ]; }; }
}

# The Python that has numpy need not be the first on PATH.
probe_numpy() {
  local python
  for python in python3 /usr/bin/python3; do
    "$python" -c 'import numpy' >/dev/null 2>&1 && return
  done
  return 1
}

# Does clang++ compile and link this source with these flags?
probe_clang_links() {
  local directory status=0
  directory=$(mktemp -d)
  printf '%s\nint main() {}\n' "$1" >"$directory/probe.cpp"
  clang++ "$2" "$directory/probe.cpp" -o "$directory/probe" >/dev/null 2>&1 || status=1
  rm -rf "$directory"
  return $status
}

# present NEED: is it there?
present() {
  case $1 in
    cmake) probe_cmake ;;
    ninja) command -v ninja >/dev/null 2>&1 ;;
    gnuplot) command -v gnuplot >/dev/null 2>&1 ;;
    python) command -v python3 >/dev/null 2>&1 ;;
    numpy) probe_numpy ;;
    pkg_config) command -v pkg-config >/dev/null 2>&1 ;;
    gxx) command -v g++ >/dev/null 2>&1 ;;
    abidiff) command -v abidw >/dev/null 2>&1 && command -v abidiff >/dev/null 2>&1 ;;
    clang) command -v clang++ >/dev/null 2>&1 ;;
    omp) probe_clang_links '#include <omp.h>' -fopenmp ;;
    tsan) probe_clang_links '' -fsanitize=thread ;;
    symbolizer) command -v llvm-symbolizer >/dev/null 2>&1 ;;
    qemu) command -v qemu-x86_64 >/dev/null 2>&1 && command -v qemu-aarch64 >/dev/null 2>&1 ;;
    aarch64) command -v aarch64-linux-gnu-g++ >/dev/null 2>&1 ;;
    armhf) command -v arm-linux-gnueabihf-g++ >/dev/null 2>&1 ;;
    riscv64) command -v riscv64-linux-gnu-g++ >/dev/null 2>&1 ;;
    gtest_source) [ -f /usr/src/googletest/CMakeLists.txt ] ;;
    clang_format) command -v clang-format >/dev/null 2>&1 ;;
    clang_tidy) command -v clang-tidy >/dev/null 2>&1 ;;
    dw) [ "$(uname)" = Darwin ] || grep -qx found_dw <<<"$headers_found" ;;
    *) grep -qx "found_$1" <<<"$headers_found" ;;
  esac
}

# missing GROUP...: the rows of the table whose need is not there.
missing() {
  local groups=" $* " need group rest headers_found
  headers_found=$(probe_headers)
  while IFS='|' read -r need group rest; do
    case $groups in *" $group "*) present "$need" || echo "$need|$group|$rest" ;; esac
  done < <(needs_table)
}

# --- Installing -----------------------------------------------------------------------------------
package_manager() {
  local name
  for name in apt-get dnf pacman brew; do
    command -v "$name" >/dev/null 2>&1 && echo "$name" && return
  done
  return 1
}

# packages MANAGER < rows: its names for them, each once.
packages() {
  local column
  case $1 in apt-get) column=4 ;; dnf) column=5 ;; pacman) column=6 ;; brew) column=7 ;; esac
  cut -d'|' -f$column | grep -vx -e - | awk '!seen[$0]++' | tr '\n' ' '
}

install_command() {
  case $1 in
    apt-get) echo "apt-get install -y --no-install-recommends" ;;
    dnf) echo "dnf install -y" ;;
    pacman) echo "pacman -S --needed --noconfirm" ;;
    brew) echo "brew install" ;;
  esac
}

# Lists that are old or were never fetched make apt-get fail: refresh them once, then try again.
run_install() {
  local manager=$1 sudo=$2
  shift 2
  # shellcheck disable=SC2046
  if [ "$manager" = apt-get ]; then
    local apt="$sudo env DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=3"
    apt="$apt -o DPkg::Lock::Timeout=120"
    $apt install -y --no-install-recommends "$@" && return
    $apt update && $apt install -y --no-install-recommends "$@"
  else
    $sudo $(install_command "$manager") "$@"
  fi
}

# setup GROUP...: all that these groups need, installed where it may be.
setup() {
  local rows manager names sudo='' need group why rest
  rows=$(missing "$@")
  [ -n "$rows" ] || return 0

  if ! manager=$(package_manager); then
    echo "Tilewise needs these, and knows no package manager here to get them with:"
    while IFS='|' read -r need group why rest; do echo "  $need: $why"; done <<<"$rows"
    exit 2
  fi
  names=$(packages "$manager" <<<"$rows")

  if [ "$manager" != brew ] && [ "$(id -u)" -ne 0 ]; then
    sudo='sudo -n'
    if ! sudo -n true 2>/dev/null; then sudo=''; TILEWISE_NO_INSTALL=1; fi
  fi
  if [ "${TILEWISE_NO_INSTALL:-0}" != 0 ]; then
    local as_root='sudo '
    if [ "$manager" = brew ] || [ "$(id -u)" -eq 0 ]; then as_root=''; fi
    echo "Tilewise needs packages that are not installed. Run this, then call me again:"
    echo "  $as_root$(install_command "$manager") $names"
    exit 2
  fi

  echo "Missing here, to be installed with ${sudo:+sudo }$manager:"
  while IFS='|' read -r need group why rest; do
    printf '  %-20s %s\n' "$(packages "$manager" <<<"$need|$group|$why|$rest")" "$why"
  done <<<"$rows"
  # shellcheck disable=SC2086
  if ! step "Install" install run_install "$manager" "$sudo" $names; then
    echo "By hand: ${sudo:+sudo }$(install_command "$manager") $names"
    exit 2
  fi

  rows=$(missing "$@")
  if [ -n "$rows" ]; then
    echo "Still missing after $manager installed what it has (the log: build/logs/install.log):"
    while IFS='|' read -r need group why rest; do echo "  $need: $why"; done <<<"$rows"
    exit 2
  fi
}

# --- One line a step ------------------------------------------------------------------------------
# How far a log has come: the last "[12/80]" of Ninja or " 12/300 Test" of ctest, as "12/80".
progress_of() {
  tail -c 8192 "$1" 2>/dev/null | tr '\r' '\n' |
    sed -n -e 's/^\[ *\([0-9]*\/[0-9]*\)\].*/\1/p' -e 's/^ *\([0-9]*\/[0-9]*\) Test .*/\1/p' |
    tail -n 1
}

# Follows a log until killed: a line that rewrites itself on a terminal, else every tenth percent.
watch_progress() {
  local title=$1 log=$2 parent=$$ began=$SECONDS at percent shown=0
  trap 'exit 0' TERM
  while kill -0 "$parent" 2>/dev/null; do
    at=$(progress_of "$log")
    if [ -t 1 ]; then
      printf '\r%-26s %11s  %4d s ' "$title" "$at" $((SECONDS - began))
    elif [ -n "$at" ] && [ "${at#*/}" -ge 20 ]; then
      percent=$((100 * ${at%/*} / ${at#*/}))
      while [ $((percent - shown)) -ge 10 ] && [ $shown -lt 90 ]; do
        shown=$((shown + 10))
        printf '%d%% ' $shown
      done
    fi
    sleep 0.5
  done
}

# What to show of a failed step: the output of the tests that failed, or else the log's end.
excerpt_of() {
  local failures
  failures=$(awk '/^ *[0-9]+\/[0-9]+ Test .*\*\*\*/ && !/\*\*\*(Skipped|Not Run)/ { shown = 1; print; next }
                  /^ *(Start +[0-9]+:|[0-9]+\/[0-9]+ Test )/ || /tests passed,/ { shown = 0 }
                  shown' "$1")
  if [ -n "$failures" ]; then
    head -n 200 <<<"$failures"
  else
    tail -n 60 "$1"
  fi | sed 's/^/  | /'
}

step() {
  local title=$1 log=build/logs/$2.log began=$SECONDS status=0 watcher
  shift 2
  mkdir -p build/logs
  : >"$log"
  printf '%-26s ' "$title"
  watch_progress "$title" "$log" 2>/dev/null &
  watcher=$!
  "$@" >"$log" 2>&1 </dev/null || status=$?
  kill "$watcher" 2>/dev/null || true
  wait "$watcher" 2>/dev/null || true
  [ -t 1 ] && printf '\r%-26s %11s  ' "$title" ''
  if [ $status -eq 0 ]; then
    printf '%4d s\n' $((SECONDS - began))
  else
    printf 'FAILED after %d s; from %s:\n' $((SECONDS - began)) "$log"
    excerpt_of "$log"
  fi
  return $status
}

# --- Building -------------------------------------------------------------------------------------
# configure PRESET [-DNAME=VALUE...]: once; Ninja itself runs CMake again when a CMakeLists changes.
configure() {
  local preset=$1 directory=build/$1 fresh=''
  shift
  if [ -f "$directory/CMakeCache.txt" ]; then
    # A tree that was moved or copied is configured anew.
    grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD" "$directory/CMakeCache.txt" || fresh=--fresh
    [ -z "$fresh" ] && [ "$directory/build.ninja" -nt CMakePresets.json ] && return 0
  fi
  # shellcheck disable=SC2086
  step "Configure ($preset)" "configure-$preset" cmake --preset "$preset" $fresh "$@"
}

# build PRESET [TARGET...]
build() {
  local preset=$1
  shift
  # shellcheck disable=SC2068
  step "Build ($preset)" "build-$preset" cmake --build --preset "$preset" ${@:+--target "$@"}
}
