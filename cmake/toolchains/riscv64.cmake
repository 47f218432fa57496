# 64-bit RISC-V: the portable backend alone. Debian: apt-get install g++-riscv64-linux-gnu qemu-user
set(CMAKE_SYSTEM_PROCESSOR riscv64)
# g++ 12 calls a library for atomics of a byte.
set(CMAKE_CXX_STANDARD_LIBRARIES_INIT -latomic)
set(triple riscv64-linux-gnu)
set(qemu qemu-riscv64)
include(${CMAKE_CURRENT_LIST_DIR}/debian.cmake)
