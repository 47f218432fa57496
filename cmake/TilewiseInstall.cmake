# What `cmake --install` lays out, and how find_package(tilewise) finds it:
#
#   cpu       <prefix>/include/tilewise/*.h, attention.hpp     what apps include
#             <prefix>/lib/libtilewise.a or .so                tilewise::cpu
#             <prefix>/lib/pkgconfig/tilewise.pc
#   cuda      <prefix>/include/tilewise/cuda.h                 what apps include for a GPU
#             <prefix>/lib/libtilewise_cuda.a or .so           tilewise::cuda; brings cpu
#   core      <prefix>/include/tilewise/*.h, core/*.hpp        what plug-ins include: tilewise::core,
#                                                              headers alone
#   harness   <prefix>/include/tilewise/harness.hpp, gtest.hpp what other people's tests include
#             <prefix>/include/tilewise/oracle/**.hpp          the same folders as here, so that
#                                                              their relative includes hold
#             <prefix>/lib/libtilewise_{oracle,harness}.a      tilewise::oracle, ::harness,
#                                                              ::memory_hooks; brings core
#             <prefix>/share/tilewise/minilm.safetensors       for fill=real: TILEWISE_DATA names
#                                                              the folder
#   emulator  <prefix>/include/tilewise/cuda/**.hpp            what kernels under it include
#             <prefix>/lib/libtilewise_emulator.a              tilewise::emulator; brings core, and
#                                                              the function tilewise_emulate()
#   all       <prefix>/lib/cmake/tilewise/                     the package, with these COMPONENTS
#
# With TILEWISE_PREFIX=mylib_ everything of cpu and cuda is mylib_tilewise, beside <prefix>/include/
# mylib_tilewise/tilewise/*. The prefix may be moved afterwards. Libraries that FetchContent built
# are in nobody's package, so with them the harness is not installed.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(tilewise_headers ${CMAKE_INSTALL_INCLUDEDIR})
if(TILEWISE_PREFIX)
  string(APPEND tilewise_headers /${tilewise_name})
endif()
set(tilewise_package ${CMAKE_INSTALL_LIBDIR}/cmake/${tilewise_name})

# --- cpu ------------------------------------------------------------------------------------------
set(tilewise_components cpu)
install(TARGETS ${tilewise_name}_cpu EXPORT ${tilewise_name}-cpu
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} INCLUDES DESTINATION ${tilewise_headers})
install(DIRECTORY include/tilewise DESTINATION ${tilewise_headers}
        FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp"
                       PATTERN "harness.hpp" EXCLUDE PATTERN "gtest.hpp" EXCLUDE
                       PATTERN "cuda.h" EXCLUDE)

# What whoever links the static library links besides: the package and tilewise.pc say it.
set(tilewise_static_openmp OFF)
set(tilewise_pc_flags -I\${includedir})
set(tilewise_pc_libraries -L\${libdir} -l${tilewise_name})
if(TILEWISE_PREFIX)
  list(APPEND tilewise_pc_flags -DTILEWISE_PREFIX=${TILEWISE_PREFIX})
endif()
if(BUILD_SHARED_LIBS)
  list(APPEND tilewise_pc_flags -DTILEWISE_SHARED)
else()
  if(c++ IN_LIST CMAKE_CXX_IMPLICIT_LINK_LIBRARIES)
    list(APPEND tilewise_pc_libraries -lc++)
  else()
    list(APPEND tilewise_pc_libraries -lstdc++)
  endif()
  list(APPEND tilewise_pc_libraries -lm ${CMAKE_THREAD_LIBS_INIT})
  if(TILEWISE_OPENMP AND TARGET OpenMP::OpenMP_CXX)
    set(tilewise_static_openmp ON)
    list(APPEND tilewise_pc_libraries ${OpenMP_CXX_FLAGS})
  endif()
endif()
list(JOIN tilewise_pc_flags " " tilewise_pc_flags)
list(JOIN tilewise_pc_libraries " " tilewise_pc_libraries)
file(RELATIVE_PATH tilewise_pc_up /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" tilewise_pc_up "${tilewise_pc_up}")
configure_file(cmake/tilewise.pc.in ${PROJECT_BINARY_DIR}/cmake/${tilewise_name}.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/cmake/${tilewise_name}.pc
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

# --- cuda -----------------------------------------------------------------------------------------
if(tilewise_cuda)
  list(APPEND tilewise_components cuda)
  install(TARGETS ${tilewise_name}_cuda EXPORT ${tilewise_name}-cuda
          ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
          RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  install(FILES include/tilewise/cuda.h DESTINATION ${tilewise_headers}/tilewise)
endif()

# --- core -----------------------------------------------------------------------------------------
if(NOT TILEWISE_LIBRARY_ONLY)
  list(APPEND tilewise_components core)
  install(TARGETS tilewise_core EXPORT tilewise-core INCLUDES DESTINATION ${tilewise_headers})
  install(DIRECTORY core DESTINATION ${tilewise_headers}/tilewise FILES_MATCHING PATTERN "*.hpp")
endif()

# --- harness --------------------------------------------------------------------------------------
set(tilewise_downloaded "")
if(NOT TILEWISE_LIBRARY_ONLY)
  set(tilewise_libraries fmt::fmt nlohmann_json::nlohmann_json)
  if(TILEWISE_EMULATOR)
    list(APPEND tilewise_libraries Boost::context)
  endif()
  foreach(library ${tilewise_libraries})
    get_target_property(imported ${library} IMPORTED)
    if(NOT imported)
      list(APPEND tilewise_downloaded ${library})
      message(STATUS "${library} was downloaded with TILEWISE_FETCH: the harness is not installed")
    endif()
  endforeach()
endif()
if(NOT TILEWISE_LIBRARY_ONLY AND NOT tilewise_downloaded)
  list(APPEND tilewise_components harness)
  install(TARGETS tilewise_oracle tilewise_harness tilewise_memory_hooks
          EXPORT tilewise-harness
          ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
          OBJECTS DESTINATION ${CMAKE_INSTALL_LIBDIR}/tilewise
          INCLUDES DESTINATION ${tilewise_headers})
  install(FILES include/tilewise/harness.hpp include/tilewise/gtest.hpp
          DESTINATION ${tilewise_headers}/tilewise)
  install(DIRECTORY oracle DESTINATION ${tilewise_headers}/tilewise
          FILES_MATCHING PATTERN "*.hpp" PATTERN "detail.hpp" EXCLUDE
                         PATTERN "rounding.hpp" EXCLUDE
                         PATTERN "problem_keys.hpp" EXCLUDE)
  install(FILES tests/data/minilm.safetensors tests/data/README.md
          DESTINATION ${CMAKE_INSTALL_DATADIR}/tilewise)
endif()

# --- emulator -------------------------------------------------------------------------------------
# The folders are as here, and so are the includes of kernels: "cuda/device/platform.hpp".
if(TILEWISE_EMULATOR AND NOT tilewise_downloaded)
  list(APPEND tilewise_components emulator)
  install(TARGETS tilewise_emulator EXPORT tilewise-emulator
          ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
          INCLUDES DESTINATION ${tilewise_headers} ${tilewise_headers}/tilewise)
  install(DIRECTORY cuda/emulator cuda/device DESTINATION ${tilewise_headers}/tilewise/cuda
          FILES_MATCHING PATTERN "*.hpp")
  install(FILES cmake/TilewiseEmulate.cmake DESTINATION ${tilewise_package})
endif()

# --- the package ----------------------------------------------------------------------------------
foreach(component ${tilewise_components})
  install(EXPORT ${tilewise_name}-${component} NAMESPACE ${tilewise_name}::
          DESTINATION ${tilewise_package})
endforeach()
configure_package_config_file(cmake/tilewiseConfig.cmake.in
  ${PROJECT_BINARY_DIR}/cmake/${tilewise_name}Config.cmake
  INSTALL_DESTINATION ${tilewise_package})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/cmake/${tilewise_name}ConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/cmake/${tilewise_name}Config.cmake
              ${PROJECT_BINARY_DIR}/cmake/${tilewise_name}ConfigVersion.cmake
        DESTINATION ${tilewise_package})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/${tilewise_name})
