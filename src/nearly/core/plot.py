"""The picture of a frontier: work across, error up, both logarithmic."""

# pyright: reportUnknownMemberType=false
# (matplotlib's keyword arguments are not typed)
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from nearly.core.errors import InputError, StoreError
from nearly.core.frontier import Frontier
from nearly.core.report import called, duration, error_text, figure
from nearly.core.run import Run

FORMATS = (".png", ".svg", ".pdf")
INK, SOFT, GRID, ACCENT, WARNING = "#1b2430", "#5b6673", "#e6eaee", "#0b6e4f", "#a3410f"
COLOURS = (
    "#1668b8",
    "#c8500a",
    "#0f8a5f",
    "#7b3fb5",
    "#b8860b",
    "#008b9c",
    "#b3245c",
    "#6b5a3a",
    "#4d7a0f",
    "#3d4bb8",
    "#a6511f",
    "#2f6f6f",
)
GREYS = ("#6f7883", "#8e97a1", "#a9b0b8")
USER = "#b0127b"
MARKERS = ("o", "s", "^", "D", "v", "P")
LEGEND_ROWS = 26  # beyond which the legend takes another column
SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "svg.hashsalt": "nearly",
    "axes.edgecolor": "#c3cad2",
    "axes.labelcolor": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
}


def plot(frontier: Frontier, path: Path, unit: str | None = None) -> Path:
    """Draw a frontier into a PNG, SVG or PDF file; equal frontiers give equal files.

    **Arguments:**

    - `unit`: the work on the x axis; the frontier's own by default.

    Raises `InputError` for another kind of file, `StoreError` if it cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"cannot draw {path}: a picture ends in {', '.join(FORMATS)}")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        drawn = draw(frontier, unit or frontier.unit)
        date = {"CreationDate": None} if path.suffix.lower() == ".pdf" else {}
        stamp = {"Date": None} if path.suffix.lower() == ".svg" else date
        try:
            drawn.savefig(path, metadata=stamp)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}") from error
    return path


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis; a zero, which has no logarithm, has a place of its own below it."""

    low: float
    high: float
    zero: float | None

    def __call__(self, value: float) -> float:
        if value > 0:
            return value
        assert self.zero is not None
        return self.zero

    @property
    def bottom(self) -> float:
        return self.low if self.zero is None else self.zero

    @property
    def limits(self) -> tuple[float, float]:
        pad = 0.05 * (math.log10(self.high) - math.log10(self.bottom))
        return _power(math.log10(self.bottom) - pad), _power(math.log10(self.high) + pad)


def scale(values: Sequence[float]) -> Scale:
    """The axis that shows all these values, at least a factor of four wide."""
    positive = [v for v in values if 0 < v < math.inf]
    low, high = (min(positive), max(positive)) if positive else (1.0, 10.0)
    if high < 4 * low:
        low, high = low / 2, high * 2
    zero = _power(math.log10(low) - 0.12 * (math.log10(high) - math.log10(low)))
    return Scale(low, high, zero if 0 in values else None)


def _power(exponent: float) -> float:
    """A power of ten, kept within what a float holds."""
    return 10.0 ** min(max(exponent, -307.0), 308.0)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers along a logarithmic axis: few enough to be read, at least two."""
    decades = math.log10(high) - math.log10(low)
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if decades < 1.2 else (1, 2, 5) if decades < 2.4 else (1,)
    every = math.ceil(decades / 9)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    tens = [k for k in range(first, last + 1) if k % every == 0]
    return [v for k in tens for s in steps if low <= (v := s * _power(k)) <= high]


def tick_text(value: float) -> str:
    """A tick's label: plain near one, a power of ten far from it."""
    exponent = round(math.log10(value))
    if abs(exponent) < 3 or not math.isclose(value, 10.0**exponent, rel_tol=1e-9):
        return f"{value:.3g}"
    return f"$10^{{{exponent}}}$"


def draw(frontier: Frontier, unit: str) -> Figure:
    """The figure itself, on no screen and in no global state."""
    made = Figure(figsize=(10, 6), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(made)
    axes = made.add_subplot()
    axes.set_facecolor("white")
    ok = [r for r in frontier if r.status == "ok" and math.isfinite(r.error)]
    costs = [c for r in ok if (c := frontier.cost(r, unit)) is not None]
    x = scale(costs)
    asked = [v for v in (frontier.tolerance, frontier.floor) if v]
    y = scale([*(e for r in ok for e in _errors(frontier, r)), *asked])
    _axis(axes, frontier, unit, x, y)
    _levels(axes, frontier, y)
    _front(axes, frontier, unit, x, y)
    looks = _looks(frontier)
    for name, look in looks.items():
        for run in (r for r in ok if r.method == name):
            _bars(axes, frontier, run, unit, look, x, y)
        _method(axes, frontier, [r for r in ok if r.method == name], unit, look, x, y)
    _ring(axes, frontier, unit, x, y)
    _legend(made, axes, frontier, looks)
    return made


@dataclass(frozen=True)
class Look:
    """How a method is drawn."""

    colour: str
    marker: str
    width: float
    order: float


def _looks(frontier: Frontier) -> dict[str, Look]:
    """Ours in colour, peers in grey, the user's in one colour of its own."""
    seen = {"ours": 0, "peer": 0, "user": 0}
    found: dict[str, Look] = {}
    for run in frontier:
        if run.method in found:
            continue
        n = seen[run.source]
        seen[run.source] += 1
        if run.source == "ours":
            marker = MARKERS[(n + n // len(COLOURS)) % len(MARKERS)]
            found[run.method] = Look(COLOURS[n % len(COLOURS)], marker, 1.3, 3)
        elif run.source == "peer":
            found[run.method] = Look(GREYS[n % len(GREYS)], MARKERS[(n + 1) % 6], 1.1, 2.5)
        else:
            found[run.method] = Look(USER, MARKERS[(n + 3) % 6], 1.6, 3.5)
    return found


def _errors(frontier: Frontier, run: Run) -> list[float]:
    """A run's error and those of its seeds, none under the floor."""
    seeds = [t.errors.get(frontier.error_name, run.error) for t in run.trials]
    return [max(e, frontier.floor) for e in (run.error, *seeds) if math.isfinite(e)]


def _axis(axes: Axes, frontier: Frontier, unit: str, x: Scale, y: Scale) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*x.limits)
    axes.set_ylim(*y.limits)
    for axis, shown, text in (
        (axes.xaxis, x, duration if unit == "seconds" else tick_text),
        (axes.yaxis, y, tick_text),
    ):
        zero = [] if shown.zero is None else [shown.zero]
        axis.set_major_locator(FixedLocator([*zero, *ticks(shown.low, shown.limits[1])]))
        axis.set_major_formatter(FuncFormatter(_labels(shown, text)))
        axis.set_minor_locator(NullLocator())
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right"]].set_visible(False)
    shared = f", set-up shared over {figure(frontier.uses)} uses" if frontier.uses else ""
    axes.set_xlabel(("seconds a use" if unit == "seconds" else unit) + shared, fontsize=10.5)
    axes.set_ylabel(frontier.error_name, fontsize=10.5)
    axes.set_title(_plain(frontier.problem), loc="left", fontsize=13, fontweight="bold", color=INK)


def _labels(shown: Scale, text: Callable[[float], str]) -> Callable[[float, int], str]:
    def label(value: float, _: int) -> str:
        return "0" if value == shown.zero else text(value)

    return label


def _plain(text: str) -> str:
    """A name as it is: a dollar sign starts no formula; a long one is shortened."""
    short = text if len(text) <= 60 else text[:28] + "…" + text[-31:]
    return short.replace("$", r"\$")


def _levels(axes: Axes, frontier: Frontier, y: Scale) -> None:
    """The tolerance, and the floor under which errors cannot be told from zero."""
    lines: list[tuple[float, str, Any, str]] = []
    if frontier.tolerance:
        lines.append((frontier.tolerance, ACCENT, (0, (6, 3)), "asked for"))
    if frontier.floor:
        lines.append((frontier.floor, WARNING, (0, (1, 2)), "floor"))
    for value, colour, dashes, word in lines:
        axes.axhline(value, color=colour, linestyle=dashes, linewidth=1.2, zorder=2)
        axes.annotate(
            f"{word} {figure(value)}",
            (0, y(value)),  # left of the Pareto set there is nothing to cover
            xycoords=("axes fraction", "data"),
            xytext=(5, 4),
            textcoords="offset points",
            color=colour,
            fontsize=8.5,
        )


def _front(axes: Axes, frontier: Frontier, unit: str, x: Scale, y: Scale) -> None:
    points = [_point(frontier, frontier.runs[i], unit, x, y) for i in frontier.pareto(unit)]
    found = [p for p in points if p is not None]
    if len(found) > 1:
        style: dict[str, Any] = {"color": ACCENT, "alpha": 0.18, "linewidth": 8, "zorder": 1}
        axes.plot(*zip(*found, strict=True), solid_capstyle="round", **style)


def _point(
    frontier: Frontier, run: Run, unit: str, x: Scale, y: Scale
) -> tuple[float, float] | None:
    """Where a run stands; None if its cost in this unit is unknown."""
    cost = frontier.cost(run, unit)
    return None if cost is None else (x(cost), y(max(run.error, frontier.floor)))


def _method(
    axes: Axes, frontier: Frontier, own: Sequence[Run], unit: str, look: Look, x: Scale, y: Scale
) -> None:
    """A method's runs joined dial by dial; one of unknown work as a line across."""
    placed = [(p, r) for r in own if (p := _point(frontier, r, unit, x, y)) is not None]
    front = {id(frontier.runs[i]) for i in frontier.pareto(unit)}
    for run in own:
        if frontier.cost(run, unit) is None:
            height = y(max(run.error, frontier.floor))
            dashes: dict[str, Any] = {
                "linestyle": (0, (5, 4)),
                "linewidth": look.width,
                "zorder": look.order,
            }
            axes.axhline(height, color=look.colour, **dashes)
            _beside(axes, height, called(run), look.colour)
    if not placed:
        return
    across, up = zip(*(p for p, _ in placed), strict=True)
    axes.plot(across, up, color=look.colour, alpha=0.45, linewidth=look.width, zorder=look.order)
    axes.scatter(
        across,
        up,
        s=[34 if id(r) in front else 19 for _, r in placed],
        color=look.colour,
        marker=look.marker,
        edgecolors="white",
        linewidths=0.6,
        zorder=look.order + 1,
    )


def _beside(axes: Axes, height: float, text: str, colour: str) -> None:
    """A word above the right end of a line across."""
    where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    style: dict[str, Any] = {"ha": "right", "color": colour, "fontsize": 8}
    axes.annotate(_plain(text), (1, height), xytext=(-2, 3), **where, **style)


def _bars(
    axes: Axes, frontier: Frontier, run: Run, unit: str, look: Look, x: Scale, y: Scale
) -> None:
    """The range over the seeds and, where the axis is seconds, the quartiles."""
    point = _point(frontier, run, unit, x, y)
    if point is None:
        return
    style: dict[str, Any] = {
        "color": look.colour,
        "alpha": 0.55,
        "linewidth": 1.3,
        "zorder": look.order,
    }
    errors = _errors(frontier, run)
    if max(errors) > min(errors):
        axes.plot([point[0]] * 2, [y(min(errors)), y(max(errors))], **style)
    if unit == "seconds" and run.seconds_iqr and run.seconds is not None:
        shift = point[0] - run.seconds
        ends = [max(s + shift, x.limits[0]) for s in run.seconds_iqr]
        axes.plot(ends, [point[1]] * 2, **style)


def _ring(axes: Axes, frontier: Frontier, unit: str, x: Scale, y: Scale) -> None:
    """The pick: ringed, and labelled to its lower left, where no run can be, if there is room."""
    if frontier.pick is None:
        return
    run = frontier.runs[frontier.pick]
    point = _point(frontier, run, unit, x, y)
    if point is None:
        return
    axes.plot(*point, "o", color=ACCENT, ms=13, mfc="none", mew=2, zorder=6)
    low, high = x.limits
    cramped = math.log(point[0]) < 0.7 * math.log(low) + 0.3 * math.log(high)
    axes.annotate(
        f"{_plain(called(run))}\n{error_text(run)}",
        point,
        xytext=(14 if cramped else -14, -6),
        textcoords="offset points",
        ha="left" if cramped else "right",
        va="top",
        color=ACCENT,
        fontweight="bold",
        fontsize=9,
        zorder=7,
        bbox={"boxstyle": "round,pad=0.25", "fc": "white", "ec": "none", "alpha": 0.8},
    )


def _legend(made: Figure, axes: Axes, frontier: Frontier, looks: dict[str, Look]) -> None:
    """The methods beside the picture, ours first; those without a successful run say so."""
    ran = {r.method for r in frontier if r.status == "ok"}
    order = sorted(looks, key=lambda name: looks[name].order, reverse=True)
    handles = [
        axes.plot(
            [],
            [],
            color=looks[name].colour,
            marker=looks[name].marker,
            markersize=5.5,
            markeredgecolor="white",
            linewidth=looks[name].width,
            label=_plain(name) + ("" if name in ran else " (no run succeeded)"),
        )[0]
        for name in order
    ]
    if not handles:
        return
    made.legend(
        handles=handles,
        loc="outside right upper",
        ncols=math.ceil(len(handles) / LEGEND_ROWS),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=1.8,
    )
