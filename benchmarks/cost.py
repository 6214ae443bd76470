"""Time per token outside llama_decode + llama_synchronize, by mode, vocabulary and length of the text so far.

    python benchmarks/cost.py [--tokens 2050] [--window 50]

Three pairs: 49k tokens (SmolLM2 in both roles), 262k tokens (gemma-3-270m in both roles), and 262k with 49k (the demo
pair, where vocabularies differ and the text is tokenised again after every event). One text is written to its end; the
windows are `window` events after 100 and after 2,000 events. Rule base, which looks at whole rows; rule dual in brackets.
A seed is taken whose text is long enough.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import common

from kad_llama import KadLlama, Stats

PROMPT = "The history of the world, in many volumes. Volume 1, chapter 1.\n\n"


def outside(before: Stats, after: Stats, before_s: float, after_s: float) -> float:
    """Milliseconds per event between two readings that were not spent in evaluation."""
    evaluated = after.base_eval_s + after.aligned_eval_s - before.base_eval_s - before.aligned_eval_s
    return 1e3 * (after_s - before_s - evaluated) / (after.tokens - before.tokens)


def write(kad: KadLlama, mode: dict[str, object], arguments: argparse.Namespace) -> list[float] | None:
    """Milliseconds outside evaluation in the windows; None for a text that ended too early."""
    found = []
    for seed in range(arguments.seeds):
        found = []
        begun: tuple[Stats, float] | None = None
        windows = [100, 2000]
        with kad.stream(PROMPT, raw=True, seed=seed, max_tokens=arguments.tokens, temperature=1.0, **mode) as stream:  # type: ignore[arg-type]
            for _ in stream:
                stats = stream.stats
                if begun is None and windows and stats.tokens >= windows[0]:
                    begun, windows = (stats, time.perf_counter()), windows[1:]
                elif begun is not None and stats.tokens >= begun[0].tokens + arguments.window:
                    found.append(outside(begun[0], stats, begun[1], time.perf_counter()))
                    begun = None
                if len(found) == 2:
                    return found
        print(f"  seed {seed}: the text ended after {stream.result.stats.tokens} events", file=sys.stderr)
    return found or None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2060)
    parser.add_argument("--window", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=8)
    arguments = parser.parse_args()
    smollm, gemma = common.aligned_file(), common.demo_base_file()
    pairs: list[tuple[str, Path, Path]] = [
        ("49k, one vocabulary", smollm, smollm),
        ("262k, one vocabulary", gemma, gemma),
        ("262k and 49k", gemma, smollm),
    ]
    rows = []
    for name, base, aligned in pairs:
        for rule in ("base", "dual"):
            with KadLlama(base, aligned, rule=rule, n_ctx=4096) as kad:
                modes: dict[str, dict[str, object]] = {"plain": {"spec": False}}
                if rule == "dual":
                    modes["lazy"] = {"draft": 0}
                if kad.vocab.equal:
                    modes["draft 3"] = {"draft": 3}
                for mode, keywords in modes.items():
                    found = write(kad, keywords, arguments) or []
                    cells = [f"{value:.2f}" for value in found] + ["text too short"] * (2 - len(found))
                    rows.append([name, rule, mode, *cells])
                    print(rows[-1], file=sys.stderr)
    common.table(["vocabulary", "rule", "mode", "ms/token after 100", "ms/token after 2,000"], rows)


if __name__ == "__main__":
    main()
