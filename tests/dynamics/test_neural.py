"""Neural differential equations: exact cases, invariances, gradients, any solver and adjoint."""

from __future__ import annotations

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.dynamics import neural
from nearly.dynamics.data_paths import hermite_path, linear_path, log_path
from nearly.dynamics.reversible import ReversibleAdjoint

KEY = jax.random.key(0)
TIMES = np.linspace(0.0, 1.0, 9)


def decay(t: Any, y: Any, args: Any) -> Any:
    return -2 * y


def test_a_linear_field_gives_the_solver_s_powers() -> None:
    """y' = -2y by steps of Heun's method, saved after 5 and 15 of them."""
    with jax.enable_x64(True):
        heun = neural.fixed(dfx.Heun(), 15, t1=1.5)
        model = neural.NeuralODE(decay, neural.Augment(1), lambda y: y[:2], heun)
        x = jnp.array([1.0, -3.0])
        found = jax.jit(model.at)(x, jnp.array([0.5, 1.5]))
        truth = 0.82 ** np.array([[5], [15]]) * x
        np.testing.assert_allclose(found, truth, rtol=1e-12)


def turn(t: Any, y: Any, args: Any) -> Any:
    return jnp.pi * jnp.stack([-y[1], y[0]])


def test_trajectories_cross_with_a_further_component() -> None:
    starts = jnp.linspace(-1.0, 1.0, 5, dtype=jnp.float32)[:, None]
    half = neural.NeuralODE(turn, neural.Augment(1), lambda y: y[:1])
    np.testing.assert_allclose(jax.jit(jax.vmap(half))(starts), -starts, atol=1e-2)


@pytest.mark.slow
def test_trajectories_on_a_line_never_cross() -> None:
    """The end grows with the start, whatever the weights."""
    starts = jnp.linspace(-1.0, 1.0, 21, dtype=jnp.float32)[:, None]
    plain = neural.NeuralODE(neural.field(1, KEY, width=8))
    scaled = jax.tree.map(lambda w: 5 * w if eqx.is_array(w) else w, plain)
    ends = eqx.filter_jit(eqx.filter_vmap(lambda m, x: m(x), in_axes=(None, 0)))(scaled, starts)
    assert np.all(np.diff(ends[:, 0]) > 0)


def squares(values: Any) -> Any:
    return jnp.sum(values**2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ode", "cde", "sde"])
def test_gradients_are_those_of_finite_differences_and_exact_by_reversal(kind: str) -> None:
    with jax.enable_x64(True):
        usual, ours = (
            neural.fixed(dfx.ReversibleHeun(), 8, adjoint=adjoint)
            for adjoint in (dfx.RecursiveCheckpointAdjoint(), ReversibleAdjoint())
        )
        times = jnp.asarray(TIMES)
        values = jnp.stack([jnp.sin(3 * times), times**2], axis=1)
        sizes: dict[str, Any] = {"width": 4, "dtype": jnp.float64}

        def loss(model: Any) -> Any:
            if kind == "ode":
                return squares(model(values[3]))
            if kind == "cde":
                return squares(model(hermite_path(times, values)))
            return squares(model(times, KEY))

        def make(integration: Any) -> Any:
            if kind == "ode":
                return neural.neural_ode(2, 1, KEY, extra=1, integration=integration, **sizes)
            if kind == "cde":
                return neural.neural_cde(2, 1, KEY, state=3, integration=integration, **sizes)
            return neural.neural_sde(1, KEY, state=3, integration=integration, **sizes)

        pull = eqx.filter_jit(eqx.filter_value_and_grad(loss))
        model = make(usual)
        value, slope = pull(model)
        again, same = pull(make(ours))
        np.testing.assert_allclose(again, value, rtol=1e-12)
        for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(slope), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        moving, still = eqx.partition(model, eqx.is_inexact_array)
        shift = jax.tree.map(lambda w: jnp.cos(jnp.arange(w.size)).reshape(w.shape), moving)

        def moved(e: float) -> Any:
            return pull(eqx.combine(jax.tree.map(lambda w, s: w + e * s, moving, shift), still))[0]

        along = sum(
            jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (slope, shift)), strict=True)
        )
        assert along == pytest.approx(float(moved(1e-5) - moved(-1e-5)) / 2e-5, rel=1e-6)


def test_a_controlled_equation_depends_on_the_path_alone() -> None:
    """A straight path seen at other times is the same path; so is one that missed a value."""
    times = jnp.asarray(TIMES, jnp.float32)
    model = neural.neural_cde(2, 1, KEY, width=8, integration=neural.fixed(dfx.Euler(), 8))

    def values(times: Any) -> Any:
        return jnp.stack([2 * times, 1 - times], axis=1)

    use = eqx.filter_jit(lambda times, values: model(hermite_path(times, values)))
    full = use(times, values(times))
    np.testing.assert_allclose(use(times**2, values(times**2)), full, rtol=1e-4)
    gaps = values(times).at[2:4, 0].set(jnp.nan).at[5, 1].set(jnp.nan)
    np.testing.assert_allclose(use(times, gaps), full, rtol=1e-4)
    assert abs(use(times, values(times) ** 2) - full) > 0.01


def test_values_that_were_never_seen_are_those_next_to_them() -> None:
    times = jnp.array([0.0, 1.0, 2.0, 3.0], jnp.float32)
    values = jnp.array([[np.nan], [5.0], [7.0], [np.nan]], jnp.float32)

    @jax.jit
    def ends(times: Any, values: Any) -> Any:
        paths = [make(times, values) for make in (hermite_path, linear_path)]
        return [[path.evaluate(t) for t in (0.0, 3.0)] for path in paths]

    for found in ends(times, values):
        np.testing.assert_allclose(found, [[0.0, 5.0], [3.0, 7.0]])


def rotation(t: Any, y: Any, args: Any) -> Any:
    """Columns that do not commute: of time, and of two channels."""
    first = jnp.array([[0.0, 1.0], [0.0, 0.0]], y.dtype)
    second = jnp.array([[0.0, 0.0], [1.0, 0.0]], y.dtype)
    return jnp.stack([jnp.zeros(2, y.dtype), first @ y, second @ y], axis=1)


def test_windows_of_a_path_keep_the_area_it_sweeps() -> None:
    """Small squares, of no increment: what they do is exp of the bracket times the area."""
    with jax.enable_x64(True):
        side = 0.1
        square = jnp.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * side
        times = jnp.linspace(0.0, 1.0, 5)
        once = neural.fixed(dfx.Heun(), 1)
        read = neural.NeuralCDE(rotation, lambda x: jnp.ones(2), integration=once)

        @jax.jit
        def windows(values: Any) -> Any:
            path = log_path(times, values, 4)
            return path, read(path)

        path, found = windows(square)
        np.testing.assert_allclose(path.increments, [[1.0, 0.0, 0.0]])
        np.testing.assert_allclose(path.areas[0, 1, 2], side**2)
        # [F1, F2] y = (B2 B1 - B1 B2) y = diag(-1, 1) y
        np.testing.assert_allclose(found, np.exp([-(side**2), side**2]), rtol=1e-6)


@pytest.mark.slow
def test_windows_do_what_their_pieces_do_but_for_triple_integrals() -> None:
    with jax.enable_x64(True):
        side, times = 0.1, jnp.linspace(0.0, 1.0, 5)
        square = jnp.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * side

        def ends(path: Any, steps: int) -> Any:
            integration = neural.fixed(dfx.Tsit5(), steps)
            return neural.NeuralCDE(rotation, lambda x: jnp.ones(2), integration=integration)(path)

        fine = ends(linear_path(times, square), 4)
        np.testing.assert_allclose(ends(log_path(times, square, 4), 1), fine, rtol=2 * side**3)


def test_a_straight_path_is_followed_by_increments() -> None:
    """dy = dX ends at X: steps that end at the nodes see no other interval's slope."""
    with jax.enable_x64(True):
        times = jnp.asarray(TIMES)
        path = linear_path(times, jnp.sin(9 * times)[:, None])
        model = neural.NeuralCDE(
            lambda t, y, args: jnp.array([[0.0, 1.0]]),
            lambda x: x[1:],
            integration=neural.fixed(dfx.Euler(), 8),
        )
        np.testing.assert_allclose(jax.jit(lambda: model(path))(), np.sin([9.0]), rtol=1e-12)


@pytest.mark.slow
def test_a_generator_has_the_law_of_its_equation() -> None:
    """dy = -y dt + dW from v: variance exp(-2t) + (1 - exp(-2t)) / 2, in either precision."""

    def one(t: Any, y: Any, args: Any) -> Any:
        return jnp.ones((1, 1), y.dtype)

    times = jnp.array([0.5, 1.0], jnp.float32)
    model = neural.NeuralSDE(
        *(lambda t, y, args: -y, one, neural.identity, neural.identity),
        neural.fixed(dfx.Heun(), 32),
        *(1, 1),
    )
    draw = jax.jit(jax.vmap(lambda key: model(times, key)))
    found = draw(jax.random.split(KEY, 4000))[..., 0]
    fade = np.exp(-2 * np.asarray(times))
    np.testing.assert_allclose(found.var(0), fade + (1 - fade) / 2, rtol=0.1)
    assert found.dtype == jnp.float32


def test_mistakes_name_value_and_remedy() -> None:
    with pytest.raises(InputError, match="constant steps need their length"):
        neural.Integration(controller=dfx.ConstantStepSize())
    with pytest.raises(InputError, match="steps=0"):
        neural.fixed(dfx.Heun(), 0)
    with pytest.raises(InputError, match="needs dt0"):
        neural.neural_sde(1, KEY, integration=neural.Integration())
    with pytest.raises(InputError, match="extra=-1"):
        neural.Augment(-1)
    times = jnp.arange(4, dtype=jnp.float32)
    with pytest.raises(InputError, match="one observation makes no path"):
        linear_path(times[:1], jnp.zeros((1, 1)))
    with pytest.raises(InputError, match="window=2 must divide the 3 pieces"):
        log_path(times, jnp.zeros((4, 1)), 2)
