"""The exact law of a draw: integrate a black box over its coins, and compare with pi.

A draw is a step function of four coins in [0, 1). `integrate` finds the steps of each coin in turn (a grid, then
bisection wherever two neighbours differ) and adds up the volumes of the boxes between them. It is told where a correct
draw has its steps, which saves time, and does not rely on it: a wrong draw has its steps elsewhere, the grid sees them,
and the volumes no longer agree with pi.

The core under test is any library with the C API of kad_llama.h: the installed package, or one compiled from a copy
of the sources (test_mutants.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import cffi
import numpy as np
from numpy.typing import NDArray

import kad_llama
from kad_llama import reference

ROOT = Path(__file__).resolve().parents[1]
LAST_COIN = 1.0 - 2.0**-53
TOLERANCE = 1e-6
RULE_KINDS = {name: kind for kind, name in enumerate(reference.RULES)}
SOURCES = ("coins", "deferral", "draw", "kernels", "knapsack", "logits", "mixture", "reward")
CORE_SOURCES = [f"core/{name}.cpp" for name in SOURCES] + ["c_api_rows.cpp"]
SAMPLING = -1.0  # KAD_RULE_TEMPERATURE_SAMPLING
SPEAKERS: tuple[reference.Source, ...] = ("base", "aligned", "joint")  # by kad_source

Row32 = NDArray[np.float32]

# ---- A core to test --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Core:
    """A loaded library: cffi's ffi and lib, in API or ABI mode."""

    ffi: Any
    lib: Any

    def error(self) -> str:
        return self.ffi.string(self.lib.kad_last_error()).decode()


def declarations() -> str:
    """kad_llama.h between its two cffi marks, as cffi wants it."""
    header = (ROOT / "cpp/include/kad_llama.h").read_text()
    text = header.split("/* cffi: begin */")[1].split("/* cffi: end */")[0]
    return re.sub(r"^#define.*$", "", text, flags=re.MULTILINE).replace("KAD_API ", "")


def load(library: Path) -> Core:
    """A shared library of the core, in ABI mode."""
    ffi = cffi.FFI()
    ffi.cdef(declarations())
    return Core(ffi, ffi.dlopen(str(library)))


def marked(harness: Path) -> str:
    """The declarations that a C++ harness of the tests puts between its marks, without their comments."""
    found = re.search(r"/\* (\w+): begin \*/(.*)/\* \1: end \*/", harness.read_text(), re.DOTALL)
    assert found, f"{harness} has no marks"
    return re.sub(r"//.*", "", found[2])


COMPILE = ["c++", "-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-DKAD_BUILD", '-DKAD_VERSION="0"']


def compile_objects(
    sources: Sequence[Path], include: Sequence[Path], folder: Path, further: Sequence[str] = ()
) -> list[Path]:
    """One object file per source. A failing compiler fails the test with its own words.

    What was compiled to `folder` before, by any process, is not compiled again: an object is named after the source, all
    headers that it may include and the flags. Mutants share what they do not touch.
    """
    flags = [*COMPILE, *further]
    headers = hashlib.sha256()
    for header in (file for path in include for file in sorted(path.rglob("*.h"))):
        headers.update(header.read_bytes())
    objects = []
    for source in sources:
        content = hashlib.sha256(b"\0".join([repr(flags).encode(), headers.digest(), source.read_bytes()]))
        objects.append(folder / f"{source.stem}-{content.hexdigest()[:32]}.o")
        if objects[-1].exists():
            continue
        with tempfile.TemporaryDirectory(dir=folder) as own:
            command = [*flags, *(f"-I{path}" for path in include), "-c", str(source), "-o", f"{own}/object"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
            Path(own, "object").replace(objects[-1])
    return objects


def link(objects: Sequence[Path], library: Path) -> Path:
    subprocess.run(["c++", "-shared", *map(str, objects), "-o", str(library)], check=True)
    return library


@lru_cache(maxsize=1)
def under_test() -> Core:
    """The installed package's library; or, to work on the core alone, the one that KAD_TEST_CORE names."""
    library = os.environ.get("KAD_TEST_CORE")
    if library:
        return load(Path(library))
    from kad_llama._binding import _kad

    return Core(_kad.ffi, _kad.lib)


# ---- Calls -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A pair of rows (three for implicit-reward), a rule and how the speakers speak."""

    base: Row32
    aligned: Row32
    rule: str = "dual"
    threshold: float | None = None
    temperature: float = 1.0
    rule_temperature: float | str = 1.0
    top_p: float = 1.0
    name: str = ""
    reference: Row32 | None = None

    @property
    def first(self) -> Row32:
        """The logits in the place of p: the base's, or log pi for implicit-reward."""
        row = reference.first_row(self.rule, self.threshold, self.base, self.aligned, self.reference)
        return row.astype(np.float32)

    @property
    def base_shaped(self) -> Row32:
        return reference.shape(self.first, top_p=self.top_p).astype(np.float32)

    @property
    def aligned_shaped(self) -> Row32:
        return reference.shape(self.aligned, top_p=self.top_p).astype(np.float32)

    @property
    def decision(self) -> reference.Decision:
        if self.rule == "exact":  # of several optima the solver's; test_knapsack.py holds its value against all sets
            temperature = {"rule_temperature": self.rule_temperature, "temperature": self.temperature}
            d = kad_llama.deferral(self.base, self.aligned, rule="exact", threshold=self.threshold, **temperature)
            return reference.Decision("base", ~d)
        return reference.decide(
            self.rule,
            self.threshold,
            self.base,
            self.aligned,
            rule_temperature=self.rule_temperature,  # type: ignore[arg-type]
            temperature=self.temperature,
        )

    def distributions(self) -> tuple[reference.Decision, reference.Row, reference.Row]:
        """The decision, p' and q' as the oracle has them."""
        return (
            self.decision,
            reference.softmax(self.base_shaped, self.temperature),
            reference.softmax(self.aligned_shaped, self.temperature),
        )

    @property
    def joint(self) -> bool:
        return reference.RULES[self.rule].keeper == "joint"


def c_rule(core: Core, case: Case) -> Any:
    threshold = reference.DEFAULT_THRESHOLDS[case.rule] if case.threshold is None else case.threshold
    warm = SAMPLING if case.rule_temperature == "sampling" else float(case.rule_temperature)
    return core.ffi.new("kad_rule *", {"kind": RULE_KINDS[case.rule], "threshold": threshold, "temperature": warm})


def pointer(core: Core, values: NDArray[Any], kind: str) -> Any:
    return core.ffi.cast(kind, core.ffi.from_buffer(values, require_writable=False))


def floats(core: Core, row: Row32 | None) -> Any:
    """A contiguous row as `const float *`; NULL for none."""
    if row is None:
        return core.ffi.NULL
    assert row.flags.c_contiguous and row.dtype == np.float32
    return pointer(core, row, "const float *")


def mixture(core: Core, case: Case) -> reference.Row:
    pi = np.full(case.base.size, np.nan)
    rows = [floats(core, r) for r in (case.base, case.aligned, case.reference)]
    out = core.ffi.cast("double *", core.ffi.from_buffer(pi))
    check(core, core.lib.kad_mixture(c_rule(core, case), *rows, pi.size, case.temperature, out))
    return pi


def deferral(core: Core, case: Case) -> reference.Mask:
    deferred = np.full(case.base.size, 9, dtype=np.uint8)
    rows = [floats(core, r) for r in (case.base, case.aligned)]
    out = core.ffi.cast("uint8_t *", core.ffi.from_buffer(deferred))
    check(core, core.lib.kad_deferral(c_rule(core, case), *rows, deferred.size, case.temperature, out))
    assert set(deferred) <= {0, 1}
    return deferred.astype(bool)


def check(core: Core, status: int) -> None:
    if status != 0:
        raise AssertionError(f"status {status}: {core.error()}")


Coins = tuple[float, float, float, float]
BlackBox = Callable[[Coins], reference.Draw]


def core_draw(core: Core, case: Case) -> BlackBox:
    """kad_draw on a case, as a function of the coins."""
    ffi, lib = core.ffi, core.lib
    shaped = [case.base_shaped, case.aligned_shaped] if case.top_p < 1 else [None, None]
    rows = [case.base, case.aligned, case.reference, *shaped]
    pointers = [floats(core, r) for r in rows]
    rule, coins, out = c_rule(core, case), ffi.new("double[4]"), ffi.new("kad_draw_result *")
    n, temperature = case.base.size, case.temperature

    def box(c: Coins) -> reference.Draw:
        coins[0], coins[1], coins[2], coins[3] = c
        check(core, lib.kad_draw(rule, *pointers, n, temperature, coins, out))
        return reference.Draw(
            out.token, out.proposal, SPEAKERS[out.source], out.deferred_mass, out.logprob, out.base_share
        )

    box.rows = rows  # type: ignore[attr-defined]  # the pointers do not own what they point to
    return box


def reference_draw(case: Case) -> BlackBox:
    decision, p, q = case.distributions()
    return lambda coins: reference.draw(decision, p, q, coins)


# ---- Integration over the coins --------------------------------------------------------------------------------------


def steps(signature: Callable[[float], Any], hints: Sequence[float], grid: int) -> Iterator[tuple[float, float]]:
    """Intervals of [0, 1) on which a function of one coin is constant: (width, a point inside)."""
    beside = [h + d for h in hints for d in (-1e-9, 1e-9)]
    points = sorted({0.0, LAST_COIN, *(i / grid for i in range(grid)), *(x for x in beside if 0 < x < LAST_COIN)})
    values = [signature(x) for x in points]
    breaks = [0.0]
    for a, b, at_a, at_b in zip(points, points[1:], values, values[1:], strict=False):
        breaks += _refine(signature, a, b, at_a, at_b)
    breaks.append(1.0)
    for a, b in pairwise(breaks):
        yield b - a, a + 0.381966 * (b - a)


def _refine(signature: Callable[[float], Any], a: float, b: float, at_a: Any, at_b: Any) -> list[float]:
    if at_a == at_b:
        return []
    middle = 0.5 * (a + b)
    if b - a < 4e-9:
        return [middle]
    at_middle = signature(middle)
    return _refine(signature, a, middle, at_a, at_middle) + _refine(signature, middle, b, at_middle, at_b)


@dataclass
class Law:
    """What integrating a draw over its coins gives."""

    said: NDArray[np.float64]  # P(outcome = y, who spoke): (V, 2), base first
    proposed: NDArray[np.float64]  # P(x = y)
    guessed: float = 0.0  # P(outcome = x)
    shares: list[tuple[int, float, float]] = field(default_factory=list)  # (token, base_share, integral over c4)


PROBES_2 = (0.0, 0.13, 0.37, 0.61, 0.89, LAST_COIN)
PROBES_3 = (0.0, 0.31, 0.69, LAST_COIN)


def integrate(box: BlackBox, size: int, hints: Sequence[Sequence[float]] = ((), (), ())) -> Law:
    """The law of a draw over `size` tokens; `hints` are where steps of c1, c2, c3 are expected."""

    def seen(c1: float, c2: float, c3: float) -> tuple[int, int, str]:
        result = box((c1, c2, c3, 0.5))
        return result.token, result.proposal, result.source

    law = Law(np.zeros((size, 2)), np.zeros(size))
    for w1, c1 in steps(lambda c: [seen(c, a, b) for a in PROBES_2 for b in PROBES_3], hints[0], 16):
        for w2, c2 in steps(lambda c, c1=c1: [seen(c1, c, b) for b in PROBES_3], hints[1], 16):  # type: ignore[misc]
            for w3, c3 in steps(lambda c, c1=c1, c2=c2: seen(c1, c2, c), hints[2], 16):  # type: ignore[misc]
                _add(law, box, w1 * w2 * w3, (c1, c2, c3))
    return law


def _add(law: Law, box: BlackBox, weight: float, coins: tuple[float, float, float]) -> None:
    """Adds one box of constant outcome, split by who is said to have spoken."""
    result = box((*coins, 0.5))
    base_speaks = 0.0
    for width, c4 in steps(lambda c: box((*coins, c)).source, [result.base_share], 8):
        base_speaks += width if box((*coins, c4)).source == "base" else 0.0
    law.said[result.token] += weight * base_speaks, weight * (1 - base_speaks)
    law.proposed[result.proposal] += weight
    law.guessed += weight if result.token == result.proposal else 0.0
    law.shares.append((result.token, result.base_share, base_speaks))


def hints(decision: reference.Decision, p: reference.Row, q: reference.Row) -> list[list[float]]:
    """Where a correct draw has its steps."""
    pi, left = reference.mix(decision, p, q), reference.residual(decision, p, q)
    ratio = pi[q > 0] / q[q > 0]
    third = np.cumsum(left) / left.sum() if left.sum() > 0 else np.zeros(0)
    return [list(np.cumsum(q)), [*p[decision.kept][:1], *ratio], list(third)]


def law_failures(box: BlackBox, case: Case) -> list[str]:
    """What is wrong with a draw's law, in words; nothing when it is the law of method.md, section 3.

    P(y said by the base) and P(y said by the aligned model) are their parts of pi: p'(y) [y in S] and alpha q'(y), or
    with roles exchanged (1 - q'(T)) p'(y) and q'(y) [y in T], whatever the branch. P(outcome = x) = 1 - TV(pi, q'). The
    proposal's own law is q'.
    """
    decision, p, q = case.distributions()
    pi, (by_base, by_aligned) = reference.mix(decision, p, q), reference.said(decision, p, q)
    law = integrate(box, pi.size, hints(decision, p, q))
    expected = {
        "P(outcome)": (law.said.sum(axis=1), pi),
        "P(proposal)": (law.proposed, q),
        "P(outcome = proposal)": (np.array([law.guessed]), np.array([1 - reference.total_variation(q, pi)])),
    }
    if decision.keeper != "joint":
        expected["P(outcome said by the base)"] = (law.said[:, 0], by_base)
        expected["P(outcome said by the aligned model)"] = (law.said[:, 1], by_aligned)
    wrong = [
        f"{case.name or case}: {what} is {got}, expected {wanted}"
        for what, (got, wanted) in expected.items()
        if not np.abs(got - wanted).max() < TOLERANCE
    ]
    return wrong + _source_failures(box, case, law, reference.base_share(decision, p, q))


def _source_failures(box: BlackBox, case: Case, law: Law, share: reference.Row) -> list[str]:
    """The coin that says who spoke: thrown in step 3 alone, and by nobody where nobody speaks alone."""
    who, name = case.decision, case.name or case
    if who.keeper == "joint":
        sources = {box((c, 1 - c, c, c)).source for c in (0.01, 0.3, 0.5, 0.9)}
        wrong = sources != {"joint"} or not all(np.isnan(told) for _, told, _ in law.shares)
        return [f"{name}: {sources} spoke, with shares {law.shares}; expected joint and NaN"] if wrong else []
    if who.keeper == "base" and who.kept.sum() <= 1:
        wrong = any(got not in (0.0, 1.0) for _, _, got in law.shares)
        return [f"{name}: with at most one kept token the branch says who spoke, not a coin"] if wrong else []
    return [
        f"{name}: token {y} is the base's with {got}, base_share is {told}"
        for y, told, got in law.shares
        if not abs(got - told) < TOLERANCE or not abs(told - share[y]) < TOLERANCE
    ]


def zero_failures(box: BlackBox, case: Case) -> list[str]:
    """Outcomes of probability zero at the edges of the coins: exactly 0, the smallest coin, the largest."""
    decision, p, q = case.distributions()
    pi = reference.mix(decision, p, q)
    edges = (0.0, 2.0**-53, 0.5, LAST_COIN)
    wrong = []
    for c1 in edges:
        for c2 in edges:
            for c3 in edges:
                result = box((c1, c2, c3, 0.5))
                if not pi[result.token] > 0 or not q[result.proposal] > 0:
                    wrong.append(f"{case.name or case}: coins {c1}, {c2}, {c3} gave {result}, pi {pi}, q {q}")
    return wrong


# ---- Cases -----------------------------------------------------------------------------------------------------------


def logits(probabilities: Sequence[float]) -> Row32:
    """A row whose distribution is the one given; 0 is -inf."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probabilities, dtype=np.float64)).astype(np.float32)


def tables() -> dict[str, Any]:
    """reference_cases.json: numbers worked out by hand."""
    return json.loads((Path(__file__).parent / "reference_cases.json").read_text())


def pairs() -> list[tuple[str, Row32, Row32]]:
    """Named pairs of rows for the exact law, hand-made first, then random ones."""
    named = [(name, logits(p), logits(q)) for name, (p, q) in tables()["pairs"].items()]
    generator = np.random.default_rng(20260)
    for k in range(8):
        size, spread = int(generator.integers(2, 9)), float(generator.choice([0.5, 2.0, 5.0]))
        rows = (spread * generator.standard_normal((2, size))).astype(np.float32)
        if k % 2:
            rows[0, int(generator.integers(size))] = -np.inf
            rows[1, int(generator.integers(size))] = -np.inf
        named.append((f"random {k}, V = {size}, spread {spread}", rows[0], rows[1]))
    return named


def third_row(base: Row32, aligned: Row32) -> Row32 | None:
    """A row of the reference model for a pair, impossible at one token that the pair shares; None if it shares none."""
    shared = np.flatnonzero(np.isfinite(base) & np.isfinite(aligned))
    if not shared.size:
        return None
    row = np.random.default_rng(base.size).standard_normal(base.size).astype(np.float32)
    if shared.size > 2:
        row[shared[1]] = -np.inf
    return row


def cases(rule: str, threshold: float | None, temperature: float = 1.0, top_p: float = 1.0) -> Iterator[Case]:
    """The rule on every named pair that it can be used on."""
    for name, base, aligned in pairs():
        third = third_row(base, aligned) if reference.RULES[rule].keeper == "joint" else None
        if third is not None or reference.RULES[rule].keeper != "joint":
            told = f"{name}, T = {temperature}, top-p {top_p}"
            yield Case(base, aligned, rule, threshold, temperature, 1.0, top_p, told, third)


# Rules of the core, with thresholds at which they keep nothing, some and everything of the pairs; none at which a pair is
# within rounding of equality, but token-v2 0, which compares a row with itself.
RULES: tuple[tuple[str, float], ...] = (
    ("dual", 0.4),
    ("dual", 0.15),
    ("dual", 0.0),
    ("primal", 0.9),
    ("primal", 0.3),
    ("primal", 1.0),
    ("exact", 0.9),
    ("exact", 0.45),
    ("nudging", 0.4),
    ("bet", 0.2),
    ("bet", 0.04),
    ("chow", 0.5),
    ("diff", 0.03),
    ("opt", 0.5),
    ("token-v1", 0.04),
    ("token-v1", 0.25),
    ("token-v2", 0.0),
    ("token-v3", 0.5),
    ("implicit-reward", 1.0),
    ("implicit-reward", 0.4),
    ("base", 0.0),
    ("aligned", 0.0),
)


# ---- Sets at the edge ------------------------------------------------------------------------------------------------

EQUAL = 1e-12  # a row this close to equality may fall either way, but one way for the whole row


def acceptable(case: Case, keep: NDArray[np.bool_]) -> bool:
    """Is `keep` a set that the rule allows, given that rows within 1e-12 of equality may fall either way?"""
    wanted = case.decision.kept
    if np.array_equal(keep, wanted):
        return True
    warm = case.temperature if case.rule_temperature == "sampling" else float(case.rule_temperature)
    log_p, log_q = reference.log_softmax(case.base, warm), reference.log_softmax(case.aligned, warm)
    threshold = reference.checked(case.rule, case.threshold)
    if case.rule == "primal":
        return _acceptable_nucleus(case.base, log_p, 1.0 - threshold, keep)
    log_values, limit = compared(case.rule, threshold, log_p, log_q)
    with np.errstate(invalid="ignore"):  # -inf beside a limit of -inf
        beside = np.abs(log_values - reference.log_threshold(limit)) < EQUAL
    if case.rule in DIFFERENCES:  # the limit itself carries a rounding error that its logarithm enlarges
        beside |= np.abs(np.exp(log_values) - limit) < EQUAL
    if log_values.size == 1:
        return bool(beside[0]) and (keep.all() or not keep.any())
    logits = case.aligned if case.rule == "token-v1" else case.base
    one_way = keep.all() or not keep.any() or bool(logits[keep].min() > logits[~keep].max())
    return one_way and np.array_equal(keep[~beside], wanted[~beside])


DIFFERENCES = ("bet", "diff", "opt", "token-v1", "token-v2")


def compared(rule: str, t: float, log_p: reference.Row, log_q: reference.Row) -> tuple[reference.Row, float]:
    """What a rule compares: the log of one value (all tokens at once) or of one per token, and the limit."""
    p, q = np.exp(log_p), np.exp(log_q)
    limits: dict[str, tuple[reference.Row, float]] = {
        "dual": (log_p, t),
        "nudging": (log_p.max(keepdims=True), t),
        "bet": (log_p, q.max() - t),
        "chow": (log_q.max(keepdims=True), 1 - t),
        "diff": (log_q.max(keepdims=True), p.max() - t),
        "opt": (log_q.max(keepdims=True), p.max() - t * reference.total_variation(p, q)),
        "token-v1": (log_q, p.max() - t),
        "token-v2": (log_p, p.max() - t),
        "token-v3": (log_p, (1 - t) * p.max()),
    }
    return limits.get(rule, (np.full(1, np.nan), np.nan))


def _acceptable_nucleus(base: Row32, log_base: reference.Row, wanted: float, keep: NDArray[np.bool_]) -> bool:
    """The first n tokens of the order, for an n at which the sum may have reached what is wanted."""
    order = reference.descending(base.astype(np.float64))
    count = int(keep.sum())
    if not keep[order[:count]].all():
        return False
    if wanted <= 0 or count == 0:
        return count == 0 and wanted <= 0
    sums = np.cumsum(np.exp(log_base[order]))
    reached = bool(count == sums.size or sums[count - 1] >= wanted - EQUAL)
    return reached and (count == 1 or bool(sums[count - 2] < wanted + EQUAL))
