# What `cmake --install` lays out, and how find_package(tilewise) finds it:
#
#   <prefix>/include/tilewise/harness.hpp, gtest.hpp        what other projects include
#   <prefix>/include/tilewise/{core,oracle}/**.hpp          the same folders as here, so that their
#                                                           relative includes hold
#   <prefix>/lib/libtilewise_{oracle,harness}.a
#   <prefix>/lib/cmake/tilewise/                            the package: tilewise::core, ::oracle,
#                                                           ::harness, ::memory_hooks
#   <prefix>/share/tilewise/minilm.safetensors              for fill=real: TILEWISE_DATA names the folder
# The prefix may be moved afterwards. Libraries that FetchContent built are in nobody's package, so
# with them nothing is installed.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(tilewise_installed tilewise_core tilewise_oracle tilewise_harness tilewise_memory_hooks)

foreach(library fmt::fmt nlohmann_json::nlohmann_json)
  get_target_property(imported ${library} IMPORTED)
  if(NOT imported)
    message(STATUS "${library} was downloaded with TILEWISE_FETCH: no install rules")
    return()
  endif()
endforeach()

install(TARGETS ${tilewise_installed} EXPORT tilewise
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
        OBJECTS DESTINATION ${CMAKE_INSTALL_LIBDIR}/tilewise)
install(DIRECTORY include/tilewise/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/tilewise
        FILES_MATCHING PATTERN "*.hpp")
install(DIRECTORY core oracle DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/tilewise
        FILES_MATCHING PATTERN "*.hpp" PATTERN "detail.hpp" EXCLUDE
                       PATTERN "rounding.hpp" EXCLUDE)
install(EXPORT tilewise NAMESPACE tilewise:: FILE tilewiseTargets.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/tilewise)

configure_package_config_file(cmake/tilewiseConfig.cmake.in
  ${PROJECT_BINARY_DIR}/cmake/tilewiseConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/tilewise)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/cmake/tilewiseConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/cmake/tilewiseConfig.cmake
              ${PROJECT_BINARY_DIR}/cmake/tilewiseConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/tilewise)
install(FILES tests/data/minilm.safetensors tests/data/README.md
        DESTINATION ${CMAKE_INSTALL_DATADIR}/tilewise)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
