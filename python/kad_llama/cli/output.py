"""Where things are written: the text to standard output, everything else to standard error."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from kad_llama.generation import Generation, Stats, Token

_ALIGNED = "\x1b[36m"
_RESET = "\x1b[0m"


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is open and a terminal."""
    return stream is not None and not stream.closed and stream.isatty()


def prepare() -> None:
    """Let no character that a model says end the command, whatever the terminal's encoding."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def note(text: str) -> None:
    """A line for the person, on standard error."""
    print(text, file=sys.stderr, flush=True)


def error(text: str) -> None:
    """An error, on standard error."""
    note(f"kad-llama: error: {text}")


def wants_color(color: str) -> bool:
    """Whether to colour the aligned model's tokens: `auto` does on a terminal, unless NO_COLOR is set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return color == "always" or (color == "auto" and is_terminal(sys.stdout) and not plain)


def in_color(text: str) -> str:
    """A text of the aligned model's, coloured."""
    return f"{_ALIGNED}{text}{_RESET}"


class TextWriter:
    """Writes tokens to standard output as they come; colours the aligned model's if asked to.

    Parameters
    ----------
    color
        `always`, `never`, or `auto`: on a terminal, unless NO_COLOR is set.
    """

    def __init__(self, color: str) -> None:
        self._colored = wants_color(color)
        self._ends_line = True

    def token(self, token: Token) -> None:
        """Write one token."""
        if not token.text:
            return
        colored = self._colored and token.source == "aligned"
        sys.stdout.write(in_color(token.text) if colored else token.text)
        sys.stdout.flush()
        self._ends_line = token.text.endswith("\n")

    def end(self) -> None:
        """End the answer: with the end of a line, so that what follows begins a new one."""
        if not self._ends_line:
            sys.stdout.write("\n")
            self._ends_line = True
        sys.stdout.flush()


@contextmanager
def loading(what: str) -> Iterator[Callable[[float], None] | None]:
    """A progress bar on standard error; None when that is no terminal."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"loading {what}", total=1.0)
        yield lambda fraction: bar.update(task, completed=fraction)


@contextmanager
def working(what: str, total: float) -> Iterator[Callable[[float], None] | None]:
    """A progress bar with the time left on standard error, told what is done of `total`; None when that is no terminal."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=600) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=min(done, total))


def table(rows: Sequence[Sequence[str]], header: Sequence[str], title: str = "") -> None:
    """A table on standard output: drawn on a terminal, plain columns in a pipe."""
    if is_terminal(sys.stdout):
        from rich.console import Console
        from rich.table import Table

        drawn = Table(*header, title=title or None, title_justify="left")
        for row in rows:
            drawn.add_row(*(_escape(cell) for cell in row))
        Console(file=sys.stdout).print(drawn)
        return
    if title:
        print(title)
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print()


def _escape(cell: str) -> str:
    from rich.markup import escape

    return escape(cell)


def dump(value: dict[str, Any]) -> None:
    """One JSON object on standard output. NaN, which JSON lacks, becomes null."""
    print(json.dumps(finite(value), ensure_ascii=False, allow_nan=False), flush=True)


def finite(value: Any) -> Any:
    """A copy in which numbers that JSON cannot hold are None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def generation_object(out: Generation) -> dict[str, Any]:
    """What --json prints of an answer."""
    prompt, answer = out.stats.prompt_tokens, out.stats.tokens
    usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    return {**out.to_dict(), "usage": usage}


def show_stats(out: Generation) -> None:
    """The statistics of one answer, on standard error."""
    for line in _stats_lines(out):
        note(line)


def _stats_lines(out: Generation) -> list[str]:
    stats = out.stats
    guesses = f"; {stats.accepted} of {stats.drafted} guesses right ({_percent(stats.acceptance_rate)})"
    lines = [
        f"  {stats.tokens} tokens, {_number(stats.tokens_per_second, 1)} a second; "
        f"prompt {stats.prompt_tokens} tokens{_cached(stats)} in {stats.prompt_s:.2f} s; "
        f"{stats.wall_s:.2f} s in all; finish: {out.finish_reason}; seed {out.seed}",
        f"  {stats.mode}: {stats.base_passes} base passes ({_number(stats.tokens_per_base_pass, 2)} tokens each), "
        f"{stats.aligned_passes} aligned passes{guesses if stats.drafted else ''}",
        "  every token is the three models' together"
        if stats.deferred_mass is None
        else f"  the aligned model said {_percent(stats.aligned_share)} of the tokens; mean deferred mass "
        f"{_number(stats.deferred_mass, 2)}",
    ]
    return [*lines, f"  note: {stats.note}"] if stats.note else lines


def _cached(stats: Stats) -> str:
    return f" ({stats.prompt_cached} kept from before)" if stats.prompt_cached else ""


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.0f} %"
