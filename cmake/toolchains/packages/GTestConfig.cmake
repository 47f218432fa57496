# GoogleTest from its source: Debian's package googletest.
if(NOT EXISTS /usr/src/googletest/CMakeLists.txt)
  set(GTest_FOUND FALSE)
  return()
endif()
if(NOT TARGET gtest)
  set(BUILD_GMOCK OFF)
  set(INSTALL_GTEST OFF)
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)  # it takes the two from here
  add_subdirectory(/usr/src/googletest ${CMAKE_BINARY_DIR}/googletest EXCLUDE_FROM_ALL SYSTEM)
endif()
