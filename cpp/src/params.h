// Parameter structs as a caller hands them over: of this header's size, or of an older one's.
#pragma once

#include <cstring>

#include "errors.h"

namespace kad {

// A struct of an older, shorter header is completed with defaults; a longer one comes from a newer header.
template <typename Params>
Params completed(const Params * given, const Params & defaults, const char * name) {
    need(given, name);
    if (given->size < sizeof(size_t) || given->size > sizeof(Params)) {
        throw Error(KAD_INVALID_ARGUMENT, std::string(name) + ".size is " + std::to_string(given->size) +
                                              "; expected up to " + std::to_string(sizeof(Params)) +
                                              ": start from the default params of this library");
    }
    Params params = defaults;
    std::memcpy(&params, given, given->size);
    return params;
}

} // namespace kad
