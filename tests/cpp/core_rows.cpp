// Rows of the core as the engine uses them: objects that are kept from event to event, and rows that list some of the
// events. tests/core_rows.py reads the declarations between the marks.
#include <cmath>
#include <cstdlib>
#include <new>
#include <thread>

#include "core/draw.h"
#include "errors.h"

extern "C" {
/* rows: begin */
// Without n_events logit i is event i. With it, events[i], or i where events is NULL; the rest has probability zero.
typedef struct rows_row {
    const float *   logits;
    size_t          n;
    const int32_t * events;
    size_t          n_events;
} rows_row;

typedef struct rows_pair {
    kad_rule rule; // and its temperature; not implicit-reward
    rows_row base, aligned;
    double   temperature;
} rows_pair;

// What is read off a pair; each array has as many entries as there are events.
typedef struct rows_law {
    double *  p;
    double *  log_p;
    double *  q;
    double *  pi;
    uint8_t * kept;
    double    alpha, total_variation;
    int32_t   top_p, top_q;
} rows_law;

typedef struct rows_outcome {
    int32_t token, proposal, source, corrected; // corrected: the residual by the same coin, whatever was accepted
} rows_outcome;

int32_t rows_read(const rows_pair * pair, rows_law * out);
int32_t rows_draw(const rows_pair * pair, const double * coins, size_t n_draws, rows_outcome * out); // four coins each
// The redraw among the events with ok; where none of them can be said, out is left as it is.
int32_t rows_redraw(const rows_pair * pair, const uint8_t * ok, const double * coins, size_t n_draws,
                    rows_outcome * out);
// A row's normaliser relative to its largest logit, and exp(-y) as the core has it.
double rows_total(const float * logits, size_t n, double temperature);
void   rows_exp(const double * y, size_t n, double * out);
// Calls of operator new in n_draws draws, each of which reads the pair anew, after they were all made once to warm up. -1 when
// that did not count any: the replacement is not in use.
int64_t rows_allocations(const rows_pair * pair, const double * coins, size_t n_draws);
// How many threads share what is read from now on; 1 for none but the caller's.
void rows_threads(size_t n);
/* rows: end */
}

namespace {

using namespace kad;

Support support_of(const rows_row & row) {
    Support support;
    support.n_events = row.n_events;
    if (!row.events) return support;
    support.events.assign(row.events, row.events + row.n);
    support.entry_of.assign(row.n_events, -1);
    for (size_t i = 0; i < row.n; ++i) support.entry_of[size_t(row.events[i])] = Token(i);
    return support;
}

// One thread to a part, the last part first.
struct Threads : Workers {
    size_t n = 1;

    size_t count() const override { return n; }
    void   run(size_t parts, const std::function<void(size_t)> & part) override {
        std::vector<std::thread> threads;
        for (size_t i = parts; i-- > 0;) threads.emplace_back(part, i);
        for (std::thread & thread : threads) thread.join();
    }
};

Threads threads;

// A speaker's row: raw for the rule, and as it is said.
struct Side {
    Support      support;
    Distribution raw, said;

    void read(const rows_row & row, double rule_temperature, double temperature, const char * who) {
        const Support * where = row.n_events ? &support : nullptr;
        Workers * const some  = threads.n > 1 ? &threads : nullptr;
        raw.set(row.logits, row.n, rule_temperature, who, where, some);
        said.set(row.logits, row.n, temperature, who, where, some);
    }
};

struct Pair {
    Side    base, aligned;
    KeptSet kept;

    explicit Pair(const rows_pair & pair) {
        base.support    = support_of(pair.base);
        aligned.support = support_of(pair.aligned);
    }

    Mixture read(const rows_pair & pair) {
        const double t = rule_temperature(pair.rule, pair.temperature);
        base.read(pair.base, t, pair.temperature, "base");
        aligned.read(pair.aligned, t, pair.temperature, "aligned");
        decide(pair.rule, &base.raw, &aligned.raw, kept);
        return Mixture(base.said, aligned.said, kept, rule_info(pair.rule.kind).exchanged != 0);
    }
};

DrawCoins coins_of(const double * coins) {
    DrawCoins c;
    c.proposal   = coins[0];
    c.acceptance = coins[1];
    c.residual   = coins[2];
    c.source     = coins[3];
    return c;
}

rows_outcome draw_once(const Mixture & pi, const double * coins) {
    const DrawCoins c   = coins_of(coins);
    const Token     x   = pi.aligned().draw(c.proposal);
    const Outcome   y   = draw(pi, x, c);
    const bool      any = pi.kept().extent != KeptSet::Extent::Nothing || pi.alpha() == 0;
    return { y.token, x, y.source, any ? pi.draw_residual(c.residual) : -1 };
}

int64_t calls_of_new = 0;

} // namespace

// Replaced for this library: malloc and free as ever, and counted.
void * operator new(std::size_t size) {
    ++calls_of_new;
    if (void * memory = std::malloc(size)) return memory;
    throw std::bad_alloc();
}
void operator delete(void * memory) noexcept { std::free(memory); }
void operator delete(void * memory, std::size_t) noexcept { std::free(memory); }

int32_t rows_read(const rows_pair * pair, rows_law * out) {
    return guarded([&] {
        Pair          at(*pair);
        const Mixture pi = at.read(*pair);
        at.base.said.probabilities(out->p);
        at.aligned.said.probabilities(out->q);
        for (size_t v = 0; v < pi.size(); ++v) {
            out->log_p[v] = at.base.said.log_probability(Token(v));
            out->pi[v]    = pi.probability(Token(v));
            out->kept[v]  = at.kept.contains(Token(v));
        }
        out->alpha           = pi.alpha();
        out->total_variation = total_variation(at.base.said, at.aligned.said);
        out->top_p           = at.base.said.top();
        out->top_q           = at.aligned.said.top();
    });
}

int32_t rows_draw(const rows_pair * pair, const double * coins, size_t n_draws, rows_outcome * out) {
    return guarded([&] {
        Pair          at(*pair);
        const Mixture pi = at.read(*pair);
        for (size_t i = 0; i < n_draws; ++i) out[i] = draw_once(pi, coins + 4 * i);
    });
}

int32_t rows_redraw(const rows_pair * pair, const uint8_t * ok, const double * coins, size_t n_draws,
                    rows_outcome * out) {
    return guarded([&] {
        Pair                       at(*pair);
        const Mixture              pi = at.read(*pair);
        const std::vector<uint8_t> allowed(ok, ok + pi.size());
        for (size_t i = 0; i < n_draws; ++i) {
            Outcome outcome;
            if (redraw(pi, allowed, coins_of(coins + 4 * i), outcome))
                out[i] = { outcome.token, -1, outcome.source, -1 };
        }
    });
}

double rows_total(const float * logits, size_t n, double temperature) {
    Distribution row;
    row.set(logits, n, temperature, "row", nullptr, threads.n > 1 ? &threads : nullptr);
    return row.total();
}

void rows_threads(size_t n) { threads.n = n; }

void rows_exp(const double * y, size_t n, double * out) {
    for (size_t i = 0; i < n; ++i) out[i] = exp_minus(y[i]);
}

int64_t rows_allocations(const rows_pair * pair, const double * coins, size_t n_draws) {
    calls_of_new = 0;
    Pair       at(*pair);
    const auto draw_all = [&] {
        for (size_t i = 0; i < n_draws; ++i) draw_once(at.read(*pair), coins + 4 * i);
    };
    draw_all();
    if (!calls_of_new) return -1;
    calls_of_new = 0;
    draw_all();
    return calls_of_new;
}
