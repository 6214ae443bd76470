"""Time per token outside llama_decode + llama_synchronize, by mode, vocabulary and length of the text so far.

    python benchmarks/cost.py [--window 100] [--modes plain,lazy,auto] [--keep]

Three pairs: 49k tokens (SmolLM2 in both roles), 262k tokens (gemma-3-270m in both roles), and 262k with 49k (the demo
pair, where vocabularies differ and the text is tokenised again after every event). One text is written to its end; the
windows are `window` events after 100 and after 2,000 events. Rule base looks at whole rows, rule dual rarely does. In
brackets: the share of all time. A seed is taken whose text is long enough.

The parts are those of Stats: reading rows (copies, events from ids, normalisers), the draws, text into tokens; the rest
of the library; and Python. `--keep` adds both tables to docs/results.json, where the worst share at 262k tokens is held
against its bar.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import common

from kad_llama import KadLlama, Stats

PROMPT = "The history of the world, in many volumes. Volume 1, chapter 1.\n\n"


class Reading(NamedTuple):
    """The clocks at one moment, in seconds."""

    tokens: int
    wall: float
    library: float  # inside kad-llama's steps
    evaluation: float
    read: float
    draw: float
    text: float


def reading(stats: Stats) -> Reading:
    return Reading(
        stats.tokens,
        time.perf_counter(),
        stats.tokens / stats.tokens_per_second,
        stats.base_eval_s + stats.aligned_eval_s,
        stats.read_s,
        stats.draw_s,
        stats.text_s,
    )


class Outside(NamedTuple):
    """What was not spent in evaluation: milliseconds per event, the share of all time in percent, and the parts in ms."""

    ms: float
    share: float
    parts: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.ms:.2f} ({self.share:.1f} %)"


PARTS = ("reading rows", "drawing", "text into tokens", "the rest of the library", "Python")


def outside(before: Reading, after: Reading) -> Outside:
    """Between two readings."""
    gone = Reading(*(b - a for a, b in zip(before, after, strict=True)))
    rest = gone.library - gone.evaluation - gone.read - gone.draw - gone.text
    each = 1e3 / gone.tokens
    parts = tuple(each * part for part in (gone.read, gone.draw, gone.text, rest, gone.wall - gone.library))
    spent = gone.wall - gone.evaluation
    return Outside(each * spent, 100 * spent / gone.wall, parts)


MODES: dict[str, dict[str, object]] = {
    "plain": {"spec": False},
    "lazy": {"draft": 0},
    "draft 3": {"draft": 3},
    "auto": {"draft": "auto"},
}


def runs(mode: str, rule: str) -> bool:
    """Whether this pair and rule have the mode."""
    return rule == "dual" or mode != "lazy"


def write(kad: KadLlama, mode: dict[str, object], arguments: argparse.Namespace) -> list[Outside] | None:
    """Milliseconds outside evaluation in the windows; None for a text that ended too early."""
    found = []
    for seed in range(arguments.seeds):
        found = []
        begun: Reading | None = None
        windows = [100, 2000]
        tokens = windows[-1] + arguments.window + 20  # a round may end beyond the window
        with kad.stream(PROMPT, raw=True, seed=seed, max_tokens=tokens, temperature=1.0, **mode) as stream:  # type: ignore[arg-type]
            for n, _ in enumerate(stream, 1):  # statistics are asked for at a window's ends alone: they cost time too
                if begun is None and windows and n >= windows[0]:
                    begun, windows = reading(stream.stats), windows[1:]
                elif begun is not None and n >= begun.tokens + arguments.window:
                    found.append(outside(begun, reading(stream.stats)))
                    begun = None
                if len(found) == 2:
                    return found
        print(f"  seed {seed}: the text ended after {stream.result.stats.tokens} events", file=sys.stderr)
    return found or None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--modes", default="plain,lazy,auto", help=f"of {', '.join(MODES)} (default: %(default)s)")
    parser.add_argument("--only", default="", help="pairs whose name holds this, such as 262k (default: all)")
    common.keep_arguments(parser)
    arguments = parser.parse_args()
    smollm, gemma = common.aligned_file(), common.demo_base_file()
    pairs: list[tuple[str, Path, Path]] = [
        ("49k, one vocabulary", smollm, smollm),
        ("262k, one vocabulary", gemma, gemma),
        ("262k and 49k", gemma, smollm),
    ]
    rows, parts = [], []
    worst = [0.0, 0.0]
    for name, base, aligned in pairs:
        if arguments.only not in name:
            continue
        for rule in ("base", "dual"):
            with KadLlama(base, aligned, rule=rule, n_ctx=4096) as kad:
                for mode in arguments.modes.split(","):
                    if not runs(mode, rule):
                        continue
                    found = write(kad, MODES[mode], arguments) or []
                    cells = [str(value) for value in found] + ["text too short"] * (2 - len(found))
                    rows.append([name, rule, mode, *cells])
                    for after, value in zip(("100", "2,000"), found, strict=False):
                        parts.append([name, rule, mode, after, *(f"{part:.3f}" for part in value.parts)])
                    if name.startswith("262k"):
                        worst = [max(most, value.share) for most, value in zip(worst, found, strict=False)] + worst[
                            len(found) :
                        ]
                    print(rows[-1], file=sys.stderr)
    header = ["vocabulary", "rule", "mode", "ms/token after 100", "ms/token after 2,000"]
    facts = {"outside_100": worst[0], "outside_2000": worst[1]}
    common.show(arguments, "outside", "Outside evaluation, by vocabulary and length of the text", header, rows, **facts)
    header = ["vocabulary", "rule", "mode", "after tokens", *PARTS]
    common.show(arguments, "outside_parts", "Outside evaluation in its parts, ms/token", header, parts)


if __name__ == "__main__":
    main()
