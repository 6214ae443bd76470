"""The pictures of a report, as SVG text: they can be told apart without colour."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kad_llama.evaluation.results import Results, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plots"]

_STYLE: Any = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "kad-llama",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_WIDTH = 7.5  # inches
_MARKERS = "osD^v<>PXh*p"
_FILLS = ("black", "0.6", "0.85")  # of rules, when the markers have been used


def plots(results: Results) -> list[tuple[str, str]]:
    """Return titles and SVGs: accuracy, accuracy against speed, who spoke. Empty without answers.

    Raises
    ------
    ImportError
        Without matplotlib; it comes with the extra `eval`.
    """
    import matplotlib

    if not results.rows:
        return []
    with matplotlib.rc_context(_STYLE):
        pictures = [
            ("Accuracy, with 95 % intervals", _accuracy(results.rows)),
            ("Accuracy against speed", _against_speed(results.rows)),
            ("Who spoke", _who_spoke(results.rows)),
        ]
        return [(title, _svg(figure)) for title, figure in pictures if figure is not None]


def _figure(height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _names(axes: Any, rows: Sequence[Row]) -> None:
    """Settings from top to bottom."""
    axes.set_yticks(range(len(rows)), [row.setting for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)


def _accuracy(rows: Sequence[Row]) -> Figure:
    figure, axes = _figure(0.9 + 0.32 * len(rows))
    for place, row in enumerate(rows):
        low, high = 100 * row.accuracy.low, 100 * row.accuracy.high
        axes.plot([low, high], [place, place], color="0.45", linewidth=1.5, solid_capstyle="butt")
        axes.plot([low, low, high, high], [place] * 4, "|", color="0.45", markersize=8)
        filled = "black" if row.is_rule else "white"
        axes.plot(100 * row.accuracy.value, place, "o", markerfacecolor=filled, markeredgecolor="black", markersize=7)
    axes.set_xlim(-2, 102)  # whole markers at the ends
    axes.set_xlabel("right answers (%); filled: the pair, open: one model alone")
    axes.grid(axis="x", color="0.9")
    _names(axes, rows)
    return figure


def _against_speed(rows: Sequence[Row]) -> Figure | None:
    shown = [row for row in rows if not math.isnan(row.speed.median)]
    if not shown:
        return None
    figure, axes = _figure(4.2)
    for i, row in enumerate(shown):
        y, below, above = (100 * v for v in (row.accuracy.value, row.accuracy.low, row.accuracy.high))
        error = {"xerr": [[row.speed.median - row.speed.low], [row.speed.high - row.speed.median]]}
        error["yerr"] = [[max(0.0, y - below)], [max(0.0, above - y)]]
        axes.errorbar(
            row.speed.median,
            y,
            **error,
            fmt=_MARKERS[i % len(_MARKERS)],
            color="black",
            ecolor="0.75",
            elinewidth=1,
            markerfacecolor=_FILLS[i // len(_MARKERS) % len(_FILLS)] if row.is_rule else "white",
            label=row.setting,
        )
    axes.set_xlabel("tokens per second: median and quartiles")
    axes.set_ylabel("right answers (%), 95 % interval")
    axes.set_ylim(-2, 102)
    axes.set_xlim(left=0)
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _who_spoke(rows: Sequence[Row]) -> Figure | None:
    shown = [row for row in rows if row.is_rule and not math.isnan(row.aligned_share)]
    if not shown:
        return None
    figure, axes = _figure(1.0 + 0.32 * len(shown))
    shares = [100 * row.aligned_share for row in shown]
    places = list(range(len(shown)))
    axes.barh(places, shares, 0.6, color="0.35", label="aligned model")
    axes.barh(
        places,
        [100 - share for share in shares],
        0.6,
        left=shares,
        color="white",
        edgecolor="0.35",
        hatch="///",
        label="base",
    )
    alphas = [(100 * row.deferred_mass, place) for place, row in zip(places, shown, strict=True)]
    axes.plot(*zip(*alphas, strict=True), "D", color="white", markeredgecolor="black", markersize=6, label="mean alpha")
    axes.set_xlim(-2, 102)
    axes.set_xlabel("share of the tokens (%)")
    _names(axes, shown)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure
