"""The picture of a frontier, read off its figure object."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nearly.core.errors import InputError, StoreError
from nearly.core.frontier import Frontier
from nearly.core.plot import ACCENT, COLOURS, GREYS, USER, draw, plot, scale, tick_text, ticks
from nearly.core.run import Run, Trial


def run(method: str, dial: int | str, error: float, work: float | None, **more: object) -> Run:
    count = {} if work is None else {"ops": work}
    errors = {"error": error}
    made = Run(
        method, dial, error=error, errors=errors, work=count, trials=(Trial(0, "ok", "", errors),)
    )
    return replace(made, **more)  # type: ignore[arg-type]


def small(**more: object) -> Frontier:
    runs = (
        run("ours", 1, 1e-2, 2),
        run("ours", 2, 1e-4, 5),
        run("ours", 3, 1e-9, 9, floored=True),
        run("peer $x$", 1, 1e-3, 12, source="peer"),
        run("lib", "-", 1e-7, None, source="peer", seconds=3e-9, seconds_iqr=(2e-9, 4e-9)),
        run("mine.py:p", "-", 2e-3, 6, source="user"),
    )
    return Frontier("toy", "error", "ops", runs, asked=True, **more)  # type: ignore[arg-type]


def lines(frontier: Frontier, unit: str = "ops") -> list[tuple[object, list[float], list[float]]]:
    axes = draw(frontier, unit).axes[0]
    return [(d.get_color(), list(d.get_xdata()), list(d.get_ydata())) for d in axes.get_lines()]


def words(frontier: Frontier, unit: str = "ops") -> list[str]:
    return [t.get_text() for t in draw(frontier, unit).axes[0].texts]


def test_axes_are_logarithmic_and_named() -> None:
    axes = draw(small(uses=100), "ops").axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xlabel() == "ops, set-up shared over 100 uses"
    assert axes.get_ylabel() == "error"


def test_ours_in_colour_peers_in_grey_the_users_apart() -> None:
    found = {tuple(xs): colour for colour, xs, _ in lines(small())}
    assert found[2, 5, 9] == COLOURS[0]
    assert found[12,] == GREYS[0]
    assert found[6,] == USER


def test_the_pareto_set_is_joined() -> None:
    front = [(xs, ys) for colour, xs, ys in lines(small()) if colour == ACCENT and len(xs) == 3]
    assert front == [([2, 5, 9], [1e-2, 1e-4, 1e-9])]


def test_unknown_work_is_a_line_across() -> None:
    across = [(xs, ys) for colour, xs, ys in lines(small()) if colour == GREYS[1] and xs == [0, 1]]
    assert across == [([0, 1], [1e-7, 1e-7])]
    assert "lib" in words(small())
    # Where its cost is known it is a point with its quartiles.
    timed = [(xs, ys) for colour, xs, ys in lines(small(), "seconds") if colour == GREYS[1]]
    assert ([pytest.approx(2e-9), pytest.approx(4e-9)], [1e-7, 1e-7]) in timed


def test_seeds_are_a_bar() -> None:
    trials = tuple(Trial(i, "ok", "", {"error": e}) for i, e in enumerate((1e-5, 1e-4, 1e-3)))
    frontier = replace(small(), runs=(replace(small().runs[1], trials=trials),))
    assert ([5, 5], [1e-5, 1e-3]) in [(xs, ys) for _, xs, ys in lines(frontier)]


def test_nothing_is_drawn_under_the_floor() -> None:
    frontier = small(floor=1e-6)
    assert min(y for _, _, ys in lines(frontier) for y in ys) == 1e-6
    assert "floor 1e-6" in words(frontier)


def test_the_pick_is_ringed_and_labelled() -> None:
    frontier = small(tolerance=1e-3)
    assert (ACCENT, [5], [1e-4]) in lines(frontier)
    assert words(frontier)[-1] == "ours at 2\n0.0001"
    assert "asked for 0.001" in words(frontier)


def test_zeros_have_a_place() -> None:
    frontier = replace(small(), runs=(run("a", 0, 0.0, 0), *small().runs[:2]))
    axes = draw(frontier, "ops").axes[0]
    figure = axes.get_figure()
    assert figure is not None
    figure.canvas.draw()
    assert "0" in [t.get_text() for t in axes.get_xticklabels()]
    assert "0" in [t.get_text() for t in axes.get_yticklabels()]
    first = next(xs for colour, xs, _ in lines(frontier) if colour == COLOURS[0])
    assert all(x > 0 for x in first)


def test_the_legend_names_every_method_and_those_that_failed() -> None:
    frontier = replace(small(), runs=(*small().runs, Run("gone", 1, "peer", "failed", "no")))
    legend = draw(frontier, "ops").legends[0]
    names = [t.get_text() for t in legend.get_texts()]
    assert sorted(names) == sorted(
        ["ours", "peer \\$x\\$", "lib", "mine.py:p", "gone (no run succeeded)"]
    )


def test_axes_show_all_values() -> None:
    made = scale([3.0, 1e-8, 0.0])
    low, high = made.limits
    assert low < made(0.0) < 1e-8 < 3.0 < high
    narrow = scale([5.0])
    assert narrow.high / narrow.low >= 4
    assert scale([]).high > scale([]).low


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 9.0), (2.0, 20.0), (1e-3, 1.0), (1e-17, 1.0), (1e-300, 1e300)]
)
def test_ticks_are_few_and_round(low: float, high: float) -> None:
    made = ticks(low, high)
    assert 2 <= len(made) <= 14
    assert all(low <= v <= high for v in made)
    assert made == sorted(made)


def test_tick_labels() -> None:
    assert [tick_text(v) for v in (1.0, 0.01, 20.0, 1e-9)] == ["1", "0.01", "20", "$10^{-9}$"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_equal_frontiers_give_equal_files(tmp_path: Path, suffix: str) -> None:
    first = plot(small(tolerance=1e-3), tmp_path / f"a.{suffix}").read_bytes()
    assert plot(small(tolerance=1e-3), tmp_path / f"b.{suffix}").read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_the_users_settings_of_matplotlib_neither_matter_nor_change(tmp_path: Path) -> None:
    import matplotlib

    plain = plot(small(), tmp_path / "a.svg").read_bytes()
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30}):
        assert plot(small(), tmp_path / "b.svg").read_bytes() == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.png, \.svg, \.pdf"):
        small().plot(tmp_path / "a.docx")
    with pytest.raises(StoreError, match="cannot write"):
        small().plot(tmp_path / "none" / "a.png")


def test_odd_frontiers_have_pictures() -> None:
    empty = Frontier("toy $", "error", "ops")
    failed = replace(empty, runs=(Run("a", 1, status="failed", reason="no"),))
    only_across = replace(empty, runs=(run("lib", "-", 1e-7, None),))
    for frontier in (empty, failed, only_across):
        draw(frontier, "ops").canvas.draw()
