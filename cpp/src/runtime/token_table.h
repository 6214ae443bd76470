// Every token of a vocabulary: its bytes, what it is for, and llama.cpp's type. Read once, whoever loaded the model.
#pragma once

#include <string>
#include <vector>

#include "language_model.h"

struct llama_vocab;

namespace kad {

struct TokenTable {
    std::vector<std::string> bytes; // of a control token: its spelling
    std::vector<TokenKind>   kinds;
    std::vector<int32_t>     types;
};

// Empty when there is no vocabulary.
TokenTable read_tokens(const llama_vocab * vocab);

} // namespace kad
