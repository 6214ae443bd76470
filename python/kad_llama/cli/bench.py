"""`kad-llama bench`: how fast is every way to run this pair here, beside the base alone in llama.cpp?

What the bound is, and how the advice is made, is in bench_report.py.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kad_llama.cli import answer, bench_report, output
from kad_llama.cli import arguments as flags
from kad_llama.cli.bench_report import ALIGNED, AUTO, BASE, MIB, PLAIN, Sample, Series
from kad_llama.errors import ContextError, InvalidArgumentError, KadError

if TYPE_CHECKING:
    from kad_llama.cli.alone import ModelAlone
    from kad_llama.generation import Generation, Stats
    from kad_llama.prompts import Prompt
    from kad_llama.session import KadLlama

WIDE = 98  # columns of the table with everything in it
LINE = 100  # and of the lines below it
UNSTEADY = 1.25  # greatest speed over least of the same work: an idle machine stays below


@dataclass(frozen=True)
class Candidate:
    """One way to write the text: what runs it, and in which of Stats.mode; None for a model alone."""

    series: Series
    run: Callable[[int], Generation | Sample]
    mode: str | None = None


@dataclass
class Measured:
    """What there is so far. It stands after every run, so that Ctrl-C and errors lose nothing."""

    candidates: list[Candidate]
    left_out: dict[str, str] = field(default_factory=dict)
    short: int = 0
    counted: int = 0

    @property
    def series(self) -> list[Series]:
        """The runs that count, by candidate, in the order of the table.

        Those of the first repeat count as long as there is no whole repeat after it: better than nothing after Ctrl-C.
        """
        found = [candidate.series for candidate in self.candidates]
        if not self.counted:
            return found
        return [replace(series, samples={n: s for n, s in series.samples.items() if n}) for series in found]

    def repeat(self, number: int, seed: int, least: int, tick: Callable[[], None]) -> None:
        """Run every candidate once; the first repeat, number 0, warms up."""
        for candidate in self.candidates:
            if candidate.series.name not in self.left_out:
                self._one(candidate, number, seed, least)
            tick()
        self.counted = number

    def _one(self, candidate: Candidate, number: int, seed: int, least: int) -> None:
        found = candidate.run(seed)
        if not isinstance(found, Sample):
            if found.stats.mode != candidate.mode:
                self.left_out[candidate.series.name] = found.stats.note or f"it runs {found.stats.mode} here"
                return
            if found.stats.tokens < least:
                self.short += bool(number)
                return
            found = sample_of(found.tokens, found.stats)
        if not found.seconds > 0:
            self.left_out[candidate.series.name] = "by this machine's clock a run took no time"
            candidate.series.samples.clear()
            return
        candidate.series.samples[number] = found


def sample_of(tokens: Sequence[Any], stats: Stats) -> Sample:
    """Return the figures of one run of the pair. The reference model is evaluated with the base."""
    return Sample(
        tokens=stats.tokens,
        seconds=stats.tokens / stats.tokens_per_second if stats.tokens_per_second else 0.0,
        base_s=stats.base_eval_s + stats.reference_eval_s,
        base_passes=stats.base_passes,
        aligned_s=stats.aligned_eval_s,
        aligned_passes=stats.aligned_passes,
        drafted=stats.drafted,
        accepted=stats.accepted,
        guesses=tuple(token.guess for token in tokens),
    )


# ---- The candidates -----------------------------------------------------------------------------------------------------


def settings(drafts: Sequence[int | str]) -> list[tuple[Series, dict[str, Any], str]]:
    """Return the ways to run a pair: name and flag, keywords of KadLlama.generate(), and the Stats.mode of each."""
    found: list[tuple[Series, dict[str, Any], str]] = [
        (Series(PLAIN, "--no-spec"), {"spec": False}, "plain"),
        (Series("lazy", "--draft 0"), {"draft": 0}, "lazy"),
    ]
    for draft in sorted({draft for draft in drafts if isinstance(draft, int)}):
        found.append((Series(f"draft {draft}", f"--draft {draft}", draft), {"draft": draft}, "speculative"))
    if AUTO in drafts:
        found.append((Series(AUTO, "--draft auto"), {"draft": AUTO}, AUTO))
    return found


def _drafts(kad: KadLlama, arguments: argparse.Namespace) -> tuple[list[int | str], dict[str, str]]:
    """Return the lengths to try, and why not the others; one that was asked for and is impossible is an error."""
    most = min(kad.max_draft, arguments.max_tokens - 1)
    why = f"at most {kad.max_draft} guesses fit a pass, and a run has {arguments.max_tokens} tokens"
    long = [draft for draft in arguments.drafts or flags.BENCH_DRAFTS if draft != AUTO and draft > most]
    if long and arguments.drafts:
        raise InvalidArgumentError(f"--drafts has {long[0]}; expected at most {most}: {why}. Leave it out, or raise -n")
    tried = [draft for draft in arguments.drafts or flags.BENCH_DRAFTS if draft not in long]
    return tried, {f"draft {draft}": why for draft in long}


def _of_the_pair(kad: KadLlama, arguments: argparse.Namespace, drafts: Sequence[int | str]) -> list[Candidate]:
    memory = sum(_memory(info) for info in (kad.base, kad.aligned, kad.reference))
    found = []
    for series, keywords, mode in settings(drafts):
        series.memory_bytes = memory
        found.append(Candidate(series, _generate(kad, arguments, keywords), mode))
    return found


def _generate(kad: KadLlama, arguments: argparse.Namespace, keywords: dict[str, Any]) -> Callable[[int], Generation]:
    return lambda seed: kad.generate(
        arguments.prompt, seed=seed, max_tokens=arguments.max_tokens, temperature=arguments.temp, **keywords
    )


def _alone(name: str, ids: list[int], memory: int, model: ModelAlone, tokens: int) -> Candidate:
    def run(seed: int) -> Sample:
        found = model(ids, tokens, seed % 2**32)
        who = "base" if name == BASE else "aligned"
        passes: dict[str, Any] = {f"{who}_s": found.eval_s, f"{who}_passes": tokens - 1}
        return Sample(len(found.ids), found.seconds, **passes)

    return Candidate(Series(name, memory_bytes=memory), run)


def _memory(info: Any) -> int:
    return 0 if info is None else int(info.weight_bytes + info.cache_bytes)


def _open_alone(info: Any, arguments: argparse.Namespace, aligned: bool) -> ModelAlone:
    """Open a model of the pair a second time, with the threads, context, cache types and attention that it has there."""
    from kad_llama.cli.alone import ModelAlone
    from kad_llama.files import default_threads

    output.note(f"opening {Path(info.path).name} a second time, alone in llama.cpp")
    return ModelAlone(
        info.path,
        n_ctx=info.n_ctx,
        n_threads=arguments.threads or default_threads(),
        temperature=arguments.temp,
        n_gpu_layers=arguments.ngla if aligned else arguments.n_gpu_layers,
        params=flags.model_params(arguments, "_aligned" if aligned else "")
        | {"type_k": info.type_k, "type_v": info.type_v, "n_ubatch": info.n_ubatch, "flash_attn_type": info.flash_attn},
    )


# ---- Running ------------------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> int:
    """Measure and print. Answers the exit status."""
    before = _resident()
    with answer.open_from(arguments) as kad, ExitStack() as opened:
        drafts, left_out = _drafts(kad, arguments)
        prompt = kad.prompt(arguments.prompt)
        _check_room(kad, prompt, arguments)
        pair = _of_the_pair(kad, arguments, drafts)
        pair[0].run(arguments.seed)  # touches all weights, before anything else is opened
        memory = {"before_bytes": before, "pair_bytes": _resident()}
        alone = []
        for name, info, ids in ((BASE, kad.base, prompt.base_ids), (ALIGNED, kad.aligned, prompt.aligned_ids)):
            model = opened.enter_context(_open_alone(info, arguments, name == ALIGNED))
            alone.append(_alone(name, ids or [], _memory(info), model, arguments.max_tokens))
        measured = Measured([*alone, *pair], left_out)
        return _measure_and_show(measured, arguments, {"files": _files(kad), "memory": memory})


def _check_room(kad: KadLlama, prompt: Prompt, arguments: argparse.Namespace) -> None:
    for info, ids in ((kad.base, prompt.base_ids), (kad.aligned, prompt.aligned_ids)):
        if info is not None and ids is not None and len(ids) + arguments.max_tokens > info.n_ctx:
            raise ContextError(
                f"the prompt has {len(ids)} tokens and -n is {arguments.max_tokens}, but the context holds {info.n_ctx}; "
                "give a smaller -n, a shorter prompt or a larger -c"
            )


def _files(kad: KadLlama) -> dict[str, str]:
    models = {"base": kad.base, "aligned": kad.aligned, "reference": kad.reference}
    return {role: info.path for role, info in models.items() if info is not None}


def _resident() -> int:
    """Return the resident set of this process in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _measure_and_show(measured: Measured, arguments: argparse.Namespace, about: dict[str, Any]) -> int:
    """Measure; show what there is whatever ends it."""
    try:
        interrupted = _measure(measured, arguments)
    except KadError as error:
        _show(report(measured, arguments, about, error=str(error)), arguments.json)
        raise
    _show(report(measured, arguments, about, interrupted=interrupted), arguments.json)
    return answer.INTERRUPTED if interrupted else 0


def _measure(measured: Measured, arguments: argparse.Namespace) -> bool:
    """Run all repeats; answers whether Ctrl-C ended it."""
    repeats, done = arguments.repeats + 1, 0
    least = min(arguments.max_tokens, flags.BENCH_LEAST_TOKENS)
    with output.working("measuring", repeats * len(measured.candidates)) as progress:

        def tick() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done)

        try:
            for number in range(repeats):
                measured.repeat(number, (arguments.seed + number) % 2**64, least, tick)
        except KeyboardInterrupt:
            return True
    return False


# ---- Showing ------------------------------------------------------------------------------------------------------------


def report(
    measured: Measured, arguments: argparse.Namespace, about: dict[str, Any], interrupted: bool = False, error: str = ""
) -> dict[str, Any]:
    """Return the whole result, for JSON."""
    from kad_llama.files import default_threads

    all_series = measured.series
    base = next(series for series in all_series if series.name == BASE)
    return {
        **about["files"],
        "rule": arguments.rule,
        "temperature": arguments.temp,
        "threads": arguments.threads or default_threads(),
        "prompt": arguments.prompt,
        "max_tokens": arguments.max_tokens,
        "seed": arguments.seed,
        "repeats": measured.counted,
        "interrupted": interrupted,
        **({"error": error} if error else {}),
        "series": [bench_report.entry(series, base) for series in all_series if series.samples],
        "left_out": measured.left_out,
        "short_runs": measured.short,
        "variation": bench_report.variation(all_series),
        "bound": bench_report.bound(all_series),
        "memory": about["memory"],
        "advice": bench_report.advice(all_series),
    }


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.dump(found)
        return
    width = shutil.get_terminal_size((LINE, 24)).columns if output.is_terminal(sys.stdout) else LINE
    if found["series"]:
        title = f"{Path(found['base']).name} + {Path(found['aligned']).name}, rule {found['rule']}"
        wide = width >= WIDE
        output.table(bench_report.rows(found, wide), bench_report.HEADER if wide else bench_report.NARROW, title)
    for line in lines(found):
        print(textwrap.fill(line, min(width, LINE), break_on_hyphens=False, break_long_words=False))


CAPTION = (
    "Alone: llama.cpp's own loop and sampler, one token per pass. Times: as fast as the base alone in the same repeat. "
    "Right: guesses. Per pass: tokens per base pass. Outside: share of the time outside llama_decode and llama_synchronize. "
    "MiB: weights and caches."
)


def lines(found: dict[str, Any]) -> list[str]:
    """Return what stands below the table; the last line is the advice."""
    if not found["series"]:
        return ["Nothing was measured yet.", *_left_out_lines(found["left_out"])]
    return [
        f"Medians (least-greatest) of interleaved repeats: {found['repeats']}. Tokens a run: {found['max_tokens']}. "
        f"Temperature: {found['temperature']:g}. Threads: {found['threads']}.",
        CAPTION,
        *_bound_lines(found["bound"]),
        f"Memory: the process held {found['memory']['pair_bytes'] / MIB:.0f} MiB with the pair open and run "
        f"({found['memory']['before_bytes'] / MIB:.0f} before); the models alone were opened beside it later.",
        *_left_out_lines(found["left_out"]),
        *_cautions(found),
        found["advice"] or "No advice: the base alone and the pair did not both run in one repeat.",
    ]


def _cautions(found: dict[str, Any]) -> list[str]:
    told = []
    if found["short_runs"]:
        told.append(
            f"Texts that ended too early to be counted: {found['short_runs']}. Another prompt (-p) may do better."
        )
    if found["variation"] is not None and found["variation"] > UNSTEADY:
        told.append(
            f"Caution: the same work went up to {found['variation']:.1f} times as fast in one repeat as in another. "
            "Something else was running, or the machine slowed down: measure again when it is idle."
        )
    if found["repeats"] == 1:
        told.append("Caution: one repeat shows no spread; give --repeats 5.")
    if found["interrupted"]:
        told.append("Interrupted: this is what was measured until then.")
    if not found["repeats"]:
        told.append("Caution: no repeat was completed after the one that warms up, so that one is in these numbers.")
    return told


def _left_out_lines(left_out: dict[str, str]) -> list[str]:
    """One line for each reason."""
    reasons: dict[str, list[str]] = {}
    for name, why in left_out.items():
        reasons.setdefault(why, []).append(name)
    return [f"Left out: {', '.join(names)} ({why})." for why, names in reasons.items()]


def _bound_lines(limit: dict[str, Any] | None) -> list[str]:
    if limit is None:
        return []
    guesses = "" if limit["guesses_from"] is None else f", guesses right as in {limit['guesses_from']}"
    text = f"Bound: the best setting ({limit['setting']}) with passes as measured{guesses}, and nothing outside them."
    reached = limit["reached_by_auto"]
    return [text if reached is None else f"{text} auto reaches {100 * reached:.0f} % of the bound."]
