"""Time-evolving natural gradient (`teng`): a network marched through time by projections.

A step moves the field u to a target v = u + h u_t. The network follows by solving, several times
over, the linear least-squares problem of its tangent space: J delta = v - u_theta. What is done
once a step in the time-dependent variational principle (`TdvpRungeKutta`) is thus iterated until
the step is exact to the accuracy of the arithmetic.

How this differs from the paper: points are a uniform periodic grid, so that quadrature weights are
all equal and cancel; they are left out. The first field is fitted by Levenberg and Marquardt's
damping of the very same projection. Widths, points and subsets are small by default, for a CPU.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Float, Key

from nearly.core.errors import InputError, PrecisionError
from nearly.pde.collocation import AtPoints
from nearly.pde.equations import InitialValueProblem
from nearly.pde.network_manifold import (
    Manifold,
    Parameters,
    Values,
    manifold,
    periodic_network,
)

LOST = 0.9  # a step as far from h u_t as that is no step of this equation
COARSER = (1.0, 10.0, 100.0, 1000.0)  # times the cutoff: what is tried when it reaches too far


# ---- projections: how the network is moved to a target


class Projection(eqx.Module):
    """Moves the parameters such that the network's field becomes a target."""

    @abstractmethod
    def __call__(
        self, space: Manifold, theta: Parameters, target: Values, stage: int, key: Key[Array, ""]
    ) -> Parameters:
        """The parameters after the projection of stage 0 or 1 of a step."""


class TangentProjection(Projection):
    """The paper's: least squares on tangent spaces of random subsets of the parameters.

    **Arguments:** `iterations` and `subsets`: how many and of how many parameters, for each stage
    of a step; (7, 5) and (1536, 1024) in the paper. More than there are means all. `cutoff`:
    singular values below that share of the largest are left out. Raises `InputError` for a cutoff
    outside [0, 1) and for counts below 1.

    Another subset at each iteration is what lets the residual fall to rounding: what one tangent
    space cannot represent another can. Unlike in the paper, an update that does not halve the
    distance stands back behind the best of those with coarser cutoffs, and none is made that does
    not bring the field nearer: small singular values call for steps that leave the tangent space
    behind, and with few parameters there are many of them; taken or merely refused, they end a
    stage short of its target now and then, which costs Heun its order. **Cost:** of an iteration
    O(n p + n k^2).
    """

    iterations: tuple[int, int] = eqx.field(default=(7, 5), static=True)
    subsets: tuple[int, int] = eqx.field(default=(256, 256), static=True)
    cutoff: float = eqx.field(default=1e-6, static=True)

    def __check_init__(self) -> None:
        if min(*self.iterations, *self.subsets) < 1:
            raise InputError(
                f"iterations={self.iterations} and subsets={self.subsets} must be at least 1"
            )
        if not 0 <= self.cutoff < 1:
            raise InputError(f"cutoff={self.cutoff} must be a share in [0, 1), such as 1e-6")

    def __call__(
        self, space: Manifold, theta: Parameters, target: Values, stage: int, key: Key[Array, ""]
    ) -> Parameters:
        size = min(self.subsets[stage], theta.size)

        def iterate(theta: Parameters, key: Any) -> tuple[Parameters, None]:
            chosen = jax.random.permutation(key, theta.size)[:size]
            candidates = self._candidates(space, theta, target, chosen)
            gaps = jax.vmap(lambda t: _square(target - space.values(t)))(candidates)
            gaps = jnp.where(jnp.isnan(gaps), jnp.inf, gaps)
            before = _square(target - space.values(theta))
            pick = jnp.where(gaps[0] < before / 4, 0, jnp.argmin(gaps))
            return jnp.where(gaps[pick] < before, candidates[pick], theta), None

        keys = jax.random.split(key, self.iterations[stage])
        return jax.lax.scan(iterate, theta, keys)[0]

    def _candidates(
        self, space: Manifold, theta: Parameters, target: Values, chosen: Array
    ) -> Float[Array, "c p"]:
        """The parameters after the update of each cutoff, the finest first."""
        tangent = space.jacobian(theta, chosen)
        left, singular, right = jnp.linalg.svd(tangent, full_matrices=False)
        along = left.T @ (target - space.values(theta))

        def moved(coarser: Array) -> Parameters:
            kept = singular > coarser * self.cutoff * singular[0]
            delta = jnp.where(kept, along / jnp.where(kept, singular, 1), 0) @ right
            return theta.at[chosen].add(delta)

        return jax.vmap(moved)(jnp.asarray(COARSER, theta.dtype))


def _square(x: Array) -> Array:
    return jnp.sum(x**2)


class AdamProjection(Projection):
    """Optimisation-based time integration, the paper's baseline: Adam on the squared distance."""

    steps: int = eqx.field(default=300, static=True)
    rate: float = eqx.field(default=1e-4, static=True)

    def __check_init__(self) -> None:
        if self.steps < 1 or not self.rate > 0:
            raise InputError(f"steps={self.steps} and rate={self.rate} must be positive")

    def __call__(
        self, space: Manifold, theta: Parameters, target: Values, stage: int, key: Key[Array, ""]
    ) -> Parameters:
        optimizer = optax.adam(optax.cosine_decay_schedule(self.rate, self.steps))
        slope = jax.grad(lambda t: jnp.mean((space.values(t) - target) ** 2))

        def iterate(carry: Any, _: None) -> tuple[Any, None]:
            theta, state = carry
            update, state = optimizer.update(slope(theta), state)
            return (optax.apply_updates(theta, update), state), None

        carry = (theta, optimizer.init(theta))
        return jax.lax.scan(iterate, carry, None, length=self.steps)[0][0]


# ---- steps in time


class Step(eqx.Module):
    """One step of size h in the parameters."""

    @abstractmethod
    def __call__(
        self, space: Manifold, theta: Parameters, h: Float[Array, ""], key: Key[Array, ""]
    ) -> Parameters:
        """The parameters a time h later."""


class Euler(Step):
    """Projects u + h u_t."""

    projection: Projection = TangentProjection()

    def __call__(
        self, space: Manifold, theta: Parameters, h: Float[Array, ""], key: Key[Array, ""]
    ) -> Parameters:
        target = space.values(theta) + h * space.velocity(theta)
        return self.projection(space, theta, target, 0, key)


class Heun(Step):
    """Projects u + h u_t into theta', then u + h (u_t + u_t at theta') / 2, from theta' on."""

    projection: Projection = TangentProjection()

    def __call__(
        self, space: Manifold, theta: Parameters, h: Float[Array, ""], key: Key[Array, ""]
    ) -> Parameters:
        first, second = jax.random.split(key)
        start, slope = space.values(theta), space.velocity(theta)
        ahead = self.projection(space, theta, start + h * slope, 0, first)
        target = start + h / 2 * (slope + space.velocity(ahead))
        return self.projection(space, ahead, target, 1, second)


class TdvpRungeKutta(Step):
    """The time-dependent variational principle: theta' = argmin |J theta' - u_t|, by RK4.

    The paper's baseline. `solver`'s cutoff is what keeps it stable: small singular values make
    theta' large, which an explicit method then overshoots.
    """

    solver: lx.AbstractLinearSolver[Any] = lx.SVD(rcond=1e-5)

    def __call__(
        self, space: Manifold, theta: Parameters, h: Float[Array, ""], key: Key[Array, ""]
    ) -> Parameters:
        every = jnp.arange(theta.size)

        def slope(theta: Parameters) -> Parameters:
            tangent = lx.MatrixLinearOperator(space.jacobian(theta, every))
            return lx.linear_solve(tangent, space.velocity(theta), self.solver, throw=False).value

        one = slope(theta)
        two = slope(theta + h / 2 * one)
        three = slope(theta + h / 2 * two)
        four = slope(theta + h * three)
        return theta + h / 6 * (one + 2 * two + 2 * three + four)


# ---- the first field


@eqx.filter_jit
def _damped_step(
    space: Manifold, theta: Parameters, target: Values, damping: Array, size: int, key: Any
) -> tuple[Parameters, Array, Array]:
    """One step of Levenberg and Marquardt on a random subset, kept only if it helps."""
    chosen = jax.random.permutation(key, theta.size)[:size]
    tangent = space.jacobian(theta, chosen)
    missing = target - space.values(theta)
    # Damping as further rows, not as J^T J + lambda: squaring would halve the digits.
    rows = jnp.concatenate([tangent, jnp.sqrt(damping) * jnp.eye(size, dtype=theta.dtype)])
    values = jnp.concatenate([missing, jnp.zeros(size, theta.dtype)])
    delta = lx.linear_solve(lx.MatrixLinearOperator(rows), values, lx.QR(), throw=False).value
    moved = theta.at[chosen].add(delta)
    before, after = jnp.mean(missing**2), jnp.mean((target - space.values(moved)) ** 2)
    better = after < before
    damping = jnp.clip(jnp.where(better, damping / 3, damping * 2), 1e-13, 1e6)
    return jnp.where(better, moved, theta), damping, jnp.minimum(before, after)


def fit_field(
    space: Manifold,
    theta: Parameters,
    target: Values,
    key: Key[Array, ""],
    *,
    tolerance: float = 1e-7,
    subset: int = 256,
    steps: int = 600,
) -> tuple[Parameters, float]:
    """Parameters whose field is a target to a root mean square `tolerance`, and what was reached.

    Random subsets of `subset` parameters at a time, at most `steps` of them.
    """
    size, reached = min(subset, theta.size), math.inf
    damping = jnp.asarray(1.0, theta.dtype)
    for each in range(steps):
        theta, damping, square = _damped_step(
            space, theta, target, damping, size, jax.random.fold_in(key, each)
        )
        reached = math.sqrt(float(square))
        if reached <= tolerance:
            break
    return theta, reached


# ---- the method


@eqx.filter_jit
def step_forward(
    step: Step, space: Manifold, theta: Parameters, h: Float[Array, ""], key: Key[Array, ""]
) -> Parameters:
    """`step`, compiled."""
    return step(space, theta, h, key)


@eqx.filter_jit
def _departure(
    space: Manifold, theta: Parameters, after: Parameters, h: Float[Array, ""]
) -> Float[Array, ""]:
    """How far a step is from h u_t, over how far that goes: of the order of h, not of one."""
    start, way = space.values(theta), h * space.velocity(theta)
    # A thousandth of the field: where nothing moves any more, rounding decides the quotient.
    scale = jnp.linalg.norm(way) + 1e-3 * jnp.linalg.norm(start)
    return jnp.linalg.norm(space.values(after) - start - way) / scale


class Marching(eqx.Module):
    """March a network through an initial value problem; the dial is the number of time steps.

    **Arguments:**

    - `step`: `Heun()` and `Euler()` are TENG's; with `AdamProjection` they are optimisation-based
      time integration; `TdvpRungeKutta()` is the variational principle.
    - `width`, `depth`: of the network (40 and 7 in the paper).
    - `points`: of the grid, along each coordinate (256 or 512 in the paper).
    - `tolerance`: root mean square to which the first field is fitted, in at most `fit_steps`
      steps on `fit_subset` parameters.

    The steps are explicit: for u_t = D u_xx they are stable while h D k^2 < 2 for every wave number
    k that the network can make between the points, and points should outnumber the subset.

    Periodic problems only (Dirichlet data would need rows of their own), and float64 only: the
    projections gain nothing below what float32 resolves. Raises `PrecisionError` in float32, and
    `InputError` with the time at which the network lost the equation (or was not finite).
    """

    step: Step = Heun()
    width: int = eqx.field(default=16, static=True)
    depth: int = eqx.field(default=4, static=True)
    points: int = eqx.field(default=32, static=True)
    tolerance: float = eqx.field(default=1e-7, static=True)
    fit_steps: int = eqx.field(default=600, static=True)
    fit_subset: int = eqx.field(default=256, static=True)
    dials: tuple[int, ...] = eqx.field(default=(10, 20), static=True)

    def __check_init__(self) -> None:
        if self.points < 4 or not self.tolerance > 0:
            raise InputError(
                f"points={self.points} must be at least 4, tolerance={self.tolerance} positive"
            )

    def __call__(self, equation: InitialValueProblem, dial: int, *, key: Any) -> AtPoints:
        space, theta, _ = self.start(equation, key)
        theta = self.march(space, theta, int(dial), jax.random.fold_in(key, 2))
        return space.at_points(theta)

    def start(self, equation: InitialValueProblem, key: Any) -> tuple[Manifold, Parameters, float]:
        """The network fitted to the first field, and the root mean square that is missing."""
        if not jax.config.read("jax_enable_x64"):
            raise PrecisionError(
                "TENG computes in float64: wrap the call in `with jax.enable_x64(True):`"
            )
        points = equation.grid(self.points, jnp.float64)
        network = periodic_network(
            equation.lengths, jax.random.fold_in(key, 0), width=self.width, depth=self.depth
        )
        space, theta = manifold(network, equation, points)
        theta, missing = fit_field(
            space,
            theta,
            jax.vmap(equation.initial)(points),
            jax.random.fold_in(key, 1),
            tolerance=self.tolerance,
            subset=self.fit_subset,
            steps=self.fit_steps,
        )
        return space, theta, missing

    def march(self, space: Manifold, theta: Parameters, steps: int, key: Any) -> Parameters:
        """The parameters at the final time, after so many steps of equal size."""
        if steps < 1:
            raise InputError(f"the dial counts time steps: {steps} must be at least 1")
        h = space.equation.duration / steps
        for each in range(steps):
            after = step_forward(
                self.step, space, theta, jnp.asarray(h), jax.random.fold_in(key, each)
            )
            if not float(_departure(space, theta, after, jnp.asarray(h))) <= LOST:
                raise InputError(
                    f"the network no longer follows the equation at t = {(each + 1) * h:.3g}: "
                    f"take more than {steps} steps, more points, or another cutoff"
                )
            theta = after
        return theta


teng_heun = Marching()
teng_euler = Marching(Euler())
tdvp = Marching(TdvpRungeKutta())
optimised_steps = Marching(Heun(AdamProjection()))
