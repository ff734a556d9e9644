"""No command line, however odd, shows a traceback or an internal error."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from commands import METHODS, ROOT, TINY, nearly
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nearly.core import claim, measure, plot
from nearly.core.claim import Claim, Expected

Lines = st.SearchStrategy[list[str]]


def joined(parts: Iterable[list[str]]) -> list[str]:
    return list(chain.from_iterable(parts))


def one_word_of(text: str) -> st.SearchStrategy[str]:
    return st.sampled_from(text.split())


# What a shell can hand over: any text without NUL. Absolute paths and ".." are left out only so
# that a test that writes stays in its own folder.
words = st.text(
    st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12
).filter(lambda text: not text.lstrip("-").startswith(("/", "~")) and ".." not in text)
numbers = st.one_of(
    st.floats().map(repr),
    st.integers(-(2**70), 2**70).map(str),
    one_word_of("0 1 -1 1e-3 1e-300 1e400 nan inf -inf 1ulp 0x1p-3 1_000 ½ ١"),
)
paths = st.sampled_from(
    [".", "x", "x/y", "", " ", "é/∂", "a" * 300, f"{TINY}/x", "/dev/null/x", "/proc/x", "con\ttab"]
)
expressions = one_word_of(
    "x x**2 1/x log(x)/x sqrt(-x) exp(exp(x)) sin(1/x) x+ ((x) y __import__('os') x.real "
    "lambda:x 1 exp2 exp2( log2 tan x!=x 9**9**9 x**x**x abs(x) 0/0 -x"
)
problems = st.one_of(
    st.sampled_from([ROOT, ROOT, ROOT, f"{TINY}:finished", f"{TINY}:number", f"{TINY}:newton"]),
    st.sampled_from([f"{TINY}:", f"{TINY}:Rooot", "no.py:Root", ":", "p.json", "rot", "epx2"]),
    words,
)
method_lists = st.one_of(
    st.sampled_from([METHODS, f"{TINY}:newton", f"{TINY}:broken,{TINY}:nan", f"{TINY}:number"]),
    st.sampled_from(["", ",", "newton", f"{TINY}:", f"{TINY}:exact", "all"]),
    words,
)
fields = st.one_of(
    st.tuples(st.just("--domain"), numbers | words, numbers | words).map(list),
    st.tuples(st.sampled_from(["--start", "--steps"]), numbers | words).map(list),
    st.tuples(st.sampled_from(["--dtype", "--careful", "--to", "--stat", "--domain=0"]), words).map(
        list
    ),
)
# A line with a real function gets methods that fail at once: the sweep itself is not the subject.
functions = st.tuples(
    expressions,
    st.lists(
        st.one_of(
            st.tuples(st.just("--domain"), numbers | expressions, numbers | expressions).map(list),
            st.tuples(
                st.sampled_from(["--dtype", "--error", "--norm"]),
                one_word_of("real float32 float16 flot32 ulp relative absolute sup l2"),
            ).map(list),
        ),
        max_size=2,
    ),
).map(lambda made: [made[0], *joined(made[1]), "--methods", f"{TINY}:broken"])
options = st.one_of(
    st.tuples(st.just("--methods"), method_lists).map(list),
    st.tuples(st.sampled_from(["--within", "--uses", "--budget", "--seeds"]), numbers).map(list),
    st.tuples(st.sampled_from(["--within", "--work", "--seeds", "--uses"]), words).map(list),
    st.tuples(st.just("--work"), st.sampled_from(["steps", "seconds", "stps"])).map(list),
    st.tuples(st.just("--seeds"), st.sampled_from(["0", "0,0", "1,2", ",", "0,"])).map(list),
    st.tuples(st.sampled_from(["--out", "-o", "--output"]), paths).map(list),
    st.tuples(st.just("--workers"), st.sampled_from(["0", "-1", "x", "1.5"])).map(list),
    st.tuples(st.sampled_from(["--to", "--name"]), words).map(list),
    st.sampled_from(
        [["--json"], ["--quiet"], ["--reuse"], ["--all-runs"], ["--help"], ["--"], ["-"], ["-h"]]
    ),
    words.map(lambda text: [f"--{text}"]),
    words.map(lambda text: [text]),
)
asked = st.one_of(
    st.tuples(problems, st.lists(fields, max_size=2)).map(lambda m: [m[0], *joined(m[1])]),
    st.tuples(problems, method_lists).map(lambda m: [m[0], "--methods", m[1]]),
    functions,
)
rest = st.lists(options, max_size=4).map(joined)
comparing = st.tuples(st.just(["compare"]), asked, rest)
picking = st.tuples(st.tuples(st.just("within"), numbers | words).map(list), asked, rest)
claiming = st.tuples(
    st.just(["claims"]),
    st.lists(
        st.one_of(
            st.tuples(
                st.sampled_from(["--room", "--paper", "--cost"]),
                words | st.sampled_from(["functions", "fast", "gpu", "all", "adan"]),
            ).map(list),
            st.sampled_from([["--json"], ["--check"], ["--write"], ["--quiet"], ["x"]]),
        ),
        max_size=3,
    ).map(joined),
)
listing = st.tuples(
    st.just(["list"]),
    st.lists(words | st.sampled_from(["rooms", "problems", "methods", "papers", "--json"])),
)
anything = st.tuples(st.lists(words | numbers | paths, max_size=5))
# Lines that are mostly sound, so that what comes after parsing is met as often as parsing is.
sound = st.tuples(
    st.sampled_from([["compare"], ["within", "1e-2"], ["within", "1e-9"]]),
    st.just([ROOT]),
    st.lists(
        st.one_of(
            st.tuples(st.just("--start"), st.floats(-1e3, 1e3).map(repr)).map(list),
            st.tuples(st.just("--steps"), st.integers(-1, 6).map(str)).map(list),
            st.tuples(st.just("--domain"), numbers, numbers).map(list),
            st.tuples(st.just("--uses"), st.floats(1e-3, 1e9).map(repr)).map(list),
            st.tuples(st.just("--seeds"), one_word_of("0 3,1 4294967295")).map(list),
            st.tuples(st.just("--work"), one_word_of("steps seconds")).map(list),
            st.tuples(st.just("--budget"), st.floats(1e-6, 1e6).map(repr)).map(list),
            st.sampled_from([["--json"], ["--quiet"], ["--reuse"], ["--careful", "yes"]]),
        ),
        max_size=4,
    ).map(joined),
    st.lists(one_word_of("newton bisection exact nan broken absent"), min_size=1).map(
        lambda names: ["--methods", ",".join(f"{TINY}:{name}" for name in names)]
    ),
    st.one_of(st.just(list[str]()), options),
)
lines: Lines = st.one_of(
    sound, sound, sound, comparing, comparing, picking, picking, claiming, listing, anything
).map(joined)


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is tested elsewhere and takes seconds is replaced: pictures, claims, recompilation."""

    def picture(frontier: Any, path: Path) -> Path:
        path.write_bytes(b"")
        return path

    real = claim.claims
    expected = Expected("ratio", "<=", 2.0, "Table 3")
    made = Claim("paper", "name", "functions", "fast", expected, lambda: 1.0)

    def claims(room: str | None = None, paper: str | None = None, cost: str = "all") -> list[Claim]:
        real(room, paper, cost)
        return [made]

    monkeypatch.setattr(claim, "claims", claims)
    monkeypatch.setattr(plot, "plot", picture)
    monkeypatch.setattr(measure, "clear_compiled", lambda: None)


def check(line: list[str]) -> None:
    done = nearly(*line)
    assert done.status in (0, 1, 2), (line, done)
    assert "Traceback" not in done.out + done.err, (line, done)
    assert "internal error" not in done.err, (line, done)
    if done.status == 2:
        assert done.err.count("\n") == 1, (line, done)
        assert done.out == "", (line, done)
    if done.status == 0 and "--json" in line and done.out.startswith(("{", "[")):
        assert done.json is not None


quick = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.usefixtures("cheap")
@quick
@given(line=lines)
def test_no_command_line_shows_a_traceback(line: list[str]) -> None:
    check(line)


@pytest.mark.slow
@pytest.mark.usefixtures("cheap")
@settings(quick, max_examples=2000, derandomize=False)
@given(line=lines)
def test_no_command_line_of_two_thousand_shows_a_traceback(line: list[str]) -> None:
    check(line)


@pytest.mark.parametrize(
    "line",
    [
        [],
        [""],
        ["--"],
        ["compare", ""],
        ["compare", "\ud83d"],
        ["compare", os.fsdecode(b"\xff\xfe")],
        ["within", "", ""],
        ["list", "\n"],
        ["compare", ROOT, "--methods", "\n"],
    ],
    ids=ascii,
)
def test_odd_lines(line: list[str]) -> None:
    check(line)
