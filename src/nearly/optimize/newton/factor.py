"""A factorised Hessian: every shift, cubic step and lazy reuse of it costs O(d^2).

The factorisation is the eigendecomposition. It is dearer than a Cholesky one (by ten or so) but
done once, and it answers what the methods ask: solve with any shift, say how indefinite the matrix
is, find the root of a cubic model's secular equation. A stand-in for the Hessian that is cheap to
solve with, of rank one say, answers the same questions without any factorisation.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.tally import counted

FACTORISATIONS = "factorisations*"
Vector = Float[Array, " d"]
Scalar = Float[Array, ""]


class Factor(eqx.Module):
    """A symmetric matrix that can be solved with at any shift."""

    @abc.abstractmethod
    def least(self) -> Scalar:
        """The smallest eigenvalue."""

    @abc.abstractmethod
    def solve(self, shift: Scalar, vector: Vector) -> Vector:
        """`(H + shift I)^-1 vector`; directions whose shifted eigenvalue is 0 are left out."""

    @abc.abstractmethod
    def cubic_step(self, constant: Scalar, gradient: Vector, shift: Scalar) -> Vector:
        """The minimiser of `g.h + h.(H + shift)h / 2 + constant |h|^3 / 6`."""


class Eigen(Factor):
    """By eigenvalues, ascending, and eigenvectors in columns."""

    values: Vector
    vectors: Float[Array, "d d"]

    def least(self) -> Scalar:
        return self.values[0]

    def solve(self, shift: Scalar, vector: Vector) -> Vector:
        return self.vectors @ _quotient(self.vectors.T @ vector, self.values + shift)

    def cubic_step(self, constant: Scalar, gradient: Vector, shift: Scalar) -> Vector:
        projected = self.vectors.T @ gradient
        return self.vectors @ _cubic_step(self.values + shift, projected, constant)


class RankOne(Factor):
    """`scale v v^T`, solved with by the Sherman-Morrison formula: O(d), nothing to factorise."""

    scale: Scalar
    vector: Vector

    def least(self) -> Scalar:
        own = self.scale * self.vector @ self.vector
        return own if self.vector.size == 1 else jnp.minimum(own, 0)

    def solve(self, shift: Scalar, vector: Vector) -> Vector:
        own = self.scale * (self.vector @ self.vector)
        along = self.scale * (self.vector @ vector) * self.vector
        return _quotient(vector - along * _quotient(jnp.ones_like(own), shift + own), shift)

    def cubic_step(self, constant: Scalar, gradient: Vector, shift: Scalar) -> Vector:
        # Two eigenvalues: along the vector, and 0 across it. The step lies in the plane of the
        # vector and the gradient.
        size = jnp.linalg.norm(self.vector)
        along = _quotient(self.vector, size)
        inside = along @ gradient
        across = gradient - inside * along
        wide = jnp.linalg.norm(across)
        values = jnp.stack([jnp.zeros_like(size), self.scale * size**2]) + shift
        order = jnp.argsort(values)
        found = _cubic_step(values[order], jnp.stack([wide, inside])[order], constant)
        steps = jnp.zeros_like(found).at[order].set(found)
        return steps[0] * _quotient(across, wide) + steps[1] * along


_eigh = counted(jnp.linalg.eigh, FACTORISATIONS)


def factorise(matrix: Float[Array, "d d"]) -> Eigen:
    """The factor of a dense symmetric matrix. O(d^3), counted as a factorisation."""
    return Eigen(*_eigh(matrix))


def _quotient(above: Array, below: Array) -> Array:
    """A quotient that is 0 where it would divide by 0, with safe derivatives."""
    zero = below == 0
    return jnp.where(zero, 0, above / jnp.where(zero, 1, below))


def _cubic_step(values: Vector, gradient: Vector, constant: Scalar) -> Vector:
    """The cubic step in the eigenbasis: `h = -(values + s)^-1 g` with `s = constant |h| / 2`.

    The secular equation `|h(s)| = 2 s / constant` has one root above `max(0, -values[0])`, found by
    bisection in log s to rounding, which no start can defeat. In the hard case (the gradient has no
    part along the lowest eigenvector and the root would lie below) the step is completed along that
    eigenvector, as the textbooks say.
    """
    floor = jnp.maximum(-values[0], 0)
    norm = jnp.linalg.norm(gradient)
    # With this much above the floor the step is already shorter than the equation asks for.
    top = jnp.sqrt(constant * norm / 2) + jnp.finfo(norm.dtype).tiny

    # Eigenvalues are lifted first: next to the floor, what is added after is tiny.
    lifted = values + floor

    def too_long(excess: Scalar) -> Array:
        length = jnp.linalg.norm(_quotient(gradient, lifted + excess))
        return length * constant > 2 * (floor + excess)

    def halve(_: Any, ends: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        low, high = ends
        middle = jnp.sqrt(low * high)
        long = too_long(middle)
        return jnp.where(long, middle, low), jnp.where(long, high, middle)

    low, high = jax.lax.fori_loop(0, 100, halve, (top * jnp.finfo(norm.dtype).eps ** 2, top))
    excess = jnp.sqrt(low * high)
    step = -_quotient(gradient, lifted + excess)
    lacking = jnp.maximum((2 * (floor + excess) / constant) ** 2 - step @ step, 0)
    hard = (values[0] < 0) & (lacking > 1e-3 * step @ step)
    return step.at[0].add(jnp.where(hard, jnp.sqrt(lacking), 0))


# ---- where a Hessian comes from

Hessian = Callable[[Callable[[Vector], Scalar], Vector, Vector, Any], Factor]


def exact(function: Callable[[Vector], Scalar], at: Vector, gradient: Vector, args: Any) -> Factor:
    """The Hessian by forward-over-reverse differentiation: d products, one factorisation."""
    del gradient, args
    return factorise(jax.hessian(function)(at))


class GaussNewton(eqx.Module):
    """`2 J^T J` for a sum of squares, from the function `(y [d], args) -> residuals`."""

    residuals: Callable[[Vector, Any], Array]

    def __call__(self, function: Any, at: Vector, gradient: Vector, args: Any) -> Factor:
        del function, gradient
        jacobian = jax.jacobian(lambda x: self.residuals(x, args))(at)
        return factorise(2 * jacobian.T @ jacobian)


class Fisher(eqx.Module):
    """The rank-one part of the Hessian of `|u|^p / p`: `(p - 2) / (p f) g g^T`, for p > 2.

    Of the whole, `|u|^(p-2) J^T J + (p - 2) / |u|^p g g^T`, it needs the gradient alone
    (`gradient-normalized-smoothness`). `power` is p; `f` is the value there.
    """

    power: float

    def __call__(self, function: Any, at: Vector, gradient: Vector, args: Any) -> Factor:
        del args
        # |u|^p = p f
        return RankOne(_quotient(jnp.asarray(self.power - 2), self.power * function(at)), gradient)
