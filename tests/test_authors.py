"""The authors' published setting, from the definitions in their papers, beside ours.

They cool both rows by the sampling temperature first, choose the set on the cooled p, and sample from the mixture of the
cooled rows (KAD, arXiv 2510.27017, and its follow-up 2604.16146; NUDGING, 2410.09300). rule_temperature="sampling" is
that. What is deliberately different is stated and shown below, each with a case in which it matters:

- budgets: theirs, when drafting, is one budget for all positions of the draft window; ours is one for each position;
- the end of a text: theirs are the logits as they come; ours folds all end-of-generation tokens into one before a rule
  or a sampler sees them;
- samplers: theirs act on the mixture; ours on each speaker's own row.
"""

from __future__ import annotations

import law
import numpy as np
import pytest

from kad_llama import reference

T = 0.7


@pytest.fixture(scope="module")
def core() -> law.Core:
    return law.under_test()


def cooled(logits: law.Row32) -> reference.Row:
    weights = np.exp((logits.astype(np.float64) - logits.max()) / T)
    return weights / weights.sum()


# Their sets, on cooled rows: what is deferred.


def authors_dual(p: reference.Row, q: reference.Row, lambda_: float) -> reference.Mask:
    """The Lagrangian relaxation defers v iff its gain -p log p exceeds the price of its mass: -log p(v) > mu."""
    mu = -np.log(lambda_)
    return -np.log(p) > mu


def authors_primal(p: reference.Row, q: reference.Row, budget: float) -> reference.Mask:
    """Dantzig's greedy: fill the budget with the least probable tokens, in order, up to the critical item."""
    order = np.argsort(p, kind="stable")
    deferred = np.zeros(p.size, dtype=bool)
    deferred[order[np.cumsum(p[order]) <= budget]] = True
    return deferred


def authors_nudging(p: reference.Row, q: reference.Row, gamma: float) -> reference.Mask:
    """The aligned model nudges where the base is not sure of its best token."""
    return np.full(p.size, p.max() < gamma)


def authors_bet(p: reference.Row, q: reference.Row, lambda_: float) -> reference.Mask:
    """A base token is rejected when the aligned model is surer of its own best by more than lambda."""
    return p < q.max() - lambda_


AUTHORS = {"dual": authors_dual, "primal": authors_primal, "nudging": authors_nudging, "bet": authors_bet}


def published(rule: str, threshold: float, base: law.Row32, aligned: law.Row32) -> reference.Row:
    """Their distribution: a base token that is not rejected stands, else the aligned model draws."""
    p, q = cooled(base), cooled(aligned)
    deferred = AUTHORS[rule](p, q, threshold)
    return np.where(deferred, 0, p) + p[deferred].sum() * q


@pytest.mark.parametrize("rule", list(AUTHORS))
def test_the_published_distribution(core: law.Core, rule: str) -> None:
    """Random rows without ties, at thresholds all over the range. Both kinds of set occur, and so the test is not idle."""
    generator = np.random.default_rng(4)
    differs = some = 0
    for k in range(300):
        size, threshold = int(generator.integers(2, 400)), float(generator.uniform(0.05, 0.95))
        base, aligned = (generator.uniform(0.3, 5) * generator.standard_normal((2, size))).astype(np.float32)
        case = law.Case(base, aligned, rule, threshold, T, "sampling")
        wanted = published(rule, threshold, base, aligned)
        assert np.abs(law.mixture(core, case) - wanted).max() < 1e-9, (k, threshold)
        assert np.abs(reference.mix(*case.distributions()) - wanted).max() < 1e-6  # its shaped rows are floats
        raw = law.mixture(core, law.Case(base, aligned, rule, threshold, T))
        differs += bool(np.abs(raw - wanted).max() > 1e-3)
        some += bool(np.abs(wanted - cooled(aligned)).max() > 1e-3)
    assert differs > 20, "the raw and the cooled rows never decided differently"
    assert some > 20, "the base never spoke"


# ---- Where ours differs, deliberately --------------------------------------------------------------------------------


def pooled_primal(rows: list[reference.Row], budget: float) -> list[reference.Mask]:
    """Their drafting path: one budget over the window, filled with the least probable tokens of all its positions."""
    mass = np.concatenate(rows)
    deferred = authors_primal(mass, mass, budget)
    return np.split(deferred, np.cumsum([row.size for row in rows])[:-1])


def test_the_budget_is_one_per_position(core: law.Core) -> None:
    """Budget 0.5. By itself position 0 defers .25 + .2. Pooled with the position behind it, which is drafted in the same
    window, the least probable are .04, .06 and .2, and .25 no longer fits: its distribution depends on the window."""
    rows = [law.logits([0.55, 0.25, 0.2]), law.logits([0.9, 0.06, 0.04])]
    by_itself = [law.deferral(core, law.Case(base, base, "primal", 0.5)).tolist() for base in rows]
    assert by_itself == [[False, True, True], [False, True, True]]
    p = [reference.softmax(base) for base in rows]
    assert [d.tolist() for d in pooled_primal(p[:1], 0.5)] == by_itself[:1]
    assert [d.tolist() for d in pooled_primal(p, 0.5)] == [[False, False, True], [False, True, True]]


def test_the_end_of_a_text_is_one_event(core: law.Core) -> None:
    """Two ways to end, 0.25 each: as they come neither reaches 0.4 and the base cannot end the text; folded they do."""
    base, aligned = law.logits([0.3, 0.2, 0.25, 0.25]), law.logits([0.5, 0.3, 0.1, 0.1])
    as_they_come = law.deferral(core, law.Case(base, aligned, "dual", 0.4))
    assert as_they_come.all()
    fold = [np.logaddexp(row[2], row[3]) for row in (base, aligned)]
    folded = [
        np.array([*row[:2], end, -np.inf], dtype=np.float32) for row, end in zip((base, aligned), fold, strict=True)
    ]
    case = law.Case(*folded, "dual", 0.4)
    assert law.deferral(core, case).tolist() == [True, True, False, True]
    assert law.mixture(core, case) == pytest.approx([0.25, 0.15, 0.6, 0], abs=1e-6)


def test_samplers_act_on_each_speaker(core: law.Core) -> None:
    """top-p 0.6, the base keeps token 0. The mixture is .46 .24 .24 .06, of which top-p leaves tokens 0 and 1. Ours: of
    the base it leaves 0 and 1 (2/3, 1/3), of the aligned model 1 and 2 (1/2, 1/2): pi = 2/3 [v = 0] + 1/3 q'."""
    base, aligned = law.logits([0.4, 0.2, 0.2, 0.2]), law.logits([0.1, 0.4, 0.4, 0.1])
    theirs = reference.log_pi(law.mixture(core, law.Case(base, aligned, "dual", 0.35)))
    theirs = reference.softmax(reference.shape(theirs, top_p=0.6))
    assert theirs == pytest.approx([0.46 / 0.7, 0.24 / 0.7, 0, 0], abs=1e-6)
    case = law.Case(base, aligned, "dual", 0.35, top_p=0.6)
    found = law.integrate(law.core_draw(core, case), 4).said.sum(axis=1)
    assert found == pytest.approx([2 / 3, 1 / 6, 1 / 6, 0], abs=1e-6)
