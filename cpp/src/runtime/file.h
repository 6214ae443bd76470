// What a GGUF file says of itself, without loading it; and whether it can be used at all.
#pragma once

#include <string>

#include "../core/notation.h"

namespace kad {

// Throws KAD_FILE_ERROR or KAD_MODEL_ERROR with a message that names the path.
kad_file_info inspect_file(const std::string & path);

// Bytes that this machine can still give: main memory and, if offload, the free memory of its GPUs.
uint64_t available_memory(bool offload);

// "1.4 GiB"
std::string gibibytes(uint64_t bytes);

} // namespace kad
