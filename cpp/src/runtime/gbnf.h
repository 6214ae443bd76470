// Is a text a GBNF grammar that llama.cpp can read and follow? Asked before llama.cpp sees it: its parser writes what it finds
// to stderr, reads some grammars as other ones, and does not come back from a few.
#pragma once

#include <functional>
#include <string>

namespace kad {

// The answer of check_gbnf().
struct GrammarFacts {
    std::string token; // the first token-level rule, as written ("<[12]>", "!<name>"); "" when all rules are about text
    // The same grammar with every [^...] written as the ranges that it is: of a token that ends inside a character llama.cpp asks
    // whether some character of a range goes on like that, but for [^...] whether none of the excluded does.
    std::string text;
};

// What llama.cpp makes of "<[12]>" or "<name>": "" when it is a token that can be said, else why not.
using TokenCheck = std::function<std::string(const std::string & spelling)>;

// Throws KAD_INVALID_ARGUMENT with the line and what was expected there.
GrammarFacts check_gbnf(const std::string & text, const std::string & root, const TokenCheck & token);

} // namespace kad
