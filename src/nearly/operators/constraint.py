"""Hard constraints: a last layer that solves the equation, on the whole grid or block by block.

A network draws N basis fields b_i(x, t); the layer finds the weights w for which u = sum_i w_i b_i
fits the equation and its conditions best, by nonlinear least squares, and gradients pass through
the solution by the implicit function theorem. An expert does so on one block of the grid with
weights of its own: smaller problems, more freedom, and a jump wherever two blocks meet.

Derivatives are taken of the basis on the whole grid, before it is cut into blocks: they are linear
in w, so those of u follow by combining them, and stencils reach across the seams.
"""

from __future__ import annotations

import abc
import math
from functools import lru_cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int

from nearly.core.errors import InputError


class Terms(NamedTuple):
    """A field on a grid of space and time and its derivatives, each `[..., x, t]`."""

    value: Any
    x: Any
    xx: Any
    t: Any


class SpaceTimeEquation(eqx.Module):
    """An equation on [0, 1] x [0, 1] in x and t, its conditions included, as residuals.

    Subclasses define both residuals pointwise in JAX; they must be smooth in the terms.
    """

    @abc.abstractmethod
    def interior(self, terms: Terms) -> Float[Array, "*points"]:
        """The residual of the equation at points."""

    @abc.abstractmethod
    def conditions(
        self, left: Terms, right: Terms, first: Terms, initial: Float[Array, " x"]
    ) -> Float[Array, " conditions"]:
        """The residuals of the conditions at x = 0 and x = 1 (over t), and at t = 0 (over x)."""


class NonlinearDiffusion(SpaceTimeEquation):
    """u_t = diffusion / R(u) u_xx with R(u) = 1 + retardation u^(power - 1).

    At the ends u(0, t) = 1 and u_x(1, t) = 0. Solute in a soil that adsorbs it. The defaults are
    those of the usual benchmark of diffusion-sorption with its 500 units of time scaled to 1. Below
    `floor` the concentration is taken to be that, before the power is: its derivative is infinite
    at 0.
    """

    diffusion: float = 0.25
    retardation: float = 2.157
    power: float = 0.874
    floor: float = 1e-6

    def __check_init__(self) -> None:
        if self.diffusion <= 0 or self.retardation < 0 or self.floor <= 0:
            raise InputError(
                f"diffusion={self.diffusion} and floor={self.floor} must be positive, "
                f"retardation={self.retardation} not negative"
            )

    def rate(self, value: Any) -> Any:
        """diffusion / R(u)."""
        bounded = jnp.maximum(value, self.floor)
        return self.diffusion / (1 + self.retardation * bounded ** (self.power - 1))

    def interior(self, terms: Terms) -> Float[Array, "*points"]:
        return terms.t - self.rate(terms.value) * terms.xx

    def conditions(
        self, left: Terms, right: Terms, first: Terms, initial: Float[Array, " x"]
    ) -> Float[Array, " conditions"]:
        return jnp.concatenate([left.value - 1, right.x, first.value - initial])


# ---- derivatives on the grid


def differentiated(fields: Float[Array, "*fields x t"]) -> Terms:
    """Fields on a grid of points i / (n - 1) with both ends, and their differences of order 2."""
    across, along = fields.shape[-2:]
    first, second = _differences(across)
    time, _ = _differences(along)

    def on_x(matrix: np.ndarray) -> Array:
        return jnp.einsum("ij,...jt->...it", jnp.asarray(matrix, fields.dtype), fields)

    in_t = jnp.einsum("ij,...xj->...xi", jnp.asarray(time, fields.dtype), fields)
    return Terms(value=fields, x=on_x(first), xx=on_x(second), t=in_t)


@lru_cache(32)
def _differences(points: int) -> tuple[np.ndarray, np.ndarray]:
    """First and second differences on [0, 1], of second order at the ends too."""
    if points < 4:
        raise InputError(f"a grid of {points} points is too coarse: at least 4 along each axis")
    step = 1 / (points - 1)
    first, second = np.zeros((points, points)), np.zeros((points, points))
    for i in range(1, points - 1):
        first[i, i - 1 : i + 2] = [-0.5, 0, 0.5]
        second[i, i - 1 : i + 2] = [1, -2, 1]
    first[0, :3], second[0, :4] = [-1.5, 2, -0.5], [2, -5, 4, -1]
    first[-1, -3:], second[-1, -4:] = [0.5, -2, 1.5], [-1, 4, -5, 2]
    return first / step, second / step**2


# ---- the layer


class Constrained(eqx.Module):
    """What the layer found.

    **Attributes:**

    - `terms`: u and its derivatives on the grid, `[x, t]` each.
    - `weights`: of the basis, one row for each expert: `[experts, N]`.
    - `failed`: which experts' solves did not converge; their last weights are used all the same.
    - `steps`: of each solve. `jump`: the largest difference of two experts where their blocks meet.
    """

    terms: Terms
    weights: Float[Array, "experts basis"]
    failed: Bool[Array, " experts"]
    steps: Int[Array, " experts"]
    jump: Float[Array, ""]


class HardConstraint(eqx.Module):
    """Basis fields to the best solution in their span, on each block of a grid.

    **Arguments:**

    - `equation`: what to satisfy.
    - `blocks`: into how many parts x and t are cut. (1, 1) is one constraint for all; the paper's
      mixture of experts cuts space into 4 and leaves time whole, (4, 1). Every expert is given all
      of the conditions. Cut time, and the later experts do not know what they begin with.
    - `damping`: |damping w|^2 is added, which keeps the problem well posed.
    - `tolerance`: relative and absolute, of Levenberg-Marquardt. `max_steps`: of it.

    **Called** with a basis `[N, x, t]` and the initial values `[x]`: `Constrained`. Its gradients
    are those of the exact minimiser (implicit function theorem).

    **Raises:** `InputError` for a grid that the blocks do not divide. A solve that does not
    converge does not raise: look at `failed`. In float32 such solves stall: use float64.

    **Cost:** a step of a solve: N products with derivatives and N^2 (points + conditions).
    Paper: `pi-hc-moe`. Differs in that all points of the grid are used, not a random sample.
    """

    equation: SpaceTimeEquation
    blocks: tuple[int, int] = eqx.field(static=True, default=(1, 1))
    damping: float = eqx.field(static=True, default=1e-4)
    tolerance: float = eqx.field(static=True, default=1e-4)
    max_steps: int = eqx.field(static=True, default=100)

    def __check_init__(self) -> None:
        if min(self.blocks) < 1 or self.max_steps < 1:
            raise InputError(
                f"blocks={self.blocks} and max_steps={self.max_steps} must be at least 1"
            )
        if self.damping <= 0 or self.tolerance <= 0:
            raise InputError(
                f"damping={self.damping} and tolerance={self.tolerance} must be positive"
            )

    @property
    def experts(self) -> int:
        return math.prod(self.blocks)

    def __call__(self, basis: Float[Array, "N x t"], initial: Float[Array, " x"]) -> Constrained:
        terms = differentiated(basis)
        edges = at_edges(terms)
        blocks = jax.tree.map(self._cut, terms)
        solve = jax.vmap(self._solve, in_axes=(0, None, None))
        weights, failed, steps = solve(blocks, edges, initial)
        found = jax.tree.map(self._joined, jax.vmap(_combined)(weights, blocks))
        return Constrained(found, weights, failed, steps, self._jump(weights, basis))

    def residuals(self, weights: Float[Array, " N"], given: Any) -> Float[Array, " residuals"]:
        """What a solve makes small: of (the basis's terms on a block, at the edges, the start)."""
        block, edges, initial = given
        inside = self.equation.interior(_combined(weights, block)).ravel()
        left, right, first = (_combined(weights, edge) for edge in edges)
        outside = self.equation.conditions(left, right, first, initial)
        return jnp.concatenate([inside, outside, self.damping * weights])

    def _solve(self, block: Terms, edges: Any, initial: Any) -> tuple[Any, Any, Any]:
        found = optx.least_squares(
            self.residuals,
            # Many equations, few unknowns: the normal equations are some ten times cheaper than
            # a QR of all rows, and the damping bounds their condition.
            optx.LevenbergMarquardt(
                rtol=self.tolerance, atol=self.tolerance, linear_solver=lx.Normal(lx.Cholesky())
            ),
            jnp.zeros(block.value.shape[0], block.value.dtype),
            (block, edges, initial),
            max_steps=self.max_steps,
            throw=False,
        )
        failed = found.result != optx.RESULTS.successful
        return found.value, failed, found.stats["num_steps"]

    def _cut(self, fields: Float[Array, "N x t"]) -> Float[Array, "experts N bx bt"]:
        count, across, along = fields.shape
        rows, columns = self.blocks
        if across % rows or along % columns:
            raise InputError(
                f"blocks={self.blocks} do not divide the grid {[across, along]}: change either"
            )
        cut = fields.reshape(count, rows, across // rows, columns, along // columns)
        return cut.transpose(1, 3, 0, 2, 4).reshape(-1, count, across // rows, along // columns)

    def _joined(self, blocks: Float[Array, "experts bx bt"]) -> Float[Array, "x t"]:
        _, across, along = blocks.shape
        rows, columns = self.blocks
        grid = blocks.reshape(rows, columns, across, along).transpose(0, 2, 1, 3)
        return grid.reshape(rows * across, columns * along)

    def _jump(
        self, weights: Float[Array, "experts N"], basis: Float[Array, "N x t"]
    ) -> Float[Array, ""]:
        """The largest |difference| of neighbouring experts along the first line past their seam."""
        rows, columns = self.blocks
        by_block = weights.reshape(rows, columns, -1)
        across, along = basis.shape[1] // rows, basis.shape[2] // columns
        largest = jnp.zeros((), basis.dtype)
        for i in range(rows):
            for j in range(columns):
                x, t = slice(i * across, (i + 1) * across), slice(j * along, (j + 1) * along)
                if i:
                    line = basis[:, i * across, t]
                    largest = jnp.maximum(largest, _gap(by_block[i, j] - by_block[i - 1, j], line))
                if j:
                    line = basis[:, x, j * along]
                    largest = jnp.maximum(largest, _gap(by_block[i, j] - by_block[i, j - 1], line))
        return largest


def _gap(difference: Array, line: Float[Array, "N points"]) -> Array:
    return jnp.max(jnp.abs(difference @ line))


def _combined(weights: Float[Array, " N"], terms: Terms) -> Terms:
    return jax.tree.map(lambda field: jnp.tensordot(weights, field, 1), terms)


def at_edges(terms: Terms) -> tuple[Terms, Terms, Terms]:
    """The terms at x = 0, at x = 1, and at t = 0."""
    left = jax.tree.map(lambda f: f[..., 0, :], terms)
    right = jax.tree.map(lambda f: f[..., -1, :], terms)
    return left, right, jax.tree.map(lambda f: f[..., :, 0], terms)


# ---- operators


class ConstrainedOperator(eqx.Module):
    """Initial values to the solution in space and time, through basis fields and a constraint.

    **Arguments:** `network`: `[1, x, t] -> [N, x, t]`, given the initial values along every time;
    `constraint`: the layer.
    """

    network: Any
    constraint: HardConstraint

    def __call__(self, field: Float[Array, "1 x t"], key: Any = None) -> Float[Array, "1 x t"]:
        return self.solved(field).terms.value[None]

    def solved(self, field: Float[Array, "1 x t"]) -> Constrained:
        """The solution with its derivatives, and how the experts fared."""
        return self.constraint(self.network(field), field[0, :, 0])


def physics_loss(
    equation: SpaceTimeEquation, terms: Terms, initial: Float[Array, " x"]
) -> Float[Array, ""]:
    """Mean squared residual of the equation plus that of its conditions: nothing is labelled."""
    inside = equation.interior(terms)
    left, right, first = at_edges(terms)
    outside = equation.conditions(left, right, first, initial)
    return jnp.mean(inside**2) + jnp.mean(outside**2)


def constrained_loss(model: ConstrainedOperator, field: Float[Array, "1 x t"]) -> Float[Array, ""]:
    """`physics_loss` of what the layer hands out; derivatives are those of the experts' bases."""
    equation = model.constraint.equation
    return physics_loss(equation, model.solved(field).terms, field[0, :, 0])


def soft_loss(
    equation: SpaceTimeEquation, network: Any, field: Float[Array, "1 x t"]
) -> Float[Array, ""]:
    """`physics_loss` of a network's own output: the soft constraint, without a layer."""
    return physics_loss(equation, differentiated(network(field)[0]), field[0, :, 0])
