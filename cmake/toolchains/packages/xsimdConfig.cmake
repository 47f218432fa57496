# xsimd's headers: Debian's libxsimd-dev, whatever processor it was installed for.
if(NOT EXISTS /usr/include/xsimd/xsimd.hpp)
  set(xsimd_FOUND FALSE)
elseif(NOT TARGET xsimd)
  add_library(xsimd INTERFACE IMPORTED)
endif()
