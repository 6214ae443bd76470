"""The index of the figures: what each one shows, and from how many positions."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from kad_llama.errors import InvalidArgumentError
from kad_llama.figures.collect import Acceptance, Measured, Numbers

__all__ = ["TITLES", "check_folder", "index", "write"]

TITLES = {
    "distribution": "p, q and π at one position",
    "acceptance": "Which proposals reach the text",
    "accuracy": "Accuracy and speed against the threshold",
    "entropy": "Entropy of the kept base distribution against the threshold",
    "budget": "The unfilled budget against the critical item",
}


def index(numbers: Numbers) -> str:
    """Return the page in Markdown."""
    about = numbers.about
    lines = [
        "# Figures of a pair",
        "",
        f"- base (p): {_code(about['base'])}",
        f"- aligned (q): {_code(about['aligned'])}",
    ]
    vocabularies = about.get("vocabularies")
    if vocabularies and not vocabularies["equal"]:
        lines.append(
            f"- vocabularies: different; the base has {100 * vocabularies['overlap']:.0f} % of the aligned model's tokens. "
            "Probabilities are those of byte strings, summed over the tokens that say them"
        )
    elif vocabularies:
        lines.append("- vocabularies: equal")
    lines += [
        f"- texts: {len(about['prompts'])} prompts, at most {about['positions_per_prompt']} positions each, temperature "
        f"{about['temperature']:g}, seed {about['seed']}; rules compare at temperature 1",
        "- every number shown: figures.json",
    ]
    if numbers.interrupted:
        lines += ["", "**Interrupted**: the figures show what there was until then."]
    for name, title in TITLES.items():
        lines += ["", f"## {title}", ""]
        if getattr(numbers, name) is None:
            lines.append(f"Left out: {numbers.missing.get(name, 'it was interrupted before this was worked out')}.")
        else:
            lines += [f"![{title}]({name}.png)", "", _SAYS[name](numbers), "", f"[{name}.svg]({name}.svg)"]
    lines += ["", "## Prompts", "", *(f"{i}. {_code(text)}" for i, text in enumerate(about["prompts"], 1))]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """A text as it stands, on one line; backticks in it get a longer fence."""
    line = " ".join(text.splitlines())
    fence = "`" * (1 + max((len(run) for run in _runs_of_backticks(line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _runs_of_backticks(text: str) -> list[str]:
    return "".join(c if c == "`" else " " for c in text).split()


def _distribution(numbers: Numbers) -> str:
    given = numbers.distribution
    assert given is not None
    if numbers.about["position"] is not None:
        how = "the one asked for"
    elif given.shared:
        how = "the first at which α lies between 0.2 and 0.8"
    else:
        how = "none has α between 0.2 and 0.8; this one is nearest to 0.5"
    if given.exchanged:
        kept = f"The aligned model keeps {_events(given.n_kept)}"
        parts = "the base contributes, (1 − q(T)) p(v), and what the aligned model contributes, q(v) where it keeps v"
    else:
        kept = f"The base keeps {_events(given.n_kept)}"
        parts = "the base contributes, p(v) where it keeps v, and what the aligned model contributes, α q(v)"
    return (
        f"One position of {given.positions}: number {given.position}, rule {given.setting}, in the answer to "
        f"{_code(given.prompt)} ({how}). {kept}, and with probability α = {given.alpha:.3f} what is said is the aligned "
        f"model's. Bars: the {len(given.bars)} most probable events, and all others together. A bar of π is what {parts}. "
        "Spaces are shown as ␣, line breaks as \\n, characters without a glyph by their number."
    )


def _events(count: int) -> str:
    return f"{count:,} event{'s' * (count != 1)}"


def _acceptance(numbers: Numbers) -> str:
    given = numbers.acceptance or []
    lines = [
        "Bars, for each rule over the positions of its own texts. The base proposes a draw from p; it reaches the text if "
        "the rule keeps it, with probability p(S) = 1 − α. The aligned model proposes its own draw from q as a guess; it is "
        "right with probability 1 − TV(π, q). Diamonds: the same counted, tokens said by the base in these texts, and right "
        f"guesses in runs with {numbers.about['draft']} guesses per pass, with Wilson's 95 % intervals. Guesses after a "
        "wrong one are not compared, so they are counted at fewer positions.",
        "",
        "| rule | positions | 1 − α | said by the base | 1 − TV(π, q) | right guesses |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [_acceptance_row(each) for each in given]
    notes = [f"{each.setting}: no guesses were counted; {each.note}" for each in given if each.note]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _acceptance_row(given: Acceptance) -> str:
    cells = [
        given.setting,
        str(given.positions),
        f"{100 * given.kept:.1f} %",
        _counted(given.said_by_base),
        f"{100 * given.right:.1f} %",
        _counted(given.right_guesses),
    ]
    return f"| {' | '.join(cells)} |"


def _counted(given: Measured | None) -> str:
    return "-" if given is None else f"{given.count} of {given.of}, {100 * given.share:.1f} %"


def _accuracy(numbers: Numbers) -> str:
    given = numbers.accuracy
    assert given is not None
    uneven = " Not all settings have answered the same questions yet." if not given.even else ""
    return (
        f"From a stored evaluation, task {_code(given.task)}: {given.questions} questions, {given.answers} answers in all. "
        "Above: share of right answers with 95 % intervals. Below: tokens per second after the prompt, median and "
        f"quartiles over the answers. Lines across: the single models, which run one token per pass.{uneven}"
    )


def _entropy(numbers: Numbers) -> str:
    return (
        f"From {numbers.positions} positions of texts written under {numbers.about['setting']}; the same rows are decided "
        "under every rule and threshold. Left: the entropy, in nats, of p restricted to S and renormalised. Where S is "
        "empty there is no such distribution, and the position does not count; the middle shows at how many positions S is "
        "not empty (for dual and nudging the same: where p has a token of at least the threshold). A line ends where S is "
        "empty everywhere. Right: mean α over all positions; it is 1 where S is empty. Thresholds: dual λ, primal b, "
        "nudging γ, bet λ."
    )


def _budget(numbers: Numbers) -> str:
    given = numbers.budget
    assert given is not None
    count = len(given.critical)
    gap = (
        f" At {given.uncertified} of them the search for the optimum reached its limit of work, and the best set found is "
        "shown."
        if given.uncertified
        else ""
    )
    return (
        f"From {count} positions of texts written under {numbers.about['setting']}. The knapsack: defer tokens with a mass "
        f"of at most b = {given.budget:g}. The greedy solution (rule primal) fills it from the least probable token on; the "
        "critical item is the first that does not fit, the least probable token that the base keeps. What is left of the "
        "budget, b − (1 − p(S)), is always less than that item (below the line). Where "
        "the most probable token holds 1 − b by itself, it is the critical item, and all that is left is p − (1 − b): a "
        "line parallel to it. Crosses: what the optimum (rule exact) "
        f"leaves, against the same item.{gap}"
    )


_SAYS = {
    "distribution": _distribution,
    "acceptance": _acceptance,
    "accuracy": _accuracy,
    "entropy": _entropy,
    "budget": _budget,
}


# ---- Files ------------------------------------------------------------------------------------------------------------


def check_folder(directory: str | os.PathLike[str]) -> Path:
    """Make the folder if need be, and refuse one that cannot be written before anything is evaluated."""
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Write every file beside its place and then rename it: whoever reads finds whole files, also after Ctrl-C."""
    for name, data in files.items():
        part = folder / f".{name}.{os.getpid()}.part"
        try:
            part.write_bytes(data)
            part.replace(folder / name)
        except OSError as error:
            raise _unwritable(folder, error) from error
        finally:
            part.unlink(missing_ok=True)


def _unwritable(folder: Path, error: OSError) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"cannot write figures to {str(folder)!r}: {error.strerror}; expected a folder that can be written (-o)"
    )
