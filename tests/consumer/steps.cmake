# What the consumer tests share. Each gets, with -D: SOURCE_DIR, this tree; WORK_DIR, a folder for
# it alone; GENERATOR, CC, CXX.

function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

# configure(SOURCE BINARY -DNAME=VALUE...)
function(configure source binary)
  run(${CMAKE_COMMAND} -S ${source} -B ${binary} -G ${GENERATOR} -DCMAKE_BUILD_TYPE=Release
      -DCMAKE_C_COMPILER=${CC} -DCMAKE_CXX_COMPILER=${CXX} ${ARGN})
endfunction()

# build_and_test(BINARY)
function(build_and_test binary)
  run(${CMAKE_COMMAND} --build ${binary})
  run(${CMAKE_CTEST_COMMAND} --test-dir ${binary} --output-on-failure --no-tests=error)
endfunction()

# Pretends that these are not installed: whoever asks for one ends there.
set(nothing_installed "")
foreach(package fmt nlohmann_json Eigen3 xsimd CLI11 GTest benchmark OpenMP)
  list(APPEND nothing_installed -DCMAKE_DISABLE_FIND_PACKAGE_${package}=ON)
endforeach()

# install_and_move(BINARY PREFIX): nothing installed may point back at where it was made.
function(install_and_move binary prefix)
  run(${CMAKE_COMMAND} --install ${binary} --prefix ${prefix}.before)
  file(RENAME ${prefix}.before ${prefix})
  file(GLOB_RECURSE package ${prefix}/*.cmake ${prefix}/*.pc ${prefix}/*.h ${prefix}/*.hpp)
  if(NOT package)
    message(FATAL_ERROR "nothing was installed under ${prefix}")
  endif()
  foreach(file ${package})
    file(READ ${file} text)
    foreach(path ${prefix}.before ${SOURCE_DIR} ${binary})
      string(FIND "${text}" "${path}" at)
      if(NOT at EQUAL -1)
        message(FATAL_ERROR "${file} names ${path}: the installation cannot be moved")
      endif()
    endforeach()
  endforeach()
endfunction()

# symbols(RESULT LIBRARY nm's options...): "T tilewise_query", ..., each once, sorted.
function(symbols result library)
  find_program(NM nm REQUIRED)
  execute_process(COMMAND ${NM} --defined-only ${ARGN} ${library} OUTPUT_VARIABLE text
                  ERROR_QUIET COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[A-Za-z] [^ \n]+\n" found "${text}")
  list(TRANSFORM found STRIP)
  list(SORT found)
  list(REMOVE_DUPLICATES found)
  set(${result} "${found}" PARENT_SCOPE)
endfunction()
