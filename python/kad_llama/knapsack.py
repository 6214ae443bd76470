"""KAD's 0-1 knapsack on one row of probabilities: which tokens should the base hand over, within a budget?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kad_llama._binding import ffi, lib
from kad_llama._binding.calls import check
from kad_llama.errors import InvalidArgumentError
from kad_llama.rules import number

__all__ = ["Knapsack", "knapsack"]


@dataclass(frozen=True, eq=False)
class Knapsack:
    """A solution of the knapsack.

    Attributes
    ----------
    kept
        bool, shape (V,): S, the tokens the base keeps; the deferred ones are the others.
    value
        Sum of -p(v) log p(v) over the deferred tokens, in nats.
    bound
        No set within the budget has a larger value.
    gap
        (bound - value) / bound, in [0, 1]; 0 when bound is 0.
    nodes
        Relaxations solved, the measure of work.
    certified
        Whether gap is at most 1e-9.
    """

    kept: NDArray[np.bool_]
    value: float
    bound: float
    gap: float
    nodes: int
    certified: bool


def _probabilities(p: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(p)
    if array.dtype.kind not in "fiu":
        raise InvalidArgumentError(f"p has dtype {array.dtype}; expected probabilities as float64")
    if array.ndim != 1 or array.size == 0:
        raise InvalidArgumentError(f"p has shape {array.shape}; expected (V,) with V > 0")
    return np.ascontiguousarray(array, dtype=np.float64)


def knapsack(p: ArrayLike, budget: float, *, method: Literal["exact", "greedy"] = "exact") -> Knapsack:
    """Return which tokens to keep: defer the set D that maximises sum over D of -p(v) log p(v) subject to p(D) <= b.

    Parameters
    ----------
    p
        Probabilities in [0, 1], shape (V,), that sum to 1 within 1e-4; taken as they are, in float64.
    budget
        b in [0, 1], the mass that may be deferred. 1 defers everything, 0 no token of positive probability.
    method
        "exact": branch and bound, to a relative gap of 1e-9 or a fixed limit of work, with the gap reached either way.
        Rows peaked or spread as models make them need few nodes at budgets such as 0.9; flat rows and small budgets may
        reach the limit. "greedy": the set of rule `primal`, the most probable tokens until they hold 1 - b.

    Returns
    -------
    Knapsack
        The set, its value, and how good it is. A function of the arguments alone.

    Raises
    ------
    InvalidArgumentError
        For a value out of range, by name and index; it is a ValueError.

    Notes
    -----
    The problem is that of KAD (arXiv 2510.27017), which solves its relaxation; the solver is this project's. A mass up to
    b (1 + 1e-12) fits. Tokens of probability 0 are deferred by "exact". Since -p log p falls beyond p = 1/e, the
    optimum may hand over the most probable token:

    >>> from kad_llama import knapsack
    >>> knapsack([0.6, 0.3, 0.1], 0.9).kept.tolist()
    [False, False, True]
    >>> knapsack([0.6, 0.3, 0.1], 0.9, method="greedy").kept.tolist()
    [True, False, False]
    """
    if method not in ("exact", "greedy"):
        raise InvalidArgumentError(f"method {method!r} is unknown; expected 'exact' or 'greedy'")
    row = _probabilities(p)
    kept = np.empty(row.size, dtype=np.uint8)
    out = ffi.new("kad_knapsack_result *")
    check(
        lib.kad_knapsack(
            ffi.cast("const double *", ffi.from_buffer(row)),
            row.size,
            number("budget", budget),
            method == "exact",
            ffi.cast("uint8_t *", ffi.from_buffer(kept, require_writable=True)),
            out,
        )
    )
    return Knapsack(kept.astype(bool), out.value, out.bound, out.gap, int(out.nodes), bool(out.certified))
