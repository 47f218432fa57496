# How large the CPU library is as a shared one, stripped: for -DSOURCE_DIR, -DWORK_DIR, -DGENERATOR,
# -DCC, -DCXX as tests/consumer/steps.cmake wants them.
cmake_minimum_required(VERSION 3.25)
include(${CMAKE_CURRENT_LIST_DIR}/../consumer/steps.cmake)
file(REMOVE_RECURSE ${WORK_DIR})
find_program(STRIP strip REQUIRED)

# weigh(NAME BOUND -DNAME=VALUE...)
function(weigh name bound)
  configure(${SOURCE_DIR} ${WORK_DIR}/${name} -DTILEWISE_LIBRARY_ONLY=ON -DBUILD_SHARED_LIBS=ON
            -DTILEWISE_OPENMP=OFF -DTILEWISE_INSTALL=OFF ${ARGN})
  run(${CMAKE_COMMAND} --build ${WORK_DIR}/${name})
  run(${STRIP} -o ${WORK_DIR}/${name}.so ${WORK_DIR}/${name}/cpu/libtilewise.so)
  file(SIZE ${WORK_DIR}/${name}.so size)
  message(STATUS "${name}: ${size} bytes, stripped; at most ${bound}")
  if(size GREATER bound)
    message(FATAL_ERROR "${name} is ${size} bytes, stripped; expected ${bound} or less")
  endif()
endfunction()

weigh(all_kernels 1000000)
# For an app that ships for one kind of processor and does not train.
weigh(forward_avx2 120000 -DCMAKE_BUILD_TYPE=MinSizeRel -DTILEWISE_KERNELS=avx2
      -DTILEWISE_FORWARD_ONLY=ON)
run(${CC} -std=c99 -I${SOURCE_DIR}/include -DTILEWISE_SHARED
    ${SOURCE_DIR}/tests/portability/forward_only.c -L${WORK_DIR}/forward_avx2/cpu -ltilewise
    -Wl,-rpath,${WORK_DIR}/forward_avx2/cpu -o ${WORK_DIR}/forward_only)
run(${WORK_DIR}/forward_only)
