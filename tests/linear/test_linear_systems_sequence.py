"""Sequences of systems: what the rules make, what is counted, who may take part."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nearly
from nearly.core import catalogue
from nearly.core.errors import InputError
from nearly.core.measure import to_host
from nearly.linear.conjugate_gradient import ConjugateGradient
from nearly.linear.problems.sequence import (
    HeatSteps,
    ShiftedPoisson,
    SystemSequence,
    heat2d_sequence,
    shifted_poisson_sequence,
)
from nearly.linear.relaxation import Ssor


class Alternating(eqx.Module):
    """A learner that switches between two factors and remembers what they cost."""

    def init(self, key: Any) -> Any:
        return jnp.zeros((), int), jnp.zeros(2)

    def suggest(self, state: Any, context: Any) -> Any:
        turn, _ = state
        omega = jnp.where(turn % 2 == 0, 1.0, 1.5)
        return ConjugateGradient(1e-3, preconditioner=Ssor(omega), max_steps=99), state

    def update(self, state: Any, outcome: Any) -> Any:
        turn, costs = state
        return turn + 1, costs.at[turn % 2].add(outcome)


def test_a_learner_is_told_its_costs_and_all_work_is_counted() -> None:
    problem = shifted_poisson_sequence(size=6, length=12)
    frontier = nearly.compare(
        problem, {"learner": Alternating()}, dials=[1e-6], seeds=(0,), timed=False
    )
    (run,) = frontier
    assert run.status == "ok" and run.error <= 1e-6
    steps = run.errors["iterations per system"] * 12
    assert run.work["matvecs"] == pytest.approx(steps + 12)  # one more for each first residual
    assert run.work["preconditioner applications"] == run.work["matvecs"]


def test_solvers_and_functions_of_the_systems_are_learners_too() -> None:
    problem = shifted_poisson_sequence(size=6, length=12)
    solver = ConjugateGradient(1e-3)
    state = problem.learner(solver).init(jax.random.key(0))
    assert problem.learner(solver).suggest(state, 0.3)[0] is solver
    made = problem.learner(lambda systems: ConjugateGradient(1e-3, max_steps=systems.length))
    assert made.suggest((), 0.0)[0].max_steps == 12


def catalogued() -> list[Any]:
    """Every method for sequences; those of a paper are slow, and tested where they live too."""
    lines = catalogue.methods("linear-sequences")
    return [
        pytest.param(name, marks=pytest.mark.slow if line.paper else ())
        for name, line in lines.items()
    ]


@pytest.mark.parametrize("name", catalogued())
def test_every_catalogued_method_solves_a_sequence(name: str) -> None:
    problem = shifted_poisson_sequence(size=5, length=6)
    method = catalogue.method(name, "linear-sequences")[0]
    with jax.enable_x64(True):
        standin = problem.build(method, 1e-6, key=jax.random.key(0))
        record = eqx.filter_jit(problem.apply)(standin, key=jax.random.key(1))
        errors = problem.errors(to_host(record))
    assert errors["relative residual"] <= 1.01e-6
    assert errors["iterations per system"] >= 1


def test_heat_steps_are_crank_nicolsons() -> None:
    # With half a step of forcing and diffusion on either side, the last solution is that of the
    # matrices multiplied out.
    systems = HeatSteps(size=5, length=8, duration=0.8)
    problem = SystemSequence(systems=systems)
    with jax.enable_x64(True):
        standin = problem.build(ConjugateGradient(1e-12), 1e-12, key=None)
        record = problem.apply(standin, key=jax.random.key(0))
    n, dt = 5, 0.1
    line = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    laplace = 36 * (np.kron(line, np.eye(n)) + np.kron(np.eye(n), line))
    x = np.arange(1, n + 1) / (n + 1)

    def rate(t: float) -> float:
        return max(0.1 * np.sin(2 * np.pi * t), -10 * np.sin(2 * np.pi * t))

    def source(t: float) -> np.ndarray:
        first = (x - 0.5 - np.cos(2 * np.pi * t) / 4) ** 2
        second = (x - 0.5 - np.sin(2 * np.pi * t) / 4) ** 2
        return 32 * np.exp(-32 * (first[:, None] + second[None, :])).ravel()

    u = np.outer(np.sin(np.pi * x), np.sin(np.pi * x)).ravel()
    for k in range(8):
        t, s = k * dt, (k + 1) * dt
        right = u - dt / 2 * rate(t) * laplace @ u + dt / 2 * (source(t) + source(s))
        u = np.linalg.solve(np.eye(n * n) + dt / 2 * rate(s) * laplace, right)
    np.testing.assert_allclose(np.ravel(record.last), u, rtol=1e-10)
    contexts = np.asarray(record.contexts)
    assert np.all((contexts >= 0) & (contexts < 1))


def test_shifts_are_drawn_in_their_interval_and_leave_the_operator_definite() -> None:
    with jax.enable_x64(True):
        systems = ShiftedPoisson(length=3)
        before = systems.start("float64")
        draw = jax.vmap(lambda key: systems.system(jnp.asarray(0), before, key))
        made = draw(jax.random.split(jax.random.key(0), 50))
        contexts = np.asarray(made.context)
        assert contexts.min() > -0.15 and contexts.max() < 0.45 and contexts.std() > 0.1
        smallest = jax.tree.map(lambda leaf: leaf[contexts.argmin()], made.operator)
        assert np.linalg.eigvalsh(smallest.as_matrix()).min() > 0


def test_catalogued_sequences_can_be_made() -> None:
    names = {"heat2d-sequence", "shifted-poisson-sequence"}
    assert names <= set(catalogue.problems())
    for name in names:
        problem = catalogue.problem(name, length="7")
        assert isinstance(problem, SystemSequence)
        assert problem.systems.length == 7 and problem.name == name


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: shifted_poisson_sequence(size=40), "size = 40"),
        (lambda: shifted_poisson_sequence(alpha=0.0), "positive"),
        (lambda: heat2d_sequence(length=0), "length = 0"),
        (lambda: heat2d_sequence(dtype="float16"), "float16"),
        (lambda: heat2d_sequence().learner(3), "int is no method"),
    ],
)
def test_what_is_no_sequence_is_refused(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()
