# From an installed Tilewise to a judged plug-in: installs BINARY_DIR, follows the commands that
# docs/check-your-kernel.md shows, then plants a bug in the kernel, which the judge must reject. Where
# there is nvcc, the project for GPUs is built, too.
cmake_minimum_required(VERSION 3.25)
include(${CMAKE_CURRENT_LIST_DIR}/consumer/steps.cmake)
file(REMOVE_RECURSE ${WORK_DIR})

set(prefix ${WORK_DIR}/installed)
install_and_move(${BINARY_DIR} ${prefix})
set(ENV{DIR} ${prefix})
set(ENV{PATH} ${prefix}/bin:$ENV{PATH})
set(ENV{CXX} ${CXX})
set(ENV{CMAKE_GENERATOR} ${GENERATOR})
run(sh ${SOURCE_DIR}/docs/examples/new_kernel.sh WORKING_DIRECTORY ${WORK_DIR})

# Without the rescaling, what was summed against an older maximum weighs too much.
set(kernel ${WORK_DIR}/my_kernel/kernel.cpp)
file(READ ${kernel} right)
string(REPLACE "rescale = std::exp(m - m_new)" "rescale = 1" wrong "${right}")
if(wrong STREQUAL right)
  message(FATAL_ERROR "${kernel} has no line that rescales: this test plants its bug there")
endif()
file(WRITE ${kernel} "${wrong}")
run(${CMAKE_COMMAND} --build ${WORK_DIR}/my_kernel/build)
execute_process(COMMAND tilewise check --plugin ${WORK_DIR}/my_kernel/build/libmy_kernel.so
                RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT result EQUAL 1 OR NOT output MATCHES "FAIL  my_kernel")
  message(FATAL_ERROR "the planted bug ended with ${result}, expected 1:\n${output}")
endif()

find_program(NVCC nvcc HINTS /usr/local/cuda/bin)
if(NVCC)
  run(tilewise new-kernel ${WORK_DIR}/cuda --cuda --name gpu_kernel)
  run(${CMAKE_COMMAND} -S ${WORK_DIR}/cuda -B ${WORK_DIR}/cuda/build -DCMAKE_PREFIX_PATH=${prefix}
      -DCMAKE_CUDA_COMPILER=${NVCC} -DCMAKE_CUDA_ARCHITECTURES=80)
  run(${CMAKE_COMMAND} --build ${WORK_DIR}/cuda/build)
  run(tilewise list --plugin ${WORK_DIR}/cuda/build/libgpu_kernel.so OUTPUT_QUIET)
endif()
