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
