# Do two renamed copies live in one process, static ones and (SHARED=ON) shared ones? Both are built
# inside the project that uses them, then installed in the same place and used from there. No symbol
# of one has the name of a symbol of the other.
cmake_minimum_required(VERSION 3.25)
include(${CMAKE_CURRENT_LIST_DIR}/consumer/steps.cmake)
file(REMOVE_RECURSE ${WORK_DIR})

configure(${SOURCE_DIR}/tests/consumer/copies ${WORK_DIR}/build -DBUILD_SHARED_LIBS=${SHARED}
          -DTILEWISE_SOURCE=${SOURCE_DIR} -DFETCHCONTENT_SOURCE_DIR_TILEWISE=${SOURCE_DIR}
          -DTILEWISE_INSTALL=ON ${nothing_installed})
build_and_test(${WORK_DIR}/build)

install_and_move(${WORK_DIR}/build ${WORK_DIR}/installed)
configure(${SOURCE_DIR}/tests/consumer/copies ${WORK_DIR}/installed_build -DINSTALLED=ON
          -DCMAKE_PREFIX_PATH=${WORK_DIR}/installed ${nothing_installed})
build_and_test(${WORK_DIR}/installed_build)

if(NOT CMAKE_HOST_SYSTEM_NAME STREQUAL "Linux")
  message(STATUS "names of symbols are looked at on Linux alone")
  return()
endif()
set(all "")
foreach(copy one two)
  if(SHARED)
    file(GLOB_RECURSE library ${WORK_DIR}/build/lib${copy}_tilewise.so)
    symbols(found ${library} -D)
  else()
    file(GLOB_RECURSE library ${WORK_DIR}/build/lib${copy}_tilewise.a)
    symbols(found ${library} -g)
  endif()
  # Instances of the C++ library's own templates are anybody's, if no type of ours is in them.
  list(FILTER found EXCLUDE REGEX "^[WVu] _ZN?K?St[^ ]*$")
  set(ours ${found})
  list(FILTER ours INCLUDE REGEX "${copy}_")
  list(LENGTH ours count)
  if(count LESS 14 OR NOT ours STREQUAL found)
    list(REMOVE_ITEM found ${ours})
    message(FATAL_ERROR "${library}: ${count} names with ${copy}_, and without: ${found}")
  endif()
  if(SHARED AND NOT "${found}" MATCHES "^(T ${copy}_[a-z0-9_]+;?)+$")
    message(FATAL_ERROR "${library} exports more than C functions: ${found}")
  endif()
endforeach()
