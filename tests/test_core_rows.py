"""Rows that list some of the events are the dense rows with -inf elsewhere; the kernels' digits, bits and allocations."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import core_rows
import law
import numpy as np
import pytest
from core_rows import Pair, Row
from hypothesis import given, settings
from hypothesis import strategies as st
from test_core_properties import KINDS, SAME, make_row, thresholds, warmths
from test_mutants import Mutant, Workshop

from kad_llama import reference

RULES = tuple(rule for rule in reference.RULES if rule != "implicit-reward")  # that one is for equal vocabularies


def processor() -> set[str]:
    """What /proc/cpuinfo says that this processor can do; nothing where it is no x86-64 or does not say."""
    file = Path("/proc/cpuinfo")
    return set(file.read_text().split()) if file.exists() and platform.machine() == "x86_64" else set()


def widths() -> dict[str, tuple[str, ...]]:
    """Ways to compile the kernels that this machine can run: scalar and by width."""
    ways: dict[str, tuple[str, ...]] = {"shipped": ("-O3",), "scalar": ("-O1", "-DKAD_ONE_CLONE")}
    ways["plain"] = ("-O3", "-DKAD_ONE_CLONE")
    ways["shipped to older machines"] = ("-O3", "-DKAD_UNFUSED")
    for name, needs, flags in (
        ("sse4.2", {"sse4_2"}, "-msse4.2"),
        ("avx2", {"avx2"}, "-mavx2"),
        ("avx2 fused", {"avx2", "fma"}, "-mavx2 -mfma"),
        ("avx512 fused", {"avx512f", "fma"}, "-mavx512f -mfma"),
    ):
        if needs <= processor():
            ways[name] = ("-O3", "-DKAD_ONE_CLONE", *flags.split())
    if "avx2 fused" in ways:
        ways["at hand"] = (*ways["avx2 fused"], "-DKAD_UNFUSED")  # and not asked for
        ways["contracted"] = (*ways["at hand"], "-ffp-contract=fast")
    return ways


def fused(name: str) -> bool:
    """Whether multiply-adds of this way round once."""
    glibc = platform.libc_ver()[0] == "glibc"
    return "fused" in name or (name == "shipped" and glibc and {"avx2", "fma"} <= processor())


@pytest.fixture(scope="module")
def cores(tmp_path_factory: pytest.TempPathFactory, objects: Path) -> dict[str, law.Core]:
    return core_rows.build(tmp_path_factory.mktemp("core_rows"), objects, widths())


@pytest.fixture(scope="module")
def core(cores: dict[str, law.Core]) -> law.Core:
    return cores["shipped"]


# ---- Rows that list some of the events -------------------------------------------------------------------------------

WAYS = ("all", "some", "few", "first", "last")


def make_support(dense: law.Row32, way: str, generator: np.random.Generator) -> Row:
    """A row that lists its events in one of WAYS, one that is possible among them."""
    n = dense.size
    best = int(np.argmax(dense))
    if way == "all":
        return Row(dense)
    if way == "first":
        return Row(dense, np.arange(generator.integers(best + 1, n + 1), dtype=np.int32), first=True)
    chosen = generator.random(n) < {"some": 0.5, "few": 0.02, "last": 1.0}[way]
    chosen[: generator.integers(0, best + 1) if way == "last" else 0] = False
    chosen[best] = True
    return Row(dense, np.flatnonzero(chosen).astype(np.int32))


def make_pair(rule: str, kinds: tuple[str, str], ways: tuple[str, str], size: int, seed: int, warmth: Any) -> Pair:
    generator = np.random.default_rng(seed)
    rows = [make_support(make_row(kinds[k], size, seed + k), ways[k], generator) for k in (0, 1)]
    base, aligned = (row.full.dense for row in rows)
    at = warmth[0] if warmth[1] == "sampling" else warmth[1]
    some = thresholds(rule, reference.softmax(base, at), reference.softmax(aligned, at), generator)
    threshold = some[int(generator.integers(len(some)))]
    return Pair(rows[0], rows[1], law.Case(base, aligned, rule, threshold, *warmth))


@st.composite
def pairs(draw: Any, rules: tuple[str, ...] = RULES) -> Pair:
    rule = draw(st.sampled_from(rules))
    size = draw(st.one_of(st.integers(1, 9), st.integers(1, 60 if rule == "exact" else 2600)))
    kinds = draw(st.tuples(*[st.sampled_from(KINDS)] * 2))
    ways = draw(st.tuples(*[st.sampled_from(WAYS)] * 2))
    return make_pair(rule, kinds, ways, size, draw(st.integers(0, 2**20)), draw(warmths()))


def right_set(pair: Pair, kept: np.ndarray, dense: np.ndarray) -> bool:
    """The oracle's set, a row within rounding of equality either way. Rule exact has no oracle for rows of this size."""
    return np.array_equal(kept, dense) if pair.case.rule == "exact" else law.acceptable(pair.case, kept)


def row_failures(core: law.Core, pair: Pair, coins: np.ndarray) -> list[str]:
    """Where a pair and its dense twin differ: exactly 0 where the other is, else by the order of the sums alone."""
    got, dense = core_rows.read(core, pair), core_rows.read(core, pair.full)
    close = {"rtol": 1e-13, "atol": 1e-300}
    checks = {
        "top": got.top == dense.top,
        "p": np.allclose(got.p, dense.p, **close),
        "q": np.allclose(got.q, dense.q, **close),
        "log p": np.allclose(got.log_p, dense.log_p, rtol=1e-13, atol=1e-13),
        "total variation": math.isclose(got.total_variation, dense.total_variation, rel_tol=1e-12, abs_tol=1e-15),
        "kept": right_set(pair, got.kept, dense.kept),
    }
    if np.array_equal(got.kept, dense.kept):
        checks["pi"] = np.allclose(got.pi, dense.pi, rtol=1e-12, atol=1e-15)
        checks["alpha"] = math.isclose(got.alpha, dense.alpha, rel_tol=1e-12, abs_tol=1e-15)
        checks["draws"] = np.array_equal(core_rows.draw(core, pair, coins), core_rows.draw(core, pair.full, coins))
    return [what for what, right in checks.items() if not right]


@settings(SAME, max_examples=1500)
@given(pair=pairs(), seed=st.integers(0, 2**20))
def test_a_row_that_lists_some_events_is_the_dense_row(core: law.Core, pair: Pair, seed: int) -> None:
    """A coin within 1e-13 of a step could fall either way: of the draws made here, one in a million seeds has such."""
    assert row_failures(core, pair, np.random.default_rng(seed).random((12, 4))) == []


def test_errors_name_the_event(core: law.Core) -> None:
    """Of a row that lists events 3, 7 and 8, the second logit is event 7's."""
    listed = np.array([3, 7, 8], dtype=np.int32)
    dense = np.zeros(9, dtype=np.float32)
    dense[7] = np.nan
    case = law.Case(dense, dense)
    for rows in ((Row(dense, listed), Row(dense * 0 + 1)), (Row(dense * 0 + 1), Row(dense, listed))):
        with pytest.raises(AssertionError, match="token 7 is .*nan"):
            core_rows.read(core, Pair(*rows, case))
    dense[:] = -np.inf
    with pytest.raises(AssertionError, match="no token is possible"):
        core_rows.read(core, Pair(Row(dense, listed), Row(dense), case))


# ---- The kernels -----------------------------------------------------------------------------------------------------

needs_long_double = pytest.mark.skipif(
    np.finfo(np.longdouble).eps > 1e-18, reason="long double is no longer than double on this machine"
)


@needs_long_double
def test_the_exponential_is_right_to_one_unit_in_the_last_place(cores: dict[str, law.Core]) -> None:
    y = np.concatenate([np.linspace(0, 1, 20_001), np.random.default_rng(0).uniform(0, 708, 200_000), [1e-300, 708.0]])
    exact = np.exp(-y.astype(np.longdouble))
    for name, core in cores.items():
        if name == "contracted":
            continue
        assert (np.abs(core_rows.exp_minus(core, y) - exact) <= exact * 2.0**-52).all(), name
        assert core_rows.exp_minus(core, [0.0, 709.0, 745.0, 1e300, math.inf]).tolist() == [1, 0, 0, 0, 0], name


@needs_long_double
@pytest.mark.parametrize("size", [1, 7, 511, 513, 5000, 262_144])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 8.0])  # whose inverses are exact
def test_the_normaliser_against_long_double(core: law.Core, size: int, temperature: float) -> None:
    """Within a hundred roundings of a double, of the 584 that one term goes through at most."""
    for k, kind in enumerate(KINDS):
        row = make_row(kind, size, size + k)
        exact = np.exp((row.astype(np.longdouble) - row.max()) / temperature).sum()
        assert abs(core_rows.total(core, row, temperature) - exact) <= 100 * 2.0**-53 * exact, kind


def bits(core: law.Core, size: int, seed: int) -> list[bytes]:
    """Everything the core says of some pairs, to the last bit."""
    said = []
    for k, kind in enumerate(KINDS):
        ways = (("all", "some"), ("first", "all"), ("few", "last"))[k % 3]
        for rule in ("dual", "opt", "token-v3"):
            pair = make_pair(rule, (kind, KINDS[k - 1]), ways, size, seed + k, ((1.0, 1.0), (0.7, 1.0))[k % 2])
            told = core_rows.read(core, pair)
            coins = np.random.default_rng(k).random((20, 4))
            rows = [told.p, told.log_p, told.q, told.pi, told.kept, np.array([told.alpha, told.total_variation])]
            said += [row.tobytes() for row in [*rows, core_rows.draw(core, pair, coins)]]
    return said


@pytest.mark.parametrize("size", [5, 515, 20_000])
@pytest.mark.parametrize("once", [False, True])
def test_every_vector_width_gives_the_same_bits(cores: dict[str, law.Core], once: bool, size: int) -> None:
    """Of the kernels whose multiply-adds round once, and of those whose round twice."""
    ways = [name for name in cores if name != "contracted" and fused(name) == once]
    said = {name: bits(cores[name], size, 31) for name in ways}
    first = next(iter(said.values()), None)
    assert [name for name, each in said.items() if each != first] == []


def test_another_rounding_would_be_noticed(cores: dict[str, law.Core]) -> None:
    if "contracted" not in cores:
        pytest.skip("this machine has no multiply-adds that round once")
    for name in ("avx2 fused", "contracted"):
        assert bits(cores[name], 515, 31) != bits(cores["scalar"], 515, 31), name


# ---- Threads that share a row ------------------------------------------------------------------------------------------

LONG = 50_003  # entries: 98 blocks, the last of them short, which make three parts


@pytest.mark.parametrize("threads", [2, 5])
def test_any_number_of_threads_gives_the_same_bits(core: law.Core, threads: int) -> None:
    alone = bits(core, LONG, 47)
    with core_rows.shared(core, threads):
        assert bits(core, LONG, 47) == alone


def sharing_check(core: law.Core) -> list[str]:
    """A row whose parts differ in what they hold, and a bad logit in each."""
    row = make_row("ordinary", LONG, 3)
    ways = {place: row.copy() for place in (0, 17_000, 34_000, LONG - 1)}
    wrong = []
    for place, bad in ways.items():
        bad[place] = np.nan
        case = law.Case(bad, row)
        with core_rows.shared(core, 3):
            try:
                core_rows.read(core, Pair(Row(bad), Row(row), case))
                wrong.append(f"token {place} is no number, and nothing is said of it")
            except AssertionError as error:
                wrong += [] if f"token {place} is" in str(error) else [str(error)]
    with core_rows.shared(core, 3):
        total = core_rows.total(core, row, 1.0)
        coins = np.random.default_rng(5).random((40, 4))
        pair = Pair(Row(row), Row(make_row("ordinary", LONG, 4)), law.Case(row, row, "base", 0))
        drawn = core_rows.draw(core, pair, coins)
    wrong += [] if math.isclose(total, np.exp(row.astype(float) - row.max()).sum()) else ["the normaliser"]
    return wrong + ([] if np.array_equal(drawn, core_rows.draw(core, pair, coins)) else ["a draw"])


# ---- Allocations -----------------------------------------------------------------------------------------------------


def allocation_failures(core: law.Core) -> list[str]:
    """Draws, each of rows read anew, that allocate after the first time."""
    wrong = []
    for k, rule in enumerate(RULES):
        for ways in (("all", "all"), ("all", "some"), ("some", "first")):
            for kind in ("ordinary", "flat", "nearly tied"):
                size = 3000 if rule != "exact" else 300
                pair = make_pair(rule, (kind, "ordinary"), ways, size, k, (0.7, 1.0))
                calls = core_rows.allocations(core, pair, np.random.default_rng(k).random((10, 4)))
                wrong += [f"{rule}, {kind}, {ways}: {calls} allocations"] if calls else []
    return wrong


def test_nothing_is_allocated_once_warm(core: law.Core) -> None:
    assert allocation_failures(core) == []


# ---- Mistakes --------------------------------------------------------------------------------------------------------


def support_check(core: law.Core) -> list[str]:
    """The comparison with dense rows, on rows of several blocks."""
    wrong = []
    for k, rule in enumerate(RULES * 4):
        ways = (WAYS[k % 5], WAYS[1 + k % 4])
        size = 40 if rule == "exact" else 1700
        pair = make_pair(rule, (KINDS[k % 8], KINDS[(k + 3) % 8]), ways, size, k, ((1.0, 1.0), (0.7, 1.0))[k % 2])
        wrong += row_failures(core, pair, np.random.default_rng(k).random((12, 4)))
    return wrong


def nucleus_check(core: law.Core) -> list[str]:
    """Rule primal on rows of several levels of bins, compact and dense."""
    wrong = []
    for k, budget in enumerate((0.05, 0.3, 0.6, 0.9) * 6):
        row = (0.2 + k % 3) * np.random.default_rng(k).standard_normal(4000).astype(np.float32)
        base = make_support(row, WAYS[k % 5], np.random.default_rng(k))
        pair = Pair(base, base, law.Case(base.full.dense, base.full.dense, "primal", budget))
        kept = core_rows.read(core, pair).kept
        wrong += [] if law.acceptable(pair.case, kept) else [f"b = {budget}, row {k}: {kept.sum()} kept"]
    return wrong


def total_check(core: law.Core) -> list[str]:
    """Normalisers of rows of several blocks, impossible ones among them."""
    rows = [make_row(kind, 3000, k) for k, kind in enumerate(KINDS)]
    rows[0][600:1400] = -np.inf
    exact = [np.exp(row.astype(float) - row.max()).sum() for row in rows]
    return [f"row {k}" for k, row in enumerate(rows) if not math.isclose(core_rows.total(core, row, 1.0), exact[k])]


def allocation_check(core: law.Core) -> list[str]:
    return allocation_failures(core)


def rounding_check(core: law.Core) -> list[str]:
    """Where a sum falls short of what it stands for by its rounding: of 1, and of the residual's total."""
    wrong = []
    last = np.array([[0.5, law.LAST_COIN, law.LAST_COIN, 0.5]])
    for k in range(60):
        generator = np.random.default_rng(k)
        base, aligned = generator.standard_normal((2, 500)).astype(np.float32)
        for n_kept in (2 + k % 9, 2):  # of two, one row in eight has a rest
            base[n_kept:] = -np.inf  # what is kept is all that is possible
            found = core_rows.read(core, Pair(Row(base), Row(aligned), law.Case(base, aligned, "dual", 1e-9)))
            outside = found.pi[base == -np.inf].max()
            wrong += [f"row {k}: alpha {found.alpha}, {outside} outside S"] if found.alpha or outside else []

        base = generator.standard_normal(500).astype(np.float32)
        base[300:] = -np.inf  # nothing is left of it behind the last token that is possible
        pair = Pair(Row(base), Row(aligned), law.Case(base, aligned, "base", 0))
        corrected = int(core_rows.draw(core, pair, last)[0, 3])
        found = core_rows.read(core, pair)
        wrong += [f"row {k}: {corrected} by the last coin"] if found.p[corrected] <= found.q[corrected] else []
    return wrong


def edge_check(core: law.Core) -> list[str]:
    """Coins of exactly 0 and at a block's end take no token of probability zero; a small mass is a mass."""
    wrong = []
    row = np.log(np.float32([0.6, 0.3, 0.1]))
    other = np.float32([-1, 0, -1])
    zero = np.zeros((1, 4))
    # Rule exact keeps the last token alone, which temperature 0 never says.
    kept = Pair(Row(row), Row(other), law.Case(row, other, "exact", 0.91, 0.0, 1.0))
    wrong += [] if core_rows.draw(core, kept, zero)[0, 0] == 1 else ["a kept token that cannot be said"]
    # The proposal is accepted, and the base cannot have said it.
    many = np.float32([0, 0, -9])
    deferred = Pair(Row(many), Row(-many), law.Case(many, -many, "dual", 0.3))
    token, x, source, _ = core_rows.draw(core, deferred, np.array([[0.99, 0.0, 0.0, 0.0]]))[0]
    said_by = SAID_BY[int(source)]
    wrong += [] if (token, x, said_by) == (2, 2, "aligned") else [f"{token} said by the {said_by}"]
    # Two tokens are kept, and 5e-12 is left.
    alpha = core_rows.read(
        core, Pair(Row(np.float32([0, 0, -26])), Row(other), law.Case(row, other, "dual", 0.01))
    ).alpha
    wrong += [] if math.isclose(alpha, math.exp(-26) / 2, rel_tol=1e-4) else [f"alpha {alpha}"]
    for k in range(40):
        base = np.random.default_rng(k).standard_normal(1024).astype(np.float32)
        base[512:900] = -np.inf  # behind the first block's end come tokens that are impossible
        p = np.exp(base.astype(float) - base.max())
        end = p[:512].sum() / p.sum()
        coins = np.full((41, 4), 0.5)
        coins[:, 0] = end + (np.arange(41) - 20) * 2.0**-54
        drawn = core_rows.draw(core, Pair(Row(base), Row(base), law.Case(base, base, "aligned", 0)), coins)
        wrong += [f"row {k}: an impossible token"] if (p[drawn[:, 1]] == 0).any() else []
    return wrong


def redraw_check(core: law.Core) -> list[str]:
    """A redraw takes what is allowed and possible, by coins at either end; nothing where there is none."""
    ends = (0.0, 2.0**-53, 1 - 2.0**-53)
    coins = np.array([(*three, 0.5) for three in product(ends, repeat=3)])
    wrong = []
    for k in range(40):
        rng = np.random.default_rng(k)
        base, aligned = rng.normal(0, 2, (2, 40)).astype(np.float32)
        base[rng.random(40) < 0.3] = -np.inf
        ok = rng.random(40) < 0.4
        ok[0], ok[1 + np.argmax(base[1:])] = False, True
        # pi is the aligned model's law, where nothing is kept: then no residual is left; a mixture; the base's.
        for rule, threshold in (("dual", 1.0), ("dual", 0.1), ("base", 0.0)):
            pair = Pair(Row(base), Row(aligned), law.Case(base, aligned, rule, threshold))
            possible = ok & (core_rows.read(core, pair).pi > 0)
            said = core_rows.redraw(core, pair, ok, coins)[:, 0]
            wrong += [] if possible[said].all() else [f"row {k}, {rule} {threshold}: {said[~possible[said]]}"]
            none = core_rows.redraw(core, pair, np.zeros(40, bool), coins)[:, 0]
            wrong += [] if (none == -9).all() else [f"row {k}, {rule} {threshold}: something of nothing"]
    return wrong


SAID_BY = ("base", "aligned", "joint")
PLACE = "out[size_t(*v) - at] = some[v - first];"
MISTAKES = [
    ("entries that keep their place", "logits", PLACE, PLACE.replace("*v", "v - first + at"), support_check),
    ("a draw that answers with an entry", "logits", "return event(at + i);", "return Token(at + i);", support_check),
    (
        "an event that is not listed takes the last entry",
        "logits",
        "entry < 0 ? n_ :",
        "entry < 0 ? n_ - 1 :",
        support_check,
    ),
    ("a set of entries", "deferral", "v = row.event(size_t(v));", "v = Token(v);", support_check),
    (
        "blocks read until one fails",
        "deferral",
        "if (!above(maxima[b])) continue;",
        "if (!above(maxima[b])) break;",
        support_check,
    ),
    ("a quarter of the histogram left out", "deferral", "way = 1; way < WAYS;", "way = 2; way < WAYS;", nucleus_check),
    (
        "a cutoff above what is needed",
        "deferral",
        "mass >= wanted + 1e-12",
        "2 * mass >= wanted + 1e-12",
        nucleus_check,
    ),
    ("blocks on their own scale", "logits", "        rescale(", "        if (false) rescale(", total_check),
    ("an impossible block is summed", "kernels", "if (maxima[b] == -INFINITY) continue;", "", total_check),
    ("half of a lane's terms", "kernels", "+= values[i + k];", "+= values[i + k / 2];", total_check),
    ("sums of the residual made anew", "mixture", "thread_local std::vector", "std::vector", allocation_check),
    (
        "a bad logit beyond the first part",
        "logits",
        "to)) ok = false;",
        "to)) ok = first > 0;",
        sharing_check,
    ),
    ("a residual of the first part", "mixture", "b < end; ++b)", "b < end && first == 0; ++b)", sharing_check),
    ("a mass that rounding left of 1", "mixture", "1 - mass > rounding ?", "1 - mass > 0 ?", rounding_check),
    ("what rounding left of two", "mixture", "kept.ids.size() > 1 ?", "kept.ids.size() > 2 ?", rounding_check),
    ("a residual that ends on nothing", "mixture", "(terms[i] > 0)", "(terms[i] >= 0)", rounding_check),
    ("a kept token of probability zero", "draw", "coins.acceptance < p.", "coins.acceptance <= p.", edge_check),
    ("a speaker who could not", "draw", "coin < base ?", "coin <= base ?", edge_check),
    ("a small mass that is none", "mixture", "0x1.0p-52", "0x1.0p-36", edge_check),
    ("a redraw that is left without a token", "draw", "if (y < 0) y =", "if (y < 0) y = 0 *", redraw_check),
    ("a redraw of what cannot be", "draw", "* z < target", "* z <= target", redraw_check),
    ("a redraw of nothing", "draw", "if (!(z > 0)) return false;", "", redraw_check),
    ("a draw behind a block's end", "logits", "sum > target && terms[i] > 0", "sum > target", edge_check),
    ("candidates made anew", "deferral", "thread_local Candidates", "Candidates", allocation_check),
]
CHECKS = (support_check, nucleus_check, total_check, allocation_check)
CHECKS += (sharing_check, rounding_check, edge_check, redraw_check)
MUTANTS = [Mutant(name, ((f"core/{file}.cpp", *texts),), check) for name, file, *texts, check in MISTAKES]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, objects: Path) -> Workshop:
    sources = [*law.CORE_SOURCES, core_rows.HARNESS.name]
    return Workshop(tmp_path_factory.mktemp("rows"), objects, sources, core_rows.load)


@pytest.mark.parametrize("check", CHECKS)
def test_checks_pass_without_a_mutant(workshop: Workshop, check: Callable[[law.Core], list[str]]) -> None:
    assert check(workshop.unmutated) == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutants_are_caught(workshop: Workshop, mutant: Mutant) -> None:
    assert mutant.check(workshop.build(mutant)), f"{mutant.name}: not caught"
