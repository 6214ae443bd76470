"""kad-llama, the base alone and llama.cpp's own speculation, side by side in one run, as ratios.

    python benchmarks/peers.py run [--pairs F16,Q8_0 --rules base,dual --temperatures 1 --positions 1000]
    python benchmarks/peers.py run --quick        # every candidate for a few tokens: does it all work?
    python benchmarks/peers.py page               # docs/results.md and its plots, from docs/results.json

A round runs every candidate once from the same prompt and seed; rounds go on until each has its positions. Every run is
stored at once, so an interrupted command goes on where it stopped, and cells can be added later: only what lacks
positions is run, with the base alone beside it in every round. `--again auto,k=3` forgets what this machine measured of
those. Another machine's measurements are left as they are: ratios are taken within a machine.

Outside programs implement ordinary speculative decoding: they run under rule `base`. For them a few rounds try every draft
length, and then only the fastest goes on.

The grid that the results page holds, each command as long as the machine allows (see docs/results.md for what it took):

    python benchmarks/peers.py run
    python benchmarks/peers.py run --temperatures 0,0.7 --pairs demo,F16,Q8_0,Q4_0 --candidates few
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import llama_cpp
import peers_build
import results
import rich.progress
import running
from results import Cell, Group, Store
from running import AUTO, BASE, LAZY, LLAMA, OUTSIDE, PLAIN, Candidate, Refused

import kad_llama
from kad_llama import RULES
from kad_llama.files import default_threads

PAIRS = "demo,F16,Q8_0,Q4_0,Q8_0-0.05,Q8_0-0.1"
LENGTHS = {"all": (1, 2, 3, 5, 7, 11, 15), "few": (3, 7, 15)}
OUTSIDE_LENGTHS = {
    "all": {"speculative-simple": (1, 2, 3, 5, 7), "speculative": (3, 5, 7, 11, 15)},
    "few": {"speculative-simple": (1, 3, 7), "speculative": (3, 7, 15)},
}


@dataclass(frozen=True)
class Amount:
    """How much is measured.

    Tokens per run, positions per cell, rounds that try every length of an outside program, threads.
    """

    tokens: int
    positions: int
    scout: int
    threads: int


def names(given: str, rule: str, pair: str, temperature: float) -> list[str]:
    """The candidates of a group: a set's ("all", "few"), or the ones that are listed."""
    if given not in LENGTHS:
        return [BASE, *(name for name in given.split(",") if name != BASE)]
    lazy = RULES[rule].lazy or (rule == "base" and temperature == 0)
    found = [BASE, LLAMA, PLAIN, *([LAZY] if lazy else []), *(f"k={k}" for k in LENGTHS[given]), AUTO]
    if rule == "base":
        found += [f"{program} k={k}" for program in OUTSIDE for k in OUTSIDE_LENGTHS[given][program]]
    # One refusal says it all where vocabularies differ; kad-llama says for itself what it can do there.
    return [name for name in found if pair != "demo" or not name.startswith("speculative") or name.endswith("k=3")]


def lacking(cells: dict[str, Cell], wanted: Sequence[str], amount: Amount) -> list[str]:
    """Who still runs in the next round."""
    found = []
    for name in wanted:
        cell = cells.get(name, Cell())
        program = name.rpartition(" ")[0]
        # Texts that keep ending early must not go on for ever.
        enough = cell.tokens >= amount.positions or len(cell.runs) * amount.tokens >= 20 * amount.positions
        retired = program in OUTSIDE and len(cell.runs) >= amount.scout and results.best(cells, program) != name
        if not (cell.refused or retired or enough):
            found.append(name)
    return [BASE, *(name for name in found if name != BASE)] if found else found


@contextlib.contextmanager
def opened(group: Group, wanted: Sequence[str], threads: int) -> Iterator[dict[str, Candidate]]:
    """The candidates of a group, loaded."""
    files = running.pair(group.pair)
    with running.open_pair(files, group.rule, threads) as kad:
        made = {name: running.make(name, kad, files, threads) for name in wanted}
        try:
            yield made
        finally:
            for candidate in made.values():
                if isinstance(candidate, (running.BaseAlone, running.Llama)):
                    candidate.close()


def one_run(store: Store, group: Group, name: str, candidate: Candidate, number: int, tokens: int) -> int:
    """Run and store; the tokens said."""
    cell = store.group(group).setdefault(name, Cell())
    cell.about, cell.date = candidate.about, results.today()
    question = running.QUESTIONS[number % len(running.QUESTIONS)]
    try:
        cell.runs[number] = run = candidate.run(question, number + 1, group.temperature, tokens)
    except Refused as refusal:
        cell.refused = str(refusal)
        print(f"{name} does not run, pair {group.pair}: {refusal}", file=sys.stderr)
        run = running.Run(0, 0.0)
    store.save()
    return run.tokens


def warm(candidates: dict[str, Candidate], temperature: float) -> None:
    """A few tokens of everything that keeps its models loaded; the programs warm up by themselves."""
    for candidate in candidates.values():
        if not isinstance(candidate, running.Program):
            with contextlib.suppress(Refused):
                candidate.run(running.QUESTIONS[0], 0, temperature, 8)


Plan = dict[Group, list[str]]
Report = Callable[[str], None]


def measure(store: Store, group: Group, wanted: Sequence[str], amount: Amount, report: Report = lambda _: None) -> None:
    """Rounds until every candidate of the group has its positions."""
    cells = store.group(group)
    if not lacking(cells, wanted, amount):
        return
    report("loading")
    with opened(group, wanted, amount.threads) as candidates:
        warm(candidates, group.temperature)
        while left := lacking(cells, wanted, amount):
            number = 1 + max((n for cell in cells.values() for n in cell.runs), default=-1)
            for name in left:
                report(name)
                one_run(store, group, name, candidates[name], number, amount.tokens)


def amounts(store: Store, plan: Plan, amount: Amount) -> tuple[int, int]:
    """Positions measured, and how many there will be: of most lengths of an outside program, those of the first look."""
    done = total = 0
    for group, wanted in plan.items():
        left = lacking(store.group(group), wanted, amount)
        for name in wanted:
            said = store.group(group).get(name, Cell()).tokens
            goal = amount.scout * amount.tokens if name.rpartition(" ")[0] in OUTSIDE and not said else amount.positions
            done += min(said, goal)
            total += max(said, goal) if name in left else min(said, goal)
    return done, max(total, 1)


def run(given: argparse.Namespace) -> None:
    """The command `run`."""
    store = Store(given.file)
    if any(program in given.candidates or given.candidates in LENGTHS for program in OUTSIDE):
        peers_build.build()
    threads = given.threads or default_threads()
    store.programs = {
        "kad-llama": kad_llama.__version__,
        "llama-cpp-python": llama_cpp.__version__,
        "llama.cpp": peers_build.version(),
    }
    amount = Amount(given.tokens, given.positions, given.scout, threads)
    if given.quick:
        amount = Amount(16, 16, 1, threads)
    here = store.number(running.machine(threads))
    groups = [
        Group(pair, rule, float(temperature), here)
        for pair in given.pairs.split(",")
        for rule in given.rules.split(",")
        for temperature in given.temperatures.split(",")
    ]
    for name in filter(None, given.again.split(",")):
        for group in groups:
            store.group(group).pop(name, None)
    plan: Plan = {group: names(given.candidates, group.rule, group.pair, group.temperature) for group in groups}
    measure_all(store, plan, amount)


def measure_all(store: Store, plan: Plan, amount: Amount) -> None:
    """Every group, with a bar that shows the time left."""
    with progress_bar() as progress:
        task = progress.add_task("", total=None)
        for group, wanted in plan.items():

            def report(name: str, group: Group = group) -> None:
                done, total = amounts(store, plan, amount)
                text = f"{group.pair} {group.rule} T={group.temperature:g} {name}"
                progress.update(task, description=text, completed=done, total=total)

            measure(store, group, wanted, amount, report)


def progress_bar() -> rich.progress.Progress:
    """A bar per group with the time left, on stderr."""
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.TimeElapsedColumn())
    return rich.progress.Progress(*columns, console=rich.console.Console(stderr=True))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "page"))
    parser.add_argument(
        "--file", type=Path, default=results.FILE, help="where measurements lie (default: docs/results.json)"
    )
    parser.add_argument("--pairs", default=PAIRS, help="demo, or quantisation[-noise] (default: %(default)s)")
    parser.add_argument("--rules", default="base,dual", help="(default: %(default)s)")
    parser.add_argument("--temperatures", default="1", help="(default: %(default)s)")
    parser.add_argument(
        "--candidates", default="all", help="all, few, or names: auto,k=3,speculative k=7 (default: all)"
    )
    parser.add_argument("--positions", type=int, default=1000, help="per cell, at least (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=100, help="per run, at most (default: %(default)s)")
    parser.add_argument("--scout", type=int, default=3, help="rounds that try every outside draft length (default: 3)")
    parser.add_argument("--threads", type=int, help="(default: the physical cores)")
    parser.add_argument("--again", default="", help="candidates whose runs on this machine are forgotten first")
    parser.add_argument("--quick", action="store_true", help="one run of 16 tokens each; give a --file of its own")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    given = parse(arguments)
    if given.command == "run":
        run(given)
    else:
        import page

        page.write(Store(given.file), given.file.parent)


if __name__ == "__main__":
    main()
