"""What is compared: the models alone, the base with worked examples, and rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kad_llama.errors import InvalidArgumentError
from kad_llama.evaluation.results import ALIGNED_ALONE, BASE_ALONE
from kad_llama.evaluation.tasks import Task
from kad_llama.rules import RULES, c_rule

__all__ = ["DEFAULT_SHOTS", "Setting", "read_rule", "settings_of"]

DEFAULT_SHOTS = 5  # worked examples that the base gets beside the rest, where the task has as many
TRANSCRIPT = f"{BASE_ALONE}, plain transcript"

RuleTemperature = float | Literal["sampling"]


@dataclass(frozen=True)
class Setting:
    """One of the things compared.

    `alone`: one model, without the other; `transcript`: the base's prompt is a plain transcript with `shots` worked
    examples.
    """

    name: str
    rule: str
    threshold: float | None
    shots: int = 0
    alone: bool = False
    transcript: bool = False


def read_rule(text: str, rule_temperature: RuleTemperature = 1.0) -> Setting:
    """Read "NAME" or "NAME:THRESHOLD"; without one it is the rule's default.

    Raises
    ------
    InvalidArgumentError
        For an unknown rule, a threshold that is no number or out of range, or one of a rule that has none.
    """
    name, colon, value = text.strip().partition(":")
    threshold: float | None = None
    if colon:
        try:
            threshold = float(value)
        except ValueError:
            raise InvalidArgumentError(
                f"rule {text!r} has the threshold {value!r}; expected NAME or NAME:NUMBER, such as primal:0.8"
            ) from None
    c_rule(name, threshold, rule_temperature)  # refuses by name
    threshold = RULES[name].threshold if threshold is None else threshold
    return Setting(name if threshold is None else f"{name} {threshold:.6g}", name, threshold)


def settings_of(
    task: Task,
    rules: Sequence[str],
    *,
    single: bool = True,
    shots: Sequence[int] | None = None,
    rule_temperature: RuleTemperature = 1.0,
) -> list[Setting]:
    """Return what is to be compared, each once, in the order in which a question is answered.

    `shots` is None for 5 worked examples if the task has as many, none otherwise; () for none. 0 is the plain transcript
    without any.
    """
    if isinstance(rules, str):
        rules = rules.split(",")
    wanted = [n for n in (DEFAULT_SHOTS,) if len(task.examples) >= n] if shots is None else list(shots)
    found: list[Setting] = []
    if single:
        found.append(Setting(BASE_ALONE, "base", None, alone=True))
    for n in wanted:
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise InvalidArgumentError(f"shots has {n!r}; expected whole numbers of at least 0")
        task.worked(n)
        name = f"{BASE_ALONE}, {n} worked example{'s' if n > 1 else ''}" if n else TRANSCRIPT
        found.append(Setting(name, "base", None, shots=n, alone=True, transcript=True))
    if single:
        found.append(Setting(ALIGNED_ALONE, "aligned", None, alone=True))
    found += [read_rule(text, rule_temperature) for text in rules if text.strip()]
    if not found:
        raise InvalidArgumentError("there is nothing to compare: give rules, or leave the single models in")
    return list(dict.fromkeys(found))
