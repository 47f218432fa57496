# tilewise_target(NAME): what every target of the project is compiled with.
function(tilewise_target target)
  target_compile_options(${target} PRIVATE
    -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor
    $<$<BOOL:${TILEWISE_WERROR}>:-Werror>)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR})
  if(TILEWISE_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${TILEWISE_SANITIZE} -fno-omit-frame-pointer
                                             -fno-sanitize-recover=all)
    target_link_options(${target} PUBLIC -fsanitize=${TILEWISE_SANITIZE})
    target_compile_definitions(${target} PRIVATE TILEWISE_SANITIZED=1)
  endif()
  if(TILEWISE_COVERAGE)
    target_compile_options(${target} PRIVATE --coverage)
    target_link_options(${target} PUBLIC --coverage)
  endif()
endfunction()

# tilewise_together(TARGET NAME FILE...): these files of TARGET are one translation unit, NAME. Most
# of what compiling them takes is reading the large headers that all of them include.
function(tilewise_together target name)
  # Not where a tool is to read file by file, or a debugger's user to change one at a time.
  if(CMAKE_DISABLE_PRECOMPILE_HEADERS OR CMAKE_BUILD_TYPE STREQUAL "Debug")
    return()
  endif()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
  set_source_files_properties(${ARGN} PROPERTIES UNITY_GROUP ${name})
endfunction()
