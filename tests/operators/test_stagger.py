"""NeuralStagger: the decomposition, the residual of the fine scheme, training without solutions."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.operators.data import Grid, Trajectories
from nearly.operators.stagger import (
    NeuralStagger,
    PhysicsLoss,
    PreconditionedResidual,
    SolverResidual,
    Staggered,
    TrapezoidalResidual,
    decompose,
    reassemble,
    staggered,
    train_by_physics,
)
from nearly.pde.exponential import crank_nicolson_heun
from nearly.pde.semilinear import Burgers, integrate


class Scaled(eqx.Module):
    """A network of one weight: its output is that multiple of the first input channels."""

    weight: jax.Array
    outputs: int = eqx.field(static=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.weight * x[: self.outputs]


def one_weight(inputs: int, outputs: int, key: Any) -> Scaled:
    return Scaled(jnp.zeros(()), outputs)


def decay(before: Any, after: Any, parameters: Any) -> Any:
    """The residual of u_next = (1 - 0.1) u."""
    return after - 0.9 * before


@pytest.mark.parametrize("shape", [(2, 12), (3, 4, 6), (1, 4, 2, 6)])
def test_decomposition_is_interleaving(shape: tuple[int, ...]) -> None:
    strides = (2, 2, 3)[-(len(shape) - 1) :]
    field = jax.random.normal(jax.random.key(0), shape)
    pieces = decompose(field, strides)
    offsets = np.ndindex(*strides)
    for piece, offset in zip(pieces, offsets, strict=True):
        places = tuple(slice(o, None, s) for o, s in zip(offset, strides, strict=True))
        np.testing.assert_array_equal(piece, field[(slice(None), *places)])
    np.testing.assert_array_equal(reassemble(pieces, strides), field)


def test_untrained_networks_stand_still() -> None:
    state = jax.random.normal(jax.random.key(0), (1, 8, 8))
    model = eqx.filter_jit(staggered)(1, jax.random.key(1), strides=(2, 2), frames=2)
    np.testing.assert_array_equal(model.frames(state), jnp.stack([state, state]))


def test_each_piece_has_a_network_for_each_frame() -> None:
    model = staggered(1, jax.random.key(0), strides=(2, 1), frames=3, network=one_weight)
    weights = jnp.arange(6.0).reshape(3, 2)
    model = eqx.tree_at(lambda m: m.networks.weight, model, weights)
    state = jax.random.normal(jax.random.key(1), (1, 4, 2))
    frames = model.frames(state)
    for frame in range(3):
        for piece in range(2):
            expected = (1 + weights[frame, piece]) * state[:, piece::2]
            np.testing.assert_allclose(frames[frame][:, piece::2], expected, rtol=1e-6)
    np.testing.assert_array_equal(model(state), frames[-1])
    coarse = model.coarse_frames(state[:, 1::2], piece=1)
    np.testing.assert_allclose(coarse, frames[:, :, 1::2], rtol=1e-6)


def test_networks_see_what_they_are_told_to() -> None:
    """A change at one point reaches its own piece only, or all of them."""

    def touched(sees: str) -> np.ndarray:
        model = staggered(1, jax.random.key(0), strides=(2,), sees=sees, network=summing, frames=1)
        state = jnp.zeros((1, 8))
        return np.asarray(model(state.at[0, 2].set(1.0)) != 0)[0].reshape(4, 2).any(0)

    def summing(inputs: int, outputs: int, key: Any) -> Any:
        return lambda x: jnp.zeros_like(x[:outputs]) + x.sum()

    assert touched("own").tolist() == [True, False]
    assert touched("all").tolist() == [True, True]


def test_trapezoidal_residual_vanishes_on_its_solution() -> None:
    """A mode of the heat equation decays by (1 - z) / (1 + z) here, z = dt nu k^2 / 2."""
    with jax.enable_x64(True):
        nu, dt, k = 0.1, 0.05, 2 * np.pi
        x = np.arange(16) / 16
        before = 1e-9 * jnp.asarray(np.sin(k * x))[None]  # too small for the quadratic term
        z = dt * nu * k**2 / 2
        residual = TrapezoidalResidual(Burgers(nu), dt)
        assert np.abs(residual(before, before * (1 - z) / (1 + z))).max() < 1e-16
        assert np.abs(residual(before, before)).max() > 1e-10


def test_preconditioned_residual_is_the_error_of_a_linear_equation() -> None:
    """Off the scheme's solution by d, it is d, whatever the wave number."""
    with jax.enable_x64(True):
        nu, dt = 0.1, 0.05
        residual = PreconditionedResidual(TrapezoidalResidual(Burgers(nu), dt))
        for waves in (1, 5):
            k = 2 * np.pi * waves
            before = 1e-9 * jnp.asarray(np.sin(k * np.arange(16) / 16))[None]
            z = dt * nu * k**2 / 2
            off = residual(before, before * (1 - z) / (1 + z) + 0.1 * before)
            np.testing.assert_allclose(off, 0.1 * before, atol=1e-15)


def test_trapezoidal_residual_is_of_second_order() -> None:
    """The true solution's residual falls as dt^3."""
    with jax.enable_x64(True):
        equation = Burgers(0.05)
        start = jnp.sin(2 * jnp.pi * jnp.arange(32) / 32)
        sizes = []
        for dt in (0.02, 0.01):
            later = integrate(equation, start, dt=dt / 20, steps=20, every=20)[0]
            residual = TrapezoidalResidual(equation, dt)(start[None], later[None])
            sizes.append(float(jnp.linalg.norm(residual)))
        assert np.log2(sizes[0] / sizes[1]) == pytest.approx(3, abs=0.3)


def test_loss_is_that_of_the_reassembled_frames() -> None:
    model = staggered(1, jax.random.key(0), strides=(2,), frames=2, network=one_weight)
    model = eqx.tree_at(lambda m: m.networks.weight, model, jnp.asarray([[-0.1] * 2, [-0.19] * 2]))
    fields = jax.random.normal(jax.random.key(1), (3, 1, 8))
    exact = PhysicsLoss(decay, 0)(model, (fields, jnp.zeros((3, 0))), jax.random.key(2))
    assert float(exact) < 1e-12
    off = eqx.tree_at(lambda m: m.networks.weight, model, model.networks.weight.at[0].add(0.1))
    # The first frame is off by 0.1 u, and so is what the second one is held against, by 0.09 u.
    loss = PhysicsLoss(decay, 0)(off, (fields, jnp.zeros((3, 0))), jax.random.key(2))
    expected = (0.1**2 + 0.09**2) / 2 * float(jnp.mean(fields**2))
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_gradient_does_not_pass_through_the_rollout() -> None:
    """After any number of calls the gradient is that of the last call, from where it started."""
    model = staggered(1, jax.random.key(0), strides=(2,), frames=1, network=one_weight)
    model = eqx.tree_at(lambda m: m.networks.weight, model, jnp.full((1, 2), -0.5))
    fields = jnp.ones((1, 1, 4))

    def slope(calls: int) -> float:
        loss = PhysicsLoss(decay, calls)
        value = lambda m: loss(m, (fields, jnp.zeros((1, 0))), jax.random.key(0))  # noqa: E731
        return float(eqx.filter_grad(value)(model).networks.weight[0, 0])

    drawn = int(jax.random.randint(jax.random.key(0), (), 0, 4))
    assert drawn > 0  # the key was chosen so
    # (1 + w - 0.9)^2 u^2 over two pieces: its slope in one weight is (0.1 + w) u^2.
    assert slope(0) == pytest.approx(-0.4, rel=1e-5)
    assert slope(3) == pytest.approx(-0.4 * 0.25**drawn, rel=1e-5)


def test_work_is_that_of_the_coarse_grid() -> None:
    state = jnp.zeros((1, 16, 16))

    def work(strides: tuple[int, int], frames: int) -> Any:
        make = eqx.filter_jit(lambda k: staggered(1, k, strides=strides, frames=frames))
        return make(jax.random.key(0)).work(state)

    whole, quarters = work((1, 1), 1), work((2, 2), 2)
    assert whole.parallel == whole.serial
    assert whole.parallel / quarters.parallel == pytest.approx(8, rel=0.1)
    assert whole.serial / quarters.serial == pytest.approx(1, rel=0.1)


def test_learns_the_heat_equation_without_a_solution() -> None:
    """Waves that decay: twenty steps by networks that have only seen the residual."""
    points, rate = 16, 0.05
    x = np.arange(points) / points
    phases = np.random.default_rng(0).uniform(0, 1, 32)
    fields = np.sin(2 * np.pi * (x + phases[:, None]))[:, None].astype(np.float32)
    equation = Burgers(1e-9)  # amplitudes far below 1: what is left is diffusion
    equation = eqx.tree_at(lambda e: e.viscosity, equation, rate)
    small = 1e-3 * fields
    model = staggered(1, jax.random.key(0), strides=(2,), frames=2, scale=1e-3, network=one_weight)
    model = train_by_physics(
        model,
        small,
        TrapezoidalResidual(equation, 0.02),
        steps=400,
        batch=8,
        key=jax.random.key(1),
        learning_rate=1e-2,
    )
    state = jnp.asarray(small[0])
    for _ in range(10):
        state = model(state)
    truth = small[0] * np.exp(-rate * (2 * np.pi) ** 2 * 0.4)
    assert np.linalg.norm(state - truth) < 0.03 * np.linalg.norm(truth)


class Decay(eqx.Module):
    """A family that decays, as far as the builder needs one."""

    dt: float = 0.5
    name: ClassVar[str] = "decay"

    def evolve(self, state: Any, parameters: Any, frames: int) -> Any:
        factor = jnp.exp(-parameters[0] * self.dt * jnp.arange(1, frames + 1))
        return factor.reshape(-1, *(1,) * state.ndim) * state


def test_builder_takes_steps_of_the_data() -> None:
    states = np.asarray(jax.random.normal(jax.random.key(0), (4, 2, 1, 8)))
    parameters = np.ones((4, 1), np.float32)
    data = Trajectories(states, parameters, Grid((1.0,), True), 0.5, Decay())
    build = NeuralStagger(frames=2, network=one_weight, steps=150, batch=8, learning_rate=1e-2)
    model = build(data, key=jax.random.key(1))
    later = eqx.filter_jit(model)(jnp.asarray(states[0, 0]), jnp.ones(1))
    truth = np.exp(-0.5) * states[0, 0]
    still = np.linalg.norm(states[0, 0] - truth)
    assert isinstance(model, Staggered) and model.frames_ahead == 2
    assert np.linalg.norm(later - truth) < 0.1 * still


def test_solver_residual() -> None:
    before = jnp.ones((1, 4))
    residual = SolverResidual(Decay().evolve)
    np.testing.assert_allclose(residual(before, np.exp(-0.5) * before, jnp.ones(1)), 0, atol=1e-7)
    equation = Burgers(0.05)
    solver = lambda u, p, n: integrate(  # noqa: E731
        equation, u[0], dt=0.01, steps=n, scheme=crank_nicolson_heun
    )[:, None]
    state = jnp.sin(2 * jnp.pi * jnp.arange(16) / 16)[None]
    assert SolverResidual(solver)(state, solver(state, None, 1)[0]).max() == 0


def test_errors_name_the_value_and_the_remedy() -> None:
    with pytest.raises(InputError, match=r"strides \(2, 3\) do not divide the grid \(8, 8\)"):
        decompose(jnp.zeros((1, 8, 8)), (2, 3))
    with pytest.raises(InputError, match="for each of the 2 axes"):
        decompose(jnp.zeros((1, 8, 8)), (2,))
    with pytest.raises(InputError, match="frames=0"):
        staggered(1, jax.random.key(0), frames=0, network=one_weight)
    model = staggered(1, jax.random.key(0), strides=(2,), sees="all", network=one_weight)
    with pytest.raises(InputError, match="sees='own'"):
        model.coarse_frames(jnp.zeros((1, 4)))
    data = Trajectories(
        np.zeros((2, 2, 1, 8), np.float32), np.zeros((2, 0)), Grid((1.0,), True), 1.0
    )
    with pytest.raises(InputError, match="name no equation"):
        NeuralStagger()(data, key=jax.random.key(0))
    bad = np.full((2, 1, 8), np.nan, np.float32)
    with pytest.raises(InputError, match="not finite"):
        train_by_physics(model, bad, decay, steps=1, batch=1, key=jax.random.key(0))
