# Whether kernels are built for a GPU: sets tilewise_cuda. TILEWISE_CUDA is AUTO (where nvcc is
# found), ON (or it is an error) or OFF. Sanitizers and other processors have none, and the library
# alone has them where it says ON.
set(tilewise_cuda OFF)
if(TILEWISE_CUDA STREQUAL "OFF" OR TILEWISE_SANITIZE OR CMAKE_CROSSCOMPILING
   OR NOT (TILEWISE_CUDA STREQUAL "ON" OR TILEWISE_TOOLS OR TILEWISE_TESTS))
  return()
endif()
include(CheckLanguage)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  # Turing, Ampere and later ones of its kind, Hopper. Of Hopper's own instructions, "a".
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 75 80 90a)
  endif()
  enable_language(CUDA)
  # CMake 3.25 does not find out that nvcc 13 has C++20.
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    list(APPEND CMAKE_CUDA_COMPILE_FEATURES cuda_std_20)
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  # What ptxas only notes of wgmma is an error here.
  list(PREPEND CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CURRENT_LIST_DIR}/nvcc_launcher.sh)
  set(tilewise_cuda ON)
elseif(TILEWISE_CUDA STREQUAL "ON")
  message(FATAL_ERROR "TILEWISE_CUDA is ON, and there is no nvcc: set CUDACXX or PATH")
endif()
