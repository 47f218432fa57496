# Does the CPU library, built alone where nothing else is installed, serve apps in C99 and C++? With
# SHARED=ON as a shared library, else as a static one. What is visible of it is looked at, too.
cmake_minimum_required(VERSION 3.25)
include(${CMAKE_CURRENT_LIST_DIR}/consumer/steps.cmake)
file(REMOVE_RECURSE ${WORK_DIR})

set(installed ${WORK_DIR}/installed)
configure(${SOURCE_DIR} ${WORK_DIR}/library -DTILEWISE_LIBRARY_ONLY=ON -DBUILD_SHARED_LIBS=${SHARED}
          ${nothing_installed})
run(${CMAKE_COMMAND} --build ${WORK_DIR}/library)
install_and_move(${WORK_DIR}/library ${installed})
configure(${SOURCE_DIR}/tests/consumer/app ${WORK_DIR}/app -DCMAKE_PREFIX_PATH=${installed}
          -DEXAMPLES=${SOURCE_DIR}/docs/examples ${nothing_installed})
build_and_test(${WORK_DIR}/app)

# A component that is not installed is missed by name.
file(WRITE ${WORK_DIR}/judge/CMakeLists.txt "cmake_minimum_required(VERSION 3.25)
project(judge LANGUAGES CXX)
find_package(tilewise 0.1 REQUIRED COMPONENTS harness)
")
execute_process(COMMAND ${CMAKE_COMMAND} -S ${WORK_DIR}/judge -B ${WORK_DIR}/judge/build
                        -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${CXX}
                        -DCMAKE_PREFIX_PATH=${installed}
                RESULT_VARIABLE status OUTPUT_QUIET ERROR_VARIABLE text)
if(status EQUAL 0 OR NOT text MATCHES "no component harness")
  message(FATAL_ERROR "COMPONENTS harness of a library alone: status ${status}, and said\n${text}")
endif()

# Without CMake.
find_program(PKG_CONFIG pkg-config)
if(PKG_CONFIG)
  file(GLOB_RECURSE pc ${installed}/*/tilewise.pc)
  cmake_path(GET pc PARENT_PATH folder)
  execute_process(COMMAND ${CMAKE_COMMAND} -E env PKG_CONFIG_PATH=${folder}
                          ${PKG_CONFIG} --cflags --libs "tilewise >= 0.1"
                  OUTPUT_VARIABLE flags OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  separate_arguments(flags)
  cmake_path(GET folder PARENT_PATH libraries)
  run(${CC} -std=c99 ${SOURCE_DIR}/docs/examples/attend.c ${flags} -Wl,-rpath,${libraries}
      -o ${WORK_DIR}/attend)
  run(${WORK_DIR}/attend)
elseif(EXISTS /etc/debian_version)
  message(FATAL_ERROR "no pkg-config to test tilewise.pc with: apt-get install pkgconf")
endif()

if(NOT CMAKE_HOST_SYSTEM_NAME STREQUAL "Linux")
  message(STATUS "what a library exports is looked at on Linux alone")
  return()
endif()

# The shared library exports the functions of tilewise.h and nothing else; a static one that went
# into somebody's shared library, nothing.
file(READ ${installed}/include/tilewise/tilewise.h header)
string(REGEX MATCHALL "\nTILEWISE_API [^;(]*[ *]tilewise_[a-z0-9_]+\\(" declared "${header}")
list(TRANSFORM declared REPLACE ".*[ *](tilewise_[a-z0-9_]+)\\($" "T \\1")
list(SORT declared)
list(LENGTH declared count)
if(count LESS 14)
  message(FATAL_ERROR "found only ${count} functions in tilewise.h: ${declared}")
endif()
symbols(plugin ${WORK_DIR}/app/libtheir_plugin.so -D)
list(FILTER plugin EXCLUDE REGEX " _(init|fini|edata|end|_bss_start)$")
if(NOT plugin STREQUAL "T their_function")
  message(FATAL_ERROR "their_plugin should export its one function; it exports ${plugin}")
endif()
if(SHARED)
  file(GLOB_RECURSE library ${installed}/*/libtilewise.so)
  symbols(exported ${library} -D)
  if(NOT exported STREQUAL declared)
    message(FATAL_ERROR "tilewise.h declares\n${declared}\nand libtilewise.so exports\n${exported}")
  endif()

  # docs/embed.md says how large it is.
  find_program(STRIP strip REQUIRED)
  run(${STRIP} -o ${WORK_DIR}/stripped.so ${library})
  file(SIZE ${WORK_DIR}/stripped.so size)
  message(STATUS "libtilewise.so, stripped: ${size} bytes")
  if(size GREATER 250000)
    message(FATAL_ERROR "libtilewise.so is ${size} bytes, stripped; docs/embed.md promises 250 kB")
  endif()
endif()
