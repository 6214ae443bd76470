"""The figures of the KAD paper on a pair of files: what the rules do to its distributions, drawn from its own texts.

>>> from kad_llama.figures import write_figures
>>> write_figures("base.gguf", "aligned.gguf", directory="figures")  # doctest: +SKIP
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from kad_llama.errors import InvalidArgumentError, KadError
from kad_llama.evaluation.identity import model_identity
from kad_llama.evaluation.results import Results, read_results
from kad_llama.evaluation.settings import read_rule
from kad_llama.figures import collect, draw, index
from kad_llama.figures.collect import Numbers, Plan
from kad_llama.rules import RULES

__all__ = ["PROMPTS", "Numbers", "write_figures"]

PROMPTS = (
    "Why is the sky blue?",
    "What is photosynthesis?",
    "Write a short letter to a friend about a garden in spring.",
    "There are three boxes with five apples each. How many apples are there?",
)

Path = str | os.PathLike[str]


def write_figures(
    base: Path,
    aligned: Path,
    *,
    directory: Path = "figures",
    prompts: Sequence[str] = PROMPTS,
    n: int = 64,
    rule: str = "dual",
    position: int | None = None,
    temperature: float = 1.0,
    seed: int = 1,
    results: Path | None = None,
    progress: Callable[[int, int, str], object] | None = None,
    **keywords: Any,
) -> Numbers:
    """Let the pair write texts, and draw what its distributions look like on the way: PNG, SVG, an index, the numbers.

    Parameters
    ----------
    base, aligned
        GGUF files, of equal or different vocabularies.
    directory
        Where the files go: `figures.md` is the index, `figures.json` has the numbers. Figures from before are replaced.
    prompts
        Users' messages; each is answered once under every rule that a figure needs.
    n
        The most positions per answer.
    rule
        "NAME" or "NAME:THRESHOLD" of the texts that distribution, entropy and budget are taken from, and of the
        distribution shown. The figure on acceptance has its own three.
    position
        The position whose distribution is shown, counted from 1 over all texts; None is the first where alpha is between
        0.2 and 0.8.
    temperature
        How each model speaks, >= 0. Rules compare at temperature 1.
    seed
        Of the texts; text i is text number i of it.
    results
        A folder of `kad-llama eval` on the same pair, for accuracy and speed. Without one that figure is left out.
    progress
        Called with positions done, positions in all, and what happens now.
    **keywords
        Further keywords of `KadLlama`: n_ctx, n_threads, base_params and so on.

    Returns
    -------
    Numbers
        What the figures show. `interrupted` says that Ctrl-C ended it early; what there was is drawn and written.

    Raises
    ------
    InvalidArgumentError
        For values out of range, prompts that are empty, a folder that cannot be written, results of another pair; before a
        model is loaded.
    KadError
        Without matplotlib (the extra `eval`); and what `KadLlama` raises.
    KeyboardInterrupt
        On Ctrl-C before the first position.

    Notes
    -----
    Files are written whole, at the end. The same numbers give the same bytes with the same matplotlib.
    """
    plan = _plan(prompts, n, rule, position, temperature, seed, keywords)
    if find_spec("matplotlib") is None:
        raise KadError('figures are drawn by matplotlib, which is not installed: pip install "kad-llama[eval]"')
    stored = None if results is None else _results(results, base, aligned)
    folder = index.check_folder(directory)
    numbers = collect.collect(base, aligned, plan, progress or (lambda done, total, now: None))
    _add_accuracy(numbers, stored)
    files = draw.draw(numbers)
    files["figures.json"] = _json(numbers)
    files["figures.md"] = index.index(numbers).encode("utf-8", "replace")
    index.write(folder, files)
    return numbers


def _plan(
    prompts: Sequence[str],
    n: int,
    rule: str,
    position: int | None,
    temperature: float,
    seed: int,
    keywords: dict[str, Any],
) -> Plan:
    if isinstance(prompts, str) or not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
        raise InvalidArgumentError(f"prompts is {prompts!r}; expected a list of at least one text, none of them empty")
    for text in prompts:
        _check_text(text)
    _whole("n", n, 1, 1_000_000)
    _whole("seed", seed, 0, 2**64 - 1)
    if position is not None:
        _whole("position", position, 1, n * len(prompts))
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 <= temperature < math.inf:
        raise InvalidArgumentError(f"temperature is {temperature!r}; expected a number of at least 0")
    setting = read_rule(rule)
    if setting.rule in ("base", "aligned") or RULES[setting.rule].reference:
        raise InvalidArgumentError(
            f"rule is {rule!r}, which shares nothing between two models; expected one that keeps a set, such as dual"
        )
    return Plan(tuple(prompts), n, setting, position, float(temperature), seed, keywords)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"the prompt {text!r} holds a lone surrogate at character {error.start}; expected text that UTF-8 can encode"
        ) from None


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidArgumentError(f"{name} is {value!r}; expected a whole number {low} to {high}")


def _results(directory: Path, base: Path, aligned: Path) -> Results:
    """Read the results, and refuse those of other files."""
    results = read_results(directory)
    files = {role: model_identity(path, lambda what: None) for role, path in (("base", base), ("aligned", aligned))}
    collect.same_files(results.header, files, directory)
    return results


def _add_accuracy(numbers: Numbers, results: Results | None) -> None:
    numbers.accuracy = None if results is None else collect.accuracies(results)
    if results is None:
        numbers.missing["accuracy"] = (
            "there are no results; run `kad-llama eval` on this pair with several thresholds of each rule, such as "
            "`--rules dual:0.2,dual:0.4,dual:0.6`, and give its folder with `--results`"
        )
    elif numbers.accuracy is None:
        numbers.missing["accuracy"] = "the results have no answers of a rule with a threshold"


def _json(numbers: Numbers) -> bytes:
    return (
        json.dumps(numbers.to_dict(), ensure_ascii=False, allow_nan=False, indent=1).encode("utf-8", "backslashreplace")
        + b"\n"
    )
