# The libraries we stand on, all packaged by Debian, Homebrew and conda-forge.
#
#   Threads, OpenMP (optional), xsimd (optional)  the CPU library
#   fmt (text), nlohmann_json (JSON)              the oracle and the harness
#   Eigen, xsimd                                  the course's steps
#   CLI11 (arguments)                             the tilewise command
#   Boost.Context (fibers), libdw (lines)         the CUDA emulator
#   GoogleTest, Google Benchmark                  tests and benchmarks
#
# Without a package, -DTILEWISE_FETCH=ON downloads the pinned release instead.
include(FetchContent)

# OPTIONAL: who uses it looks whether it is there.
function(tilewise_dependency package)
  cmake_parse_arguments(ARG "OPTIONAL" "URL;HINT" "COMPONENTS" ${ARGN})
  find_package(${package} QUIET COMPONENTS ${ARG_COMPONENTS})
  if(${package}_FOUND)
    return()
  endif()
  if(TILEWISE_FETCH)
    message(STATUS "${package}: not installed, downloading ${ARG_URL}")
    FetchContent_Declare(${package} URL ${ARG_URL} DOWNLOAD_EXTRACT_TIMESTAMP ON)
    FetchContent_MakeAvailable(${package})
  elseif(NOT ARG_OPTIONAL)
    message(FATAL_ERROR "${package} is missing. Install it (Debian: apt-get install ${ARG_HINT}) "
                        "or configure with -DTILEWISE_FETCH=ON to download it.")
  endif()
endfunction()

find_package(Threads REQUIRED)
if(TILEWISE_OPENMP)
  find_package(OpenMP QUIET COMPONENTS CXX)
endif()

# The CPU library has fewer kernels without it, the course none of its faster steps.
set(optional "")
if(NOT TILEWISE_TOOLS AND NOT TILEWISE_TESTS)
  set(optional OPTIONAL)
endif()
tilewise_dependency(xsimd HINT libxsimd-dev ${optional}
  URL https://github.com/xtensor-stack/xsimd/archive/refs/tags/8.1.0.tar.gz)
if(TARGET xsimd AND NOT TARGET xtl)
  # Debian's package names xtl, for complex numbers, without bringing it: xsimd is headers alone.
  get_target_property(xsimd_libraries xsimd INTERFACE_LINK_LIBRARIES)
  if(xsimd_libraries STREQUAL "xtl")
    set_target_properties(xsimd PROPERTIES INTERFACE_LINK_LIBRARIES "")
  endif()
endif()

if(TILEWISE_LIBRARY_ONLY)
  return()
endif()

tilewise_dependency(fmt HINT libfmt-dev
  URL https://github.com/fmtlib/fmt/archive/refs/tags/9.1.0.tar.gz)
tilewise_dependency(nlohmann_json HINT nlohmann-json3-dev
  URL https://github.com/nlohmann/json/archive/refs/tags/v3.11.2.tar.gz)

if(TILEWISE_TOOLS OR TILEWISE_TESTS)
  tilewise_dependency(Eigen3 HINT libeigen3-dev
    URL https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.gz)
  tilewise_dependency(CLI11 HINT libcli11-dev
    URL https://github.com/CLIUtils/CLI11/archive/refs/tags/v2.1.2.tar.gz)
endif()

if(TILEWISE_EMULATOR)
  tilewise_dependency(Boost COMPONENTS context HINT libboost-context-dev
    URL https://github.com/boostorg/boost/releases/download/boost-1.84.0/boost-1.84.0-cmake.tar.gz)
  # Without it the emulator's reports have addresses in place of lines.
  find_library(TILEWISE_DW dw)
  mark_as_advanced(TILEWISE_DW)
endif()

if(TILEWISE_TESTS)
  tilewise_dependency(GTest HINT libgtest-dev
    URL https://github.com/google/googletest/archive/refs/tags/release-1.12.1.tar.gz)
endif()
if(TILEWISE_BENCH)
  tilewise_dependency(benchmark HINT libbenchmark-dev
    URL https://github.com/google/benchmark/archive/refs/tags/v1.7.1.tar.gz)
endif()
