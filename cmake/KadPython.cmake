# The module kad_llama/_binding/_kad: the declarations of kad_llama.h through cffi, and all C++ sources, in one file
# for every CPython from 3.10 on.
cmake_minimum_required(VERSION 3.26...4.0) # Python_add_library(USE_SABI)

set(kad_python_development Development.Module)
if(SKBUILD_SABI_COMPONENT)
    set(kad_python_development ${SKBUILD_SABI_COMPONENT})
endif()
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter ${kad_python_development})

# llama-cpp-python says where its llama.cpp lies and which version it is, without being imported: that would load it.
execute_process(
    COMMAND "${Python_EXECUTABLE}" "${PROJECT_SOURCE_DIR}/python/kad_llama/_binding/build.py" find
    OUTPUT_VARIABLE kad_found OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
list(GET kad_found 0 kad_llama_cpp_python)
list(GET kad_found 1 kad_llama_prefix)
list(PREPEND CMAKE_PREFIX_PATH "${kad_llama_prefix}")
include(KadSources)

set(kad_header "${PROJECT_SOURCE_DIR}/cpp/include/kad_llama.h")
set(kad_generator "${PROJECT_SOURCE_DIR}/python/kad_llama/_binding/build.py")
set(kad_binding "${PROJECT_BINARY_DIR}/_kad.c")
add_custom_command(OUTPUT "${kad_binding}"
    COMMAND "${Python_EXECUTABLE}" "${kad_generator}" generate "${kad_header}" "${kad_binding}"
    DEPENDS "${kad_header}" "${kad_generator}" VERBATIM)

set(kad_sabi)
if(SKBUILD_SABI_VERSION)
    set(kad_sabi USE_SABI ${SKBUILD_SABI_VERSION})
endif()
Python_add_library(_kad MODULE WITH_SOABI ${kad_sabi} "${kad_binding}")
kad_configure(_kad)
target_compile_definitions(_kad PRIVATE KAD_BUILT_LLAMA_CPP_PYTHON="${kad_llama_cpp_python}")

# llama-cpp-python stands beside this package when installed. No path of the build may stay in the module.
if(APPLE)
    set(kad_rpath "@loader_path/../../llama_cpp/lib")
else()
    set(kad_rpath "$ORIGIN/../../llama_cpp/lib")
endif()
set_target_properties(_kad PROPERTIES
    BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "${kad_rpath}" INSTALL_RPATH_USE_LINK_PATH OFF)
install(TARGETS _kad LIBRARY DESTINATION kad_llama/_binding)
