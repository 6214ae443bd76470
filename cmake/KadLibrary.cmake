# libkad_llama, its header, its CMake package and its pkg-config file.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
include(KadSources)

add_library(kad_llama)
add_library(kad_llama::kad_llama ALIAS kad_llama)
kad_configure(kad_llama)
target_include_directories(kad_llama INTERFACE
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/cpp/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)

# The installed library finds libllama where the build found it. Named outright: CMake's own INSTALL_RPATH_USE_LINK_PATH
# leaves out what lies inside the source folder, as a virtual environment often does.
if(APPLE)
    set(kad_rpath "@loader_path")
else()
    set(kad_rpath "$ORIGIN")
endif()
if(LLAMA_SHARED_LIB AND NOT LLAMA_LIB_DIR IN_LIST CMAKE_CXX_IMPLICIT_LINK_DIRECTORIES)
    list(APPEND kad_rpath "${LLAMA_LIB_DIR}")
endif()
set_target_properties(kad_llama PROPERTIES
    PUBLIC_HEADER "${PROJECT_SOURCE_DIR}/cpp/include/kad_llama.h"
    VERSION ${PROJECT_VERSION}
    SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
    INSTALL_RPATH "${kad_rpath}")

set(kad_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/kad_llama")
install(TARGETS kad_llama EXPORT kad_llamaTargets PUBLIC_HEADER DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT kad_llamaTargets NAMESPACE kad_llama:: DESTINATION "${kad_package_dir}")
configure_package_config_file("${CMAKE_CURRENT_LIST_DIR}/kad_llamaConfig.cmake.in"
    "${PROJECT_BINARY_DIR}/kad_llamaConfig.cmake" INSTALL_DESTINATION "${kad_package_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/kad_llamaConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/kad_llamaConfig.cmake" "${PROJECT_BINARY_DIR}/kad_llamaConfigVersion.cmake"
    DESTINATION "${kad_package_dir}")

configure_file("${CMAKE_CURRENT_LIST_DIR}/kad_llama.pc.in" "${PROJECT_BINARY_DIR}/kad_llama.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/kad_llama.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
