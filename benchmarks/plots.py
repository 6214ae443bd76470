"""The plots of the results page; every series has its own marker or hatching, so that they can be read without colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import results
from results import Cell, Group, Store, letter
from running import AUTO, BASE, LAZY, OUTSIDE, PLAIN, length

MARKERS = "osD^vPX*<>"
LINES = ("-", "--", "-.", ":")
# The same bytes for the same data: no date, no random ids.
STYLE = {"svg.hashsalt": "kad-llama", "svg.fonttype": "none", "font.size": 10, "axes.grid": True, "grid.color": "0.85"}


def draw(store: Store, folder: Path, suffix: str = "svg") -> list[tuple[str, str]]:
    """Draw what there is data for at temperature 1; file names and captions."""
    groups = {group: cells for group, cells in store.cells.items() if group.temperature == 1.0 and BASE in cells}
    drawn = []
    with plt.rc_context(STYLE):
        for machine, rule in sorted({(group.machine, group.rule) for group in groups}):
            chosen = {group: cells for group, cells in groups.items() if (group.machine, group.rule) == (machine, rule)}
            where = f"rule {rule}, machine {letter(machine)}."
            for name, caption, plot in (
                ("length", f"Speed against draft length, {where}", by_length),
                ("right", f"Speed against the share of right guesses, {where}", by_right),
                ("cost", f"Where the time goes, per token, {where}", by_part),
            ):
                figure = plot(chosen)
                if figure is None:
                    continue
                file = f"results-{name}-{rule}-{letter(machine).lower()}.{suffix}"
                figure.savefig(
                    folder / file, bbox_inches="tight", dpi=110, metadata={"Date": None} if suffix == "svg" else {}
                )
                plt.close(figure)
                drawn.append((file, caption + " " + EXPLAINED[name]))
    return drawn


EXPLAINED = {
    "length": (
        "Lines: kad-llama with a fixed draft length; 0 is lazy, or plain where a rule has no lazy mode; at the right, auto. "
        "Crosses, where there are any: llama.cpp's programs on the Q8_0 pair."
    ),
    "right": (
        "Points: each pair, auto and its best fixed setting. Curves: what the measured passes of the first pair of a base "
        "format would allow at the best draft length, were every guess right with the same probability."
    ),
    "cost": "As a multiple of the time that the base alone takes per token, which is the line at 1.",
}


def _axes(width: float = 6.4, height: float = 4.2) -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=(width, height))
    axes.set_axisbelow(True)
    return figure, axes


def _median(cells: dict[str, Cell], name: str) -> float | None:
    found = results.ratio(cells.get(name), cells[BASE])
    return found.median if found else None


def by_length(groups: dict[Group, dict[str, Cell]]) -> Any:
    """Speed over the base alone against the draft length; one line per pair."""
    figure, axes = _axes()
    lengths: list[int] = []
    for index, (group, cells) in enumerate(groups.items()):
        points = [(length(name) or 0, _median(cells, name)) for name in cells if name.startswith("k=")]
        points += [(0, _median(cells, LAZY if LAZY in cells and cells[LAZY].runs else PLAIN))]
        known = sorted((k, value) for k, value in points if value is not None)
        lengths += [k for k, _ in known]
        shade = str(0.55 * (index % 3) / 2)
        style = {"color": shade, "marker": MARKERS[index % len(MARKERS)], "markerfacecolor": "white"}
        axes.plot(
            *zip(*known, strict=True), linestyle=LINES[index % len(LINES)], label=group.pair, **style
        ) if known else None
        if (auto := _median(cells, AUTO)) is not None:
            axes.plot([17], [auto], linestyle="", **style)
        if group.pair == "Q8_0":
            outside_points(axes, cells)
    if not lengths:
        plt.close(figure)
        return None
    axes.axhline(1, color="0.5", linewidth=0.8)
    ticks = sorted(set(lengths) | {0})
    axes.set_xticks([*ticks, 17], [*map(str, ticks), "auto"])
    axes.set(xlabel="draft length", ylabel="times the base alone", ylim=(0, None))
    axes.legend(ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def outside_points(axes: Any, cells: dict[str, Cell]) -> None:
    """llama.cpp's programs, a cross per draft length."""
    for program, mark in zip(OUTSIDE, "x+", strict=True):
        found = [(length(name) or 0, _median(cells, name)) for name in cells if name.startswith(program + " k=")]
        points = [(k, value) for k, value in found if value is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "k", linestyle="", marker=mark, label=program)


def by_right(groups: dict[Group, dict[str, Cell]]) -> Any:
    """Speed over the base alone against the share of right guesses, with the curve of each base format."""
    figure, axes = _axes()
    shares = [i / 100 for i in range(100)]
    formats: list[str] = []
    drawn = False
    for index, (group, cells) in enumerate(groups.items()):
        replayed = results.longest(cells)
        if not replayed:
            continue
        kind = group.pair.partition("-")[0]
        if kind not in formats:
            formats.append(kind)
            speeds = results.curve(cells, cells[BASE], shares)
            axes.plot(
                shares, speeds, color="0.3", linestyle=LINES[len(formats) % len(LINES)], label=f"{kind}, by its costs"
            )
        share = results.guess_share(cells[replayed])
        for name, face in ((AUTO, "white"), (results.best_fixed(cells) or "", "black")):
            if (value := _median(cells, name)) is not None:
                label = f"{group.pair}, " + ("auto" if name == AUTO else f"best fixed ({name})")
                axes.plot(
                    [share],
                    [value],
                    "k",
                    marker=MARKERS[index % len(MARKERS)],
                    markerfacecolor=face,
                    linestyle="",
                    label=label,
                )
                drawn = True
    if not drawn:
        plt.close(figure)
        return None
    axes.axhline(1, color="0.5", linewidth=0.8)
    axes.set(xlabel="share of right guesses", ylabel="times the base alone", ylim=(0, None), xlim=(0, 1))
    axes.legend(fontsize=7)
    return figure


def by_part(groups: dict[Group, dict[str, Cell]]) -> Any:
    """Stacked bars: base passes, aligned passes, everything else."""
    bars: list[tuple[str, list[float]]] = []
    for group, cells in groups.items():
        for name in dict.fromkeys((PLAIN, LAZY, results.best_fixed(cells), AUTO)):
            cell = cells.get(name or "")
            if cell and cell.tokens:
                bars.append((f"{group.pair}, {name}", parts(cell, cells[BASE])))
    if not bars:
        return None
    figure, axes = _axes(height=0.8 + 0.28 * len(bars))
    labels = [name for name, _ in bars]
    left = [0.0] * len(bars)
    for index, (part, hatch, shade) in enumerate(
        (("base passes", "", "0.75"), ("aligned passes", "///", "white"), ("the rest", "", "0.35"))
    ):
        widths = [values[index] for _, values in bars]
        axes.barh(labels, widths, left=left, label=part, hatch=hatch, color=shade, edgecolor="black", linewidth=0.6)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set(xlabel="time per token, times the base alone")
    axes.grid(axis="y", visible=False)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.0 + 1.2 / len(bars)), ncols=3)
    return figure


def parts(cell: Cell, reference: Cell) -> list[float]:
    """Seconds per token in base passes, in aligned passes and elsewhere, over the reference's seconds per token."""
    base, aligned = cell.total("base_eval_s"), cell.total("aligned_eval_s")
    rest = cell.total("seconds") - base - aligned
    return [value / cell.total("tokens") * reference.speed for value in (base, aligned, rest)]
