"""A frontier in words, in a table and as a page."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from nearly.core.errors import StoreError
from nearly.core.frontier import Frontier
from nearly.core.report import (
    amount,
    certificates,
    duration,
    explain,
    figure,
    page,
    summary,
    table,
    title,
)
from nearly.core.run import Certificate, Run, Trial


def run(method: str, dial: int | str, error: float, work: float | None, **more: object) -> Run:
    count = {} if work is None else {"ops": work}
    errors = {"error": error}
    made = Run(
        method, dial, error=error, errors=errors, work=count, trials=(Trial(0, "ok", "", errors),)
    )
    return replace(made, **more)  # type: ignore[arg-type]


def small(**more: object) -> Frontier:
    runs = (
        run("cheap", 1, 1e-2, 2),
        run("cheap", 2, 1e-4, 5),
        run("dear", 1, 1e-3, 4),
        run("dear", 2, 1e-6, 9),
        run("lib[exp]", "-", 1e-7, None, source="peer", seconds=3e-9),
        Run("absent", "-", "peer", "failed", "not run: needs a [package]"),
        run("mine.py:p", "-", 2e-3, 6, source="user"),
    )
    return Frontier("toy", "error", "ops", runs, asked=True, **more)  # type: ignore[arg-type]


def printed(frontier: Frontier, whole: bool = False) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table(frontier) if whole else summary(frontier))
    return console.export_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0"), (1e-9, "1e-9"), (5.64e-10, "5.64e-10"), (12.0, "12"), (1e20, "1e20")],
)
def test_figures(value: float | None, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (2.0, "2 s"), (0.0125, "12.5 ms"), (3e-6, "3 µs"), (2.5e-10, "0.25 ns")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
    assert amount(seconds, "seconds") == text


def test_the_whole_table_is_cheap_to_dear_within_each_method() -> None:
    text = printed(small(tolerance=1e-3), whole=True)
    rows = [line.split() for line in text.splitlines() if re.match(r"\s+(cheap|dear|lib)", line)]
    assert [r[:2] for r in rows] == [
        ["cheap", "1"], ["cheap", "2"], ["dear", "1"], ["dear", "2"], ["lib[exp]", "-"],
    ]  # fmt: skip
    assert "the pick" in text.splitlines()[next(
        i for i, line in enumerate(text.splitlines()) if re.match(r"\s+dear +1 ", line)
    )]  # fmt: skip
    assert "failed  not run: needs a [package]" in text


def test_the_summary_shows_the_pareto_set_the_methods_and_the_failures() -> None:
    text = printed(small(tolerance=1e-3))
    front, methods = text.split("Methods: cheapest within 0.001")
    # 2 ops 1e-2, 4 ops 1e-3, 5 ops 1e-4, 9 ops 1e-6; mine.py:p costs more than dear at 1.
    assert re.findall(r"^ +(\S+) +(\d|-) ", front, re.M) == [
        ("cheap", "1"), ("dear", "1"), ("cheap", "2"), ("dear", "2"),
    ]  # fmt: skip
    order = re.findall(r"^ +(\S+) +\d/\d ", methods, re.M)
    assert order == ["dear", "cheap", "lib[exp]", "mine.py:p", "absent"]
    assert "absent failed at -: not run: needs a [package]" in text


def test_the_title_counts() -> None:
    assert title(small(settings={"domain": [0, 1], "dtype": "real", "to": None})) == (
        "toy (domain 0 1, dtype real): 7 runs of 5 methods"
    )


def test_the_pick_is_explained() -> None:
    frontier = small(tolerance=1e-3)
    index = frontier.pick
    assert index is not None
    proof = Certificate("PROVEN", 1e-3, "by ball arithmetic")
    lines = explain(frontier.with_run(index, replace(frontier.runs[index], certificate=proof)))
    assert lines == [
        "pick: dear at 1: 4 ops; error 0.001, asked for 0.001",
        "why: the cheapest in ops of 3 runs within it; the next method is cheap at 2 with 5 ops",
        "PROVEN 0.001: by ball arithmetic",
    ]


def test_seconds_that_decide_are_said_to() -> None:
    frontier = replace(
        small(tolerance=1e-5), asked=False, runs=tuple(
            replace(r, seconds=r.seconds or 5e-9) for r in small().runs if r.status == "ok"
        ),
    )  # fmt: skip
    lines = explain(frontier)
    assert lines[0].startswith("pick: lib[exp]: 3 ns")
    assert "the cheapest in seconds (some have no count of ops) of 2 runs" in lines[1]


def test_set_up_is_shared_and_its_break_even_is_told() -> None:
    # Once: 1 s against 2 s + 0.1 s; every use: 0.5 s against 0.1 s. 1 + 0.5 n = 2 + 0.1 n at 2.5.
    slow = run("slow", 1, 1e-6, None, seconds=0.5, setup={"seconds": 1.0, "work": {}})
    fast = run("fast", 1, 1e-6, None, seconds=0.1, setup={"seconds": 2.0, "work": {}})
    frontier = Frontier("toy", "error", "ops", (slow, fast), "seconds", uses=100, tolerance=1e-3)
    assert "set-up: pays off after 3 uses against slow at 1" in explain(frontier)
    text = printed(frontier)
    assert "3 uses" in text
    assert "at once" in text


def test_certificates_beside_the_pick_are_told() -> None:
    frontier = small(tolerance=1e-3)
    own = Certificate("MEASURED", 2.1e-3, "worst at x = 0.3")
    frontier = frontier.with_run(6, replace(frontier.runs[6], certificate=own))
    assert certificates(frontier) == ["mine.py:p: MEASURED 0.0021: worst at x = 0.3"]


class Reader(HTMLParser):
    """The parts of a page that a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.scripts: dict[str, str] = {}
        self.rows = 0
        self._script: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [given[n] or "" for n in ("src", "href") if n in given]
        self.rows += "data-run" in given
        if tag == "script":
            self._script = given.get("id") or "code"

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data


def read(frontier: Frontier) -> Reader:
    reader = Reader()
    reader.feed(page(frontier))
    return reader


def test_the_page_needs_nothing_else() -> None:
    reader = read(small(tolerance=1e-3))
    assert reader.links == []
    assert "http" not in page(small()).replace("http://www.w3.org/2000/svg", "")
    assert reader.rows == 7
    data = json.loads(reader.scripts["data"])
    assert data["within"] == 2
    assert data["fronts"]["ops"] == [0, 2, 1, 3]
    assert data["costs"][4] == {"ops": None, "seconds": 3e-9}


def test_no_name_breaks_out_of_the_page() -> None:
    name = "</script><script>alert(1)</script>@DATA@<b>\"'&"
    frontier = small(tolerance=1e-3, environment={"command": name}, settings={name: name})
    frontier = replace(frontier, problem=name, runs=(replace(frontier.runs[0], method=name),))
    reader = read(frontier)
    assert set(reader.scripts) == {"data", "code"}
    assert json.loads(reader.scripts["data"])["runs"][0]["method"] == name
    assert "<script>alert" not in page(frontier)


def test_the_page_says_when_nothing_is_within() -> None:
    assert "nothing is within 1e-12 on toy" in page(small(tolerance=1e-12))


def test_the_page_is_written_or_refused(tmp_path: Path) -> None:
    assert small().html(tmp_path / "a.html").read_text(encoding="utf-8") == page(small())
    with pytest.raises(StoreError, match="cannot write"):
        small().html(tmp_path / "none" / "a.html")


def test_odd_frontiers_have_pages_and_tables() -> None:
    empty = Frontier("toy", "error", "ops")
    failed = replace(empty, runs=(Run("a", 1, status="failed", reason="no"),), tolerance=1.0)
    for frontier in (empty, failed):
        assert "<h1>toy</h1>" in page(frontier)
        assert "toy: " in printed(frontier)
