"""Thresholds at the very edge: p exactly lambda, budgets of 0 and 1, the ends of every range; each as its formula says.

Rows are uniform over 1, 2 or 4 tokens: the only float logits whose probabilities are exact powers of two. Their
logarithms and sums are exact too, or cancel, so the core and the oracle have to be right to the last bit here.
"""

from __future__ import annotations

import law
import numpy as np
import pytest

from kad_llama import reference

P = [0.25, 0.25, 0.25, 0.25, 0.0]
Q = [0.0, 0.5, 0.5, 0.0, 0.0]
SURE = [1.0, 0.0, 0.0, 0.0, 0.0]
NONE: list[int] = []
FOUR = [0, 1, 2, 3]
ALL = [0, 1, 2, 3, 4]
BIT = 2.0**-30  # far above rounding

# rule, threshold, p, q, what is kept: S, or T for the token rules.
EDGES = [
    # dual: p(v) >= lambda, so p exactly lambda is kept; 0 keeps everything, tokens of probability zero too.
    ("dual", 0.25, P, Q, FOUR),
    ("dual", 0.25 + BIT, P, Q, NONE),
    ("dual", 2.0**-60, P, Q, FOUR),
    ("dual", 0.0, P, Q, ALL),
    ("dual", 0.5, Q, P, [1, 2]),
    ("dual", 1.0, P, Q, NONE),
    ("dual", 1.0, SURE, Q, [0]),
    # primal: the smallest set with mass >= 1 - b. b = 1 wants nothing, b = 0 everything that is possible.
    ("primal", 1.0, P, Q, NONE),
    ("primal", 1.0, SURE, Q, NONE),
    ("primal", 0.0, P, Q, FOUR),
    ("primal", 0.0, SURE, Q, [0]),
    ("primal", 0.75, P, Q, [0]),
    ("primal", 0.75 - BIT, P, Q, [0, 1]),
    ("primal", 0.5, P, Q, [0, 1]),
    ("primal", 0.5, Q, P, [1]),
    ("primal", 0.25, P, Q, [0, 1, 2]),
    # nudging: max p >= gamma. 0 is always reached, 1 by a sure base alone.
    ("nudging", 0.25, P, Q, ALL),
    ("nudging", 0.25 + BIT, P, Q, NONE),
    ("nudging", 0.0, P, Q, ALL),
    ("nudging", 1.0, P, Q, NONE),
    ("nudging", 1.0, SURE, Q, ALL),
    # bet: p(v) >= max q - lambda; where that is 0 or less, everything.
    ("bet", 0.0, Q, Q, [1, 2]),
    ("bet", 0.0, P, Q, NONE),
    ("bet", 0.25 - BIT, P, Q, NONE),
    ("bet", 0.25, P, Q, FOUR),
    ("bet", 0.5 - BIT, P, Q, FOUR),
    ("bet", 0.5, P, Q, ALL),
    ("bet", 1.0, P, Q, ALL),
    ("bet", 1.0, P, SURE, ALL),
    ("bet", 0.0, P, SURE, NONE),
    ("bet", 0.0, SURE, SURE, [0]),
    # chow: nothing iff max q >= 1 - a.
    ("chow", 0.5, P, Q, NONE),
    ("chow", 0.5 - BIT, P, Q, ALL),
    ("chow", 0.0, P, Q, ALL),
    ("chow", 0.0, P, SURE, NONE),
    ("chow", 1.0, P, Q, NONE),
    # diff: nothing iff max q >= max p - a.
    ("diff", 0.0, P, P, NONE),
    ("diff", -BIT, P, P, ALL),
    ("diff", 0.25, Q, P, NONE),
    ("diff", 0.25 - BIT, Q, P, ALL),
    ("diff", -0.25, P, Q, NONE),
    ("diff", -0.25 - BIT, P, Q, ALL),
    ("diff", 1.0, SURE, Q, NONE),
    ("diff", -1.0, P, SURE, ALL),
    # opt: nothing iff max q >= max p - a TV. TV(Q, P) = 1/2 and max q = max p - 1/4, so at a = 1/2.
    ("opt", 0.5, Q, P, NONE),
    ("opt", 0.5 - BIT, Q, P, ALL),
    ("opt", 0.0, P, P, NONE),
    ("opt", 0.0, Q, P, ALL),
    ("opt", 10.0, SURE, Q, NONE),
    ("opt", 10.0, P, P, NONE),
    # token-v1: q(v) >= max p - a.
    ("token-v1", 0.0, Q, Q, [1, 2]),
    ("token-v1", 0.25, Q, P, FOUR),
    ("token-v1", 0.25 - BIT, Q, P, NONE),
    ("token-v1", 0.25, P, Q, ALL),
    ("token-v1", 1.0, P, Q, ALL),
    ("token-v1", -0.25, P, Q, [1, 2]),
    ("token-v1", -1.0, P, SURE, NONE),
    # token-v2: p(v) >= max p - a.
    ("token-v2", 0.0, Q, P, [1, 2]),
    ("token-v2", 0.5 - BIT, Q, P, [1, 2]),
    ("token-v2", 0.5, Q, P, ALL),
    ("token-v2", 1.0, P, Q, ALL),
    ("token-v2", -BIT, P, Q, NONE),
    ("token-v2", -1.0, P, Q, NONE),
    # token-v3: p(v) >= (1 - a) max p.
    ("token-v3", 0.0, Q, P, [1, 2]),
    ("token-v3", 1 - BIT, Q, P, [1, 2]),
    ("token-v3", 1.0, Q, P, ALL),
]


@pytest.fixture(scope="module")
def core() -> law.Core:
    return law.under_test()


@pytest.mark.parametrize("rule, threshold, p, q, kept", EDGES)
def test_the_edge(core: law.Core, rule: str, threshold: float, p: list[float], q: list[float], kept: list[int]) -> None:
    base, aligned = law.logits(p), law.logits(q)
    case = law.Case(base, aligned, rule, threshold)
    assert np.flatnonzero(~law.deferral(core, case)).tolist() == kept
    assert np.flatnonzero(reference.kept(rule, threshold, base, 1.0, aligned)).tolist() == kept


@pytest.mark.parametrize("rule", ["token-v2", "token-v3"])
def test_a_row_compared_with_itself_keeps_its_best(core: law.Core, rule: str) -> None:
    """a = 0, the default of token-v2: T is the base's best token, or all of them when they tie, whatever the normaliser."""
    generator = np.random.default_rng(8)
    for k in range(2000):
        base = (0.2 * generator.standard_normal(1 + k % 50)).astype(np.float32)
        base[generator.integers(base.size)] = base.max()
        best = base == base.max()
        np.testing.assert_array_equal(~law.deferral(core, law.Case(base, base, rule, 0.0)), best)
        np.testing.assert_array_equal(reference.kept(rule, 0.0, base, 1.0, base), best)


@pytest.mark.parametrize("rule, kept", [("dual", []), ("nudging", []), ("bet", []), ("token-v2", [0, 1])])
def test_large_logits_do_not_swallow_the_threshold(core: law.Core, rule: str, kept: list[int]) -> None:
    """Two equal logits of 1e17 are two halves; 0.75 is not reached, though 1e17 + log 0.75 rounds to 1e17."""
    base = np.array([1e17, 1e17, 0], dtype=np.float32)
    threshold = {"dual": 0.75, "nudging": 0.75, "bet": 0.25, "token-v2": 0.0}[rule]
    case = law.Case(base, law.logits([1.0, 0.0, 0.0]), rule, threshold)
    assert np.flatnonzero(~law.deferral(core, case)).tolist() == kept
    assert np.flatnonzero(case.decision.kept).tolist() == kept


@pytest.mark.parametrize("rule", ["dual", "primal", "exact", "bet", "opt", "token-v1"])
@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e300, 1.7e308])
def test_rule_temperatures_at_the_ends_of_what_a_double_holds(core: law.Core, rule: str, temperature: float) -> None:
    """Cooled to one token or warmed to equal ones, impossible tokens among them: pi is a distribution."""
    rng = np.random.default_rng(0)
    p, q = rng.normal(0, 3, (2, 2000)).astype(np.float32)
    p[::3] = q[1::7] = -np.inf
    pi = law.mixture(core, law.Case(p, q, rule, rule_temperature=temperature))
    assert np.all(pi >= 0) and pi.sum() == pytest.approx(1, abs=1e-9)


def test_beta_0_is_the_base_where_all_can_speak(core: law.Core) -> None:
    base = law.logits([0.5, 0.25, 0.125, 0.125, 0.0])
    aligned, third = law.logits([0.0, 0.5, 0.25, 0.125, 0.125]), law.logits([0.25] * 4 + [0.0])
    for beta, wanted in ((0.0, [0, 0.5, 0.25, 0.25, 0]), (1.0, [0, 8 / 11, 2 / 11, 1 / 11, 0])):
        case = law.Case(base, aligned, "implicit-reward", beta, reference=third)
        assert law.mixture(core, case) == pytest.approx(wanted, abs=1e-6)
        oracle = reference.mixture(base, aligned, rule="implicit-reward", threshold=beta, reference_logits=third)
        assert oracle == pytest.approx(wanted, abs=1e-7)


def test_beta_10_finds_the_token_that_alignment_raised_most(core: law.Core) -> None:
    """pi proportional to p (q / r)^10: 1/2, 1/4, 1/4 times 1, 2^10, 2^-10."""
    base, aligned, third = (law.logits(x) for x in ([0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.5, 0.125, 0.5]))
    case = law.Case(base, aligned, "implicit-reward", 10.0, reference=third)
    weights = np.array([2.0, 2.0**10, 2.0**-10])
    assert law.mixture(core, case) == pytest.approx(weights / weights.sum(), abs=1e-6)
