"""The stored measurements, and what is computed from them: ratios, the best draft length, the bound.

docs/results.json holds one line per cell (a pair, a rule, a temperature, a machine and a candidate), with one row per run:
round, tokens, seconds, base passes, aligned passes, base seconds, aligned seconds, drafted, accepted. In a round every
candidate runs once from the same prompt and seed; ratios are taken within rounds, and so within a machine.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from running import AUTO, BASE, LAZY, PLAIN, Run, length

FILE = Path(__file__).resolve().parents[1] / "docs" / "results.json"
SHORT = 16  # a run of fewer tokens says little about speed and counts for no ratio
STALLED = 3  # times as long per token as the cell's median: the machine did something else meanwhile


class Group(NamedTuple):
    """What candidates are compared within. `machine` is a place in the store's list of machines."""

    pair: str
    rule: str
    temperature: float
    machine: int = 0


def today() -> str:
    """The day of a measurement, YYYY-MM-DD: a later version of the code may be faster or slower."""
    return datetime.date.today().isoformat()


def letter(machine: int) -> str:
    """What a machine is called on the page."""
    return chr(ord("A") + machine)


@dataclass
class Cell:
    """All runs of one candidate in one group, by round."""

    runs: dict[int, Run] = field(default_factory=dict)
    about: str = ""
    refused: str = ""
    date: str = ""  # of its last run, YYYY-MM-DD

    @property
    def tokens(self) -> int:
        """Positions measured."""
        return sum(run.tokens for run in self.runs.values())

    @property
    def stalled(self) -> list[int]:
        """Rounds in which the machine did something else meanwhile; sums leave them out, medians need not."""
        slow = {number: run.seconds / run.tokens for number, run in self.runs.items() if run.tokens >= SHORT}
        most = STALLED * statistics.median(slow.values()) if slow else 0.0
        return [number for number, value in slow.items() if value > most]

    def total(self, name: str) -> float:
        """The sum of one field of the runs, but for stalled ones."""
        stalled = self.stalled
        return sum(getattr(run, name) for number, run in self.runs.items() if number not in stalled)

    @property
    def speed(self) -> float:
        """Tokens per second, of all runs together."""
        seconds = self.total("seconds")
        return self.total("tokens") / seconds if seconds else 0.0

    @property
    def right(self) -> float:
        """Share of right guesses."""
        drafted = self.total("drafted")
        return self.total("accepted") / drafted if drafted else 0.0


class Store:
    """The file. Everything is written at once after every run; the file on disk is always whole."""

    def __init__(self, path: Path = FILE) -> None:
        self.path = path
        self.machines: list[dict[str, Any]] = []
        self.programs: dict[str, str] = {}
        self.tables: list[dict[str, Any]] = []
        self.cells: dict[Group, dict[str, Cell]] = {}
        if path.is_file():
            self._read(json.loads(path.read_text(encoding="utf-8")))

    def _read(self, found: dict[str, Any]) -> None:
        self.machines, self.programs, self.tables = found["machines"], found["programs"], found["tables"]
        for line in found["cells"]:
            guesses = line.get("guesses", {})
            cell = Cell(about=line["about"], refused=line.get("refused", ""), date=line["date"])
            cell.runs = {row[0]: Run(*row[1:], guesses=guesses.get(str(row[0]), "")) for row in line["runs"]}
            group = Group(line["pair"], line["rule"], line["temperature"], line["machine"])
            self.group(group)[line["candidate"]] = cell

    def group(self, group: Group) -> dict[str, Cell]:
        """The cells of a group by candidate."""
        return self.cells.setdefault(group, {})

    def number(self, machine: dict[str, Any]) -> int:
        """The machine's place in the list."""
        if machine not in self.machines:
            self.machines.append(machine)
        return self.machines.index(machine)

    def save(self) -> None:
        """Write the file, one line per cell."""
        head = {"machines": self.machines, "programs": self.programs, "tables": self.tables}
        lines = [
            _line(group, name, cell, longest(cells))
            for group, cells in self.cells.items()
            for name, cell in cells.items()
        ]
        text = json.dumps(head)[:-1] + ', "cells": [\n' + ",\n".join(map(json.dumps, lines)) + "\n]}\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, self.path)

    def keep_table(
        self,
        name: str,
        title: str,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        machine: dict[str, Any],
        **facts: float,
    ) -> None:
        """Store another script's table, where it was measured, and numbers of it that bars are held against.

        It takes the place of the table of this name from the same machine.
        """
        place = {"name": name, "machine": self.number(machine)}
        self.tables = [table for table in self.tables if {key: table[key] for key in place} != place]
        found = {"title": title, "header": list(header), "rows": [list(row) for row in rows], "facts": facts}
        self.tables.append(place | {"date": today()} | found)
        self.save()


def _line(group: Group, name: str, cell: Cell, replayed: str | None) -> dict[str, Any]:
    """A cell as it is stored. Guesses are kept of the longest draft alone: the others are replayed from it."""
    line: dict[str, Any] = {**group._asdict(), "candidate": name, "about": cell.about, "date": cell.date}
    line["runs"] = [
        [number, *(round(value, 4) for value in astuple(run)[:-1])]  # all but the guesses
        for number, run in cell.runs.items()
    ]
    if cell.refused:
        line["refused"] = cell.refused
    if name == replayed:
        line["guesses"] = {number: run.guesses for number, run in cell.runs.items()}
    return line


def longest(cells: dict[str, Cell]) -> str | None:
    """kad-llama's longest draft that was measured."""
    drafts = [name for name in cells if name.startswith("k=") and cells[name].tokens]
    return max(drafts, key=lambda name: length(name) or 0, default=None)


# ---- Ratios -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """Speed over speed: the median over rounds, its tenth and ninetieth percentile, and how many rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def ratio(over: Cell | None, under: Cell | None, rounds: Iterable[int] | None = None) -> Ratio | None:
    """Of the rounds in which both ran; None without any."""
    if not over or not under:
        return None
    shared = over.runs.keys() & under.runs.keys() & set(over.runs if rounds is None else rounds)
    pairs = [(over.runs[i], under.runs[i]) for i in sorted(shared)]
    values = sorted(
        (a.tokens / a.seconds) / (b.tokens / b.seconds) for a, b in pairs if min(a.tokens, b.tokens) >= SHORT
    )
    if not values:
        return None
    if len(values) == 1:
        return Ratio(values[0], values[0], values[0], 1)
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return Ratio(statistics.median(values), cuts[0], cuts[-1], len(values))


def within(cells: dict[str, Cell], rounds: Iterable[int]) -> dict[str, Cell]:
    """The same cells with some rounds alone."""
    chosen = set(rounds)
    return {
        name: replace(cell, runs={n: run for n, run in cell.runs.items() if n in chosen})
        for name, cell in cells.items()
    }


def best(cells: dict[str, Cell], prefix: str = "") -> str | None:
    """The fastest of the draft lengths of a program ("speculative"), or of kad-llama itself ("")."""
    wanted = f"{prefix} k=" if prefix else "k="
    found = [name for name, cell in cells.items() if name.startswith(wanted) and cell.runs]
    # Where only the best of a first look went on, it has the most rounds and the others too few to beat it by luck.
    most = max((len(cells[name].runs) for name in found), default=0)
    found = [name for name in found if 2 * len(cells[name].runs) >= most]

    # By rounds, in which the base alone ran too: the machine was faster in some than in others.
    def fast(name: str) -> tuple[float, float]:
        against = ratio(cells[name], cells[BASE]) if BASE in cells else None
        return (against.median if against else 0.0, cells[name].speed)

    return max(found, key=fast, default=None)


def best_fixed(cells: dict[str, Cell], rounds: Iterable[int] | None = None) -> str | None:
    """The fastest of kad-llama's fixed settings (plain, lazy, any draft length), on some rounds alone if given."""
    chosen = None if rounds is None else set(rounds)

    def speed(name: str) -> float:
        stalled = cells[name].stalled
        numbers = [n for n in cells[name].runs if n not in stalled and (chosen is None or n in chosen)]
        runs = [cells[name].runs[n] for n in numbers]
        return sum(run.tokens for run in runs) / sum(run.seconds for run in runs) if runs else 0.0

    return max(fixed(cells), key=speed, default=None)


def fixed(cells: dict[str, Cell]) -> list[str]:
    """The fixed settings that ran: plain, lazy, then drafts by their length."""
    ran = [name for name, cell in cells.items() if (name in (PLAIN, LAZY) or name.startswith("k=")) and cell.runs]
    return sorted(ran, key=lambda name: (length(name) or 0, name != PLAIN))


def halves(cells: dict[str, Cell]) -> list[tuple[str, Ratio]]:
    """auto over the best fixed setting: chosen on the even rounds and compared on the odd ones, and the other way.

    Of the rounds in which auto and every fixed setting ran: texts differ in how well they can be guessed.
    """
    ran = [cells[name].runs for name in fixed(cells)]
    shared = set(cells[AUTO].runs if AUTO in cells and ran else ()).intersection(*ran)
    rounds = sorted(shared)
    answer = []
    for choose, compare in ((rounds[::2], rounds[1::2]), (rounds[1::2], rounds[::2])):
        name = best_fixed(cells, choose)
        found = ratio(cells[AUTO], cells[name], compare) if name else None
        if name and found:
            answer.append((name, found))
    return answer


# ---- The bound --------------------------------------------------------------------------------------------------------


class Rounds(NamedTuple):
    """Means over rounds: events, guesses made, and the share of rounds whose guesses were all right."""

    events: float
    guesses: float
    full: float


def replay(texts: Iterable[str], k: int) -> Rounds:
    """The rounds that drafts of k would have made along each text.

    Whether a guess at a position is right does not depend on the draft length: the guess there is the same draw. So the
    letters of the longest draft's runs tell how rounds of any length would have gone. A round takes k guesses as long as
    they are right, and one event more; a position that was not guessed (it came after the longest draft was right
    throughout) counts as right. No round guesses beyond the last event of its text.
    """
    rounds = full = events = guessed = 0
    for text in texts:
        at = 0
        while at < len(text):
            made = min(k, len(text) - at - 1)
            wrong = text.find("c", at, at + made)
            at = at + made + 1 if wrong < 0 else wrong + 1
            full += wrong < 0
            guessed += made
            rounds += 1
        events += len(text)
    return Rounds(events / rounds, guessed / rounds, full / rounds) if rounds else Rounds(0.0, 0.0, 0.0)


def guesses(cell: Cell) -> list[str]:
    """The guesses of each text of a cell."""
    return [run.guesses for run in cell.runs.values()]


def bound(cells: dict[str, Cell]) -> tuple[float, str] | None:
    """Tokens per second that the measured costs allow, and the setting that would reach it.

    Plain and lazy: tokens over the time inside llama_decode and llama_synchronize. A draft of k: E / (G A + B + w u A).
    B is the mean time of a base pass in the runs of that length (k + 1 rows, fewer at a text's end), A that of an aligned
    pass there, E the events and G the guesses per round and w the share of rounds in which all guesses were right, all by
    `replay`; u is the share of events that need the aligned model: aligned passes per event of the lazy runs, 1 where the
    rule has none. Drawing costs nothing.
    """
    found: list[tuple[float, str]] = []
    for name in (PLAIN, LAZY):
        if (cell := cells.get(name)) and cell.runs:
            found.append((cell.total("tokens") / (cell.total("base_eval_s") + cell.total("aligned_eval_s")), name))
    needed = needed_share(cells)
    if replayed := longest(cells):
        texts = guesses(cells[replayed])
        for name, cell in cells.items():
            if name.startswith("k=") and cell.tokens:
                found.append((speculative_bound(texts, length(name) or 0, *pass_times(cell), needed), name))
    return max(found, default=None)


def needed_share(cells: dict[str, Cell]) -> float:
    """Share of the events that need the aligned model: aligned passes per event of the lazy runs, 1 without any."""
    lazy = cells.get(LAZY)
    return min(1.0, lazy.total("aligned_passes") / lazy.total("tokens")) if lazy and lazy.tokens else 1.0


def pass_times(cell: Cell) -> tuple[float, float]:
    """Mean seconds of a base pass and of an aligned pass."""
    base, aligned = cell.total("base_passes"), cell.total("aligned_passes")
    return (
        cell.total("base_eval_s") / base if base else 0.0,
        cell.total("aligned_eval_s") / aligned if aligned else 0.0,
    )


def speculative_bound(texts: Sequence[str], k: int, base_s: float, aligned_s: float, needed: float) -> float:
    """E / (G A + B + w u A), tokens per second."""
    rounds = replay(texts, k)
    return rounds.events / (base_s + (rounds.guesses + rounds.full * needed) * aligned_s) if rounds.events else 0.0


def guess_share(cell: Cell) -> float:
    """Share of right guesses over positions, not over guesses: long drafts weigh the good stretches more."""
    marks = "".join(guesses(cell))
    return marks.count("r") / max(1, marks.count("r") + marks.count("c"))


def expected_events(right: float, k: int) -> float:
    """Events per round if every guess were right with the same probability, apart from all others."""
    return k + 1.0 if right >= 1 else (1 - right ** (k + 1)) / (1 - right)


def curve(cells: dict[str, Cell], reference: Cell, shares: Sequence[float]) -> list[float]:
    """Speed over `reference` at each share of right guesses, by the costs of these cells and the best of their lengths."""
    costs = {
        length(name) or 0: pass_times(cell) for name, cell in cells.items() if name.startswith("k=") and cell.tokens
    }
    needed, answer = needed_share(cells), []
    for right in shares:
        speeds = [
            expected_events(right, k) / (k * aligned + base + right**k * needed * aligned)
            for k, (base, aligned) in costs.items()
        ]
        answer.append(max(speeds) / reference.speed)
    return answer
