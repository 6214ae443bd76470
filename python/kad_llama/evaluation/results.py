"""What the stored answers of an evaluation say: figures of each setting, tests between settings, and sentences."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

from kad_llama.errors import InvalidArgumentError
from kad_llama.evaluation.answers import Answer, read_answers
from kad_llama.evaluation.statistics import PairedTest, Share, Spread, holm, paired_test, share, spread

__all__ = ["ALIGNED_ALONE", "BASE_ALONE", "LEVEL", "Results", "Row", "read_results"]

BASE_ALONE = "base alone"
ALIGNED_ALONE = "aligned alone"

LEVEL = 0.05  # of the tests, after Holm
_MOST_RULES = 6  # up to here rules are tested against each other, too
_NEARLY = 0.95  # of the deferred mass or of what it leaves: one model speaks nearly always


@dataclass(frozen=True)
class Row:
    """The figures of one setting.

    Attributes
    ----------
    accuracy, form
        Shares of the answers that are right, and in which an answer of the right form was found.
    speed
        Tokens per second after the prompt, over the answers: median and quartiles.
    acceptance
        Right guesses over all guesses; NaN without guesses.
    aligned_share, deferred_mass
        Share of the tokens that the aligned model said, and mean alpha, over tokens; NaN where there is none.
    tokens
        Mean tokens of an answer.
    cut
        Share of the answers that max_tokens or a full context ended.
    """

    setting: str
    rule: str
    threshold: float | None
    shots: int
    accuracy: Share
    form: Share
    speed: Spread
    acceptance: float
    aligned_share: float
    deferred_mass: float
    tokens: float
    cut: float
    modes: tuple[str, ...]

    @property
    def is_rule(self) -> bool:
        """Whether the pair answered."""
        return not self.setting.startswith((BASE_ALONE, ALIGNED_ALONE))


class Results:
    """The answers of an evaluation and what follows from them.

    Attributes
    ----------
    header
        The first line of the file: the models, the task, how it was sampled.
    answers
        Every answer: `kad_llama.evaluation.Answer`.
    """

    def __init__(self, header: dict[str, Any], answers: Iterable[Answer]) -> None:
        self.header = header
        self.answers = list(answers)
        self._by_setting: dict[str, list[Answer]] = defaultdict(list)
        for answer in self.answers:
            self._by_setting[answer.setting].append(answer)

    @cached_property
    def settings(self) -> list[str]:
        """The settings that have answers: the models alone first, then the rules as they came."""

        def place(name: str) -> int:
            return 0 if name == BASE_ALONE else 1 if name.startswith(BASE_ALONE) else 2 if name == ALIGNED_ALONE else 3

        return sorted(self._by_setting, key=lambda name: (place(name), self._by_setting[name][0].shots))

    def of(self, setting: str) -> list[Answer]:
        """Return the answers of a setting.

        Raises
        ------
        InvalidArgumentError
            For a setting that has none; the message names those that have.
        """
        if setting not in self._by_setting:
            known = ", ".join(map(repr, self.settings)) or "no setting has any"
            raise InvalidArgumentError(f"setting {setting!r} has no answers; expected one of: {known}")
        return self._by_setting[setting]

    def accuracy(self, setting: str) -> Share:
        """Return the share of right answers with its 95 % interval (`statistics.share`)."""
        return self._share(setting, "correct")

    def form(self, setting: str) -> Share:
        """Return the share of answers of the right form, right or wrong."""
        return self._share(setting, "form")

    def _share(self, setting: str, what: str) -> Share:
        marks: dict[str, list[bool]] = defaultdict(list)
        for answer in self.of(setting):
            marks[answer.question].append(getattr(answer, what))
        return share(marks)

    def speed(self, setting: str) -> Spread:
        """Return tokens per second after the prompt: median and quartiles over the answers that have tokens."""
        return spread([a.tokens / a.seconds for a in self.of(setting) if a.tokens and a.seconds > 0])

    def row(self, setting: str) -> Row:
        """Return all figures of a setting."""
        answers = self.of(setting)
        first, drafted = answers[0], sum(a.drafted for a in answers)
        return Row(
            setting,
            first.rule,
            first.threshold,
            first.shots,
            self.accuracy(setting),
            self.form(setting),
            self.speed(setting),
            sum(a.accepted for a in answers) / drafted if drafted else math.nan,
            _over_tokens(answers, "aligned_share"),
            _over_tokens(answers, "deferred_mass"),
            sum(a.tokens for a in answers) / len(answers),
            sum(a.finish_reason == "length" for a in answers) / len(answers),
            tuple(sorted({a.mode for a in answers})),
        )

    @cached_property
    def rows(self) -> list[Row]:
        """The figures of all settings."""
        return [self.row(setting) for setting in self.settings]

    def compare(self, first: str, second: str) -> PairedTest | None:
        """Test two settings against each other on the questions and seeds that both answered; None without any.

        One answer to a question: the exact test of McNemar. Several: the exact sign-flip test over questions, of which
        that is the case of one (`statistics.sign_flip`). The p value stands unadjusted.
        """
        return paired_test(first, second, self._marks(first), self._marks(second))

    def _marks(self, setting: str) -> dict[str, dict[int, bool]]:
        marks: dict[str, dict[int, bool]] = defaultdict(dict)
        for answer in self.of(setting):
            marks[answer.question][answer.repetition] = answer.correct
        return marks

    @cached_property
    def tests(self) -> list[PairedTest]:
        """The paired tests, with p values adjusted by Holm over all of them.

        Every rule against every model alone (with and without worked examples); the models alone among each other; the
        rules among each other where they are no more than six.
        """
        found = [test for a, b in self._pairs() if (test := self.compare(a, b)) is not None]
        return [replace(test, adjusted=p) for test, p in zip(found, holm([test.p for test in found]), strict=True)]

    def _pairs(self) -> list[tuple[str, str]]:
        rules = [row.setting for row in self.rows if row.is_rule]
        alone = [row.setting for row in self.rows if not row.is_rule]
        pairs = [(rule, model) for rule in rules for model in alone] + list(combinations(alone, 2))
        return pairs + (list(combinations(rules, 2)) if len(rules) <= _MOST_RULES else [])

    @cached_property
    def verdicts(self) -> list[str]:
        """One paragraph for each rule: does it beat both models alone, and if not, why, as far as the figures show.

        What the figures of the models alone say about it comes last, once.
        """
        if not {BASE_ALONE, ALIGNED_ALONE} <= set(self.settings):
            return []
        rules = [row for row in self.rows if row.is_rule]
        about = self._reasons_of_the_models() if not all(self.beats_both(row.setting) for row in rules) else []
        return [self._verdict(row) for row in rules] + ([" ".join(about)] if about else [])

    def beats_both(self, rule: str) -> bool:
        """Whether a rule is more accurate than either model alone, with adjusted p values below 0.05."""
        tests = self._against_the_models(rule)
        return len(tests) == 2 and all(test.difference > 0 and test.adjusted < LEVEL for test in tests)

    def _against_the_models(self, rule: str) -> list[PairedTest]:
        return [test for test in self.tests if test.first == rule and test.second in (BASE_ALONE, ALIGNED_ALONE)]

    def _verdict(self, row: Row) -> str:
        tests = self._against_the_models(row.setting)
        if len(tests) < 2:
            return f"{row.setting} shares no question with both models alone."
        what = " and ".join(map(_against, tests))
        if self.beats_both(row.setting):
            others = [test for test in self.tests if test.first == row.setting and test.second in self._other_prompts]
            more = f" With another prompt for the base: {', '.join(map(_against, others))}." if others else ""
            return f"{row.setting} beats both models alone: {what}.{more}"
        reasons = self._reasons(row, tests)
        told = " ".join(reasons) if reasons else "Its own figures do not show why."
        return f"{row.setting} does not beat both models alone: {what}. {told}"

    @property
    def _other_prompts(self) -> list[str]:
        """The base alone, but for the prompt that it has in the pair."""
        return [name for name in self.settings if name.startswith(BASE_ALONE) and name != BASE_ALONE]

    def _reasons(self, row: Row, tests: Sequence[PairedTest]) -> list[str]:
        found = []
        if all(test.difference > 0 for test in tests):
            found.append("It is ahead of both, but so few questions do not tell it from chance.")
        if row.deferred_mass >= _NEARLY:
            found.append(
                f"Mean alpha is {row.deferred_mass:.2f}: the base was hardly ever sure enough to keep a token, "
                "and the aligned model spoke nearly alone."
            )
        elif row.deferred_mass <= 1 - _NEARLY:
            found.append(
                f"Mean alpha is {row.deferred_mass:.2f}: the aligned model hardly ever spoke, and the base nearly alone."
            )
        if row.form.value < 0.9:
            found.append(f"{_percent(1 - row.form.value)} of its answers have no answer of the right form.")
        if row.cut > 0.1:
            found.append(f"{_percent(row.cut)} of its answers were cut at their most tokens.")
        return found

    def _reasons_of_the_models(self) -> list[str]:
        found = []
        aligned = self.accuracy(ALIGNED_ALONE)
        for row in self.rows:
            if row.shots and row.accuracy.value <= aligned.high:
                found.append(
                    f"With {row.shots} worked examples the base answers {_percent(row.accuracy.value)}, the aligned model "
                    f"alone {_percent(aligned.value)}: as far as that shows, the base knows little more."
                )
        form = self.form(ALIGNED_ALONE).value
        if form < 0.9:
            found.append(f"The aligned model itself misses the form in {_percent(1 - form)} of its answers.")
        return found

    @property
    def counts(self) -> dict[str, int]:
        """How many settings, questions, repetitions and answers there are."""
        return {
            "settings": len(self.settings),
            "questions": len({a.question for a in self.answers}),
            "repetitions": len({a.repetition for a in self.answers}),
            "answers": len(self.answers),
        }

    @property
    def is_even(self) -> bool:
        """Whether all settings have answers to the same questions and seeds; an interrupted run leaves them uneven."""
        sets = [{(a.question, a.repetition) for a in self._by_setting[s]} for s in self.settings]
        return all(given == sets[0] for given in sets)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the answers themselves, for JSON."""
        return {
            "header": self.header,
            **self.counts,
            "even": self.is_even,
            "rows": [asdict(row) for row in self.rows],
            "tests": [asdict(test) for test in self.tests],
            "verdicts": self.verdicts,
        }


def _over_tokens(answers: Sequence[Answer], name: str) -> float:
    pairs = [(getattr(a, name), a.tokens) for a in answers if getattr(a, name) is not None and a.tokens]
    tokens = sum(n for _, n in pairs)
    return math.fsum(value * n for value, n in pairs) / tokens if tokens else math.nan


def _against(test: PairedTest) -> str:
    return f"{_points(test.difference)} against {test.second} (adjusted {_p(test.adjusted)})"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _p(value: float) -> str:
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.2g}"


def read_results(directory: str | os.PathLike[str]) -> Results:
    """Read the results that `evaluate` or `kad-llama eval -o DIR` stored, finished or not. No model is needed."""
    return Results(*read_answers(directory))
