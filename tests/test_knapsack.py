"""Is the knapsack solved? Against all subsets, an independent solver of integer programs, and known optima.

Nothing here samples: rows come from fixed seeds or from hypothesis with derandomize, so no test fails by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import law
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from test_mutants import Mutant, Workshop

import kad_llama
from kad_llama import Knapsack, knapsack, reference

CLOSE = 1e-9  # the tolerance to which a value is proved
KINDS = ("peaked", "ordinary", "flat", "tied", "zeros", "head and dust", "extreme")


def make_row(kind: str, size: int, seed: int) -> reference.Row:
    """Probabilities of one of KINDS, summing to 1."""
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal(size)
    if kind == "peaked":
        logits[generator.integers(size)] += 6
    elif kind == "ordinary":
        logits *= 3
    elif kind == "flat":
        logits *= 1e-3
    elif kind == "tied":
        logits = np.round(logits)
    elif kind == "zeros":
        logits = np.where(generator.random(size) < 0.5, -np.inf, logits)
        logits[generator.integers(size)] = 0.0
    elif kind == "head and dust":
        logits[size // 3 :] -= 8
    else:
        logits *= 200
    return reference.softmax(logits)


def value_of(p: reference.Row, keep: reference.Mask) -> float:
    return float(reference.knapsack_values(p)[~keep].sum())


def complaints(p: reference.Row, budget: float, found: Knapsack) -> Iterator[str]:
    """What every answer must satisfy, whatever the row."""
    if budget < 1 and p[~found.kept].sum() > budget * reference.FITS + 1e-15:
        yield f"deferred mass {p[~found.kept].sum()!r} above the budget {budget!r}"
    if (p[found.kept] == 0).any():
        yield "keeps a token of probability 0"
    if not np.isclose(found.value, value_of(p, found.kept), rtol=1e-12, atol=1e-12):
        yield f"says value {found.value!r}, the set has {value_of(p, found.kept)!r}"
    if not found.bound >= found.value:
        yield f"bound {found.bound!r} below value {found.value!r}"
    if found.gap != ((found.bound - found.value) / found.bound if found.bound > 0 else 0):
        yield f"gap {found.gap!r} is not that of {found.value!r} and {found.bound!r}"
    if found.certified != (found.gap <= CLOSE):
        yield f"certified {found.certified} with gap {found.gap!r}"


def brute_force_complaints(p: reference.Row, budget: float, found: Knapsack) -> list[str]:
    best = reference.knapsack_brute_force(p, budget)[1]
    wrong = list(complaints(p, budget, found))
    if not found.certified:
        wrong.append(f"gap {found.gap!r} at V = {p.size}")
    if abs(found.value - best) > 1e-12 + CLOSE * best:
        wrong.append(f"value {found.value!r}, best {best!r}")
    if found.bound < best - 1e-12:
        wrong.append(f"bound {found.bound!r} below the best, {best!r}")
    return [f"p = {p.tolist()}, b = {budget!r}: {text}" for text in wrong]


BUDGETS = st.one_of(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0]), st.floats(0, 1))
ROWS = st.builds(make_row, st.sampled_from(KINDS), st.integers(1, 14), st.integers(0, 2**31))


@settings(max_examples=1200, deadline=None, derandomize=True, database=None)
@given(p=ROWS, budget=BUDGETS)
def test_every_subset_is_no_better(p: reference.Row, budget: float) -> None:
    assert not brute_force_complaints(p, budget, knapsack(p, budget))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(p=ROWS, data=st.data())
def test_a_budget_that_a_subset_fills_exactly(p: reference.Row, data: st.DataObject) -> None:
    """The mass of some subset as NumPy sums it: that subset must fit, however the solver adds it up."""
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=p.size, max_size=p.size)))
    budget = min(1.0, float(p[chosen].sum()))
    assert not brute_force_complaints(p, budget, knapsack(p, budget))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [0.15, 0.9])
def test_every_subset_of_twenty(kind: str, budget: float) -> None:
    p = make_row(kind, 20, 11)
    assert not brute_force_complaints(p, budget, knapsack(p, budget))


def test_the_set_where_it_is_the_only_one() -> None:
    """All subsets again, but the sets compared: no other within 1e-7 of the best, and none about to fit."""
    compared = 0
    for seed in range(200):
        p = make_row(KINDS[seed % 2], 10, seed)
        budget = 0.2 + 0.7 * seed / 200
        deferred = (np.arange(1024)[:, None] >> np.arange(10) & 1).astype(bool)
        mass, value = deferred @ p, deferred @ reference.knapsack_values(p)
        feasible = mass <= budget * reference.FITS
        best = int(np.argmax(np.where(feasible, value, -1.0)))
        rivals = (value > value[best] - 1e-7) & (mass < budget + 1e-7)
        if rivals.sum() == 1:
            compared += 1
            assert np.array_equal(knapsack(p, budget).kept, ~deferred[best]), f"seed {seed}"
    assert compared > 150


# ---- Hundreds of tokens ----------------------------------------------------------------------------------------------

UNITS = 2**20
SCALE = 1e4
NDArrayInt = np.ndarray[Any, np.dtype[np.int64]]


def whole_row(kind: str, size: int, seed: int) -> NDArrayInt:
    """Weights in whole units of 2^-20: p = weights / UNITS is exact, and so is every sum of them."""
    weights = np.floor(make_row(kind, size, seed) * UNITS).astype(np.int64)
    weights[int(np.argmax(weights))] += UNITS - weights.sum()
    return weights


@pytest.mark.parametrize("size, kind, budget", [
    (size, kind, budget)
    for size in (100, 400)
    for kind in ("peaked", "ordinary", "tied", "zeros", "head and dust")
    for budget in (0.5, 0.9)
])  # fmt: skip
def test_an_integer_program_agrees(size: int, kind: str, budget: float) -> None:
    """HiGHS, with mip_rel_gap 1e-9; its absolute gap of 1e-6 cannot be set and applies to values times 1e4: 1e-10.

    Its constraints may be violated by 1e-6, of one unit out of 2^20 here: a sum of whole units cannot use that. Whether
    or not it ends within its node limit, its best set and its bound must enclose ours.
    """
    weights = whole_row(kind, size, 5)
    p = weights / UNITS
    found = knapsack(p, budget)
    answer = milp(
        -SCALE * reference.knapsack_values(p),
        integrality=np.ones(size),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(weights[None, :], -np.inf, np.floor(budget * UNITS)),
        options={"mip_rel_gap": 1e-9, "node_limit": 2000},
    )
    assert answer.x is not None
    keep = np.round(answer.x) == 0
    assert weights[~keep].sum() <= budget * UNITS
    assert found.value >= value_of(p, keep) * (1 - CLOSE) - 1e-12
    assert found.value <= -answer.mip_dual_bound / SCALE * (1 + CLOSE)
    assert found.bound >= value_of(p, keep) - 1e-12
    assert not list(complaints(p, budget, found))


# ---- Greedy is rule primal -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [7, 300, 49_152])
@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
def test_greedy_is_rule_primal(size: int, spread: float) -> None:
    generator = np.random.default_rng(size)
    for tied in (False, True):
        logits = (spread * generator.standard_normal(size)).astype(np.float32)
        logits = np.round(logits) if tied else logits
        p = kad_llama.mixture(logits, logits, rule="base")
        for budget in (0.05, 0.3, 0.9, 1.0):
            found = knapsack(p, budget, method="greedy")
            deferred = kad_llama.deferral(logits, logits, rule="primal", threshold=budget)
            assert np.array_equal(found.kept, ~deferred), f"b = {budget}, tied {tied}"
            assert found.bound >= found.value
            assert np.isclose(found.value, value_of(p, found.kept), rtol=1e-12)
            assert knapsack(p, budget).value >= found.value * (1 - 1e-12)


@pytest.mark.parametrize("size, rows", [(40, 200), (2048, 200), (262_144, 20)])
def test_rule_exact_is_the_solver(size: int, rows: int) -> None:
    """The rule's set, from logits: within the budget, and worth what the solver finds for the same probabilities."""
    generator = np.random.default_rng(size)
    for k in range(rows):
        logits = (generator.uniform(0.5, 8) * generator.standard_normal(size)).astype(np.float32)
        logits[generator.random(size) < 0.2 * (k % 2)] = -np.inf
        budget = (0.9, 0.6, float(generator.random()))[k % 3]
        p = reference.softmax(logits)
        deferred = kad_llama.deferral(logits, logits, rule="exact", threshold=budget)
        found = kad_llama.knapsack(p, budget)
        assert p[deferred].sum() <= budget * (1 + 1e-9)
        inside = p[deferred & (p > 0)]
        assert -(inside * np.log(inside)).sum() == pytest.approx(found.value, rel=1e-9 + 2 * found.gap)


def test_the_bound_of_greedy_is_the_relaxation() -> None:
    """By hand: of (.6, .3, .1) within .9, .1 and .3 are deferred whole, and .5 of .6."""
    found = knapsack([0.6, 0.3, 0.1], 0.9, method="greedy")
    h = -np.log([0.6, 0.3, 0.1]) * [0.6, 0.3, 0.1]
    assert found.kept.tolist() == [True, False, False]
    assert found.value == pytest.approx(h[1] + h[2], rel=1e-14)
    assert found.bound == pytest.approx(h[1] + h[2] + h[0] * 0.5 / 0.6, rel=1e-11)
    assert found.gap == (found.bound - found.value) / found.bound and not found.certified


# ---- Edges -----------------------------------------------------------------------------------------------------------


def test_the_optimum_may_hand_over_the_most_probable_token() -> None:
    found = knapsack([0.6, 0.3, 0.1], 0.9)
    assert found.kept.tolist() == [False, False, True] and found.certified
    assert found.value == pytest.approx(-0.6 * np.log(0.6) - 0.3 * np.log(0.3), rel=1e-14)


@pytest.mark.parametrize("method", ["exact", "greedy"])
def test_budgets_of_nothing_and_everything(method: Any) -> None:
    p = [0.5, 0.25, 0.0, 0.25]
    nothing, everything = knapsack(p, 0, method=method), knapsack(p, 1, method=method)
    assert nothing.kept.tolist() == [True, True, False, True] and nothing.value == nothing.bound == nothing.gap == 0
    assert not everything.kept.any() and everything.value == pytest.approx(np.log(2) / 2 + np.log(4) / 2, rel=1e-14)
    assert everything.certified


def test_a_budget_of_one_defers_a_sum_slightly_above_it() -> None:
    assert not knapsack([0.50004, 0.25, 0.25], 1).kept.any()


def test_rounding_of_a_sum_is_no_reason_to_keep() -> None:
    assert 0.1 + 0.1 + 0.1 > 0.3
    assert knapsack([0.1, 0.1, 0.1, 0.7], 0.3).kept.tolist() == [False, False, False, True]
    assert knapsack(np.full(10, 0.1), 0.7).kept.sum() == 3


def test_one_token() -> None:
    for budget, keep in ((0.0, True), (0.5, True), (1.0, False)):
        found = knapsack([1.0], budget)
        assert (found.kept.tolist(), found.value, found.gap) == ([keep], 0, 0)


def test_equals_are_deferred_by_falling_id() -> None:
    assert knapsack([0.2] * 5, 0.5).kept.tolist() == [True, True, True, False, False]
    assert knapsack([0.2] * 5, 0.5, method="greedy").kept.tolist() == [True, True, True, False, False]


def test_subnormal_probabilities() -> None:
    found = knapsack([1.0, 5e-324, 1e-310, 1e-300], 0.9)
    assert found.kept.tolist() == [True, False, False, False] and found.certified


# ---- A function of p -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ordinary", "head and dust", "flat"])
def test_the_same_row_gives_the_same_set(kind: str) -> None:
    """Whatever the workspace was used for in between; "flat" ends at the work limit."""
    p = make_row(kind, 2000, 3)
    first = knapsack(p, 0.6)
    knapsack(make_row("ordinary", 5000, 4), 0.2)
    knapsack([0.5, 0.5], 0.3, method="greedy")
    again = knapsack(p, 0.6)
    assert np.array_equal(first.kept, again.kept)
    assert (first.value, first.bound, first.nodes) == (again.value, again.bound, again.nodes)


@pytest.mark.parametrize("kind", ["peaked", "ordinary", "zeros", "head and dust"])
def test_ids_do_not_matter_where_probabilities_differ(kind: str) -> None:
    for seed in range(20):
        p = make_row(kind, 500, seed)
        order = np.random.default_rng(seed).permutation(p.size)
        assert np.array_equal(knapsack(p, 0.9).kept[order], knapsack(p[order], 0.9).kept), f"seed {seed}"


# ---- Flat rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, budget", [(1000, 0.3005), (4096, 0.7), (49_152, 0.9)])
def test_equal_probabilities(size: int, budget: float) -> None:
    """Any floor(b V) tokens are optimal."""
    found = knapsack(np.full(size, 1 / size), budget)
    best = np.floor(budget * size) * np.log(size) / size
    assert found.value == pytest.approx(best, rel=1e-9) and found.certified
    assert found.bound >= best * (1 - 1e-12)


@pytest.mark.parametrize("size, budget", [(1000, 0.3005), (1000, 0.7005), (4096, 1000.5 / 4096)])
def test_nearly_equal_probabilities_reach_the_work_limit(size: int, budget: float) -> None:
    """p(v) = (1 + e)/V with |e| < 1e-5 and b = (m + 1/2)/V: any m tokens fit and no m + 1, so the m greatest are best."""
    noise = 1e-5 * np.random.default_rng(1).uniform(-1, 1, size)
    p = (1 + noise - noise.mean()) / size
    best = np.sort(reference.knapsack_values(p))[::-1][: int(budget * size)].sum()
    found = knapsack(p, budget)
    assert not found.certified and found.gap > CLOSE
    assert found.value <= best * (1 + 1e-12) and best <= found.bound
    assert found.value >= best * (1 - 2e-5)
    assert not list(complaints(p, budget, found))


# ---- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p, named", [
    ([0.5, np.nan, 0.5], r"p\[1\] is -?nan"),
    ([0.5, 0.5, -0.25], r"p\[2\] is -0.25"),
    ([1.5, 0.0], r"p\[0\] is 1.5"),
    ([np.inf, 0.0], r"p\[0\] is inf"),
    ([0.5, 0.25], "sums to 0.75"),
    ([0.5, 0.5002], "sums to 1.0002"),
    ([], r"shape \(0,\)"),
    ([[0.5, 0.5]], r"shape \(1, 2\)"),
    (["a"], "dtype <U1"),
    ([True, False], "dtype bool"),
    ([0.5j, 0.5], "dtype complex128"),
])  # fmt: skip
@pytest.mark.parametrize("method", ["exact", "greedy"])
def test_rows_that_are_no_distribution(p: Any, named: str, method: Any) -> None:
    with pytest.raises(kad_llama.errors.InvalidArgumentError, match=named):
        knapsack(p, 0.9, method=method)


@pytest.mark.parametrize("budget, named", [
    (-0.1, "budget -0.1"),
    (1.1, "budget 1.1"),
    (np.nan, "budget is nan"),
    ("0.9", "budget is '0.9'"),
    (None, "budget is None"),
])  # fmt: skip
def test_budgets_out_of_range(budget: Any, named: str) -> None:
    with pytest.raises(kad_llama.errors.InvalidArgumentError, match=named):
        knapsack([0.5, 0.5], budget)


def test_methods_that_are_none() -> None:
    with pytest.raises(kad_llama.errors.InvalidArgumentError, match="'best'"):
        knapsack([0.5, 0.5], 0.9, method="best")  # type: ignore[arg-type]


def test_null_pointers_and_untouched_outputs() -> None:
    core = law.under_test()
    ffi, lib = core.ffi, core.lib
    p, kept, out = ffi.new("double[2]", [0.5, 0.6]), ffi.new("uint8_t[2]", [7, 7]), ffi.new("kad_knapsack_result *")
    for arguments, named in (
        ((ffi.NULL, 2, 0.9, 1, kept, out), "p is NULL"),
        ((p, 2, 0.9, 1, ffi.NULL, out), "kept is NULL"),
        ((p, 2, 0.9, 1, kept, ffi.NULL), "out is NULL"),
        ((p, 0, 0.9, 1, kept, out), "n is 0"),
        ((p, 2, 0.9, 1, kept, out), "sums to 1.1"),
    ):
        assert lib.kad_knapsack(*arguments) == 1  # KAD_INVALID_ARGUMENT
        assert named in core.error()
    assert list(kept) == [7, 7] and out.nodes == 0


# ---- Mutants ---------------------------------------------------------------------------------------------------------


def core_knapsack(core: law.Core, p: reference.Row, budget: float) -> Knapsack:
    kept = np.empty(p.size, dtype=np.uint8)
    out = core.ffi.new("kad_knapsack_result *")
    row = np.ascontiguousarray(p)
    pointers = law.pointer(core, row, "double *"), core.ffi.cast("uint8_t *", core.ffi.from_buffer(kept))
    law.check(core, core.lib.kad_knapsack(pointers[0], p.size, budget, 1, pointers[1], out))
    return Knapsack(kept.astype(bool), out.value, out.bound, out.gap, out.nodes, bool(out.certified))


def optimum_check(core: law.Core) -> list[str]:
    """Small rows against all subsets."""
    wrong = []
    for seed in range(140):
        p, budget = make_row(KINDS[seed % 7], 10, seed), (0.3, 0.6, 0.9)[seed % 3]
        wrong += brute_force_complaints(p, budget, core_knapsack(core, p, budget))
    p = np.array([0.6, 0.3, 0.1])
    return wrong + brute_force_complaints(p, 0.9, core_knapsack(core, p, 0.9))


def honesty_check(core: law.Core) -> list[str]:
    """The bound at the work limit is not below a known optimum."""
    size, budget = 1000, 0.3005
    noise = 1e-5 * np.random.default_rng(1).uniform(-1, 1, size)
    p = (1 + noise - noise.mean()) / size
    best = np.sort(reference.knapsack_values(p))[::-1][:300].sum()
    found = core_knapsack(core, p, budget)
    return [] if found.value <= best * (1 + 1e-12) <= found.bound else [f"bound {found.bound}, optimum {best}"]


def order_check(core: law.Core) -> list[str]:
    """The same probabilities in another order."""
    wrong = []
    for seed in range(20):
        p = make_row("head and dust", 500, seed)
        there, back = core_knapsack(core, p, 0.9), core_knapsack(core, p[::-1], 0.9)
        wrong += [f"seed {seed}"] if (there.kept != back.kept[::-1]).any() else []
    return wrong


FILE = "core/knapsack.cpp"
MUTANTS = [
    Mutant(
        "a bound without the part of the critical token",
        ((FILE, "+ part * value_[critical]", "+ 0 * part"),),
        optimum_check,
    ),
    Mutant("sets above the budget", ((FILE, "budget * (1 + SLACK);\n    end_", "budget * 1.01;\n    end_"),), optimum_check),
    Mutant("the most probable token never alone for the rest", ((FILE, "    record(end - 1);\n", ""),), optimum_check),
    Mutant("no way back", ((FILE, "for (size_t end; backtrack(end);)", "for (size_t end = 0; false;)"),), optimum_check),
    Mutant(
        "a run dropped whole",
        ((FILE, "++last.low;\n        if (hopeless", "last.low = last.high;\n        if (hopeless"),),
        optimum_check,
    ),
    Mutant(
        "a bucket looked into before it is sorted",
        ((FILE, "    if (found < items_) sort_bucket(bucket_of(p_[found]));\n", ""),),
        order_check,
    ),
    Mutant("a limit of work that forgets what is open", ((FILE, "return give_up(end);", "return;"),), honesty_check),
]  # fmt: skip


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, objects: Path) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("knapsack"), objects, law.CORE_SOURCES, law.load)


@pytest.mark.parametrize("check", [optimum_check, honesty_check, order_check])
def test_checks_pass_without_a_mutant(workshop: Workshop, check: Callable[[law.Core], list[str]]) -> None:
    assert check(workshop.unmutated) == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutants_are_caught(workshop: Workshop, mutant: Mutant) -> None:
    assert mutant.check(workshop.build(mutant)), f"{mutant.name}: not caught"
