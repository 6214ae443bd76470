// Where do characters begin and end in bytes that may be invalid UTF-8?
#pragma once

#include <string>

namespace kad {

// Length of the well-formed character at text[i] (1 to 4); 0 if the bytes there are none; -1 if they begin one that the
// text's end cuts off.
int character_at(const std::string & text, size_t i);

// The number of bytes at the end of text that begin a character and do not finish it; 0 when it ends between characters.
size_t unfinished(const std::string & text);

// Can `byte` follow the unfinished character that `text` ends in?
bool continues(const std::string & text, unsigned char byte);

// Is text a run of whole, well-formed characters?
bool well_formed(const std::string & text);

// Every byte that belongs to no well-formed character becomes U+FFFD.
std::string sanitised(const std::string & text);

} // namespace kad
