"""Tokens per second of every mode against the base alone in llama.cpp, side by side in one run, as ratios.

    python benchmarks/modes.py [--base FILE --aligned FILE] [--rules base,dual] [--tokens 60] [--repeats 5]

Without files: SmolLM2-135M-Instruct Q4_1 as aligned model, and as base the same model widened to 1.3 B parameters that
compute the same function (widen.py). Each repeat runs every candidate once, in turn, from the same prompt; the ratio is
taken within the repeat, and medians are quoted. "base alone" is a plain loop of llama_decode and llama.cpp's own sampler
chain (temperature, then dist) in the same process, with the same threads.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import common

import kad_llama
from kad_llama import KadLlama
from kad_llama.cli.alone import ModelAlone
from kad_llama.files import default_threads

PROMPT = "Why is the sky blue?"


def candidates(temperature: float, tokens: int) -> dict[str, dict[str, object]]:
    """Keywords of each mode."""
    common_keywords: dict[str, object] = {"max_tokens": tokens, "temperature": temperature}
    modes: dict[str, dict[str, object]] = {"plain": {"spec": False}, "lazy": {"draft": 0}}
    modes |= {f"draft {k}": {"draft": k} for k in (1, 2, 3, 4, 7)}
    return {name: common_keywords | keywords for name, keywords in modes.items()}


def measure(kad: KadLlama, alone: ModelAlone, arguments: argparse.Namespace) -> list[list[str]]:
    """One row per mode: speed, ratio to the base alone, guesses right, tokens per base pass, share outside evaluation."""
    modes = candidates(arguments.temp, arguments.tokens)
    speeds: dict[str, list[float]] = {name: [] for name in ["base alone in llama.cpp", *modes]}
    rest: dict[str, list[tuple[float, float, float]]] = {name: [] for name in modes}
    ids = kad.prompt(PROMPT).base_ids or []
    for repeat in range(arguments.repeats + 1):  # the first one warms up and is not counted
        alone_run = alone(ids, arguments.tokens, repeat)
        if repeat:
            speeds["base alone in llama.cpp"].append(len(alone_run.ids) / alone_run.seconds)
        for name, keywords in modes.items():
            stats = kad.generate(PROMPT, seed=repeat, **keywords).stats  # type: ignore[arg-type]
            if not repeat:
                continue
            if name == "lazy" and stats.mode != "lazy":
                continue
            speeds[name].append(stats.tokens_per_second)
            generate_s = stats.tokens / stats.tokens_per_second
            outside = 1 - (stats.base_eval_s + stats.aligned_eval_s) / generate_s
            rest[name].append((stats.acceptance_rate, stats.tokens_per_base_pass, outside))
        print(f"\r{kad_llama.__version__}: repeat {repeat} of {arguments.repeats}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    base = speeds["base alone in llama.cpp"]
    rows = []
    for name, values in speeds.items():
        if not values:
            continue
        ratios = [value / reference for value, reference in zip(values, base, strict=True)]
        if name in rest:
            right, per_pass, outside = (statistics.median(column) for column in zip(*rest[name], strict=True))
            extra = [f"{right:.2f}" if "draft" in name else "-", f"{per_pass:.2f}", f"{100 * outside:.1f} %"]
        else:
            extra = ["-", "1.00", "-"]
        rows.append([name, common.spread(values, 1), common.spread(ratios), *extra])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--aligned", type=Path)
    parser.add_argument("--rules", default="base,dual")
    parser.add_argument("--temp", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    arguments = parser.parse_args()
    base = arguments.base or common.widened_file()
    aligned = arguments.aligned or common.aligned_file()
    alone = ModelAlone(base, n_ctx=1024, n_threads=arguments.threads, temperature=arguments.temp)
    print(
        f"base {base.name}, aligned {aligned.name}, temperature {arguments.temp:g}, {arguments.tokens} tokens, "
        f"{arguments.repeats} repeats, {arguments.threads} threads; median (least-greatest)"
    )
    for rule in arguments.rules.split(","):
        with KadLlama(base, aligned, rule=rule, n_ctx=1024, n_threads=arguments.threads) as kad:
            print(f"\nrule {rule}\n")
            common.table(
                [
                    "run",
                    "tokens/s",
                    "times the base alone",
                    "guesses right",
                    "tokens per base pass",
                    "outside evaluation",
                ],
                measure(kad, alone, arguments),
            )


if __name__ == "__main__":
    main()
