#include "token_table.h"

#include <algorithm>

#include "llama.h"

namespace kad {

static TokenKind kind_of(const llama_vocab * vocab, llama_token id, const std::string & bytes) {
    if (llama_vocab_is_eog(vocab, id)) return TokenKind::End;
    const int attributes = llama_vocab_get_attr(vocab, id);
    if (attributes & (LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN)) return TokenKind::Control;
    return bytes.empty() ? TokenKind::Empty : TokenKind::Text;
}

TokenTable read_tokens(const llama_vocab * vocab) {
    constexpr int TYPES = LLAMA_TOKEN_ATTR_UNKNOWN | LLAMA_TOKEN_ATTR_UNUSED | LLAMA_TOKEN_ATTR_NORMAL |
                          LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_USER_DEFINED | LLAMA_TOKEN_ATTR_BYTE;
    TokenTable    table;
    const int32_t n = llama_vocab_n_tokens(vocab);
    if (n <= 0 || llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) return table;
    table.bytes.reserve(size_t(n));
    std::vector<char> buffer(256);
    for (llama_token id = 0; id < n; ++id) {
        int32_t size = llama_token_to_piece(vocab, id, buffer.data(), int32_t(buffer.size()), 0, true);
        if (size < 0) {
            buffer.resize(size_t(-size));
            size = llama_token_to_piece(vocab, id, buffer.data(), int32_t(buffer.size()), 0, true);
        }
        table.bytes.emplace_back(buffer.data(), size_t(std::max(0, size)));
        table.kinds.push_back(kind_of(vocab, id, table.bytes.back()));
        table.types.push_back(llama_vocab_get_attr(vocab, id) & TYPES);
    }
    return table;
}

} // namespace kad
