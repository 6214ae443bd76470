// One row read as the engine reads it: largest logit, its token, normaliser, block maxima.
#include "core/logits.h"

extern "C" double read_row(const float * logits, size_t n, double temperature) {
    static kad::Distribution row;
    row.set(logits, n, temperature, "row");
    return row.total() + row.top();
}
