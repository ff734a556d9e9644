"""The core, on four protocols at once, so that no single one can shape it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from nearly.core import measure
from nearly.core.compare import _settings, compare, within
from nearly.core.errors import InputError, Interrupted, NotWithin, UnknownName
from nearly.core.frontier import Frontier
from nearly.core.problem import Host, Tuned
from nearly.core.store import Store, digest_of

HERE = Path(__file__).parent
FILE = str(HERE / "protocols.py")


def named(*names: str) -> list[str]:
    return [f"{FILE}:{name}" for name in names]


@pytest.fixture(scope="module")
def linear() -> Frontier:
    return compare(f"{FILE}:Spd", named("cg", "scipy_cg", "broken", "nan"), seeds=(0, 1, 2))


def runs_of(frontier: Frontier, name: str) -> list[Any]:
    return [r for r in frontier if r.method.endswith(":" + name)]


def test_a_tighter_tolerance_costs_more_matvecs_and_is_more_accurate(linear: Frontier) -> None:
    for name in ("cg", "scipy_cg"):
        runs = runs_of(linear, name)
        assert [r.status for r in runs] == ["ok"] * 3
        assert runs[0].work["matvecs"] < runs[1].work["matvecs"] < runs[2].work["matvecs"]
        assert runs[0].error > runs[1].error > runs[2].error


def test_recomputed_residuals_are_paid_for(linear: Frontier) -> None:
    """lineax's CG recomputes b - A x every 10 steps (and once at the start), SciPy's never does."""
    ours, peer = runs_of(linear, "cg")[-1], runs_of(linear, "scipy_cg")[-1]
    assert ours.work["matvecs"] > peer.work["matvecs"]


def test_failures_are_results(linear: Frontier) -> None:
    (failed, *_), (diverged, *_) = runs_of(linear, "broken"), runs_of(linear, "nan")
    assert failed.status == "failed"
    assert "always fails" in failed.reason
    assert diverged.status == "diverged"
    assert diverged.to_json()["error"] is None


def test_all_seeds_are_kept_and_the_error_is_their_median(linear: Frontier) -> None:
    run = runs_of(linear, "cg")[0]
    errors = [t.errors["relative error"] for t in run.trials]
    assert len(errors) == 3
    assert len(set(errors)) == 3
    assert run.error == sorted(errors)[1]
    assert run.worst == max(errors)


def test_gradients_are_the_vjps_of_the_loss() -> None:
    frontier = compare(f"{FILE}:Quadratic", named("adam", "sgd"), seeds=(0,))
    assert [r.work["losses vjps"] for r in frontier] == [4, 16, 4, 16]
    assert all("losses jvps" not in r.work for r in frontier)


@pytest.mark.parametrize("stepping", ["tolerance", "step"])
def test_both_dials_of_diffrax(stepping: str) -> None:
    frontier = compare(f"{FILE}:Decay", named("tsit5"), stepping=stepping)
    errors = [r.error for r in frontier]
    assert errors == sorted(errors, reverse=True)
    if stepping == "step":  # 4, 8, 16 steps of 6 new evaluations, and the first (FSAL)
        assert [r.work["fields"] for r in frontier] == [25, 49, 97]


def test_changing_the_dial_or_repeating_a_run_compiles_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, problem in (("cg", "Spd"), ("sgd", "Quadratic"), ("tsit5", "Decay")):
        from nearly.core import catalogue

        built = catalogue.problem(f"{FILE}:{problem}")
        method, _ = catalogue.method(f"{FILE}:{name}", built.protocol)
        dials = built.dials(method)
        measure.clear_compiled()
        measure.run_trial(built, method, dials[0], 0)
        compiled = dict(measure._compiled)
        assert len(compiled) == 2  # the clean program and the counted one
        for dial in (*dials, dials[0]):
            for seed in (0, 1):
                assert measure.run_trial(built, method, dial, seed)[0].status == "ok"
        assert compiled == measure._compiled


def test_workers_give_the_same_errors_and_work() -> None:
    alone = compare(f"{FILE}:Decay", named("tsit5", "heun"))
    pooled = compare(f"{FILE}:Decay", named("tsit5", "heun"), workers=2)
    assert [(r.method, r.dial, r.error, r.work) for r in alone] == [
        (r.method, r.dial, r.error, r.work) for r in pooled
    ]
    assert all(r.seconds is not None for r in pooled)


def test_what_has_no_name_runs_in_the_parent_and_says_so() -> None:
    from protocols import tsit5

    frontier = compare(f"{FILE}:Decay", {"mine": tsit5}, workers=1)
    assert all("parent" in r.note for r in frontier)


def test_tuned_tries_everything_bills_it_and_flags_the_edge() -> None:
    import optax

    tuned = Tuned(lambda learning_rate: optax.sgd(learning_rate), {"learning_rate": (0.01, 0.1)})
    frontier = compare(f"{FILE}:Quadratic", {"sgd": tuned}, dials=[8], seeds=(0,))
    (run,) = frontier
    assert run.setup["work"]["losses vjps"] == 16  # two trials of 8 steps
    assert run.work["losses vjps"] == 8
    assert "learning_rate=0.1" in run.note
    assert "edge" in run.note


def test_within_gives_the_cheapest_and_names_the_best_when_there_is_none() -> None:
    run = within(1e-5, f"{FILE}:Decay", named("tsit5", "heun"))
    assert run.method.endswith("tsit5")
    assert run.dial == 1e-6
    with pytest.raises(NotWithin, match=r"best available is .*tsit5 at 1e-09"):
        within(1e-14, f"{FILE}:Decay", named("tsit5", "heun"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"problem": "expp2"}, "did you mean"),
        ({"problem": "rosenbrok-100"}, "unknown problem 'rosenbrok-100': did you mean 'rosenb"),
        ({"problem": "tann(x)-1"}, "did you mean 'tan'"),
        ({"problem": f"{FILE}:Decai"}, "did you mean"),
        ({"methods": ["tsit6"]}, "unknown test-diffrax method"),
        ({"methods": [f"{FILE}:tsit6"]}, "did you mean 'tsit5'"),
        ({"methods": []}, "no method is named"),
        ({"within": "nan"}, "must be positive"),
        ({"within": "tight"}, "is not a number"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"budget": -1}, "budget"),
        ({"uses": 0}, "uses"),
        ({"work": "fieldz"}, "did you mean 'fields'"),
        ({"workers": -1}, "workers"),
        ({"executor": 3}, "no .submit"),
        ({"stepping": "tolerance", "stepp": "1"}, "did you mean 'stepping'"),
    ],
)
def test_bad_input_is_one_clear_error(arguments: dict[str, Any], message: str) -> None:
    problem = arguments.pop("problem", f"{FILE}:Decay")
    methods = arguments.pop("methods", named("tsit5"))
    with pytest.raises((InputError, UnknownName), match=message):
        compare(problem, methods, **arguments)


def test_a_spent_budget_is_a_timeout_not_a_loss() -> None:
    frontier = compare(f"{FILE}:Slow", named("sleeper"), budget=0.5)
    statuses = [r.status for r in frontier]
    assert statuses[0] == "ok"
    assert statuses[-1] == "timeout"
    assert "forecast" in frontier.runs[-1].reason


def test_seeds_for_which_there_was_no_time_are_left_out_and_said_to_be() -> None:
    from nearly.core.run import Trial, summarise

    done = [Trial(k, "ok", errors={"e": 1.0 + k}, setup_seconds=0.0) for k in (0, 1)]
    late = Trial(2, "timeout", "not started")
    run = summarise("m", 1, "ours", [*done, late])
    assert (run.status, run.error, run.note) == ("ok", 1.5, "2 of 3 seeds in time")
    assert summarise("m", 1, "ours", [late]).status == "timeout"
    wrong = Trial(1, "failed", "no")
    assert summarise("m", 1, "ours", [done[0], wrong, late]).status == "failed"


def test_an_interrupt_keeps_what_was_computed(fresh_store: Path) -> None:
    def interrupt(done: int, total: int, text: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        compare(f"{FILE}:Decay", named("tsit5"), progress=interrupt)
    assert len(caught.value.frontier) == 2
    before = Store()
    again = compare(f"{FILE}:Decay", named("tsit5"), store=before)
    assert len(again) == 3


SWEEP = """
import sys
from nearly.core.compare import compare
if __name__ == "__main__":
    f = compare({problem!r}, [{method!r}], dials=list(range(1, 9)), timed=False, workers={workers})
    print([r.error for r in f])
"""


def sweep(tmp_path: Path, workers: int) -> subprocess.Popen[str]:
    code = SWEEP.format(problem=f"{FILE}:Slow", method=f"{FILE}:sleeper", workers=workers)
    script = tmp_path / "sweep.py"
    script.write_text(code)
    log = {"NEARLY_TEST_LOG": str(tmp_path / "log"), "NEARLY_TEST_SLEEP": "0.4"}
    return subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, **log},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def logged(tmp_path: Path) -> list[str]:
    log = tmp_path / "log"
    return log.read_text().split() if log.exists() else []


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def alive(session: int) -> list[int]:
    """Processes of a session that still run (zombies do not)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(state[3]) == session and state[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc to look for processes")
@pytest.mark.parametrize("workers", [0, 2])
def test_kill_minus_9_loses_nothing_and_leaves_nobody(
    tmp_path: Path, fresh_store: Path, workers: int
) -> None:
    first = sweep(tmp_path, workers)
    wait_for(lambda: len(logged(tmp_path)) >= 4)
    os.kill(first.pid, signal.SIGKILL)
    assert first.stdout is not None
    first.stdout.close()
    first.wait()
    wait_for(lambda: not alive(first.pid))
    before = logged(tmp_path)
    second = sweep(tmp_path, workers)
    out, _ = second.communicate(timeout=120)
    assert out.count(",") == 7  # all eight dials
    repeated = [d for d in set(before) if logged(tmp_path).count(d) > 1]
    # Those in flight when the process died had not finished; every other is not run again.
    assert len(repeated) <= max(workers, 1)
    wait_for(lambda: not alive(second.pid))


def test_two_sweeps_at_once_do_not_corrupt_the_store(tmp_path: Path, fresh_store: Path) -> None:
    both = [sweep(tmp_path, 0) for _ in range(2)]
    outputs = [p.communicate(timeout=120)[0] for p in both]
    assert outputs[0] == outputs[1]
    with Store()._open() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_dead_worker_changes_nothing(tmp_path: Path, fresh_store: Path) -> None:
    """The worker that first meets dial 3 kills itself; the pool starts afresh."""
    os.environ["NEARLY_TEST_DIE"] = str(tmp_path / "died")
    try:
        frontier = compare(
            f"{FILE}:Slow", named("sleeper"), dials=[1, 2, 3, 4], seeds=(0,), workers=2
        )
    finally:
        del os.environ["NEARLY_TEST_DIE"]
    assert (tmp_path / "died").exists()
    assert [r.status for r in frontier] == ["ok"] * 4


def test_a_dask_worker_killed_mid_sweep_changes_nothing(tmp_path: Path, fresh_store: Path) -> None:
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster:
        os.environ["NEARLY_TEST_DIE"] = str(tmp_path / "died")
        (tmp_path / "died").touch()
        killed = []

        def kill(done: int, total: int, text: str) -> None:
            if done == 2 and not killed:
                killed.append(True)
                next(iter(cluster.workers.values())).process.process.kill()

        try:
            frontier = compare(
                f"{FILE}:Slow",
                named("sleeper"),
                dials=list(range(1, 9)),
                seeds=(0,),
                executor=cluster.scheduler_address,
                progress=kill,
            )
        finally:
            del os.environ["NEARLY_TEST_DIE"]
    assert killed
    assert [(r.dial, r.status, r.error) for r in frontier] == [
        (d, "ok", 1 / d) for d in range(1, 9)
    ]


def test_a_stored_run_is_taken_only_when_asked(tmp_path: Path, fresh_store: Path) -> None:
    os.environ["NEARLY_TEST_LOG"] = str(tmp_path / "log")
    try:
        for reuse, expected in ((False, 1), (False, 2), (True, 2)):
            compare(f"{FILE}:Slow", named("sleeper"), dials=[1], reuse=reuse, timed=False)
            assert len(logged(tmp_path)) == expected
    finally:
        del os.environ["NEARLY_TEST_LOG"]


def test_what_cannot_be_hashed_is_not_stored() -> None:
    assert digest_of(lambda x: x) is None
    assert digest_of(object()) is None
    assert digest_of(1, "a", np.arange(3)) == digest_of(1, "a", np.arange(3))
    assert digest_of(1) != digest_of(1.0) != digest_of("1")
    assert digest_of(np.arange(3.0)) != digest_of(np.arange(3))


def test_frontiers_add_only_on_the_same_problem(linear: Frontier) -> None:
    assert len(linear + linear.select(source="user")) == 2 * len(linear)
    with pytest.raises(InputError, match="different problems"):
        linear + replace(linear, settings={"size": 3})


def test_a_frontier_survives_its_file(linear: Frontier, tmp_path: Path) -> None:
    path = linear.save(tmp_path / "frontier.json")
    loaded = Frontier.load(path)
    assert loaded.to_json() == linear.to_json()


def test_pareto_by_hand() -> None:
    from nearly.core.run import Run

    def run(cost: float, error: float) -> Run:
        return Run("m", 1, error=error, errors={"e": error}, work={"w": cost})

    frontier = Frontier("p", "e", "w", (run(1, 5), run(2, 6), run(3, 1), run(3, 0.5), run(9, 0.5)))
    assert frontier.pareto() == [0, 3]
    assert frontier.within(2.0).cost("w") == 3
    assert frontier.candidates(1.0) == [3, 2, 4]


def test_set_up_is_shared_over_the_uses() -> None:
    from nearly.core.run import Run

    learned = Run("l", 1, error=1, seconds=1.0, setup={"seconds": 90.0, "work": {}})
    plain = Run("p", 1, error=1, seconds=10.0, setup={"seconds": 0.0, "work": {}})
    assert learned.cost("seconds", uses=10) == 10.0
    frontier = Frontier("p", "e", "seconds", (learned, plain))
    assert frontier.break_even(learned, plain) == pytest.approx(10.0)
    assert frontier.break_even(plain, learned) is None


def test_an_error_below_the_floor_is_the_floor() -> None:
    from nearly.core.run import Trial, summarise

    run = summarise("m", 1, "ours", [Trial(0, "ok", errors={"e": 1e-20}, setup_seconds=0.0)], 1e-16)
    assert run.floored
    assert run.error == 1e-16


def test_float64_problems_live_in_x64_and_nobody_else_does() -> None:
    assert not jax.config.read("jax_enable_x64")
    compare(f"{FILE}:Decay", named("tsit5"), dials=[1e-3])
    assert not jax.config.read("jax_enable_x64")


def test_a_host_is_a_callable() -> None:
    assert Host(lambda x, *, y: x + y)(1, y=2) == 3


def test_settings_are_plain_data(linear: Frontier) -> None:
    settings: Mapping[str, Any] = linear.settings
    assert settings["size"] == 60


def test_settings_leave_out_arrays_and_tuples_of_them() -> None:
    from protocols import Spd

    class Held(Spd):
        data: Any = (np.zeros(2), 3)
        scales: tuple[float, ...] = (1.0, 2.0)

    settings = _settings(Held())
    assert settings["scales"] == [1.0, 2.0]
    assert "data" not in settings


@pytest.mark.parametrize("trouble", [InputError, KeyboardInterrupt])
def test_without_a_truth_nothing_runs_and_it_is_looked_for_once(
    trouble: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from protocols import Slow, sleeper

    asked = []

    class Unknowable(Slow):
        def floor(self) -> float:
            asked.append(True)
            raise trouble("no truth")

    monkeypatch.setenv("NEARLY_TEST_LOG", str(log := tmp_path / "log"))
    with pytest.raises(trouble, match="no truth"):
        compare(Unknowable(), {"sleeper": sleeper})
    assert len(asked) == 1
    assert not log.exists()
