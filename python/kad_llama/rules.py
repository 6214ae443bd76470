"""The rules, and what they do to rows of logits: the shipped C++ core on NumPy arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kad_llama._binding import ffi, lib
from kad_llama._binding.calls import check, text
from kad_llama.errors import InvalidArgumentError

__all__ = ["RULES", "Rule", "deferral", "mixture"]


@dataclass(frozen=True)
class Rule:
    """One row of the table of rules.

    `threshold` is the default of the rule's one parameter and `low` to `high` its closed range; all three are None for a
    rule without one. `lazy`: most events need the base's row alone, so that lazy runs are possible; at temperature 0 they
    are for `base` and `nudging` too. `exchanged`: the aligned model speaks first and keeps a set T. `reference`: it needs a
    third model.
    """

    name: str
    formula: str
    source: str
    threshold: float | None
    low: float | None
    high: float | None
    lazy: bool
    exchanged: bool
    reference: bool


def _table() -> dict[str, Rule]:
    rules = {}
    info = ffi.new("kad_rule_info *")
    for kind in range(lib.kad_rule_count()):
        check(lib.kad_rule_describe(kind, info))
        free = info.low != info.high
        rule = Rule(
            text(info.name),
            text(info.formula),
            text(info.source),
            info.threshold if free else None,
            info.low if free else None,
            info.high if free else None,
            bool(info.lazy),
            bool(info.exchanged),
            bool(info.reference),
        )
        rules[rule.name] = rule
    return rules


RULES: dict[str, Rule] = _table()


def number(name: str, value: object) -> float:
    """Return `value` as a float; refuse by name what is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InvalidArgumentError(f"{name} is {value!r}; expected a number")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        finite = False
    if not finite:
        raise InvalidArgumentError(f"{name} is {value!r}; expected a finite number")
    return float(value)


def c_rule(rule: str, threshold: float | None, rule_temperature: float | Literal["sampling"]) -> Any:
    """Return a checked ``kad_rule *``. A rule without a parameter refuses a threshold."""
    if not isinstance(rule, str) or rule not in RULES:
        raise InvalidArgumentError(f"rule {rule!r} is unknown; expected one of {', '.join(RULES)}")
    result = ffi.new("kad_rule *")
    check(lib.kad_rule_named(rule.encode(), result))
    known = RULES[rule]
    if threshold is not None:
        value = number("threshold", threshold)
        if known.low is None or known.high is None:
            raise InvalidArgumentError(f"threshold {threshold!r}: rule {rule!r} has none; leave it out")
        if not known.low <= value <= known.high:
            raise InvalidArgumentError(
                f"threshold {threshold!r} is out of range for rule {rule!r}; expected {known.low:g} to {known.high:g}"
            )
        result.threshold = value
    if isinstance(rule_temperature, str):
        if rule_temperature != "sampling":
            raise InvalidArgumentError(f"rule_temperature is {rule_temperature!r}; expected a number > 0 or 'sampling'")
        result.temperature = lib.KAD_RULE_TEMPERATURE_SAMPLING
    else:
        result.temperature = number("rule_temperature", rule_temperature)
        if result.temperature <= 0:
            raise InvalidArgumentError(f"rule_temperature is {rule_temperature!r}; expected a number > 0 or 'sampling'")
    if known.reference and rule_temperature != 1:
        raise InvalidArgumentError(
            f"rule_temperature is {rule_temperature!r}; rule {rule!r} compares nothing: leave it at 1"
        )
    return result


def _rows(**given: ArrayLike) -> list[NDArray[np.float32]]:
    """Rows of logits of one shape, by name."""
    rows = []
    for name, logits in given.items():
        try:
            array = np.asarray(logits)
        except ValueError as error:  # rows of different lengths
            raise InvalidArgumentError(f"{name} is no array: {error}; expected shape (V,) or (N, V)") from None
        if array.dtype.kind not in "fiu":
            raise InvalidArgumentError(f"{name} has dtype {array.dtype}; expected float32 logits")
        with np.errstate(over="ignore"):  # an overflow becomes inf, which the core refuses
            array = np.ascontiguousarray(array, dtype=np.float32)
        if array.ndim not in (1, 2) or array.shape[-1] == 0:
            raise InvalidArgumentError(f"{name} has shape {array.shape}; expected (V,) or (N, V) with V > 0")
        rows.append(array)
    for name, row in zip(given, rows, strict=True):
        if row.shape != rows[0].shape:
            raise InvalidArgumentError(
                f"base_logits has shape {rows[0].shape} and {name} {row.shape}; expected the same shape: "
                "one logit per token of one vocabulary"
            )
    return rows


def _floats(row: NDArray[np.float32]) -> Any:
    return ffi.cast("const float *", ffi.from_buffer(row))


def mixture(
    base_logits: ArrayLike,
    aligned_logits: ArrayLike,
    *,
    rule: str = "dual",
    threshold: float | None = None,
    rule_temperature: float | Literal["sampling"] = 1.0,
    temperature: float = 1.0,
    reference_logits: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Return pi, the distribution that is sampled: pi(v) = p(v) [v in S] + alpha q(v), alpha = 1 - p(S).

    Under the token rules pi(v) = q(v) [v in T] + (1 - q(T)) p(v); under implicit-reward pi is proportional to p (q / r)^t.

    Parameters
    ----------
    base_logits, aligned_logits
        Rows of logits over one vocabulary, shape (V,) or (N, V), converted to float32; -inf is probability zero.
    rule, threshold
        Which tokens the base keeps (S); see `RULES`. None is the rule's default.
    rule_temperature
        The temperature > 0 at which the rule compares probabilities, or "sampling" for `temperature`.
    temperature
        The temperature >= 0 at which each model speaks. 0: its best token, ties to the lowest id. Under implicit-reward it
        applies to log pi.
    reference_logits
        For implicit-reward: rows of the small model before alignment, of the same shape.

    Returns
    -------
    numpy.ndarray
        float64, of the shape given; every row sums to 1.

    Raises
    ------
    InvalidArgumentError
        For shapes, names or values out of range; it is a ValueError.
    NotANumberError
        For NaN or +inf, a row of nothing but -inf, or (implicit-reward) no token that all three models can say.

    Notes
    -----
    The sources of the rules are in `RULES`; computed by the code that generates text.
    """
    chosen = c_rule(rule, threshold, rule_temperature)
    if RULES[rule].reference != (reference_logits is not None):
        wanted = "needs" if RULES[rule].reference else "does not use"
        raise InvalidArgumentError(f"rule {rule!r} {wanted} reference_logits; give them for implicit-reward alone")
    given = {"base_logits": base_logits, "aligned_logits": aligned_logits}
    if reference_logits is not None:
        given["reference_logits"] = reference_logits
    rows = _rows(**given)
    out = np.empty(rows[0].shape, dtype=np.float64)
    for pi, *each in zip(np.atleast_2d(out), *(np.atleast_2d(row) for row in rows), strict=True):
        pointers = [_floats(row) for row in each] + [ffi.NULL] * (3 - len(each))
        target = ffi.cast("double *", ffi.from_buffer(pi, require_writable=True))
        check(lib.kad_mixture(chosen, *pointers, pi.size, number("temperature", temperature), target))
    return out


def deferral(
    base_logits: ArrayLike,
    aligned_logits: ArrayLike,
    *,
    rule: str = "dual",
    threshold: float | None = None,
    rule_temperature: float | Literal["sampling"] = 1.0,
    temperature: float = 1.0,
) -> NDArray[np.bool_]:
    """Return d, which tokens are handed to the other model: True outside S (outside T under a token rule).

    Parameters, errors and sources as for `mixture`. `temperature` matters only for rule_temperature="sampling".
    implicit-reward keeps no set and is refused.

    Returns
    -------
    numpy.ndarray
        bool, of the shape given.
    """
    base, aligned = _rows(base_logits=base_logits, aligned_logits=aligned_logits)
    chosen = c_rule(rule, threshold, rule_temperature)
    out = np.empty(base.shape, dtype=np.uint8)
    for p, q, d in zip(np.atleast_2d(base), np.atleast_2d(aligned), np.atleast_2d(out), strict=True):
        target = ffi.cast("uint8_t *", ffi.from_buffer(d, require_writable=True))
        check(lib.kad_deferral(chosen, _floats(p), _floats(q), p.size, number("temperature", temperature), target))
    return out.astype(bool)
