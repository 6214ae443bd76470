// The table of letters, as types: what every file of core/ speaks in. Mathematics: docs/method.md, section 1.
//
//   p  base      next-token distribution of the large, unaligned model
//   q  aligned   next-token distribution of the small, aligned model
//   S  kept      the tokens the base keeps
//   alpha        1 - p(S), the probability that the aligned model speaks
//   pi mixture   pi(v) = p(v) [v in S] + alpha q(v)
//
// A primed letter (p', q') is the same distribution after the speaker's own samplers. core/ knows no llama.cpp, no
// clock, no global state; randomness is an argument.
#pragma once

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "kad_llama.h"

namespace kad {

using Token = int32_t;

// The one exception of this library: a status of the C API and a message that names the value.
struct Error : std::runtime_error {
    kad_status status;
    Error(kad_status status, const std::string & message) : std::runtime_error(message), status(status) {}
};

// A number as a message shows it: enough digits to tell it from the limit it crossed.
inline std::string shown(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", value);
    return text;
}

} // namespace kad
