"""Solutions whose Jacobian is known: ridge, lasso, a quadratic over the simplex, packed spheres.

Each case is a convergent iteration with the Jacobian of its limit, by a formula or by a dense solve
at a minimum polished to rounding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.derivatives import conditions, projections

Solution = tuple[np.ndarray, np.ndarray]
PENALTIES = (0.01, 0.1)
TETHER = 0.2


class Case(eqx.Module):
    """A convergent iteration in x with parameters theta: fields are its arrays and step size."""

    start: Float[np.ndarray, " n"]
    theta: Float[np.ndarray, " k"]
    stepsize: float

    @abstractmethod
    def step(self, x: Float[Array, " n"], theta: Float[Array, " k"]) -> Float[Array, " n"]:
        """One step of the iteration: a contraction near its fixed point."""

    @abstractmethod
    def truth(self) -> Solution:
        """The fixed point and its Jacobian in theta, (n,) and (n, k), in float64."""


def regression(seed: int, rows: int = 60, columns: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Correlated inputs and a noisy sparse response."""
    draw = np.random.default_rng(seed)
    mixing = np.eye(columns) + 0.15 * draw.normal(size=(columns, columns))
    inputs = draw.normal(size=(rows, columns)) @ mixing
    weights = draw.normal(size=columns) * (np.arange(columns) % 2)
    return inputs, inputs @ weights + 0.1 * draw.normal(size=rows)


class Ridge(Case):
    """min |X w - y|^2 / 2m + sum theta_j w_j^2 / 2, one penalty per feature; gradient descent."""

    gram: Float[np.ndarray, "n n"]
    moment: Float[np.ndarray, " n"]

    def step(self, x: Float[Array, " n"], theta: Float[Array, " k"]) -> Float[Array, " n"]:
        return x - self.stepsize * (self.gram @ x - self.moment + theta * x)

    def truth(self) -> Solution:
        matrix = np.asarray(self.gram, np.float64) + np.diag(self.theta)
        x = np.linalg.solve(matrix, self.moment)
        return x, -np.linalg.solve(matrix, np.diag(x))


class Lasso(Case):
    """min |X w - y|^2 / 2m + sum theta_j |w_j|; proximal gradient."""

    gram: Float[np.ndarray, "n n"]
    moment: Float[np.ndarray, " n"]

    def objective(self, x: Float[Array, " n"], _: None) -> Array:
        return 0.5 * x @ self.gram @ x - self.moment @ x

    def step(self, x: Float[Array, " n"], theta: Float[Array, " k"]) -> Float[Array, " n"]:
        step = conditions.proximal_gradient(self.objective, _shrink, self.stepsize)
        return step(x, None, theta)

    def truth(self) -> Solution:
        """By coordinate descent for the support, then in closed form on it."""
        gram, moment, theta = (
            np.asarray(a, np.float64) for a in (self.gram, self.moment, self.theta)
        )
        x = np.zeros_like(moment)
        for _ in range(2000):
            for j in range(x.size):
                slope = moment[j] - gram[j] @ x + gram[j, j] * x[j]
                x[j] = np.sign(slope) * max(abs(slope) - theta[j], 0) / gram[j, j]
        support, signs = np.flatnonzero(x), np.sign(x)
        inverse = np.linalg.inv(gram[np.ix_(support, support)])
        x[support] = inverse @ (moment - theta * signs)[support]
        jacobian = np.zeros((x.size, theta.size))
        jacobian[np.ix_(support, support)] = -inverse * signs[support]
        return x, jacobian


def _shrink(x: Array, scale: float, penalty: Array) -> Array:
    return projections.soft_threshold(x, scale * penalty)


class SimplexQuadratic(Case):
    """min x Q x / 2 - theta . x over the probability simplex; projected gradient."""

    matrix: Float[np.ndarray, "n n"]

    def objective(self, x: Float[Array, " n"], theta: Float[Array, " k"]) -> Array:
        return 0.5 * x @ self.matrix @ x - theta @ x

    def step(self, x: Float[Array, " n"], theta: Float[Array, " k"]) -> Float[Array, " n"]:
        step = conditions.projected_gradient(self.objective, projections.simplex, self.stepsize)
        return step(x, theta)

    def truth(self) -> Solution:
        """By an active-set method for the support, then in closed form on it."""
        matrix, theta = np.asarray(self.matrix, np.float64), np.asarray(self.theta, np.float64)
        support = _active_set(matrix, theta)
        inverse = np.linalg.inv(matrix[np.ix_(support, support)])
        ones = inverse.sum(1)
        inner = inverse - np.outer(ones, ones) / ones.sum()
        x, jacobian = np.zeros(theta.size), np.zeros((theta.size, theta.size))
        x[support] = inner @ theta[support] + ones / ones.sum()
        jacobian[np.ix_(support, support)] = inner
        return x, jacobian


def _active_set(matrix: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """The support of the solution, from projected gradient steps run to rounding on the host."""
    stepsize = 1 / np.linalg.norm(matrix, 2)
    x = np.full(theta.size, 1 / theta.size)
    for _ in range(20_000):
        point = x - stepsize * (matrix @ x - theta)
        descending = np.sort(point)[::-1]
        thresholds = (np.cumsum(descending) - 1) / np.arange(1, point.size + 1)
        x = np.maximum(point - thresholds[np.sum(descending > thresholds) - 1], 0)
    return np.flatnonzero(x)


class Packing(Case):
    """Soft spheres in a periodic square, half of diameter 1 and half theta; gradient descent.

    Each is tethered to where it started by a weak spring: without it the whole packing may drift,
    spheres that touch nothing may move, and the minimum has no derivative. Positions are x and y of
    each sphere in turn; a pair repels as (1 - distance / mean diameter)^2 / 2 while it overlaps.
    """

    pairs: tuple[np.ndarray, np.ndarray]
    small: Float[np.ndarray, " m"]  # 1 for the spheres of diameter theta
    side: float

    def energy(self, x: Float[Array, " n"], theta: Float[Array, " k"]) -> Array:
        positions = x.reshape(-1, 2)
        first, second = self.pairs
        diameters = 1 + self.small * (theta[0] - 1)
        apart = positions[first] - positions[second]
        apart = apart - self.side * jnp.round(apart / self.side)
        distance = jnp.sqrt(jnp.sum(apart**2, 1))
        overlap = jnp.maximum(1 - 2 * distance / (diameters[first] + diameters[second]), 0)
        return 0.5 * jnp.sum(overlap**2) + 0.5 * TETHER * jnp.sum((x - self.start) ** 2)

    def step(self, x: Float[Array, " n"], theta: Float[Array, " k"]) -> Float[Array, " n"]:
        return x - self.stepsize * jax.grad(self.energy)(x, theta)

    def truth(self) -> Solution:
        """By gradient descent into the same basin, Newton's method, and a dense solve."""
        with jax.enable_x64(True):
            x, jacobian, slope = jax.jit(_polished)(self)
        if not np.max(np.abs(slope)) < 1e-12:
            raise RuntimeError(f"Newton's method stopped at a force of {np.max(np.abs(slope))}")
        return np.asarray(x), np.asarray(jacobian)


def _polished(packing: Packing) -> tuple[Array, Array, Array]:
    theta, start = jnp.asarray(packing.theta), jnp.asarray(packing.start)
    force = jax.grad(packing.energy)

    def moving(state: tuple[Array, Array, Array]) -> Array:
        _, slope, steps = state
        # Newton's steps stay in the basin only where no contact opens or closes any more.
        return (jnp.max(jnp.abs(slope)) > 1e-7) & (steps < 100_000)

    def descend(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, slope, steps = state
        x = x - packing.stepsize * slope
        return x, force(x, theta), steps + 1

    def newton(_: Any, x: Array) -> Array:
        return x - jnp.linalg.solve(jax.jacfwd(force)(x, theta), force(x, theta))

    state = (start, force(start, theta), jnp.asarray(0))
    x, _, _ = jax.lax.while_loop(moving, descend, state)
    x = jax.lax.fori_loop(0, 3, newton, x)
    jacobian = -jnp.linalg.solve(jax.jacfwd(force)(x, theta), jax.jacfwd(force, 1)(x, theta))
    return x, jacobian, force(x, theta)


# ---- instances


@lru_cache(16)
def instance(case: str, seed: int) -> Case:
    """An instance of a case, drawn from a seed, in float64."""
    return CASES[case](seed)


@lru_cache(16)
def truth(case: str, seed: int) -> Solution:
    """The solution of an instance and its Jacobian."""
    return instance(case, seed).truth()


def _ridge(seed: int) -> Ridge:
    inputs, response = regression(seed)
    theta = np.random.default_rng(seed + 1).uniform(*PENALTIES, 20)
    return Ridge(**_normal_equations(inputs, response, theta, theta.max()))


def _lasso(seed: int) -> Lasso:
    inputs, response = regression(seed)
    theta = np.random.default_rng(seed + 1).uniform(*PENALTIES, 20)
    return Lasso(**_normal_equations(inputs, response, theta, 0.0))


def _normal_equations(
    inputs: np.ndarray, response: np.ndarray, theta: np.ndarray, ridge: float
) -> dict[str, Any]:
    gram = inputs.T @ inputs / len(inputs)
    return {
        "start": np.zeros(gram.shape[0]),
        "theta": theta,
        "stepsize": float(1 / (np.linalg.norm(gram, 2) + ridge)),
        "gram": gram,
        "moment": inputs.T @ response / len(inputs),
    }


def _simplex_quadratic(seed: int) -> SimplexQuadratic:
    inputs, _ = regression(seed)
    matrix = inputs.T @ inputs / len(inputs)
    draw = np.random.default_rng(seed + 1)
    # Near the slope at a point inside: about half of the coordinates stay off the boundary.
    theta = matrix @ draw.dirichlet(np.ones(20)) + 0.05 * draw.normal(size=20)
    stepsize = float(1 / np.linalg.norm(matrix, 2))
    return SimplexQuadratic(np.full(20, 0.05), theta, stepsize, matrix)


def _packing(seed: int, spheres: int = 128, ratio: float = 0.6, fraction: float = 0.9) -> Packing:
    small = (np.arange(spheres) % 2).astype(float)
    diameters = np.where(small, ratio, 1.0)
    side = float(np.sqrt(np.sum(np.pi * diameters**2 / 4) / fraction))
    start = np.random.default_rng(seed).uniform(0, side, 2 * spheres)
    first, second = np.triu_indices(spheres, 1)
    return Packing(start, np.array([ratio]), 0.1, (first, second), small, side)


CASES: dict[str, Callable[[int], Case]] = {
    "ridge": _ridge,
    "lasso": _lasso,
    "simplex-qp": _simplex_quadratic,
    "sphere-packing": _packing,
}
