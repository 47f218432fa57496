# Does examples/ build against an installed Tilewise that has been moved, and does its kernel pass?
cmake_minimum_required(VERSION 3.25)
include(${CMAKE_CURRENT_LIST_DIR}/consumer/steps.cmake)
file(REMOVE_RECURSE ${WORK_DIR})

install_and_move(${BINARY_DIR} ${WORK_DIR}/installed)
configure(${SOURCE_DIR}/examples ${WORK_DIR}/build -DCMAKE_PREFIX_PATH=${WORK_DIR}/installed)
run(${CMAKE_COMMAND} --build ${WORK_DIR}/build)
run(${WORK_DIR}/build/my_kernel)
