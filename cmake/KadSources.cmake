# What the library and the Python module share: the sources, how they are compiled, and which llama.cpp they know.

file(GLOB_RECURSE KAD_SOURCES CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/cpp/src/*.cpp" "${PROJECT_SOURCE_DIR}/cpp/src/*.h")

find_package(Threads REQUIRED)
find_package(llama CONFIG QUIET)
if(NOT llama_FOUND)
    message(FATAL_ERROR
        "llama.cpp was not found: no llama-config.cmake under CMAKE_PREFIX_PATH (\"${CMAKE_PREFIX_PATH}\"). "
        "Pass -DCMAKE_PREFIX_PATH=<the folder it was installed to>. The one inside llama-cpp-python lies in "
        "$(python3 -c \"import sysconfig; print(sysconfig.get_path('platlib'))\").")
endif()
message(STATUS "llama.cpp ${LLAMA_VERSION} (${LLAMA_BUILD_COMMIT}), ggml ${GGML_VERSION} (${GGML_BUILD_COMMIT}): ${llama_LIBRARY}")

# A shared libllama finds its backends itself. Naming them here as the imported target does would tie what is built to
# the backends of the machine that built it.
if(LLAMA_SHARED_LIB)
    set(KAD_LLAMA_LIBRARIES "${llama_LIBRARY}" "${GGML_LIBRARY}" "${GGML_BASE_LIBRARY}")
else()
    set(KAD_LLAMA_LIBRARIES llama)
endif()

# Compiles the sources into `target`. The commit is ggml's, the only one that can be asked of a loaded libllama.
function(kad_configure target)
    target_sources(${target} PRIVATE ${KAD_SOURCES})
    target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}/cpp/include" "${PROJECT_SOURCE_DIR}/cpp/src")
    target_include_directories(${target} SYSTEM PRIVATE "${LLAMA_INCLUDE_DIR}" "${GGML_INCLUDE_DIR}")
    target_link_libraries(${target} PRIVATE ${KAD_LLAMA_LIBRARIES} Threads::Threads ${CMAKE_DL_LIBS})
    target_compile_definitions(${target} PRIVATE
        KAD_BUILD
        KAD_VERSION="${PROJECT_VERSION}"
        KAD_BUILT_LLAMA_VERSION="${LLAMA_VERSION}"
        KAD_BUILT_LLAMA_COMMIT="${GGML_BUILD_COMMIT}"
        KAD_BUILT_GGML_VERSION="${GGML_VERSION}"
        KAD_BUILT_GGML_COMMIT="${GGML_BUILD_COMMIT}")
    # Where a multiply and an add are fused is said in kernels.cpp, and not left to the compiler.
    target_compile_options(${target} PRIVATE
        $<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>:-ffp-contract=off;-Wall;-Wextra>
        $<$<COMPILE_LANG_AND_ID:CXX,MSVC>:/fp:precise;/W3;/utf-8>)
endfunction()
