"""docs/results.md and its plots from the stored measurements: peers.py's `page`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import plots
import results
from results import Cell, Group, Ratio, Store, letter
from running import AUTO, BASE, LAZY, LLAMA, OUTSIDE, PLAIN, is_exact, length

INTRO = """\
# How fast, and against what

Written by `benchmarks/peers.py page` from [results.json](results.json); nothing here is typed by hand.

Every figure is a ratio of speeds within a round, and so on one machine: in a round each candidate runs once from the
same prompt ids with the same seed, threads, context and cache types, one after another, and speed is tokens over the
time after the prompt. Quoted are the median over rounds and, in brackets, the tenth and ninetieth percentile. Runs of
fewer than {short} tokens count for no ratio. Sums (the bound, shares, tokens per pass) leave out runs that took over
{stalled} times as long per token as the median of their line: the machine did something else meanwhile. Tables say how
many there were. Days are those of the last run; the code has changed since the older ones.

{machines}

Pairs. *demo*: base gemma-3-270m Q4_K_M, aligned SmolLM2-135M-Instruct Q4_1, different vocabularies. *F16*, *Q8_0*,
*Q4_0*: base SmolLM2-135M-Instruct widened to 1.3 B parameters that compute the same function, in that format; aligned
SmolLM2-135M-Instruct Q4_1. A number after the name is the noise on the base's weights, as a share of each matrix's
deviation; without one there is none.

## Against whom

| candidate | program | what is drawn | called as |
|---|---|---|---|
{programs}

The outside programs draw from the base's own distribution, which is rule `base`. They come from the sources inside
llama-cpp-python's source distribution, built by `benchmarks/peers_build.py` with the options that llama-cpp-python has
by default. `speculative` compares its greedy guesses as if they had been drawn: at a temperature above 0 what it writes
does not follow the base's distribution, and its figures there are for comparison only. Their draft length is the fastest
of those that were tried, named in the tables.
"""

BOUND = """\
The bound is the speed that the measured passes would allow if drawing cost nothing: the largest of

- plain and lazy: tokens over the time spent inside llama.cpp's evaluation in the runs of that mode;
- for every draft length k that was measured: E / (G A + B + w u A), where B and A are the mean times of a base pass and
  of an aligned pass in the runs of that length, E the events per round, G the guesses (k, fewer at a text's end) and w the
  share of rounds whose guesses were all right, all replayed along the texts of the longest draft, and u the share of
  events at which the aligned model is needed (aligned passes per event of the lazy runs; 1 where there are none).

It keeps one length throughout. auto, which stops guessing where the next guess is likely wrong, can come out above it.
"""


def write(store: Store, folder: Path) -> None:
    """Write results.md and the plots into a folder."""
    drawn = plots.draw(store, folder)
    parts = [_intro(store), _bars(store), *_groups(store), *_tables(store), *_pictures(drawn)]
    (folder / "results.md").write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _intro(store: Store) -> str:
    lines = [f"Machine {letter(number)}: {_words(machine)}." for number, machine in enumerate(store.machines)]
    return INTRO.format(
        machines="\n\n".join(lines),
        short=results.SHORT,
        stalled=results.STALLED,
        programs="\n".join(_programs(store)),
    )


def _words(machine: dict[str, Any]) -> str:
    return (
        f"{machine['processor']} ({machine['architecture']}, {machine['instructions']}), {machine['cores']} cores, "
        f"{machine['threads']} threads, {machine['memory_gb']} GB, {machine['system']}, {machine['backend']}"
    )


def _programs(store: Store) -> list[str]:
    """One line per kind of candidate, with the call of one of them."""
    kad, llama_cpp_python, llama_cpp = (
        f"{name} {store.programs[name]}" for name in ("kad-llama", "llama-cpp-python", "llama.cpp")
    )
    kinds = {
        BASE: (llama_cpp, "base, exact"),
        LLAMA: (llama_cpp_python, "base, exact"),
        "speculative-simple k=N": (llama_cpp, "base, exact"),
        "speculative k=N": (llama_cpp, "base at temperature 0; above it nothing known"),
        PLAIN: (kad, "the mixture, exact"),
        LAZY: (kad, "the mixture, exact"),
        "k=N": (kad, "the mixture, exact"),
        AUTO: (kad, "the mixture, exact"),
    }
    lines = []
    for kind, (program, law) in kinds.items():
        about = _about(store, kind)
        if about:
            lines.append(f"| {kind} | {program} | {law} | `{about}` |")
    return lines


def _about(store: Store, kind: str) -> str:
    """How a kind of candidate was called, the draft length as N."""
    start = kind.removesuffix("N")
    for cells in store.cells.values():
        for name, cell in cells.items():
            if name == kind or (kind.endswith("k=N") and name.startswith(start)):
                return re.sub(r"(n-max |draft=)\d+", r"\1N", cell.about) if name != kind else cell.about
    return ""


# ---- Bars -------------------------------------------------------------------------------------------------------------


def _bars(store: Store) -> str:
    rows = [list(line) for line in bars(store)]
    table = markdown(["what", "machine", "measured", "bar", "met", "on"], rows)
    missed = [*limits(store), *own_limits(store), *outside_limits(store), *copy_limits(store)]
    return "\n\n".join(["## Bars", "Temperature 1.", table, *missed, BOUND])


# Pair, rule, what auto is held against (a program at its best draft length), times it at least.
AUTO_BARS = (
    ("F16", "base", BASE, 1.9),
    ("Q8_0", "base", BASE, 1.6),
    ("Q8_0", "base", "speculative-simple", 2.5),
    ("Q8_0", "base", "speculative", 1.2),
    ("Q8_0-0.1", "dual", BASE, 1.2),
    ("Q4_0", "base", BASE, 0.97),
    ("Q4_0", "dual", BASE, 0.80),
    ("demo", "dual", PLAIN, 1.1),
)
OWN_BAR = 0.9  # auto over the bound


def limits(store: Store) -> list[str]:
    """Of each bar against another candidate that was missed: what the measured passes allow, and why.

    Of the rounds that all of them ran: what auto is held against, the base alone and every setting of kad-llama.
    """
    lines = []
    for pair, rule, against, bar in AUTO_BARS:
        for machine, every in _at(store, pair, rule).items():
            name = results.best(every, against) or against
            measured = results.ratio(every.get(AUTO), every.get(name))
            if measured and measured.median < bar and (line := _limit(every, name)):
                lines.append(f"Missed on machine {letter(machine)}, {pair}, rule {rule}, auto / {name}: {line}")
    return lines


def _limit(every: dict[str, Cell], name: str) -> str | None:
    """The bound beside the speed of `name`, and the parts of both; None without a draft."""
    others = {n: cell for n, cell in every.items() if cell.runs and not n.startswith(OUTSIDE)}
    beside = others | {name: every[name]}
    cells = results.within(beside, set.intersection(*(set(cell.runs) for cell in beside.values())))
    found = results.bound(cells)
    drafts = found[1] if found and length(found[1]) else results.best(cells)
    if not found or not drafts or not (k := length(drafts)):
        return None
    base_s, aligned_s = results.pass_times(cells[drafts])
    one = cells[BASE].total("base_eval_s") / cells[BASE].total("base_passes")
    own, theirs = found[0] / cells[BASE].speed, cells[name].speed / cells[BASE].speed
    line = (
        f"in the rounds that all ran, the bound is {own / theirs:.2f} times that. In its parts: a base pass of {k + 1} "
        f"tokens takes as long as {base_s / one:.2f} of one token, an aligned pass {aligned_s / one:.3f}; "
        f"{100 * cells[drafts].right:.0f} % of the guesses are right; {found[1]} could make {own:.2f} times the base alone"
    )
    if not name.startswith(OUTSIDE):
        return line + "."
    return f"{line}, and the program makes {theirs:.2f}, {100 * cells[name].right:.0f} % of its guesses right."


def own_limits(store: Store) -> list[str]:
    """Of each group whose auto misses the bound: where the setting that has the bound loses, and what auto loses to it."""
    lines = []
    for group, cells in store.cells.items():
        found = results.bound(cells)
        if group.temperature != 1.0 or not found or AUTO not in cells or cells[AUTO].speed >= OWN_BAR * found[0]:
            continue
        if not (k := length(found[1])) or not (replayed := results.longest(cells)):
            continue
        cell = cells[found[1]]
        events = results.replay(results.guesses(cells[replayed]), k).events
        lines.append(
            f"Missed on machine {letter(group.machine)}, {group.pair}, rule {group.rule}, auto / the bound: {found[1]} "
            f"itself reaches {cell.speed / found[0]:.3f} of it, and auto {cells[AUTO].speed / cell.speed:.3f} of "
            f"{found[1]}. A base pass of {found[1]} makes {cell.total('tokens') / cell.total('base_passes'):.2f} events; "
            f"right guesses alone would make {events:.2f}. {_outside(cell)} of its time is outside evaluation."
        )
    return lines


def outside_limits(store: Store) -> list[str]:
    """Of each machine whose worst share outside evaluation is above its bar: which run that was, and its parts."""
    tables = {(table["name"], table["machine"]): table for table in store.tables}
    lines = []
    for (name, machine), table in tables.items():
        parts = tables.get(("outside_parts", machine))
        if name != "outside" or not parts:
            continue
        for column, (fact, after) in enumerate((("outside_100", "100"), ("outside_2000", "2,000")), 3):
            share = table["facts"][fact]
            if share <= FACTS[fact][1]:
                continue
            wide = [row for row in table["rows"] if row[0].startswith("262k")]
            worst = next(row for row in wide if row[column].endswith(f"({share:.1f} %)"))
            found = next(row for row in parts["rows"] if row[:4] == [*worst[:3], after])
            each = ", ".join(f"{what} {ms}" for what, ms in zip(parts["header"][4:], found[4:], strict=True))
            lines.append(
                f"Missed on machine {letter(machine)}, share outside evaluation after {after} tokens: {worst[0]}, rule "
                f"{worst[1]}, {worst[2]}, {worst[column]} ms a token. In its parts: {each}."
            )
    return lines


def copy_limits(store: Store) -> list[str]:
    """Of each machine on which guesses from the text itself bring too little: what they could bring at most."""
    return [
        f"Missed on machine {letter(table['machine'])}, guesses from the text itself where they bring most, over the same "
        f"cells as the bar: if no pass of the aligned model had taken any time with them, the gain would be "
        f"{facts['copy_limit']:.2f}. The table below has the parts."
        for table in store.tables
        if "copy_limit" in (facts := table["facts"]) and facts["copy_gain"] < FACTS["copy_gain"][1]
    ]


Bar = tuple[str, str, str, str, str, str]  # what, machine, measured, bar, met, on which days
Measured = tuple[str, Ratio | float | None]  # what, and how much of it
Measure = Callable[[dict[str, Cell]], Measured]


def bars(store: Store) -> list[Bar]:
    """What was to be reached, what was measured on each machine, and whether it is enough."""
    lines: list[Bar] = []
    for pair, rule, measure, bar in BARS:
        groups = _at(store, pair, rule)
        found = {machine: measure(cells) for machine, cells in groups.items()}
        known = {machine: line for machine, line in found.items() if line[1] is not None} or {None: measure({})}
        lines += [
            _bar(
                f"{pair}, rule {rule}: {what}", where, value, bar, on=_days(groups[where]) if where is not None else "-"
            )
            for where, (what, value) in known.items()
        ]
    for group, cells in store.cells.items():
        if group.temperature == 1.0 and AUTO in cells:
            lines += _own_bars(group, cells)
    return lines + _fact_bars(store)


def _at(store: Store, pair: str, rule: str) -> dict[int, dict[str, Cell]]:
    """The cells of a pair and a rule at temperature 1, by machine."""
    return {g.machine: cells for g, cells in store.cells.items() if g[:3] == (pair, rule, 1.0)}


def _days(cells: dict[str, Cell]) -> str:
    """When the candidates of a group ran last: a day, or the first and the last."""
    found = sorted({cell.date for cell in cells.values() if cell.runs})
    return " to ".join(dict.fromkeys((found[0], found[-1]))) if found else "-"


def _bar(
    what: str, machine: int | None, measured: Ratio | float | None, bar: float, *, most: bool = False, on: str = "-"
) -> Bar:
    sign = "at most" if most else "at least"
    if machine is None or measured is None:
        return what, "-", "not measured", f"{sign} {bar:g}", "-", on
    value = measured.median if isinstance(measured, Ratio) else measured
    met = value <= bar if most else value >= bar
    shown = str(measured) if isinstance(measured, Ratio) else f"{value:.3g}"
    return what, letter(machine), shown, f"{sign} {bar:g}", "yes" if met else "no", on


def _auto_over(against: str, cells: dict[str, Cell]) -> Measured:
    name = results.best(cells, against) or against
    return f"auto / {name}", results.ratio(cells.get(AUTO), cells.get(name))


def one_pass_each(cells: dict[str, Cell]) -> float | None:
    """Speed of the plain runs over what one base pass and one aligned pass per token would give (the first has none)."""
    plain = cells.get(PLAIN)
    if not plain or not plain.tokens:
        return None
    return (
        sum(results.pass_times(plain))
        * (plain.total("tokens") - len(plain.runs) + len(plain.stalled))
        / plain.total("seconds")
    )


BARS: tuple[tuple[str, str, Measure, float], ...] = (
    *((pair, rule, partial(_auto_over, against), bar) for pair, rule, against, bar in AUTO_BARS),
    ("demo", "dual", lambda cells: ("plain / one base pass and one aligned pass", one_pass_each(cells)), 0.95),
)


def _own_bars(group: Group, cells: dict[str, Cell]) -> list[Bar]:
    """auto against the bound, and against the best fixed setting."""
    where, found, on = f"{group.pair}, rule {group.rule}: auto / ", results.bound(cells), _days(cells)
    among = ", ".join(results.fixed(cells))
    lines = [
        _bar(
            f"{where}{name}, on the other half of the rounds the best of {among}", group.machine, measured, 0.92, on=on
        )
        for name, measured in results.halves(cells)
    ]
    if found and cells[AUTO].runs:
        lines.append(
            _bar(f"{where}the bound ({found[1]})", group.machine, cells[AUTO].speed / found[0], OWN_BAR, on=on)
        )
    return lines


FACTS = {
    "outside_100": ("share outside evaluation at 262k tokens, after 100 tokens of text, %", 3.0, True),
    "outside_2000": ("the same after 2,000", 3.0, True),
    "memory_mib": ("memory beyond a process that holds both contexts, MiB", 64.0, True),
    "copy_gain": (
        "guesses from the text itself on a copy-and-edit prompt, over aligned guesses alone, where it brings most",
        1.5,
        False,
    ),
    "copy_least": ("the same on such a prompt, where it brings least", 0.97, False),
    "copy_loss": ("the same elsewhere", 0.97, False),
    "texts_gain": ("generate(prompt, n=8) over one text after another", 1.0, False),
}


def _fact_bars(store: Store) -> list[Bar]:
    lines = []
    for name, (what, bar, most) in FACTS.items():
        found = {
            table["machine"]: (table["facts"][name], table["date"]) for table in store.tables if name in table["facts"]
        }
        lines += [
            _bar(what, machine, fact, bar, most=most, on=on)
            for machine, (fact, on) in (found or {None: (None, "-")}).items()
        ]
    return lines


# ---- Groups -----------------------------------------------------------------------------------------------------------

HEADER = (
    "candidate",
    "exact",
    "times the base alone",
    "positions",
    "guesses right",
    "tokens per base pass",
    "outside evaluation",
)


def _groups(store: Store) -> list[str]:
    parts = ["## Every pair"]
    for group, cells in store.cells.items():
        rows = [_row(group, cells, name) for name in _order(cells)]
        notes = [*_refusals(cells), *_tried(cells), *_stalled(cells)]
        title = (
            f"### {group.pair}, rule {group.rule}, temperature {group.temperature:g}, machine {letter(group.machine)}"
        )
        alone = cells.get(BASE, Cell()).speed
        said = f"Base alone: {alone:.1f} tokens/s. Measured {_days(cells)}."
        parts.append("\n\n".join([title, said, markdown(HEADER, rows), *notes]))
    return parts


def _refusals(cells: dict[str, Cell]) -> list[str]:
    """Who could not run, those with one reason together."""
    reasons: dict[str, list[str]] = {}
    for name, cell in cells.items():
        if cell.refused:
            reasons.setdefault(cell.refused, []).append(name)
    return [f"Did not run: {', '.join(names)} ({reason})." for reason, names in reasons.items()]


def _tried(cells: dict[str, Cell]) -> list[str]:
    """The draft lengths of the outside programs and what each gave, few runs included."""
    lines = []
    for program in OUTSIDE:
        names = [name for name in cells if name.startswith(program + " k=") and cells[name].runs]
        found = [(name, results.ratio(cells[name], cells.get(BASE))) for name in names]
        if shown := [f"{length(name)} ({ratio.median:.2f})" for name, ratio in found if ratio]:
            lines.append(f"Draft lengths of {program} that were tried, times the base alone: {', '.join(shown)}.")
    return lines


def _stalled(cells: dict[str, Cell]) -> list[str]:
    found = {name: len(cell.stalled) for name, cell in cells.items() if cell.stalled}
    return [f"Stalled runs: {', '.join(f'{name} {count}' for name, count in found.items())}."] if found else []


def _order(cells: dict[str, Cell]) -> list[str]:
    """Of the outside programs the best length alone."""
    ran = [name for name, cell in cells.items() if cell.runs]
    kept = [name for name in ran if name.rpartition(" ")[0] not in OUTSIDE]
    return kept + [name for program in OUTSIDE if (name := results.best(cells, program))]


def _row(group: Group, cells: dict[str, Cell], name: str) -> list[str]:
    cell = cells[name]
    passes = cell.total("base_passes")
    return [
        name,
        "yes" if is_exact(name, group.temperature) else "no",
        str(results.ratio(cell, cells.get(BASE)) or "-") if name != BASE else "1",
        str(cell.tokens),
        f"{cell.right:.2f}" if cell.total("drafted") else "-",
        f"{cell.total('tokens') / passes:.2f}" if passes else "-",
        _outside(cell),
    ]


def _outside(cell: Cell) -> str:
    """The share of a cell's time that was not spent in evaluation; "-" where it was not measured."""
    inside = cell.total("base_eval_s") + cell.total("aligned_eval_s")
    return f"{100 * (1 - inside / cell.total('seconds')):.1f} %" if inside else "-"


def _tables(store: Store) -> list[str]:
    return [
        f"## {table['title']}\n\nMachine {letter(table['machine'])}, {table['date']}.\n\n"
        + markdown(table["header"], table["rows"])
        for table in store.tables
    ]


def _pictures(drawn: Sequence[tuple[str, str]]) -> list[str]:
    """Pictures, each with its caption under it; the caption's first sentence stands in for the picture."""
    shown = [f"![{caption.partition('.')[0]}]({file})\n\n{caption}" for file, caption in drawn]
    return ["## Plots", *shown] if shown else []
