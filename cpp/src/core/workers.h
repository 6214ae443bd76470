// Who reads a long row? The caller, or several threads that take a part each.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>

namespace kad {

// Threads that may share the work on a long row. Results do not depend on how many there are.
class Workers {
public:
    virtual ~Workers() = default;

    virtual size_t count() const = 0;

    // part(0), part(1), ..., part(n - 1), each once, in any order and some at the same time. It must not throw.
    virtual void run(size_t n, const std::function<void(size_t)> & part) = 0;
};

// All n blocks as blocks(first, end), end exclusive; where there are enough, a part by each of the workers. What is
// computed of a block must not depend on others: then it makes no difference who computes it.
template <class Blocks>
void share_blocks(size_t n, Workers * workers, const Blocks & blocks) {
    constexpr size_t LEAST = 32; // blocks that are worth waking a thread for
    struct {
        const Blocks & blocks;
        size_t         n, parts;
    } all = { blocks, n, workers ? std::min(workers->count(), n / LEAST) : 1 };
    if (all.parts < 2) {
        blocks(0, n);
        return;
    }
    // One reference: std::function allocates nothing for it.
    workers->run(all.parts, [&all](size_t i) { all.blocks(all.n * i / all.parts, all.n * (i + 1) / all.parts); });
}

} // namespace kad
