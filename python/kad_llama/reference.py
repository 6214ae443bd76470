"""The slow, obvious oracle of cpp/src/core: docs/method.md in NumPy and float64, under the same names.

Nothing here is fast and nothing here is used to generate text: the shipped functions are the C++ ones, and the tests
compare them with these. Read it top to bottom: a row of logits, deferral, mixture, draw, a grammar, coins, a text.

Letters, as everywhere: p is the large base model (``base``), q the small aligned one (``aligned``), r the small model
before alignment (``reference``), S the tokens the base keeps (``kept``), alpha = 1 - p(S) the ``deferred_mass`` and pi
the ``mixture``. Rows are one-dimensional, one entry per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Row = NDArray[np.float64]
Mask = NDArray[np.bool_]
Source = Literal["base", "aligned", "joint"]

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


# ---- Deferral: who keeps which tokens? -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Decision:
    """What a rule decides at one position: who speaks first, and which of its tokens are then said.

    "base": what the base says is kept if it lies in S, else the aligned model speaks. "aligned": roles exchanged, the
    tokens kept are T. "joint" (implicit-reward): nobody speaks alone. There is no set, and pi is one row, which stands
    in the place of p in everything below.
    """

    keeper: Source
    kept: Mask


def log_threshold(threshold: float) -> float:
    """Log of a threshold; -inf for 0 and less, which every token reaches."""
    return float(np.log(threshold)) if threshold > 0 else -np.inf


def log_less(log_top: float, a: float) -> float:
    """log(exp(log_top) - a), exactly log_top when a is 0; -inf where the difference is 0 or less."""
    left = 1.0 - a * np.exp(-log_top)
    return float(log_top + np.log1p(-a * np.exp(-log_top))) if left > 0 else -np.inf


def everything_if(condition: bool, like: Row) -> Mask:
    return np.full(like.size, condition)


# The sets: (log p, log q, threshold) -> S, or T for the token rules. Both rows are at the rule temperature. A threshold
# of 0 or less keeps everything, tokens of probability zero too.


def dual(log_base: Row, log_aligned: Row, threshold: float) -> Mask:
    """S = {p(v) >= lambda}."""
    return log_base >= log_threshold(threshold)


def primal(log_base: Row, log_aligned: Row, threshold: float) -> Mask:
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


def exact(log_base: Row, log_aligned: Row, threshold: float) -> Mask:
    """S = the complement of the set of mass <= b with the largest sum of -p log p, found by trying all 2^V sets.

    A mass within 1e-12 of b is within it, so that b = 1 defers everything.
    """
    if log_base.size > 16:
        raise ValueError(f"the oracle of rule exact tries all sets of at most 16 tokens; got {log_base.size}")
    deferred = (np.arange(2**log_base.size)[:, None] >> np.arange(log_base.size)) & 1 == 1
    p = np.exp(log_base)
    gain = np.where(p > 0, -p * np.where(p > 0, log_base, 0.0), 0.0)
    value = np.where(deferred @ p <= threshold + 1e-12, deferred @ gain, -1.0)
    keep: Mask = ~deferred[int(np.argmax(value))]
    return keep


def nudging(log_base: Row, log_aligned: Row, threshold: float) -> Mask:
    """S = everything if max p >= gamma, else nothing."""
    return everything_if(log_base.max() >= log_threshold(threshold), log_base)


def bet(log_base: Row, log_aligned: Row, threshold: float) -> Mask:
    """S = {p(v) >= max q - lambda}."""
    return log_base >= log_less(log_aligned.max(), threshold)


def chow(log_base: Row, log_aligned: Row, threshold: float) -> Mask:
    """S = nothing iff max q >= 1 - a."""
    return everything_if(not log_aligned.max() >= log_threshold(1.0 - threshold), log_base)


def diff(log_base: Row, log_aligned: Row, threshold: float) -> Mask:
    """S = nothing iff max q >= max p - a."""
    return everything_if(not log_aligned.max() >= log_less(log_base.max(), threshold), log_base)


def opt(log_base: Row, log_aligned: Row, threshold: float) -> Mask:
    """S = nothing iff max q >= max p - a TV(p, q)."""
    return diff(log_base, log_aligned, threshold * total_variation(np.exp(log_base), np.exp(log_aligned)))


def token_v1(log_base: Row, log_aligned: Row, threshold: float) -> Mask:
    """T = {q(v) >= max p - a}."""
    return log_aligned >= log_less(log_base.max(), threshold)


def token_v2(log_base: Row, log_aligned: Row, threshold: float) -> Mask:
    """T = {p(v) >= max p - a}."""
    return log_base >= log_less(log_base.max(), threshold)


def token_v3(log_base: Row, log_aligned: Row, threshold: float) -> Mask:
    """T = {p(v) >= (1 - a) max p}."""
    return log_base >= float(log_threshold(1.0 - threshold) + log_base.max())


def base(log_base: Row, log_aligned: Row, threshold: float) -> Mask:
    """S = everything: pi = p."""
    return everything_if(True, log_base)


def aligned(log_base: Row, log_aligned: Row, threshold: float) -> Mask:
    """S = nothing: pi = q."""
    return everything_if(False, log_base)


def no_set(log_base: Row, log_aligned: Row, threshold: float) -> Mask:
    """implicit-reward has none; as everything is kept of a row that stands for both models, pi is that row."""
    return everything_if(True, log_base)


@dataclass(frozen=True)
class Rule:
    """A row of the table of rules: the set, who keeps it, the default threshold and its range."""

    keep: Callable[[Row, Row, float], Mask]
    keeper: Source = "base"
    threshold: float = 0.0
    low: float = 0.0
    high: float = 1.0


RULES: dict[str, Rule] = {
    "dual": Rule(dual, threshold=0.4),
    "primal": Rule(primal, threshold=0.9),
    "exact": Rule(exact, threshold=0.9),
    "nudging": Rule(nudging, threshold=0.4),
    "bet": Rule(bet, threshold=0.2),
    "chow": Rule(chow, threshold=0.5),
    "diff": Rule(diff, low=-1.0),
    "opt": Rule(opt, threshold=0.5, high=10.0),
    "token-v1": Rule(token_v1, "aligned", low=-1.0),
    "token-v2": Rule(token_v2, "aligned", low=-1.0),
    "token-v3": Rule(token_v3, "aligned", threshold=0.5),
    "implicit-reward": Rule(no_set, "joint", threshold=1.0, high=10.0),
    "base": Rule(base),
    "aligned": Rule(aligned),
}
DEFAULT_THRESHOLDS: dict[str, float] = {name: rule.threshold for name, rule in RULES.items()}


def checked(rule: str, threshold: float | None) -> float:
    """The threshold, or its default, within the rule's range."""
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; the rules are {', '.join(RULES)}")
    known = RULES[rule]
    value = known.threshold if threshold is None else threshold
    if not known.low <= value <= known.high:
        raise ValueError(f"the threshold of {rule} lies in [{known.low:g}, {known.high:g}]; got {value}")
    return value


def decide(
    rule: str,
    threshold: float | None,
    base_logits: ArrayLike,
    aligned_logits: ArrayLike | None = None,
    *,
    rule_temperature: float | Literal["sampling"] = 1.0,
    temperature: float = 1.0,
) -> Decision:
    """The decision of a rule at one position, from raw logits at the rule temperature.

    `temperature` matters for ``rule_temperature="sampling"`` alone: the rule then sees the rows as cooled for
    sampling. At temperature 0 that would be the bare base, and is refused. Rules that look at p alone need no
    `aligned_logits`.
    """
    threshold = checked(rule, threshold)
    if RULES[rule].keeper == "joint" and rule_temperature != 1:
        raise ValueError(f"{rule} compares nothing: its rule temperature is 1; got {rule_temperature}")
    if rule_temperature == "sampling":
        if temperature == 0:
            raise ValueError('rule_temperature="sampling" at temperature 0 is the bare base; use rule "base"')
        rule_temperature = temperature
    log_base = log_softmax(base_logits, rule_temperature)
    log_aligned = log_base if aligned_logits is None else log_softmax(aligned_logits, rule_temperature)
    return Decision(RULES[rule].keeper, RULES[rule].keep(log_base, log_aligned, threshold))


def kept(
    rule: str,
    threshold: float | None,
    base_logits: ArrayLike,
    rule_temperature: float | Literal["sampling"] = 1.0,
    aligned_logits: ArrayLike | None = None,
) -> Mask:
    """S of a rule at one position (T for the token rules)."""
    return decide(rule, threshold, base_logits, aligned_logits, rule_temperature=rule_temperature).kept


def deferral(
    base_logits: ArrayLike,
    aligned_logits: ArrayLike | None = None,
    *,
    rule: str = "dual",
    threshold: float | None = None,
    rule_temperature: float | Literal["sampling"] = 1.0,
    temperature: float = 1.0,
) -> Mask:
    """d: True where a token is handed to the other model, outside S (outside T for the token rules)."""
    decision = decide(
        rule, threshold, base_logits, aligned_logits, rule_temperature=rule_temperature, temperature=temperature
    )
    if decision.keeper == "joint":
        raise ValueError(f"{rule} keeps no set and defers nothing")
    return ~decision.kept


def log_reward(base_logits: ArrayLike, aligned_logits: ArrayLike, reference_logits: ArrayLike, beta: float) -> Row:
    """implicit-reward: log pi = log p + beta (log q - log r), normalised; -inf where p, q or r is 0.

    The logits of a third speaker, so to say: samplers and temperature act on them.
    """
    rows = [log_softmax(logits) for logits in (base_logits, aligned_logits, reference_logits)]
    common = np.isfinite(rows).all(axis=0)
    if not common.any():
        raise ValueError("no token is possible for the base, the aligned and the reference model alike")
    log_p, log_q, log_r = (np.where(common, logits, 0.0) for logits in rows)
    return log_softmax(np.where(common, log_p + beta * (log_q - log_r), -np.inf))


def first_row(
    rule: str,
    threshold: float | None,
    base_logits: ArrayLike,
    aligned_logits: ArrayLike,
    reference_logits: ArrayLike | None,
) -> Row:
    """The logits in the place of p: the base's own, or log pi for implicit-reward."""
    if RULES[rule].keeper != "joint":
        return row(base_logits)
    if reference_logits is None:
        raise ValueError(f"{rule} needs reference_logits")
    return log_reward(base_logits, aligned_logits, reference_logits, checked(rule, threshold))


# ---- Mixture: what is sampled ----------------------------------------------------------------------------------------
#
# From here on p and q are distributions as sampled: shaped by each speaker's own samplers and cooled. A bare mask in the
# place of a decision is S.

Kept = Decision | Mask


def decided(keep: Kept) -> Decision:
    return keep if isinstance(keep, Decision) else Decision("base", keep)


def left_over(kept: Mask, probabilities: Row) -> float:
    """1 - the mass of what is kept: exactly 1 when nothing is, exactly 0 when everything is."""
    return float(probabilities[~kept].sum()) if kept.any() else 1.0


def deferred_mass(keep: Kept, p: Row, q: Row | None = None) -> float:
    """alpha, the probability that the aligned model speaks: 1 - p(S); q(T) for the token rules; NaN without a set."""
    decision = decided(keep)
    if decision.keeper == "base":
        return left_over(decision.kept, p)
    if decision.keeper == "aligned":
        if q is None:
            raise ValueError("alpha of a token rule is q(T): give q")
        return 1.0 - left_over(decision.kept, q)
    return np.nan


def said(keep: Kept, p: Row, q: Row) -> tuple[Row, Row]:
    """What the base says of pi, and what the aligned model says: p(v) [v in S] and alpha q(v); or, roles exchanged,
    (1 - q(T)) p(v) and q(v) [v in T]. Without a set pi stands whole in the place of the first."""
    decision = decided(keep)
    if decision.keeper == "aligned":
        return left_over(decision.kept, q) * p, np.where(decision.kept, q, 0.0)
    return np.where(decision.kept, p, 0.0), left_over(decision.kept, p) * q


def mix(keep: Kept, p: Row, q: Row) -> Row:
    """pi(v) = p(v) [v in S] + alpha q(v); for the token rules q(v) [v in T] + (1 - q(T)) p(v)."""
    by_base, by_aligned = said(keep, p, q)
    return by_base + by_aligned


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
    reference_logits: ArrayLike | None = None,
) -> Row:
    """pi from logits: the rule decides on the raw rows, the speakers speak from the shaped ones (None: the raw).

    implicit-reward needs `reference_logits`; `base_shaped` is then log pi as shaped.
    """
    decision = decide(
        rule, threshold, base_logits, aligned_logits, rule_temperature=rule_temperature, temperature=temperature
    )
    first = first_row(rule, threshold, base_logits, aligned_logits, reference_logits)
    p = softmax(first if base_shaped is None else base_shaped, temperature)
    q = softmax(aligned_logits if aligned_shaped is None else aligned_shaped, temperature)
    return mix(decision, p, q)


def log_pi(pi: Row) -> Row:
    """Log of the mixture; -inf where a token cannot be drawn."""
    with np.errstate(divide="ignore"):
        return np.log(pi)


def residual(keep: Kept, p: Row, q: Row) -> Row:
    """max(0, pi - q), unnormalised. Where the base keeps S it is zero outside S, since pi = alpha q <= q there."""
    return np.maximum(0.0, mix(keep, p, q) - q)


def base_share(keep: Kept, p: Row, q: Row) -> Row:
    """P(base said v): its part of pi(v); 0 where pi is 0, NaN without a set."""
    by_base, by_aligned = said(keep, p, q)
    if decided(keep).keeper == "joint":
        return np.full(p.size, np.nan)
    pi = by_base + by_aligned
    return np.divide(by_base, pi, out=np.zeros_like(pi), where=pi > 0)


def total_variation(first: Row, second: Row) -> float:
    """TV = sum of max(0, second - first): the mass by which two distributions differ."""
    return float(np.maximum(0.0, second - first).sum())


def guess_right(keep: Kept, p: Row, q: Row) -> float:
    """P(outcome = the aligned model's own draw) = sum of min(pi, q) = 1 - TV(pi, q)."""
    return float(np.minimum(mix(keep, p, q), q).sum())


# ---- Draw: (p, q, coins) -> outcome ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """One outcome: the token, the aligned model's proposal x, who spoke, and what the mixture says of the token.

    proposal is -1 where none was drawn.
    """

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


def accept_or_correct(pi: Row, q: Row, coins: Sequence[float]) -> tuple[int, int]:
    """Step 3 for any target pi and proposal q: (the outcome, x)."""
    c1, c2, c3 = coins
    x = inverse_distribution(q, c1)
    if c2 * q[x] < pi[x]:
        return x, x
    left = np.maximum(0.0, pi - q)
    return (inverse_distribution(left, c3 * left.sum()) if left.sum() > 0 else int(np.argmax(pi))), x


def speaker(share: float, coin: float) -> Source:
    """Who is said to have spoken: the base with probability `share`."""
    if np.isnan(share):
        return "joint"
    return "base" if coin < share else "aligned"


def draw(keep: Kept, p: Row, q: Row, coins: Sequence[float]) -> Draw:
    """The draw of method.md, section 3. Over independent uniform coins c1..c4 the outcome's law is pi."""
    c1, c2, c3, c4 = coins
    decision = decided(keep)
    pi, share = mix(decision, p, q), base_share(decision, p, q)
    source: Source
    if decision.keeper == "base" and decision.kept.sum() <= 1:
        x, v = inverse_distribution(q, c1), int(np.argmax(decision.kept))
        source = "base" if decision.kept.any() and c2 < p[v] else "aligned"
        token = v if source == "base" else x
    else:
        token, x = accept_or_correct(pi, q, (c1, c2, c3))
        source = speaker(share[token], c4)
    return Draw(token, x, source, deferred_mass(decision, p, q), float(log_pi(pi)[token]), float(share[token]))


# ---- Under a grammar: draw; if the outcome may not be said, redraw -----------------------------------------------------
#
# method.md, section 4. Over the seven coins the law is pi[ok] / Z, Z = pi(ok), where that is more than nothing: an
# outcome that may be said comes with pi(v), and the rest, 1 - Z, is drawn again with the law of the redraw.

Speak = Callable[[Row], Row]


def draw_legal(
    keep: Kept, base_logits: ArrayLike, aligned_logits: ArrayLike, ok: Mask, speak: Speak, coins: Sequence[float]
) -> Draw:
    """One outcome among the tokens that are `ok`.

    Parameters
    ----------
    base_logits, aligned_logits
        Raw rows (log pi in the base's place for implicit-reward).
    speak
        A speaker's samplers and temperature: raw logits -> the distribution that is sampled.
    coins
        c1 to c7.

    Raises
    ------
    ValueError
        When neither model has a token that may be said.
    """
    c1, c2, c3, c4, c5, c6, c7 = coins
    p, q = speak(row(base_logits)), speak(row(aligned_logits))
    first = draw(keep, p, q, (c1, c2, c3, c4))
    if ok[first.token]:
        return first
    pi = mix(keep, p, q)
    if not pi[ok].sum() > 0:
        return draw_masked(keep, row(base_logits), row(aligned_logits), ok, speak, (c5, c6, c7, c4))
    target, proposal = np.where(ok, pi, 0.0) / pi[ok].sum(), np.where(ok, q, 0.0)
    if proposal.sum() > 0:
        token, x = accept_or_correct(target, proposal / proposal.sum(), (c5, c6, c7))
    else:
        token, x = inverse_distribution(target, c7), -1
    share = float(base_share(keep, p, q)[token])
    return Draw(token, x, speaker(share, c4), first.deferred_mass, float(log_pi(pi)[token]), share)


def draw_masked(
    keep: Kept, base_logits: Row, aligned_logits: Row, ok: Mask, speak: Speak, coins: Sequence[float]
) -> Draw:
    """Z = 0: both raw rows are masked before the speakers' samplers, S and ok is kept, and a draw is made from that.

    A model without a token that may be said gives way to the other.
    """
    decision = decided(keep)
    masked_base, masked_aligned = (np.where(ok, logits, -np.inf) for logits in (base_logits, aligned_logits))
    alone: Source
    if np.isfinite(masked_base).any() and np.isfinite(masked_aligned).any():
        return draw(Decision(decision.keeper, decision.kept & ok), speak(masked_base), speak(masked_aligned), coins)
    if np.isfinite(masked_aligned).any():
        pi, alone = speak(masked_aligned), "aligned"
        token = x = inverse_distribution(pi, coins[0])
    elif np.isfinite(masked_base).any():
        pi, alone = speak(masked_base), "base"
        token, x = inverse_distribution(pi, coins[2]), -1
    else:
        raise ValueError("neither model has a token that may be said")
    alpha = np.nan if decision.keeper == "joint" else float(alone == "aligned")
    source: Source = "joint" if decision.keeper == "joint" else alone
    return Draw(token, x, source, alpha, float(log_pi(pi)[token]), 1.0 - alpha)


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
Grammar = Callable[[tuple[int, ...]], Mask]


def write(
    base_model: Model,
    aligned_model: Model,
    n: int,
    *,
    rule: str = "dual",
    threshold: float | None = None,
    rule_temperature: float | Literal["sampling"] = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    text_number: int = 0,
    prompt: tuple[int, ...] = (),
    end: Sequence[int] = (),
    reference_model: Model | None = None,
    grammar: Grammar | None = None,
) -> list[Draw]:
    """A plain run over one vocabulary: n events, or fewer when a token of `end` is drawn (which is in the list).

    A model is any function from the ids so far to a row of logits, a grammar one to the mask of what may be said next.
    Drafts do not appear: whatever guesses, this is the text.
    """
    ids = tuple(prompt)
    events: list[Draw] = []

    def speak(logits: Row) -> Row:
        return softmax(shape(logits, top_k=top_k, top_p=top_p, min_p=min_p), temperature)

    while len(events) < n and (not events or events[-1].token not in end):
        raw_base, raw_aligned = row(base_model(ids)), row(aligned_model(ids))
        raw_reference = None if reference_model is None else row(reference_model(ids))
        decision = decide(
            rule, threshold, raw_base, raw_aligned, rule_temperature=rule_temperature, temperature=temperature
        )
        first = first_row(rule, threshold, raw_base, raw_aligned, raw_reference)
        ok = np.ones(first.size, dtype=bool) if grammar is None else grammar(ids)
        coins = [coin(seed, text_number, len(events), purpose) for purpose in range(1, 8)]
        events.append(draw_legal(decision, first, raw_aligned, ok, speak, coins))
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
