"""How sure can one be of an accuracy, and of a difference between two settings?

Questions are the unit. With one answer to a question both are textbook methods; with several answers (seeds) the answers
to one question go together, and what is counted is how much a question tells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, quantiles

import numpy as np

__all__ = ["PairedTest", "Share", "Spread", "holm", "paired_test", "share", "sign_flip", "spread", "wilson"]

_Z = NormalDist().inv_cdf(0.975)  # for intervals of 95 %


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval; `value` is NaN of nothing.

    `effective` is the number of independent answers that tell as much: between the number of questions and of answers.
    """

    value: float
    low: float
    high: float
    right: int
    answers: int
    questions: int
    effective: float


@dataclass(frozen=True)
class Spread:
    """A median with the lower and the upper quartile."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Two settings on the same questions and seeds.

    `difference` is first - second, in accuracy over what both answered; `better` and `worse` count the questions where the
    first has more, and fewer, right answers. `p` is two-sided and exact, `adjusted` is Holm's.
    """

    first: str
    second: str
    difference: float
    better: int
    worse: int
    questions: int
    p: float
    adjusted: float


def wilson(value: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share `value` of `n` answers (a whole number or not)."""
    if n <= 0:
        return 0.0, 1.0
    z2 = _Z * _Z / n
    middle = (value + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(value * (1 - value) / n + z2 / n / 4) / (1 + z2)
    # At either end the two terms are equal, and rounding must not leave the range.
    return (0.0 if value == 0 else max(0.0, middle - half)), (1.0 if value == 1 else min(1.0, middle + half))


def share(marks: Mapping[str, Sequence[bool]]) -> Share:
    """Return the share of right answers; `marks` has the answers of every question.

    With one answer to a question it is Wilson's interval. With several, n in it is the effective sample size: a share of
    independent answers has the variance p (1 - p) / n, so n = p (1 - p) / V, with V the variance of the share as estimated
    from the questions' totals. It is kept between the number of questions (all answers to a question agree) and of answers
    (they are independent).
    """
    totals = [(sum(given), len(given)) for given in marks.values() if given]
    answers, right, questions = sum(k for _, k in totals), sum(c for c, _ in totals), len(totals)
    if not answers:
        return Share(math.nan, 0.0, 1.0, 0, 0, 0, 0.0)
    value = right / answers
    effective = _effective(totals, value, answers)
    low, high = wilson(value, effective)
    return Share(value, low, high, right, answers, questions, effective)


def _effective(totals: Sequence[tuple[int, int]], value: float, answers: int) -> float:
    questions = len(totals)
    squares = math.fsum((c - value * k) ** 2 for c, k in totals)
    if questions < 2 or squares == 0:
        return float(questions)  # nothing is known of the spread: the cautious end
    variance = squares * questions / (questions - 1) / answers**2
    return min(float(answers), max(float(questions), value * (1 - value) / variance))


def sign_flip(differences: Iterable[int]) -> float:
    """Return the two-sided p of the exact sign-flip test: could these differences as well have had the other signs?

    If two settings are equally good, each question's difference is as likely as its negative. p is the share of all
    2**n choices of signs whose sum is at least as far from 0. Differences of 1 and -1 give the exact test of McNemar.
    The distribution of the sum is built one difference at a time; sums are whole numbers, so "as far" is exact.
    """
    given = list(differences)
    sizes, observed = [abs(d) for d in given if d], abs(sum(given))
    reach = sum(sizes)
    law = np.zeros(2 * reach + 1)
    law[reach] = 1.0
    for size in sizes:
        law = (np.roll(law, size) + np.roll(law, -size)) / 2  # never wraps: the ends are empty until the last one
    sums = np.abs(np.arange(-reach, reach + 1))
    return float(min(1.0, law[sums >= observed].sum()))


def paired_test(
    first: str, second: str, a: Mapping[str, Mapping[int, bool]], b: Mapping[str, Mapping[int, bool]]
) -> PairedTest | None:
    """Compare two settings, given for each question the answers by repetition; None when no answer is shared."""
    differences, answers = [], 0
    for question, given in a.items():
        shared = [n for n in given if n in b.get(question, {})]
        if shared:
            differences.append(sum(given[n] for n in shared) - sum(b[question][n] for n in shared))
            answers += len(shared)
    if not answers:
        return None
    p = sign_flip(differences)
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return PairedTest(first, second, sum(differences) / answers, better, worse, len(differences), p, p)


def holm(values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values: of the k-th smallest of m, the largest so far of (m - k + 1) p, at most 1."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = largest
    return adjusted


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles; NaN of nothing."""
    if not values:
        return Spread(math.nan, math.nan, math.nan)
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)
