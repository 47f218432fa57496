# tilewise_emulate(TARGET [FEW_NAMES]): the .cu files of TARGET are compiled by the C++ compiler, for the
# emulator, and TARGET is linked with it. In a directory of its own where nvcc is to compile the same
# files too: a source has one language in a directory. FEW_NAMES: no kernel has __shared__ variables,
# whose names reports would want (dynamic shared memory is one struct), so that lines will do, which
# cost a quarter less to compile.
function(tilewise_emulate target)
  get_target_property(sources ${target} SOURCES)
  list(FILTER sources INCLUDE REGEX "\\.cu$")
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # (psabi: notes that a TensorMap, aligned to 64 bytes, is passed as it always was.)
    set(hooks --param tsan-instrument-func-entry-exit=0 --param tsan-distinguish-volatile=1
      -Wno-psabi)
  else()
    # clang leaves out .debug_aranges, without which elfutils 0.188 finds no line.
    # And accesses are to be the source's: no wider ones, no loop made a memset or a memcpy, no read
    # left out where a write of the same place follows.
    set(hooks -mllvm -tsan-instrument-func-entry-exit=0 -mllvm -tsan-distinguish-volatile=1
      -Wno-unknown-pragmas -gdwarf-aranges -fno-vectorize -fno-slp-vectorize -fno-builtin-memset
      -fno-builtin-memmove -mllvm -disable-loop-idiom-memcpy
      -mllvm -tsan-instrument-read-before-write=1)
  endif()
  set(debug -gdwarf-4)
  if("FEW_NAMES" IN_LIST ARGN)
    list(APPEND debug -g1)
  endif()
  # Hooks at every access (cuda/emulator/hooks.cpp), and lines for its reports: DWARF 4, since
  # elfutils 0.188 does not find clang's lines in DWARF 5. No multiply-adds that the source does not
  # say. The optimiser may not take accesses together.
  set_source_files_properties(${sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS
    "-xc++;-O1;${debug};-fno-omit-frame-pointer;-fsanitize=thread;-ffp-contract=off;${hooks}")
  target_link_libraries(${target} PUBLIC tilewise::emulator)
endfunction()
