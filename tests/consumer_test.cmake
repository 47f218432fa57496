# Does an installed Tilewise serve a project that knows nothing of this tree? Installs, moves the
# installation elsewhere, then configures, builds and tests tests/consumer against it.
#
#   cmake -DBINARY_DIR=... -DSOURCE_DIR=... -DGENERATOR=... -DCXX=... -P tests/consumer_test.cmake
cmake_minimum_required(VERSION 3.25)

set(work ${BINARY_DIR}/consumer)
file(REMOVE_RECURSE ${work})

function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

run(${CMAKE_COMMAND} --install ${BINARY_DIR} --prefix ${work}/before)
file(RENAME ${work}/before ${work}/installed)

# Nothing installed may point back at the prefix it was made in, or at this tree.
file(GLOB_RECURSE package ${work}/installed/*.cmake ${work}/installed/*.hpp)
if(NOT package)
  message(FATAL_ERROR "nothing was installed under ${work}/installed")
endif()
foreach(file ${package})
  file(READ ${file} text)
  foreach(path ${work}/before ${SOURCE_DIR})
    string(FIND "${text}" "${path}" at)
    if(NOT at EQUAL -1)
      message(FATAL_ERROR "${file} names ${path}: the installation cannot be moved")
    endif()
  endforeach()
endforeach()

run(${CMAKE_COMMAND} -S ${SOURCE_DIR}/tests/consumer -B ${work}/build -G ${GENERATOR}
    -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_BUILD_TYPE=Release
    -DCMAKE_PREFIX_PATH=${work}/installed)
run(${CMAKE_COMMAND} --build ${work}/build)
run(${CMAKE_CTEST_COMMAND} --test-dir ${work}/build --output-on-failure --no-tests=error)
