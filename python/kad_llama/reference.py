"""The slow, obvious oracle of cpp/src/core: docs/method.md in NumPy and float64, under the same names.

Nothing here is fast and nothing here is used to generate text: the shipped functions are the C++ ones, and the tests
compare them with these. Read it top to bottom: a row of logits, deferral, mixture, draw, coins, a text.

Letters, as everywhere: p is the large base model (``base``), q the small aligned one (``aligned``), S the tokens the
base keeps (``kept``), alpha = 1 - p(S) the ``deferred_mass`` and pi the ``mixture``. Rows are one-dimensional, one
entry per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Row = NDArray[np.float64]
Mask = NDArray[np.bool_]
Source = Literal["base", "aligned"]

# ---- A row of logits -------------------------------------------------------------------------------------------------


def row(logits: ArrayLike) -> Row:
    """A row as float64, checked: -inf is probability zero; NaN, +inf and nothing but -inf are no distribution.

    Raises
    ------
    ValueError
        For a row that is not one-dimensional, empty, or not a distribution.
    """
    values: Row = np.asarray(logits, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"a row has one dimension and at least one entry; got shape {values.shape}")
    if np.isnan(values).any() or np.isposinf(values).any():
        raise ValueError("a row of logits may not hold NaN or +inf")
    if np.isneginf(values).all():
        raise ValueError("a row of nothing but -inf has no possible token")
    return values


def log_softmax(logits: ArrayLike, temperature: float = 1.0) -> Row:
    """Log-probabilities at a temperature above 0."""
    if not temperature > 0 or not np.isfinite(temperature):
        raise ValueError(f"temperature must be finite and above 0 here; got {temperature}")
    scaled: Row = row(logits) / temperature
    shifted: Row = scaled - scaled.max()
    normalised: Row = shifted - np.log(np.exp(shifted).sum())
    return normalised


def softmax(logits: ArrayLike, temperature: float = 1.0) -> Row:
    """Probabilities at a temperature; 0 is all mass on the best token, ties to the lowest id."""
    if temperature == 0:
        one_hot = np.zeros(row(logits).size)
        one_hot[int(np.argmax(row(logits)))] = 1.0
        return one_hot
    weights = np.exp(log_softmax(logits, temperature))
    probabilities: Row = weights / weights.sum()
    return probabilities


def descending(values: Row) -> NDArray[np.intp]:
    """Ids from the most to the least probable; of equals the lower id comes first."""
    return np.argsort(-values, kind="stable")


def shape(logits: ArrayLike, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Row:
    """The row as llama.cpp's truncating samplers leave it, in llama.cpp's order; dropped tokens are -inf.

    Temperature comes last in that order, so all three see the row at temperature 1 and `softmax` cools what is left.

    Parameters
    ----------
    top_k : int
        Keep the k most probable tokens; 0 or less is off.
    top_p : float
        Keep the smallest set of most probable tokens with mass >= top_p; 1 is off.
    min_p : float
        Keep tokens at least min_p times as probable as the best; 0 is off.
    """
    shaped: Row = row(logits).copy()
    if top_k > 0:
        shaped[descending(shaped)[top_k:]] = -np.inf
    if top_p < 1:
        order = descending(shaped)
        reached = np.flatnonzero(np.cumsum(softmax(shaped)[order]) >= top_p)
        if reached.size:
            shaped[order[reached[0] + 1 :]] = -np.inf
    if min_p > 0:
        shaped[shaped < shaped.max() + np.log(min_p)] = -np.inf
    return shaped


# ---- Deferral: which tokens does the base keep? ----------------------------------------------------------------------
#
# A rule is a function (log p, log q, threshold) -> S. Both rows are at the rule temperature, in the log domain.


def dual(log_base: Row, log_aligned: Row | None, threshold: float) -> Mask:
    """S = {p(v) >= lambda}; a threshold of 0 or less keeps everything, tokens of probability zero too."""
    return log_base >= log_threshold(threshold)


def primal(log_base: Row, log_aligned: Row | None, threshold: float) -> Mask:
    """S = the smallest set of most probable tokens with mass >= 1 - b; everything if the sum never gets there."""
    keep = np.zeros(log_base.size, dtype=bool)
    wanted = 1.0 - threshold
    if wanted <= 0:
        return keep
    order = descending(log_base)
    reached = np.flatnonzero(np.cumsum(np.exp(log_base[order])) >= wanted)
    count = int(reached[0]) + 1 if reached.size else log_base.size
    keep[order[:count]] = True
    return keep


def nudging(log_base: Row, log_aligned: Row | None, threshold: float) -> Mask:
    """S = everything if max p >= gamma, else nothing."""
    return np.full(log_base.size, log_base.max() >= log_threshold(threshold))


def base(log_base: Row, log_aligned: Row | None, threshold: float) -> Mask:
    """S = everything: pi = p."""
    return np.ones(log_base.size, dtype=bool)


def aligned(log_base: Row, log_aligned: Row | None, threshold: float) -> Mask:
    """S = nothing: pi = q."""
    return np.zeros(log_base.size, dtype=bool)


Rule = Callable[[Row, "Row | None", float], Mask]
RULES: dict[str, Rule] = {"dual": dual, "primal": primal, "nudging": nudging, "base": base, "aligned": aligned}
DEFAULT_THRESHOLDS: dict[str, float] = {"dual": 0.4, "primal": 0.9, "nudging": 0.4, "base": 0.0, "aligned": 0.0}


def log_threshold(threshold: float) -> float:
    """Log of a threshold; -inf for 0 and less, which every token reaches."""
    return float(np.log(threshold)) if threshold > 0 else -np.inf


def kept(
    rule: str,
    threshold: float | None,
    base_logits: ArrayLike,
    rule_temperature: float = 1.0,
    aligned_logits: ArrayLike | None = None,
) -> Mask:
    """S of a rule at one position, from raw logits at the rule temperature.

    The rules of today look at p alone; `aligned_logits` is for those that compare both models.
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; the rules are {', '.join(RULES)}")
    threshold = DEFAULT_THRESHOLDS[rule] if threshold is None else threshold
    if not 0 <= threshold <= 1:
        raise ValueError(f"the threshold of {rule} lies in [0, 1]; got {threshold}")
    log_aligned = None if aligned_logits is None else log_softmax(aligned_logits, rule_temperature)
    return RULES[rule](log_softmax(base_logits, rule_temperature), log_aligned, threshold)


def deferral(
    base_logits: ArrayLike,
    aligned_logits: ArrayLike | None = None,
    *,
    rule: str = "dual",
    threshold: float | None = None,
    rule_temperature: float | Literal["sampling"] = 1.0,
    temperature: float = 1.0,
) -> Mask:
    """d: True where a token is handed to the aligned model.

    `temperature` matters for ``rule_temperature="sampling"`` alone: the rule then sees the rows as cooled for
    sampling. At temperature 0 that would be the bare base, and is refused.
    """
    if rule_temperature == "sampling":
        if temperature == 0:
            raise ValueError('rule_temperature="sampling" at temperature 0 is the bare base; use rule "base"')
        rule_temperature = temperature
    return ~kept(rule, threshold, base_logits, rule_temperature, aligned_logits)


# ---- Mixture: what is sampled ----------------------------------------------------------------------------------------
#
# From here on p and q are distributions as sampled: shaped by each speaker's own samplers and cooled.


def deferred_mass(keep: Mask, p: Row) -> float:
    """alpha = 1 - p(S): exactly 1 when S is empty, exactly 0 when it is everything."""
    if not keep.any():
        return 1.0
    return float(p[~keep].sum())


def mix(keep: Mask, p: Row, q: Row) -> Row:
    """pi(v) = p(v) [v in S] + alpha q(v)."""
    return np.where(keep, p, 0.0) + deferred_mass(keep, p) * q


def mixture(
    base_logits: ArrayLike,
    aligned_logits: ArrayLike,
    *,
    rule: str = "dual",
    threshold: float | None = None,
    rule_temperature: float | Literal["sampling"] = 1.0,
    temperature: float = 1.0,
    base_shaped: ArrayLike | None = None,
    aligned_shaped: ArrayLike | None = None,
) -> Row:
    """pi from logits: the rule decides on the raw rows, the speakers speak from the shaped ones (None: the raw)."""
    keep = ~deferral(
        base_logits,
        aligned_logits,
        rule=rule,
        threshold=threshold,
        rule_temperature=rule_temperature,
        temperature=temperature,
    )
    p = softmax(base_logits if base_shaped is None else base_shaped, temperature)
    q = softmax(aligned_logits if aligned_shaped is None else aligned_shaped, temperature)
    return mix(keep, p, q)


def log_pi(pi: Row) -> Row:
    """Log of the mixture; -inf where a token cannot be drawn."""
    with np.errstate(divide="ignore"):
        return np.log(pi)


def residual(keep: Mask, p: Row, q: Row) -> Row:
    """max(0, pi - q), unnormalised. Outside S it is zero, since pi = alpha q <= q there."""
    return np.where(keep, np.maximum(0.0, mix(keep, p, q) - q), 0.0)


def base_share(keep: Mask, p: Row, q: Row) -> Row:
    """P(base said v) = p(v) [v in S] / pi(v); 0 where pi is 0."""
    pi = mix(keep, p, q)
    return np.divide(np.where(keep, p, 0.0), pi, out=np.zeros_like(pi), where=pi > 0)


def total_variation(first: Row, second: Row) -> float:
    """TV = sum of max(0, second - first): the mass by which two distributions differ."""
    return float(np.maximum(0.0, second - first).sum())


def guess_right(keep: Mask, p: Row, q: Row) -> float:
    """P(outcome = the aligned model's own draw) = alpha + sum over S of min(p(v), (1 - alpha) q(v)) = 1 - TV(pi, q)."""
    alpha = deferred_mass(keep, p)
    return alpha + float(np.minimum(p, (1.0 - alpha) * q)[keep].sum())


# ---- Draw: (p, q, coins) -> outcome ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """One outcome: the token, the aligned model's proposal x, who spoke, and what the mixture says of the token."""

    token: int
    proposal: int
    source: Source
    deferred_mass: float
    logprob: float
    base_share: float


def inverse_distribution(weights: Row, target: float) -> int:
    """The lowest index whose cumulative weight exceeds the target; if none does by rounding, the last above zero."""
    exceeding = np.flatnonzero(np.cumsum(weights) > target)
    return int(exceeding[0]) if exceeding.size else int(np.flatnonzero(weights)[-1])


def draw(keep: Mask, p: Row, q: Row, coins: Sequence[float]) -> Draw:
    """The draw of method.md, section 3. Over independent uniform coins c1..c4 the outcome's law is pi."""
    c1, c2, c3, c4 = coins
    pi = mix(keep, p, q)
    share = base_share(keep, p, q)
    x = inverse_distribution(q, c1)
    source: Source
    if keep.sum() <= 1:
        base_speaks = bool(keep.any()) and c2 < p[int(np.argmax(keep))]
        token = int(np.argmax(keep)) if base_speaks else x
        source = "base" if base_speaks else "aligned"
    else:
        if c2 * q[x] < pi[x]:
            token = x
        else:
            left = residual(keep, p, q)
            token = inverse_distribution(left, c3 * left.sum()) if left.sum() > 0 else int(np.argmax(pi))
        source = "base" if c4 < share[token] else "aligned"
    return Draw(token, x, source, deferred_mass(keep, p), float(log_pi(pi)[token]), float(share[token]))


# ---- Coins -----------------------------------------------------------------------------------------------------------


def coin(seed: int, text_number: int, event: int, purpose: int) -> float:
    """The coin of (seed, text number, event, purpose): Philox4x64-10, 53 bits, in [0, 1).

    The key is (seed, 0), the counter (event, text_number, purpose, 0) with its least significant word first. NumPy
    adds one to the counter before the first block, so it is given the counter before ours.
    """
    counter = event | text_number << 64 | purpose << 128
    philox = np.random.Philox(key=seed, counter=(counter - 1) % 2**256)
    return (int(philox.random_raw()) >> 11) * 2.0**-53


# ---- A text ----------------------------------------------------------------------------------------------------------

Model = Callable[[tuple[int, ...]], ArrayLike]


def write(
    base_model: Model,
    aligned_model: Model,
    n: int,
    *,
    rule: str = "dual",
    threshold: float | None = None,
    rule_temperature: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    text_number: int = 0,
    prompt: tuple[int, ...] = (),
    end: Sequence[int] = (),
) -> list[Draw]:
    """A plain run over one vocabulary: n events, or fewer when a token of `end` is drawn (which is in the list).

    A model is any function from the ids so far to a row of logits. Drafts do not appear: whatever guesses, this is
    the text.
    """
    ids = tuple(prompt)
    events: list[Draw] = []
    while len(events) < n and (not events or events[-1].token not in end):
        raw_base, raw_aligned = row(base_model(ids)), row(aligned_model(ids))
        keep = kept(rule, threshold, raw_base, rule_temperature, raw_aligned)
        p = softmax(shape(raw_base, top_k=top_k, top_p=top_p, min_p=min_p), temperature)
        q = softmax(shape(raw_aligned, top_k=top_k, top_p=top_p, min_p=min_p), temperature)
        coins = [coin(seed, text_number, len(events), purpose) for purpose in (1, 2, 3, 4)]
        events.append(draw(keep, p, q, coins))
        ids += (events[-1].token,)
    return events


# ---- Knapsack: which tokens to defer, within a budget ----------------------------------------------------------------

FITS = 1.0 + 1e-12  # a deferred mass of up to b times this is within the budget b


def knapsack_values(p: Row) -> Row:
    """-p log p of every token; 0 for p = 0."""
    return -p * np.log(np.where(p > 0, p, 1.0))


def knapsack_brute_force(p: ArrayLike, budget: float) -> tuple[Mask, float]:
    """The kept set that leaves the most -p log p to defer, and that value: all 2^V sets, for V <= 20.

    Of sets of the same value the first by the binary number whose lowest bit is token 0. Tokens of probability 0 are
    deferred; a budget of 1 defers everything.
    """
    weights: Row = np.asarray(p, dtype=np.float64)
    if weights.size > 20:
        raise ValueError(f"brute force over {weights.size} tokens would take too long; at most 20")
    if budget >= 1:
        return np.zeros(weights.size, dtype=bool), float(knapsack_values(weights).sum())
    possible = np.flatnonzero(weights > 0)
    mass, value = np.zeros(1), np.zeros(1)  # of every set of the tokens so far
    for w, h in zip(weights[possible], knapsack_values(weights)[possible], strict=True):
        mass, value = np.concatenate([mass, mass + w]), np.concatenate([value, value + h])
    best = int(np.argmax(np.where(mass <= budget * FITS, value, -np.inf)))
    keep = np.zeros(weights.size, dtype=bool)
    keep[possible] = [not best >> i & 1 for i in range(possible.size)]
    return keep, float(value[best])
