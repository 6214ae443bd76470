// KAD's 0-1 knapsack itself: which tokens to defer so that the sum of -p log p over them is largest and their mass <= b?
// (method.md, section 2, rule exact.)
#pragma once

#include <cstddef>
#include <vector>

#include "deferral.h"

namespace kad {

struct KnapsackSolution {
    std::vector<Token> kept;              // S, ascending
    double             value     = 0;     // sum of -p log p outside S
    double             bound     = 0;     // no feasible set has a larger value
    double             gap       = 0;     // (bound - value) / bound; 0 when bound is 0
    int64_t            nodes     = 0;     // bounds computed
    bool               certified = false; // gap <= Knapsack::TOLERANCE
};

// A workspace: after the first row of a size it allocates nothing but what the solution's vectors need to grow.
class Knapsack {
public:
    static constexpr double  TOLERANCE  = 1e-9;
    static constexpr int64_t NODE_LIMIT = 20000; // work, not time: the set is a function of p
    static constexpr double  SLACK      = 1e-12; // .1 + .1 + .1 fits into .3

    // p: n probabilities, finite, in [0, 1]; budget in [0, 1]. exact: branch and bound; otherwise the set of rule primal.
    void solve(const double * p, size_t n, double budget, bool exact, KnapsackSolution & out);

private:
    // Kept positions [low, high); mass and value of the runs before this one.
    struct Run {
        size_t low, high;
        double mass, value;
    };

    // Items: the tokens of positive probability by position, least probable first, equals by falling id. Within a bucket
    // (the leading bits of p) they are sorted, and their prefix sums known, only once the bucket is looked into.
    size_t                items_ = 0;
    std::vector<double>   p_, value_;     // by position
    std::vector<Token>    id_;            // by position
    std::vector<double>   mass_, values_; // sums over positions below; right at bucket borders and in sorted buckets
    std::vector<uint32_t> begin_, next_;  // first position of each bucket; where its next item goes
    std::vector<uint8_t>  sorted_;        // by bucket

    struct Item {
        double p;
        Token  id;
    };
    std::vector<Item> unsorted_; // one bucket

    // The search. Positions from end_ up weigh more than the budget alone and are kept.
    size_t           end_  = 0;
    double           need_ = 0; // mass to keep among the positions below end_
    std::vector<Run> runs_, best_runs_;
    size_t           best_extra_ = 0; // one more kept position, or end_ for none
    double           best_       = 0; // value of the best set found
    double           ceiling_    = 0; // largest bound given up
    int64_t          nodes_      = 0;

    std::vector<uint8_t> kept_; // by token

    void   fill(const double * p, size_t n);
    void   sum_buckets();
    void   sort_bucket(size_t bucket);
    size_t reach(double mass);
    size_t first_at_least(double weight);

    double kept_mass() const;
    double kept_value() const;
    double relax(size_t end, size_t & critical);
    bool   hopeless(double bound);
    void   record(size_t extra);
    size_t cover(size_t end);
    void   descend(size_t end);
    bool   backtrack(size_t & end);
    void   give_up(size_t end);

    void greedy(double budget);
    void search(double budget);
    void finish(size_t n, KnapsackSolution & out);
};

// Rule exact: keeps the complement of the best deferred set found. p is the raw base row at the rule's temperature.
void keep_exact(const Distribution & p, double budget, KeptSet & kept);

} // namespace kad
