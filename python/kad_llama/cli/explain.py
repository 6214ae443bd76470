"""`kad-llama explain`: who said each token of an answer, and how likely was it?"""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING

from kad_llama.cli import answer, output
from kad_llama.cli import arguments as flags
from kad_llama.errors import KadError, PromptError

if TYPE_CHECKING:
    from kad_llama.generation import Generation, Token

HEADER = ("text", "source", "p", "q", "alpha", "pi", "P(base)", "guess")


def run(arguments: argparse.Namespace) -> int:
    """Generate, then print the table. Answers the exit status."""
    text = answer.read_prompt(arguments)
    if text is None:
        raise PromptError("no prompt: use -p TEXT, -f FILE or a pipe")
    prompt, keywords = answer.messages_for(text, arguments), flags.answer_keywords(arguments)
    interrupted = False
    with answer.open_from(arguments) as kad:
        stream = kad.stream(prompt, logprobs=True, **keywords)
        try:
            with stream:
                for _ in stream:
                    pass
        except KeyboardInterrupt:
            interrupted = True
        except KadError as error:  # what was said is not lost
            _show(stream.result, arguments, str(error))
            raise
        _show(stream.result, arguments)
    return answer.INTERRUPTED if interrupted else 0


def _show(result: Generation, arguments: argparse.Namespace, error: str = "") -> None:
    if arguments.json:
        output.dump(output.generation_object(result) | ({"error": error} if error else {}))
    else:
        show_tokens(result.tokens, arguments.color)
    if arguments.stats:
        output.show_stats(result)


def cells(token: Token) -> tuple[str, ...]:
    """Return one row of the table: probabilities, "-" where there is none, "" where nothing was guessed."""
    return (
        quoted(token),
        token.source,
        _exp(token.base_logprob),
        _exp(token.aligned_logprob),
        _shown(token.deferred_mass),
        _exp(token.logprob),
        _shown(token.base_share),
        "" if token.guess == "none" else token.guess,
    )


def quoted(token: Token) -> str:
    """Return the text with its spaces and line breaks visible; bytes that are no text by themselves as such."""
    broken = "\ufffd" in token.text and "\ufffd".encode() not in token.bytes
    return repr(token.text) if token.text and not broken else repr(token.bytes)


def _exp(logprob: float | None) -> str:
    return _shown(None if logprob is None else math.exp(logprob))


def _shown(probability: float | None) -> str:
    """At most six characters."""
    if probability is None or math.isnan(probability):
        return "-"
    if probability == 0:
        return "0"
    return f"{probability:.4f}" if probability >= 0.0001 else f"{probability:.0e}"


def show_tokens(tokens: list[Token], color: str) -> None:
    """The table: drawn on a terminal, plain columns in a pipe."""
    rows = [cells(token) for token in tokens]
    colored = [token.source == "aligned" and output.wants_color(color) for token in tokens]
    if output.is_terminal(sys.stdout):
        _draw(rows, colored)
    else:
        _print(rows, colored)


def _draw(rows: list[tuple[str, ...]], colored: list[bool]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="")
    drawn.add_column(HEADER[0], overflow="fold")
    for name in HEADER[1:]:
        drawn.add_column(name, justify="left" if name in ("source", "guess") else "right", no_wrap=True)
    for row, marked in zip(rows, colored, strict=True):
        style = "cyan" if marked else ""
        drawn.add_row(*(Text(cell, style=style if i < 2 else "") for i, cell in enumerate(row)))
    Console(file=sys.stdout, highlight=False).print(drawn)


def _print(rows: list[tuple[str, ...]], colored: list[bool]) -> None:
    from rich.cells import cell_len

    widths = [max(cell_len(row[i]) for row in (HEADER, *rows)) for i in range(len(HEADER))]
    for row, marked in zip((HEADER, *rows), (False, *colored), strict=True):
        columns = []
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            shown = output.in_color(cell) if marked and i < 2 else cell
            columns.append(shown + space if HEADER[i] in ("text", "source", "guess") else space + shown)
        print("  ".join(columns).rstrip())
