# Does an installed Tilewise serve the tests of a project that knows nothing of this tree? Installs
# BINARY_DIR, moves the installation elsewhere, then configures, builds and tests tests/consumer.
cmake_minimum_required(VERSION 3.25)
include(${CMAKE_CURRENT_LIST_DIR}/consumer/steps.cmake)
file(REMOVE_RECURSE ${WORK_DIR})

install_and_move(${BINARY_DIR} ${WORK_DIR}/installed)
configure(${SOURCE_DIR}/tests/consumer ${WORK_DIR}/build -DCMAKE_PREFIX_PATH=${WORK_DIR}/installed)
build_and_test(${WORK_DIR}/build)
