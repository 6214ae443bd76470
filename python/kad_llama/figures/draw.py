"""The figures, as PNG and SVG. Nothing is told by colour alone: greys, hatching, markers and line styles tell things apart.

The same numbers give the same bytes: no date, no random ids, no style of the user's.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kad_llama.figures.collect import Acceptance, Accuracies, Bar, Budget, Curve, Distribution, Measured, Numbers, Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw", "visible"]

_STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "text.parse_math": False,  # a dollar in a token is a dollar
    "svg.fonttype": "none",
    "svg.hashsalt": "kad-llama",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
}
_WIDTH = 7.5  # inches
_COLUMNS = 4  # small plots beside each other
_LABEL, _CONTEXT = 24, 80  # characters shown of a token, and of the text before it
_GRID = "0.9"
_BASE: Any = {"color": "0.45", "edgecolor": "black", "linewidth": 0.6}
_ALIGNED: Any = {"color": "white", "edgecolor": "black", "linewidth": 0.6, "hatch": "/////"}
_LINES = (("-", "o", "black"), ("--", "s", "0.35"), ("-.", "^", "0.5"), (":", "D", "0.2"))


def draw(numbers: Numbers) -> dict[str, bytes]:
    """Return the files of the figures that there are numbers for, by name.

    Raises
    ------
    ImportError
        Without matplotlib; it comes with the extra `eval`.
    """
    import matplotlib.style

    painters: dict[str, tuple[Any, Callable[[Any], Figure]]] = {
        "distribution": (numbers.distribution, _distribution),
        "acceptance": (numbers.acceptance, _acceptance),
        "accuracy": (numbers.accuracy, _accuracy),
        "entropy": (numbers.entropy, _entropy),
        "budget": (numbers.budget, _budget),
    }
    files = {}
    with matplotlib.style.context(["default", _STYLE]):
        for name, (given, paint) in painters.items():
            if given is not None:
                figure = paint(given)
                files[f"{name}.png"] = _saved(figure, format="png", dpi=150, metadata={"Software": None})
                files[f"{name}.svg"] = _saved(figure, format="svg", metadata={"Date": None, "Creator": None})
    return files


def _figure(height: float, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def _saved(figure: Figure, **how: Any) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, **how)
    return data.getvalue()


# ---- Text of tokens ---------------------------------------------------------------------------------------------------


def visible(data: bytes | None) -> str:
    """Return bytes as one visible line: spaces shown, what cannot be seen or is no text escaped."""
    if data is None:
        return "(end of text)"
    return "".join(map(_seen, data.decode("utf-8", "surrogateescape")))


def _seen(character: str) -> str:
    named = {" ": "␣", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}
    if character in named:
        return named[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if character.isprintable() and code in _glyphs():
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    """What the font can show."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont(_STYLE["font.family"]))
    return frozenset(font.get_charmap())


def _cut(text: str, length: int, tail: bool = False) -> str:
    if len(text) <= length:
        return text
    return "…" + text[-length:] if tail else text[:length] + "…"


# ---- One position -----------------------------------------------------------------------------------------------------


def _distribution(given: Distribution) -> Figure:
    """Three bars for every event: p, q, and pi in its two parts."""
    figure, ((axes,),) = _figure(1.7 + 0.42 * (len(given.bars) + 1))
    p, q, base, aligned = zip(*((b.p, b.q, b.base, b.aligned) for b in given.bars), strict=True)
    shown = [[*column, rest] for column, rest in zip((p, q, base, aligned), given.rest, strict=True)]
    places = list(range(len(given.bars) + 1))
    _row_bars(axes, places, shown)
    axes.set_yticks(places, [*map(_event, given.bars), "all others"])
    axes.set_ylim(len(places) - 0.4, -0.6)
    for place in places[1:]:
        axes.axhline(place - 0.5, color=_GRID, linewidth=0.8)
    axes.set_xlim(0, min(1.0, 1.15 * max(map(max, (shown[0], shown[1], map(sum, zip(base, aligned, strict=True)))))))
    axes.set_xlabel("probability;  *: kept")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=_GRID)
    axes.set_title(_heading(given), loc="left", fontsize=9)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _row_bars(axes: Any, places: list[int], shown: list[list[float]]) -> None:
    p, q, base, aligned = shown
    thin: Any = {"height": 0.2, "edgecolor": "black", "linewidth": 0.6}
    axes.barh([y - 0.27 for y in places], p, color="0.8", label="p, base", **thin)
    axes.barh([y - 0.04 for y in places], q, color="white", hatch="\\\\\\\\\\\\", label="q, aligned model", **thin)
    wide = [y + 0.23 for y in places]
    axes.barh(wide, base, 0.28, label="π, the base's part", **_BASE)
    axes.barh(wide, aligned, 0.28, left=base, label="π, the aligned model's part", **_ALIGNED)


def _event(bar: Bar) -> str:
    return _cut(visible(bar.bytes), _LABEL) + (" *" if bar.kept else "")


def _heading(given: Distribution) -> str:
    before = _cut(visible(given.before.encode("utf-8", "surrogateescape")), _CONTEXT, tail=True)
    kept = (
        f"the base keeps {given.n_kept:,} event{'s' * (given.n_kept != 1)}"
        if not given.exchanged
        else "roles exchanged"
    )
    where = f"after “{before}”" if before else "at the beginning of the answer"
    return f"{given.setting}: α = {given.alpha:.2f}, {kept}; position {given.position} of {given.positions}\n{where}"


# ---- Acceptance -------------------------------------------------------------------------------------------------------


def _acceptance(given: list[Acceptance]) -> Figure:
    figure, ((axes,),) = _figure(3.6)
    for side, style, label in ((-1, _BASE, "base: its draws that the rule keeps, 1 − α"), (1, _ALIGNED, "")):
        label = label or "aligned model: its guesses that are right, 1 − TV(π, q)"
        values = [100 * (each.kept if side < 0 else each.right) for each in given]
        places = [i + 0.2 * side for i in range(len(given))]
        axes.bar(places, values, 0.36, label=label, **style)
        counted = [each.said_by_base if side < 0 else each.right_guesses for each in given]
        for place, value, measured in zip(places, values, counted, strict=True):
            _counted(axes, place, measured)
            axes.text(place, 3, f"{value:.0f} %", ha="center", va="bottom", bbox={"color": "white", "pad": 1.5})
    axes.plot([], [], label="the same counted, 95 % interval", **_MEASURED)
    handles, labels = axes.get_legend_handles_labels()
    axes.set_xticks(range(len(given)), [f"{each.setting}\n{each.positions} positions" for each in given])
    axes.set_xlim(-0.6, len(given) - 0.4)
    axes.set_ylim(0, 102)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("proposals that reach the text (%)")
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", color=_GRID)
    figure.legend([*handles[1:], handles[0]], [*labels[1:], labels[0]], loc="outside upper center", ncols=1)
    return figure


_MEASURED: Any = {
    "marker": "D",
    "markersize": 5,
    "markerfacecolor": "white",
    "markeredgecolor": "black",
    "color": "black",
    "linewidth": 1.2,
}


def _counted(axes: Any, place: float, measured: Measured | None) -> None:
    if measured is not None:
        # A white line below the black one: it is seen on hatching and on grey.
        axes.plot([place] * 2, [100 * measured.low, 100 * measured.high], color="white", linewidth=3.5)
        axes.plot([place] * 2, [100 * measured.low, 100 * measured.high], color="black", linewidth=1.2)
        axes.plot(place, 100 * measured.share, **_MEASURED)


# ---- Accuracy and speed -----------------------------------------------------------------------------------------------


def _accuracy(given: Accuracies) -> Figure:
    """For every rule a plot of accuracy and, below it, one of speed; the single models are lines across."""
    blocks = -(-len(given.curves) // _COLUMNS)
    columns = -(-len(given.curves) // blocks)
    figure, grid = _figure(0.9 + 3.6 * blocks, 2 * blocks, columns)
    speeds = [s[2] for c in given.curves for s in c.speed if s] + [s for _, _, s in given.alone if s is not None]
    for i in range(blocks * columns):
        upper, lower = (grid[2 * (i // columns) + below][i % columns] for below in (0, 1))
        if i >= len(given.curves):
            upper.set_axis_off()
            lower.set_axis_off()
            continue
        _alone(upper, lower, given.alone)
        _curve(upper, lower, given.curves[i])
        upper.set_ylim(-4, 104)
        lower.set_ylim(0, 1.05 * max(speeds, default=1.0))
        if i % columns == 0:
            upper.set_ylabel("right answers (%)")
            lower.set_ylabel("tokens per second")
        else:
            upper.tick_params(labelleft=False)
            lower.tick_params(labelleft=False)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure


def _alone(upper: Any, lower: Any, alone: list[tuple[str, float, float | None]]) -> None:
    for (name, accuracy, speed), style in zip(alone, _line_styles(len(alone)), strict=True):
        line: Any = {"color": "0.4", "linewidth": 1.1, "linestyle": style}
        upper.axhline(100 * accuracy, label=name, **line)
        if speed is not None:
            lower.axhline(speed, **line)


def _line_styles(count: int) -> list[Any]:
    styles: list[Any] = ["--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3))]
    return [styles[i % len(styles)] for i in range(count)]


def _curve(upper: Any, lower: Any, curve: Curve) -> None:
    line: Any = {"color": "black", "marker": "o", "markersize": 4, "linewidth": 1.2, "elinewidth": 1, "capsize": 2}
    values = [[100 * part for part in each] for each in curve.accuracy]
    upper.errorbar(curve.thresholds, *_with_errors(values), label="the rule, 95 % interval; speed: quartiles", **line)
    known = [(t, list(s)) for t, s in zip(curve.thresholds, curve.speed, strict=True) if s is not None]
    if known:
        lower.errorbar([t for t, _ in known], *_with_errors([s for _, s in known]), **line)
    upper.set_title(curve.rule, fontsize=9)
    low, high = min(curve.thresholds), max(curve.thresholds)
    pad = 0.08 * (high - low) or 0.1
    few = curve.thresholds if len(curve.thresholds) <= 4 else None
    for axes in (upper, lower):
        if few:
            axes.set_xticks(few, [f"{t:.3g}" for t in few])
        axes.set_xlim(low - pad, high + pad)
        axes.grid(color=_GRID)
    upper.tick_params(labelbottom=False)
    lower.set_xlabel("threshold")


def _with_errors(values: list[list[float]]) -> tuple[list[float], list[list[float]]]:
    """The middles, and how far the intervals reach below and above them."""
    below = [max(0.0, middle - low) for middle, low, _ in values]
    return [v[0] for v in values], [below, [max(0.0, high - middle) for middle, _, high in values]]


# ---- Entropy and budget -----------------------------------------------------------------------------------------------


def _entropy(given: list[Sweep]) -> Figure:
    figure, ((first, second, third),) = _figure(3.3, 1, 3)
    nan = float("nan")
    for i, (sweep, (style, marker, shade)) in enumerate(zip(given, _LINES, strict=True)):
        line: Any = {"linestyle": style, "marker": marker, "color": shade, "markersize": 4, "linewidth": 1.1}
        line |= {"markerfacecolor": "white", "markevery": (i, len(given))}  # lines that coincide show all their markers
        entropy = [nan if value is None else value for value in sweep.entropy]
        first.plot(sweep.thresholds, entropy, label=sweep.rule, **line)
        second.plot(sweep.thresholds, sweep.kept, **line)
        third.plot(sweep.thresholds, sweep.alpha, **line)
    for axes, title in (
        (first, "entropy of what the base keeps (nats),\nmean where it keeps something"),
        (second, "share of positions where it\nkeeps something"),
        (third, "mean α, the probability that\nthe aligned model speaks"),
    ):
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("threshold")
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(bottom=0)
        axes.grid(color=_GRID)
    for axes in (second, third):
        axes.set_ylim(-0.03, 1.03)
    figure.legend(loc="outside upper center", ncols=4, handlelength=3.5)
    return figure


def _budget(given: Budget) -> Figure:
    figure, ((axes,),) = _figure(4.2)
    top = 1.04 * max([*given.critical, *given.exact, 0.1])
    axes.plot([0, top], [0, top], color="black", linewidth=1, linestyle="--", label="unfilled = critical item")
    axes.plot(
        given.critical,
        given.exact,
        "x",
        color="0.3",
        markersize=5,
        markeredgewidth=0.9,
        label="exact: the optimum",
    )
    axes.plot(
        given.critical,
        given.greedy,
        "o",
        markerfacecolor="none",
        markeredgecolor="black",
        markersize=6,
        markeredgewidth=0.9,
        label="primal: greedy",
    )
    axes.set_xlim(0, top)
    axes.set_ylim(-0.02 * top, top)
    axes.set_xlabel("probability of the critical item, the first that does not fit")
    axes.set_ylabel(f"unfilled part of the budget b = {given.budget:g}")
    axes.grid(color=_GRID)
    figure.legend(loc="outside upper center", ncols=3)
    return figure
