"""Rows of the core through tests/cpp/core_rows.cpp: objects kept from draw to draw, rows that list some of the events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import law
import numpy as np
from numpy.typing import NDArray

HARNESS = law.ROOT / "tests/cpp/core_rows.cpp"
SOURCES = [law.ROOT / "cpp/src" / source for source in law.CORE_SOURCES]
INCLUDE = [law.ROOT / "cpp/include", law.ROOT / "cpp/src"]


def load(library: Path) -> law.Core:
    core = law.load(library)
    core.ffi.cdef(law.marked(HARNESS))
    return core


def build(folder: Path, objects: Path, ways: dict[str, Sequence[str]]) -> dict[str, law.Core]:
    """The core and the harness, by the names of the ways in which kernels.cpp is compiled: further flags of each."""
    kernels = law.ROOT / "cpp/src/core/kernels.cpp"
    others = law.compile_objects([s for s in [*SOURCES, HARNESS] if s != kernels], INCLUDE, objects)
    cores = {}
    for name, flags in ways.items():
        own = law.compile_objects([kernels], INCLUDE, objects, flags)
        cores[name] = load(law.link([*others, *own], folder / f"{name}.so"))
    return cores


@dataclass(frozen=True, eq=False)
class Row:
    """Logits of all events, and which of them the row lists: None = all, without a support; first = no list is needed."""

    dense: law.Row32
    listed: NDArray[np.int32] | None = None
    first: bool = False

    @property
    def full(self) -> Row:
        """The same distribution, every event given: those that are not listed are -inf."""
        if self.listed is None:
            return self
        dense = np.full_like(self.dense, -np.inf)
        dense[self.listed] = self.dense[self.listed]
        return Row(dense)

    def struct(self, core: law.Core, keep: list[Any]) -> dict[str, Any]:
        """A rows_row; `keep` holds what it points to."""
        if self.listed is None:
            keep.append(self.dense)
            return {"logits": law.floats(core, self.dense), "n": self.dense.size}
        compact = np.ascontiguousarray(self.dense[self.listed])
        keep += [compact, self.listed]
        events = core.ffi.NULL if self.first else law.pointer(core, self.listed, "const int32_t *")
        n = {"n": compact.size, "n_events": self.dense.size}
        return {"logits": law.floats(core, compact), "events": events, **n}


@dataclass(frozen=True, eq=False)
class Pair:
    """Two rows under a rule; `case` has its threshold and temperatures."""

    base: Row
    aligned: Row
    case: law.Case

    @property
    def full(self) -> Pair:
        return Pair(self.base.full, self.aligned.full, self.case)


@dataclass
class Read:
    """What the core reads off a pair."""

    p: NDArray[np.float64]
    log_p: NDArray[np.float64]
    q: NDArray[np.float64]
    pi: NDArray[np.float64]
    kept: NDArray[np.bool_]
    alpha: float
    total_variation: float
    top: tuple[int, int]


def struct(core: law.Core, pair: Pair) -> tuple[Any, list[Any]]:
    keep: list[Any] = []
    rows = {"base": pair.base.struct(core, keep), "aligned": pair.aligned.struct(core, keep)}
    rule = law.c_rule(core, pair.case)[0]
    return core.ffi.new("rows_pair *", {"rule": rule, "temperature": pair.case.temperature, **rows}), keep


def read(core: law.Core, pair: Pair) -> Read:
    given, _keep = struct(core, pair)
    arrays = {name: np.full(pair.base.dense.size, np.nan) for name in ("p", "log_p", "q", "pi")}
    kept = np.full(pair.base.dense.size, 9, dtype=np.uint8)
    out = core.ffi.new("rows_law *", {name: law.pointer(core, a, "double *") for name, a in arrays.items()})
    out.kept = law.pointer(core, kept, "uint8_t *")
    law.check(core, core.lib.rows_read(given, out))
    return Read(
        **arrays, kept=kept == 1, alpha=out.alpha, total_variation=out.total_variation, top=(out.top_p, out.top_q)
    )


def draw(core: law.Core, pair: Pair, coins: NDArray[np.float64]) -> NDArray[np.int32]:
    """Token, proposal, source and correction of each draw; coins (n, 4)."""
    given, _keep = struct(core, pair)
    out = np.full((len(coins), 4), -9, dtype=np.int32)
    result = law.pointer(core, out, "rows_outcome *")
    law.check(core, core.lib.rows_draw(given, law.pointer(core, coins, "double *"), len(coins), result))
    return out


def redraw(core: law.Core, pair: Pair, ok: NDArray[np.bool_], coins: NDArray[np.float64]) -> NDArray[np.int32]:
    """As `draw`, among the events with ok; the redraw makes neither proposals nor corrections. -9 where it says nothing."""
    given, _keep = struct(core, pair)
    out = np.full((len(coins), 4), -9, dtype=np.int32)
    allowed, result = np.ascontiguousarray(ok, np.uint8), law.pointer(core, out, "rows_outcome *")
    drawn = core.lib.rows_redraw(
        given,
        law.pointer(core, allowed, "uint8_t *"),
        law.pointer(core, coins, "double *"),
        len(coins),
        result,
    )
    law.check(core, drawn)
    return out


def allocations(core: law.Core, pair: Pair, coins: NDArray[np.float64]) -> int:
    given, _keep = struct(core, pair)
    return int(core.lib.rows_allocations(given, law.pointer(core, coins, "double *"), len(coins)))


def total(core: law.Core, row: law.Row32, temperature: float) -> float:
    """The normaliser, relative to the largest logit."""
    return float(core.lib.rows_total(law.floats(core, row), row.size, temperature))


@contextmanager
def shared(core: law.Core, threads: int) -> Iterator[None]:
    """Long rows are read by so many threads at once."""
    core.lib.rows_threads(threads)
    try:
        yield
    finally:
        core.lib.rows_threads(1)


def exp_minus(core: law.Core, y: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.ascontiguousarray(y, dtype=np.float64)
    out = np.empty_like(values)
    core.lib.rows_exp(law.pointer(core, values, "double *"), values.size, law.pointer(core, out, "double *"))
    return out
