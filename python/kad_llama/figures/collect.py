"""Which numbers do the figures show? From rows of logits along texts that the pair itself writes; nothing is drawn here.

Rows lie over events, so all of it works with equal and with different vocabularies. No row is kept: what a position has to
say is worked out where the run stands, since two rows of a large vocabulary take megabytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from os import PathLike, fspath
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kad_llama._binding import ffi, lib
from kad_llama._binding.calls import check
from kad_llama.errors import InvalidArgumentError
from kad_llama.evaluation.settings import Setting, read_rule
from kad_llama.evaluation.statistics import wilson
from kad_llama.generation import Generation
from kad_llama.knapsack import knapsack
from kad_llama.rules import RULES, deferral, mixture
from kad_llama.session import KadLlama

if TYPE_CHECKING:
    from kad_llama.evaluation.results import Results
    from kad_llama.stream import Stream

__all__ = [
    "COMPARED",
    "Acceptance",
    "Accuracies",
    "Budget",
    "Curve",
    "Distribution",
    "Measured",
    "Numbers",
    "Plan",
    "Sweep",
    "accuracies",
    "collect",
]

COMPARED = tuple(map(read_rule, ("dual:0.4", "primal:0.9", "nudging:0.4")))  # of the figure on acceptance
SWEPT = ("dual", "primal", "nudging", "bet")  # of the figure on entropy
THRESHOLDS = tuple(i / 20 for i in range(21))
BUDGET = 0.9  # b of the figure on the budget
SHARED = (0.2, 0.8)  # alpha where both models have a say: what the figure on the distribution looks for
EVENTS = 10  # bars of that figure
DRAFT = 4  # guesses per pass of the runs in which right guesses are counted

Row = NDArray[np.float64]
Rows = tuple[NDArray[np.float32], NDArray[np.float32]]
Path = str | PathLike[str]


@dataclass(frozen=True)
class Plan:
    """What is written, and how: the arguments of `kad_llama.figures.write_figures`, checked."""

    prompts: tuple[str, ...]
    n: int
    setting: Setting
    position: int | None
    temperature: float
    seed: int
    keywords: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> list[Setting]:
        """Under which rules texts are written: the chosen one first."""
        return list(dict.fromkeys([self.setting, *COMPARED]))

    @property
    def total(self) -> int:
        """Positions of all runs, if no text ends early."""
        return (len(self.settings) + len(COMPARED)) * len(self.prompts) * self.n


# ---- One position -----------------------------------------------------------------------------------------------------


class Place:
    """What two rows say under a setting: who would say what, by docs/method.md, section 1."""

    def __init__(self, rows: Rows, setting: Setting, temperature: float) -> None:
        self.rows, self.setting, self.temperature = rows, setting, temperature
        self._rule: dict[str, Any] = {"rule": setting.rule, "threshold": setting.threshold}

    @cached_property
    def p(self) -> Row:
        """p', as the base speaks."""
        return mixture(*self.rows, rule="base", temperature=self.temperature)

    @cached_property
    def q(self) -> Row:
        """q', as the aligned model speaks."""
        return mixture(*self.rows, rule="aligned", temperature=self.temperature)

    @cached_property
    def pi(self) -> Row:
        """What is sampled."""
        return mixture(*self.rows, **self._rule, temperature=self.temperature)

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """S, or T of a token rule."""
        return ~deferral(*self.rows, **self._rule)

    @property
    def alpha(self) -> float:
        """The probability that the aligned model speaks."""
        exchanged = RULES[self.setting.rule].exchanged
        return 1 - _left_over(self.kept, self.q) if exchanged else _left_over(self.kept, self.p)

    @property
    def parts(self) -> tuple[Row, Row]:
        """What the base and what the aligned model contribute to pi; their sum is pi."""
        if RULES[self.setting.rule].exchanged:
            return _left_over(self.kept, self.q) * self.p, np.where(self.kept, self.q, 0.0)
        return np.where(self.kept, self.p, 0.0), _left_over(self.kept, self.p) * self.q

    @property
    def right(self) -> float:
        """1 - TV(pi, q): the probability that the aligned model's guess is what is said."""
        return float(np.minimum(self.pi, self.q).sum())


def _left_over(kept: NDArray[np.bool_], row: Row) -> float:
    """1 - the mass of what is kept: exactly 1 when nothing is, exactly 0 when everything is."""
    return float(row[~kept].sum()) if kept.any() else 1.0


@dataclass(frozen=True, eq=False)
class Shares:
    """The most probable events of a position, by their greatest probability in p, q and pi; the rest summed up."""

    events: NDArray[np.intp]
    kept: NDArray[np.bool_]
    n_kept: int
    columns: Row  # per event and, last, for the rest: p, q, what the base and what the aligned model contribute to pi

    @staticmethod
    def of(place: Place) -> Shares:
        """Choose the events, the greatest first."""
        columns = np.stack([place.p, place.q, *place.parts])
        height = np.maximum(np.maximum(columns[0], columns[1]), place.pi)
        count = min(EVENTS, height.size)
        found = np.flatnonzero(height >= np.partition(height, -count)[-count])
        found = found[np.argsort(-height[found], kind="stable")][:count]
        found = found[height[found] > 0]
        rest = np.maximum(columns.sum(axis=1) - columns[:, found].sum(axis=1), 0.0)
        return Shares(found, place.kept[found], int(place.kept.sum()), np.vstack([columns[:, found].T, rest]))


@dataclass(frozen=True)
class Unfilled:
    """How far the knapsack is from full: what is left of the budget by either solver, and the critical item."""

    critical: float
    greedy: float
    exact: float
    certified: bool


def unfilled(p: Row) -> Unfilled:
    """Solve the knapsack on p. The critical item is the least probable token kept by the greedy solution."""
    greedy, exact = knapsack(p, BUDGET, method="greedy"), knapsack(p, BUDGET)
    left, least = (BUDGET - float(p[~solved.kept].sum()) for solved in (greedy, exact))
    return Unfilled(float(p[greedy.kept].min()), left, least, exact.certified)


def sweep(rows: Rows, p: Row) -> Row:
    """Return the entropy of p kept in S and alpha, for every rule and threshold: shape (rules, thresholds, 2).

    The entropy is NaN where S is empty, or holds nothing that the base would say at its temperature.
    """
    surprise = -p * np.log(np.where(p > 0, p, 1.0))
    found = np.empty((len(SWEPT), len(THRESHOLDS), 2))
    for i, rule in enumerate(SWEPT):
        for j, threshold in enumerate(THRESHOLDS):
            kept = ~deferral(*rows, rule=rule, threshold=threshold)
            found[i, j] = _entropy(surprise, p, kept), _left_over(kept, p)
    return found


def _entropy(surprise: Row, p: Row, kept: NDArray[np.bool_]) -> float:
    """In nats, of p restricted to S and renormalised."""
    mass = float(p[kept].sum())
    return max(0.0, float(surprise[kept].sum()) / mass + math.log(mass)) if mass > 0 else math.nan


@dataclass(frozen=True, eq=False)
class Position:
    """What is kept of a position; the last three only of the chosen setting."""

    alpha: float
    right: float
    shares: Shares | None = None
    curves: Row | None = None
    unfilled: Unfilled | None = None


def position_of(rows: Rows, setting: Setting, temperature: float, whole: bool) -> Position:
    """Work a position out; `whole`: for all figures, not for the one on acceptance alone."""
    place = Place(rows, setting, temperature)
    if not whole:
        return Position(place.alpha, place.right)
    plain = place.p if temperature == 1 else mixture(*rows, rule="base")
    return Position(place.alpha, place.right, Shares.of(place), sweep(rows, place.p), unfilled(plain))


# ---- Texts ------------------------------------------------------------------------------------------------------------


@dataclass
class Texts:
    """What was written under one setting, and what was found on the way."""

    setting: Setting
    whole: bool
    positions: list[tuple[Position, int, str]] = field(default_factory=list)  # with the prompt, and the text before it
    by_base: int = 0
    said: int = 0
    drafted: int = 0
    accepted: int = 0
    note: str = ""  # why there were no guesses

    def write(self, kad: KadLlama, plan: Plan, done: Callable[[int], object]) -> None:
        """Write an answer to every prompt; under a compared setting once more, with guesses, to count the right ones."""
        for i, prompt in enumerate(plan.prompts):
            self._plain(kad, plan, i, prompt, done)
            if self.setting in COMPARED:
                self._guessing(kad, plan, i, prompt)
                done(plan.n)

    def _plain(self, kad: KadLlama, plan: Plan, i: int, prompt: str, done: Callable[[int], object]) -> None:
        found: list[Position] = []
        stream = kad.stream(
            prompt, max_tokens=plan.n, temperature=plan.temperature, seed=plan.seed, text_number=i, spec=False
        )
        try:
            with stream:
                for rows in rows_along(stream, kad.vocab.n_events):
                    found.append(position_of(rows, self.setting, plan.temperature, self.whole))
                    done(1)
        finally:
            self._take(found, i, stream.result)
        done(plan.n - len(found))

    def _take(self, found: list[Position], prompt: int, out: Generation) -> None:
        """Keep what belongs to the text: a stop string is cut off, the end of the text is an event that says nothing."""
        texts = [token.text for token in out.tokens]
        ended = out.stats.tokens < len(found) and out.finish_reason != "interrupted"
        for place in range(min(len(found), len(texts) + ended)):
            self.positions.append((found[place], prompt, "".join(texts[:place])))
        self.said += len(out.tokens)
        self.by_base += sum(token.source == "base" for token in out.tokens)

    def _guessing(self, kad: KadLlama, plan: Plan, i: int, prompt: str) -> None:
        if not kad.max_draft:
            self.note = "these models take no guesses"
            return
        draft = min(DRAFT, kad.max_draft)
        how: dict[str, Any] = {"temperature": plan.temperature, "seed": plan.seed, "text_number": i}
        out = None
        try:
            out = kad.generate(prompt, max_tokens=plan.n, draft=draft, **how)
        except KeyboardInterrupt as stopped:
            out = getattr(stopped, "partial", None)
            raise
        finally:
            if out is not None:
                self.drafted += out.stats.drafted
                self.accepted += out.stats.accepted
                self.note = out.stats.note


def rows_along(stream: Stream, n_events: int) -> Iterator[Rows]:
    """The rows of base and aligned model from which a plain run draws each event, one pair after the other."""
    while stream._open:
        base, aligned = stream.rows(n_events, 2)
        yield base, aligned
        stream._step()  # one event: a plain run guesses nothing, and the rows' prompt is evaluated


# ---- What events are called -------------------------------------------------------------------------------------------

_ORDINARY, _END = 0, 2  # kinds of kad_token_bytes


class Names:
    """The bytes of events by their number; None is the end of the text."""

    def __init__(self, kad: KadLlama) -> None:
        self._kad = kad
        self._n_base = kad.base.n_vocab if kad.base is not None else 0

    def __call__(self, event: int) -> bytes | None:
        """Return what an event says."""
        if self._kad.vocab.equal:
            kinds = [self._token(role, event) for role in ("base", "aligned")]
            return None if _END in (kind for kind, _ in kinds) else kinds[0][1]
        if event >= self._n_base:
            return self._aligned_only[event - self._n_base]
        kind, data = self._token("base", event)
        return None if kind == _END else data

    @cached_property
    def _aligned_only(self) -> list[bytes | None]:
        """The events that the aligned model alone has, in their order: as its ids come, without what the base can say.

        Bytes that are no whole character are each model's own (docs/method.md, section 6).
        """
        base = [self._token("base", token) for token in range(self._n_base)]
        known = {data for kind, data in base if kind == _ORDINARY and _is_text(data)}
        ended = any(kind == _END for kind, _ in base)
        found: list[bytes | None] = []
        aligned = self._kad.aligned
        for token in range(aligned.n_vocab if aligned is not None else 0):
            kind, data = self._token("aligned", token)
            if kind == _END and not ended:
                ended = True
                found.append(None)
            elif kind == _ORDINARY and data not in known:
                known.add(data)
                found.append(data)
        return found

    def _token(self, role: str, token: int) -> tuple[int, bytes]:
        data, size, kind = ffi.new("const char **"), ffi.new("size_t *"), ffi.new("int32_t *")
        number = lib.KAD_ROLE_BASE if role == "base" else lib.KAD_ROLE_ALIGNED
        check(lib.kad_token_bytes(self._kad._engine, number, token, data, size, kind))
        return kind[0], bytes(ffi.buffer(data[0], size[0]))


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# ---- What the figures show --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A share that was counted: `count` of `of`, with Wilson's 95 % interval."""

    count: int
    of: int
    share: float
    low: float
    high: float

    @staticmethod
    def counted(count: int, of: int) -> Measured | None:
        """Return the share; None of nothing."""
        return Measured(count, of, count / of, *wilson(count / of, of)) if of else None


@dataclass(frozen=True)
class Bar:
    """One event of a position. `text` is None for the end of the text; `base` and `aligned` add up to pi."""

    bytes: bytes | None
    kept: bool
    p: float
    q: float
    base: float
    aligned: float


@dataclass(frozen=True)
class Distribution:
    """p, q and pi at one position: the most probable events, and all others together (`rest`: p, q and both parts of pi).

    `position` counts from 1 over all texts in their order, `positions` is how many there are; `shared` says whether alpha
    lies where the first such position was looked for. `exchanged`: the aligned model speaks first; the set is its T.
    """

    setting: str
    exchanged: bool
    alpha: float
    n_kept: int
    position: int
    positions: int
    prompt: str
    before: str
    shared: bool
    bars: list[Bar]
    rest: tuple[float, float, float, float]


@dataclass(frozen=True)
class Acceptance:
    """Which share of a model's proposals reaches the text under one setting, per model.

    After the comparison of acceptance per model in KAD (arXiv 2510.27017); what a proposal is, and when it is accepted, is
    defined here by this project's draw.

    Attributes
    ----------
    kept
        The base's: mean of p'(S) = 1 - alpha over the positions. The base proposes a draw from p', and it is said if the
        rule keeps it.
    right
        The aligned model's: mean of 1 - TV(pi, q') over the same positions. It proposes its own draw as a guess, and by
        the coupling of docs/method.md, section 3, that is what is said with this probability.
    said_by_base
        Counted beside `kept`: tokens of these texts that the base said.
    right_guesses
        Counted beside `right`: right guesses of those compared with an outcome, in runs of the same prompts and seeds with
        `DRAFT` guesses per pass. None where there were none, see `note`.
    """

    setting: str
    positions: int
    kept: float
    right: float
    said_by_base: Measured | None
    right_guesses: Measured | None
    note: str


@dataclass(frozen=True)
class Sweep:
    """One rule over its thresholds: means over positions.

    `entropy` is that of p' restricted to S and renormalised, in nats, over the positions where S is not empty (`kept` is
    their share; None where there is none); `alpha` is over all positions, 1 where S is empty.
    """

    rule: str
    thresholds: list[float]
    entropy: list[float | None]
    kept: list[float]
    alpha: list[float]


@dataclass(frozen=True)
class Budget:
    """The knapsack of budget b, position by position, on p at temperature 1.

    `critical` is the probability of the critical item: of the tokens taken from the least probable on, the first that does
    not fit any more, which is the least probable one that rule primal keeps. `greedy` and `exact` are what the solution of
    either rule leaves of the budget. By construction greedy < critical.
    """

    budget: float
    critical: list[float]
    greedy: list[float]
    exact: list[float]
    uncertified: int


@dataclass(frozen=True)
class Curve:
    """One rule of an evaluation over the thresholds that were tried; shares in 0 to 1, tokens per second."""

    rule: str
    thresholds: list[float]
    accuracy: list[tuple[float, float, float]]  # value and 95 % interval
    speed: list[tuple[float, float, float] | None]  # median and quartiles


@dataclass(frozen=True)
class Accuracies:
    """An evaluation's rules, and the single models: name, accuracy, median speed."""

    task: str
    questions: int
    answers: int
    even: bool
    curves: list[Curve]
    alone: list[tuple[str, float, float | None]]


@dataclass
class Numbers:
    """All that the figures show; None is a figure that is left out, and `missing` says why, by its name."""

    about: dict[str, Any]
    positions: int = 0
    distribution: Distribution | None = None
    acceptance: list[Acceptance] | None = None
    accuracy: Accuracies | None = None
    entropy: list[Sweep] | None = None
    budget: Budget | None = None
    missing: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON: bytes as text, what is no UTF-8 in them escaped."""
        found = asdict(self)
        for bar in found["distribution"]["bars"] if found["distribution"] else []:
            data = bar.pop("bytes")
            bar["text"] = None if data is None else data.decode("utf-8", "backslashreplace")
        return {"kad_llama_figures": 1, **found}


def collect(base: Path, aligned: Path, plan: Plan, progress: Callable[[int, int, str], object]) -> Numbers:
    """Write the texts and work the numbers out. Ctrl-C ends it with what there is; it is raised where that is nothing."""
    numbers = Numbers(_about(base, aligned, plan))
    compared: list[Texts] = []
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, plan.total, f"rule {setting.name}")

    for setting in plan.settings:
        progress(done, plan.total, f"loading, rule {setting.name}")
        texts = Texts(setting, whole=setting == plan.setting)
        try:
            _write(base, aligned, plan, texts, numbers, advance)
        except KeyboardInterrupt:
            numbers.interrupted = True
        if setting in COMPARED and texts.positions:
            compared.append(texts)
        if numbers.interrupted:
            break
    if not numbers.positions:
        raise KeyboardInterrupt
    numbers.acceptance = [_acceptance(texts) for texts in sorted(compared, key=lambda t: COMPARED.index(t.setting))]
    if not compared:
        numbers.acceptance = None
        numbers.missing["acceptance"] = "it was interrupted before any text under these rules was written"
    return numbers


def _write(
    base: Path, aligned: Path, plan: Plan, texts: Texts, numbers: Numbers, advance: Callable[[int], object]
) -> None:
    """All texts of a setting; of the chosen one also what needs the models to be open afterwards."""
    setting = texts.setting
    with KadLlama(base, aligned, rule=setting.rule, threshold=setting.threshold, **plan.keywords) as kad:
        if texts.whole:
            _check(kad, plan, numbers)
        try:
            texts.write(kad, plan, advance)
        finally:
            if texts.whole and texts.positions:
                _fill(numbers, texts, plan, Names(kad))


def _check(kad: KadLlama, plan: Plan, numbers: Numbers) -> None:
    """Refuse a prompt that does not fit before anything is evaluated; note what was loaded."""
    for i, prompt in enumerate(plan.prompts):
        kad._fitting(kad.prompt(prompt), i)
    numbers.about["vocabularies"] = {"equal": kad.vocab.equal, "overlap": kad.vocab.overlap}


def _about(base: Path, aligned: Path, plan: Plan) -> dict[str, Any]:
    return {
        "base": PurePath(fspath(base)).name,
        "aligned": PurePath(fspath(aligned)).name,
        "setting": plan.setting.name,
        "position": plan.position,
        "prompts": list(plan.prompts),
        "positions_per_prompt": plan.n,
        "temperature": plan.temperature,
        "seed": plan.seed,
        "draft": DRAFT,
    }


def _fill(numbers: Numbers, texts: Texts, plan: Plan, name: Names) -> None:
    """The three figures on the texts of the chosen setting."""
    found = [position for position, _, _ in texts.positions]
    numbers.positions = len(found)
    numbers.entropy = _sweeps([p.curves for p in found if p.curves is not None])
    items = [p.unfilled for p in found if p.unfilled is not None]
    numbers.budget = Budget(
        BUDGET,
        [item.critical for item in items],
        [item.greedy for item in items],
        [item.exact for item in items],
        sum(not item.certified for item in items),
    )
    chosen = _chosen(found, plan.position)
    if chosen is None:
        numbers.missing["distribution"] = (
            f"position {plan.position} was asked for, but the texts have {len(found)}; ask for a smaller one, or more (-n)"
        )
    else:
        numbers.distribution = _distribution(texts, chosen, plan, name)


def _chosen(found: Sequence[Position], wanted: int | None) -> int | None:
    """Which position is shown: the one asked for, else the first with alpha in `SHARED`, else that nearest to a half."""
    if wanted is not None:
        return wanted - 1 if wanted <= len(found) else None
    shared = (i for i, position in enumerate(found) if SHARED[0] <= position.alpha <= SHARED[1])
    return next(shared, min(range(len(found)), key=lambda i: abs(found[i].alpha - 0.5)))


def _distribution(texts: Texts, chosen: int, plan: Plan, name: Names) -> Distribution:
    position, prompt, before = texts.positions[chosen]
    shares = position.shares
    assert shares is not None  # of the chosen setting
    *rows, rest = shares.columns.tolist()
    bars = [
        Bar(name(int(event)), bool(kept), *row)
        for event, kept, row in zip(shares.events, shares.kept, rows, strict=True)
    ]
    return Distribution(
        texts.setting.name,
        RULES[texts.setting.rule].exchanged,
        position.alpha,
        shares.n_kept,
        chosen + 1,
        len(texts.positions),
        plan.prompts[prompt],
        before,
        SHARED[0] <= position.alpha <= SHARED[1],
        bars,
        tuple(rest),
    )


def _sweeps(curves: list[Row]) -> list[Sweep]:
    stacked = np.stack(curves)  # positions, rules, thresholds, entropy and alpha
    there = np.isfinite(stacked[..., 0])
    count = there.sum(axis=0)
    total = np.where(there, stacked[..., 0], 0.0).sum(axis=0)
    return [
        Sweep(
            rule,
            list(THRESHOLDS),
            [float(t) / int(c) if c else None for t, c in zip(total[i], count[i], strict=True)],
            there[:, i].mean(axis=0).tolist(),
            stacked[:, i, :, 1].mean(axis=0).tolist(),
        )
        for i, rule in enumerate(SWEPT)
    ]


def _acceptance(texts: Texts) -> Acceptance:
    found = [position for position, _, _ in texts.positions]
    return Acceptance(
        texts.setting.name,
        len(found),
        1 - math.fsum(position.alpha for position in found) / len(found),
        math.fsum(position.right for position in found) / len(found),
        Measured.counted(texts.by_base, texts.said),
        Measured.counted(texts.accepted, texts.drafted),
        texts.note if not texts.drafted else "",
    )


# ---- Stored evaluations -----------------------------------------------------------------------------------------------


def accuracies(results: Results) -> Accuracies | None:
    """Return the curves of an evaluation; None where no rule with a threshold has answers."""
    rules: dict[str, list[Any]] = {}
    for row in results.rows:
        if row.is_rule and row.threshold is not None:
            rules.setdefault(row.rule, []).append(row)
    if not rules:
        return None
    return Accuracies(
        str((results.header.get("task") or {}).get("name", "")),
        results.counts["questions"],
        results.counts["answers"],
        results.is_even,
        [_curve(rule, sorted(rows, key=lambda row: row.threshold)) for rule, rows in rules.items()],
        [(row.setting, row.accuracy.value, _finite(row.speed.median)) for row in results.rows if not row.is_rule],
    )


def _curve(rule: str, rows: list[Any]) -> Curve:
    return Curve(
        rule,
        [row.threshold for row in rows],
        [(row.accuracy.value, row.accuracy.low, row.accuracy.high) for row in rows],
        [None if math.isnan(row.speed.median) else (row.speed.median, row.speed.low, row.speed.high) for row in rows],
    )


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def same_files(header: dict[str, Any], files: dict[str, dict[str, Any]], directory: Path) -> None:
    """Refuse an evaluation of other files than these (`files`: by role, what `model_identity` says)."""
    for role, file in files.items():
        stored = header.get(role) or {}
        if (stored.get("size"), stored.get("sha256")) != (file["size"], file["sha256"]):
            raise InvalidArgumentError(
                f"the results in {fspath(directory)!r} are of another pair: their {role} file is {stored.get('name')!r} "
                f"({stored.get('size')} bytes, SHA-256 {str(stored.get('sha256'))[:12]}), this one is {file['name']!r} "
                f"({file['size']} bytes, SHA-256 {file['sha256'][:12]}); give the results of this pair, or leave them out"
            )
