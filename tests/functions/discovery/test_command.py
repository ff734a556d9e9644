"""`nearly discover`: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from nearly.core.frontier import Frontier
from nearly.functions import record
from nearly.functions.discovery import islands
from nearly.functions.discovery.islands import Search, began, rounds, save
from nearly.functions.discovery.speed import NEARLY_GOOD, in_format, suited
from nearly.functions.function import Function
from nearly.functions.rounding import round_program
from nearly.functions.verify import measure

SHORT = ("--rounds", "1", "--islands", "1", "--ops", "3")


@pytest.fixture(autouse=True)
def small_rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rounds of a few thousand children, in an empty folder."""
    begin = Search.__init__

    def small(self: Search, *args: object, **settings: object) -> None:
        begin(self, *args, **{"children": 6000, **settings})  # type: ignore[arg-type]

    monkeypatch.setattr(Search, "__init__", small)
    monkeypatch.chdir(tmp_path)


def discover(*arguments: str) -> Result:
    from nearly.cli.app import app

    return CliRunner().invoke(app, ["discover", *arguments], env={"NEARLY_DEBUG": None})


def test_writes_frontier_programs_and_code(tmp_path: Path) -> None:
    done = discover("exp2", "--domain", "0", "1", *SHORT, "--out", "found")
    assert done.exit_code == 0, done.output
    assert "PROVEN with 3 operations" in done.stdout.splitlines()[0]
    assert "--rounds 1 --seed 0 --islands 1" in done.stdout
    frontier = Frontier.load(tmp_path / "found" / "frontier.json")
    best = frontier.runs[frontier.pareto()[-1]]
    assert best.certificate is not None and best.certificate.label == "PROVEN"
    assert best.error < 8.7e-4
    entries = json.loads((tmp_path / "found" / "programs.json").read_text())
    assert record.Record.from_json(entries[-1]).bound <= best.error * 1.001
    assert {"ops3.c", "ops3.py", "ops3_jax.py", "frontier.png"} <= {
        path.name for path in (tmp_path / "found").iterdir()
    }
    assert not (tmp_path / "found" / "state.npz").exists()


def test_emitted_numpy_code_computes_the_function(tmp_path: Path) -> None:
    assert discover("exp2", *SHORT, "--out", "found").exit_code == 0
    scope: dict[str, object] = {}
    exec((tmp_path / "found" / "ops3.py").read_text(), scope)
    x = np.linspace(0.01, 1, 50)
    function = scope["nearly_ops3"]
    assert callable(function)
    assert np.abs(function(x) / 2**x - 1).max() < 8.8e-4


def test_json_alone_is_on_stdout_and_nothing_is_written(tmp_path: Path) -> None:
    done = discover("exp2", *SHORT, "--json")
    data = json.loads(done.stdout)
    assert data["rounds"] == 1
    assert data["programs"][-1]["function"] == "exp2"
    assert list(tmp_path.iterdir()) == []


def test_negative_ends_need_no_quotes() -> None:
    done = discover("exp2", "--domain", "-1", "1", *SHORT, "--json")
    assert json.loads(done.stdout)["programs"][0]["domain"] == ["-1", "1"]


def test_keeps_records(fresh_store: Path) -> None:
    first = json.loads(discover("exp2", "--domain", "0", "2", *SHORT, "--json", "--keep").stdout)
    assert 3 in first["kept"]
    again = json.loads(discover("exp2", "--domain", "0", "2", *SHORT, "--json", "--keep").stdout)
    assert again["kept"] == []
    assert record.best(Function("exp2", ("0", "2")), 3).ops == 3


def test_an_interrupted_search_says_how_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(islands, "run_island", stop)
    done = discover("exp2", *SHORT, "--out", "found")
    assert done.exit_code == 130
    assert "the same command goes on from its last round: nearly discover exp2" in done.stderr


def test_a_saved_search_of_other_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "found").mkdir()
    search = Search(Function("exp2", ("0", "1")), seed=9)
    save(tmp_path / "found" / "state.npz", search, began(search))
    done = discover("exp2", *SHORT, "--out", "found")
    assert done.exit_code == 2
    assert "other settings" in done.stderr


def test_a_format_that_cannot_be_reached_is_an_honest_no() -> None:
    done = discover("exp2", *SHORT, "--dtype", "float32", "--json")
    assert done.exit_code == 1
    assert "no program found is within 1 ulp" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("exq2",), "exp2"),
        (("exp2", "--error", "ulp"), "unknown error measure 'ulp'"),
        (("exp2", "--dtype", "real"), "unknown machine format 'real'"),
        (("exp2", "--dtype", "float32", "--ulp", "0"), "--ulp 0"),
        (("exp2", "--paper", "--macros"), "no macro"),
        (("exp2", "--objective", "speed"), "unknown objective"),
        (("exp2", "--ops", "0"), "most=0"),
        (("exp2", "--domain", "1", "0"), "empty"),
        (("exp2", "--domain", "0", "inf"), "unbounded"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = discover(*arguments, "--rounds", "1", "--json")
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_finds_a_half_precision_kernel(tmp_path: Path) -> None:
    done = discover("exp2", *SHORT[:4], "--ops", "6", "--dtype", "float16", "--out", "found")
    assert done.exit_code == 0, done.output
    assert "float16" in done.stdout.splitlines()[0]
    assert (tmp_path / "found" / "picked.c").exists()


def test_of_an_archive_the_programs_that_survive_rounding_are_picked() -> None:
    real = Function("exp2", ("0", "1"))
    machine = in_format(real, "float16")
    state = next(rounds(Search(real, most=6, objective="weighted"), began(Search(real)), None))
    archives = [island.archive for island in state.states]
    found = suited(machine, real, archives, 6, 4.0)
    assert found
    assert all(f.bound < NEARLY_GOOD * 4.0 * 2.0**-10 for f in found)
    best = min(measure(machine, round_program(machine, f.program.fused())).error for f in found)
    assert best <= 4.0
