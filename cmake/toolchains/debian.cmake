# What Debian's cross compilers have in common. Programs run under qemu-user, with the target's C
# and C++ library from the cross compiler's packages.
#
# The libraries that we need as headers alone are the host's: these compilers look into /usr/include
# after the target's own headers. packages/ finds those whose packages are the host processor's.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_C_COMPILER ${triple}-gcc)
set(CMAKE_CXX_COMPILER ${triple}-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR ${qemu} -L /usr/${triple})

set(CMAKE_FIND_ROOT_PATH /usr/${triple})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
foreach(package fmt GTest xsimd)
  set(${package}_DIR ${CMAKE_CURRENT_LIST_DIR}/packages)
endforeach()
