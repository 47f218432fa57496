# {fmt} from its headers: Debian's libfmt-dev, whatever processor it was installed for.
if(NOT EXISTS /usr/include/fmt/format-inl.h)
  set(fmt_FOUND FALSE)
elseif(NOT TARGET fmt::fmt)
  add_library(fmt::fmt INTERFACE IMPORTED)
  target_compile_definitions(fmt::fmt INTERFACE FMT_HEADER_ONLY)
endif()
