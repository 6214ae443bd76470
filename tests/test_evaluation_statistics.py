"""Are the intervals and tests of an evaluation the textbooks', and do they keep their error rates with several seeds?"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from kad_llama.evaluation.statistics import holm, paired_test, share, sign_flip, spread, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        # By hand: (p + z2/2n +- z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n), z2 = 3.841459.
        (0, 10, 0.0, 0.27754),
        (10, 10, 0.72246, 1.0),
        (5, 10, 0.23659, 0.76341),
        (81, 263, 0.25529, 0.36621),  # Newcombe 1998, table I
        (15, 148, 0.06238, 0.16048),  # the same
    ],
)
def test_wilson_by_hand(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right / n, n) == pytest.approx((low, high), abs=6e-5)
    found = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right / n, n) == pytest.approx((found.low, found.high), abs=1e-12)
    assert wilson(right / n, n)[0] >= 0 and wilson(right / n, n)[1] <= 1


def test_wilson_of_nothing() -> None:
    assert wilson(math.nan, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 0), (8, 2), (10, 10), (3, 17), (60, 30), (300, 200)])
def test_sign_flip_of_single_answers_is_mcnemar(better: int, worse: int) -> None:
    expected = binomtest(better, better + worse, 0.5).pvalue if better + worse else 1.0
    assert sign_flip([1] * better + [-1] * worse + [0] * 7) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_hand() -> None:
    assert sign_flip([1] * 5) == pytest.approx(2 / 32)
    assert sign_flip([1, 1, 1, -1]) == pytest.approx(2 * (1 + 4) / 16)


@pytest.mark.parametrize("differences", [[3], [2, -1], [1, 2, 3], [3, 3, -2, 1, 0], [2, 2, -2, 1, -1, 3, 0]])
def test_sign_flip_by_enumeration(differences: list[int]) -> None:
    observed = abs(sum(differences))
    flips = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    assert sign_flip(differences) == pytest.approx(sum(f >= observed for f in flips) / len(flips), rel=1e-12)


def test_sign_flip_keeps_its_level() -> None:
    """Two equally good settings, 3 seeds, difficulties that differ: p < 0.05 at most 5 % of the time.

    2,000 evaluations. With a true rate of 5 % more than 131 such p values have a probability below 1e-3.
    """
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(2000):
        difficulty = rng.beta(0.5, 0.5, 40)
        first, second = rng.binomial(3, difficulty), rng.binomial(3, difficulty)
        found += sign_flip((first - second).tolist()) < 0.05
    limit = int(binom.ppf(1 - 1e-3, 2000, 0.05))
    assert limit == 131
    assert found <= limit
    assert found >= 30  # and it is no test that never speaks


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


# ---- Shares -------------------------------------------------------------------------------------------------------------


def test_share_of_single_answers_is_wilson() -> None:
    found = share({str(i): [i < 5] for i in range(10)})
    assert (found.value, found.right, found.answers, found.questions, found.effective) == (0.5, 5, 10, 10, 10.0)
    assert (found.low, found.high) == wilson(0.5, 10)


def test_share_of_nothing() -> None:
    found = share({})
    assert math.isnan(found.value) and (found.low, found.high) == (0.0, 1.0)
    assert share({"a": [True, True], "b": [True, True]}).effective == 2  # nothing differs: the cautious end


def test_effective_answers_by_hand() -> None:
    same = share({str(i): [i < 5] * 4 for i in range(10)})  # four answers that tell no more than one
    assert same.effective == 10 and same.answers == 40
    # Totals 2, 2, 1, 3 of 4: share 1/2, squares 0 + 0 + 1 + 1, V = 2 * 4/3 / 256; 1/4 / V = 24, at most 16 answers.
    spread_out = share(
        {"a": [True, False] * 2, "b": [True, False] * 2, "c": [True] + [False] * 3, "d": [True] * 3 + [False]}
    )
    assert spread_out.effective == 16
    # Totals 4, 0, 3, 1 of 4: squares 4 + 4 + 1 + 1 = 10, V = 10 * 4/3 / 256, n = 1/4 / V = 4.8.
    between = share({"a": [True] * 4, "b": [False] * 4, "c": [True] * 3 + [False], "d": [True] + [False] * 3})
    assert between.effective == pytest.approx(4.8)
    assert between.high - between.low > spread_out.high - spread_out.low


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (3.0, 2.0)])
def test_intervals_of_several_seeds_hold(a: float, b: float) -> None:
    """60 questions, 4 seeds, difficulties from a beta: the 95 % interval has the true share.

    1,000 evaluations. With a true rate of 95 % fewer than 925 have a probability below 1e-3; a rate of 91.5 % would be
    found out with a probability above 0.8. Taking all 240 answers as independent covers 79 % with the first beta.
    """
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(1000):
        answers = rng.random((60, 4)) < rng.beta(a, b, 60)[:, None]
        found = share({str(i): row.tolist() for i, row in enumerate(answers)})
        held += found.low <= a / (a + b) <= found.high
    assert binom.ppf(1e-3, 1000, 0.95) >= 925
    assert held >= 925


# ---- Paired tests and spreads -------------------------------------------------------------------------------------------


def test_pairs_are_what_both_answered() -> None:
    a = {"1": {0: True, 1: True}, "2": {0: True}, "3": {0: False}, "only a": {0: True}}
    b = {"1": {0: False}, "2": {0: True}, "3": {0: True}, "only b": {0: True}}
    found = paired_test("a", "b", a, b)
    assert found is not None
    assert (found.difference, found.better, found.worse, found.questions, found.p) == (0.0, 1, 1, 3, 1.0)
    assert paired_test("a", "b", {"1": {0: True}}, {"1": {1: True}}) is None


def test_several_seeds_of_a_question_go_together() -> None:
    """All the difference comes from one question: that is no evidence, however many seeds there are."""
    a = {"1": dict.fromkeys(range(10), True), "2": dict.fromkeys(range(10), False)}
    b = {"1": dict.fromkeys(range(10), False), "2": dict.fromkeys(range(10), False)}
    found = paired_test("a", "b", a, b)
    assert found is not None and found.p == 1.0 and found.difference == 0.5


def test_spread() -> None:
    assert math.isnan(spread([]).median)
    assert spread([3.0]) == spread([3.0, 3.0, 3.0])
    found = spread([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
