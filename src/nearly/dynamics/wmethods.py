"""Runge-Kutta methods whose stages are filtered by rational operators: no Newton iteration.

With N = (I - gamma h W)^-1 and W about the Jacobian of f, a step is

    k_i = T_i f(y + h sum_j<i a_ij k_j),  T_i = sum_l beta_il N^l,  y+ = y + h sum_i b_i k_i

It costs one Jacobian, one factorisation, and for each of s stages a call of f and p solves. These
are W-methods: they keep their order whatever W is (`msrktase`). Differences from the paper:

- Its coefficients were not at hand. Those here were derived from its order and stability
  conditions: W-order, A- and L-stability, and a small error on the linear equation.
- Error estimates and dense output are ours: other weights of the vectors N^l f_i, which are there
  anyway. Output between steps has the order of the method, and is bounded where the problem is
  stiff, which a Hermite polynomial through f(y) is not.
- Time is treated as one more component of y with its own column of W, as Rosenbrock methods do, so
  that stiff forcing does no harm. It costs a derivative of f with respect to t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Shaped

from nearly.core.errors import InputError
from nearly.dynamics.interpolation import PolynomialInterpolation
from nearly.dynamics.jacobians import Dense, Jacobian
from nearly.dynamics.one_step import OneStep

Row = tuple[float, ...]


@dataclass(frozen=True)
class Tableau:
    """The coefficients of a filtered Runge-Kutta method.

    **Arguments:** `a`, the rows below the diagonal; `b`; `beta`, for each stage the weights of N,
    N^2, …; `gamma`; `order`, 2 or 3.
    """

    a: tuple[Row, ...]
    b: Row
    beta: tuple[Row, ...]
    gamma: float
    order: int

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise InputError(f"gamma {self.gamma} must be positive, such as 0.5")
        if self.order not in (2, 3):
            raise InputError(f"order {self.order} must be 2 or 3")

    @cached_property
    def matrix(self) -> np.ndarray:
        """a as a square matrix."""
        stages = len(self.b)
        return np.array([[*row, *[0.0] * (stages - len(row))] for row in self.a])

    @cached_property
    def moments(self) -> np.ndarray:
        """The linear forms in weights w_il of N^l f_i that W-order prescribes, one a row."""
        stages, powers = np.shape(self.beta)
        a, beta = self.matrix, np.array(self.beta)
        once = np.arange(1, powers + 1)
        one, c = np.ones(stages), a.sum(axis=1)
        first = beta @ once  # tau_1 / gamma
        rows = [np.outer(one, np.ones(powers)), np.outer(one, once), np.outer(c, np.ones(powers))]
        if self.order == 3:
            rows += [
                np.outer(c**2, np.ones(powers)),
                np.outer(a @ c, np.ones(powers)),
                np.outer(c, once),
                np.outer(a @ first, np.ones(powers)),
                np.outer(one, once * (once + 1) / 2),
            ]
        return np.array([row.ravel() for row in rows])

    @cached_property
    def dense(self) -> np.ndarray:
        """Weights [order, stages, powers] of theta, theta^2, … in the dense output.

        Of the solutions of the order conditions at every theta that end with b at 1, the one whose
        weights are least. One condition of order 3 (of a c) is left out, which three stages cannot
        meet between steps: the output errs by O(h^3), as the solution does.
        """
        beta = np.array(self.beta)
        kept = [0, 1, 2] if self.order == 2 else [0, 1, 2, 3, 5, 6, 7]
        values = np.zeros((self.order, len(kept)))
        values[0, 0], values[1, 2] = 1, 1 / 2
        if self.order == 3:
            values[2, 3] = 1 / 3
        weights = values @ np.linalg.pinv(self.moments[kept]).T
        # What is missing at 1 satisfies the homogeneous conditions.
        weights[-1] += self.weights.ravel() - weights.sum(axis=0)
        return weights.reshape(self.order, *beta.shape)

    @cached_property
    def weights(self) -> np.ndarray:
        """Of N^l f_i in the step: [stages, powers]."""
        return np.array(self.b)[:, None] * np.array(self.beta)

    @cached_property
    def error(self) -> np.ndarray:
        """Weights [stages, powers] of the error estimate.

        They are determined by what they shall estimate: the term of order h^2 or h^3 of a linear
        equation's Taylor series for any W, and nothing of a component that is infinitely stiff,
        which the method damps out. (Three stages leave the other term of order h^3 no choice.)
        """
        stages, beta = len(self.b), np.array(self.beta)
        kept = [0, 1, 2] if self.order == 2 else [0, 1, 2, 4, 5, 6, 7]
        values = np.zeros(len(kept) + 1)
        values[2 if self.order == 2 else 3] = 1 / 2 if self.order == 2 else 1 / 6
        # Of N^l f_i only N f_i is left as z -> oo in y' = z y: -1 / gamma times the stage's value.
        damped = np.eye(stages) + self.matrix * beta[:, 0] / self.gamma
        stiff = np.zeros_like(beta)
        stiff[:, 0] = np.linalg.solve(damped, np.ones(stages))
        conditions = np.vstack([self.moments[kept], stiff.ravel()])
        return np.linalg.lstsq(conditions, values)[0].reshape(beta.shape)


def _modified2(gamma: float) -> Tableau:
    """Heun's method: b.tau_1 = 0 and R(oo) = 0 leave beta_11 = 2 + root, beta_21 = 2 - root."""
    root = (2 * gamma**2 - 4 * gamma + 4) ** 0.5
    beta = tuple((x, 1 - x) for x in (2 + root, 2 - root))
    return Tableau(((), (1.0,)), (0.5, 0.5), beta, gamma, 2)


# Nodes 0, .27, .54, and theta and gamma by minimising the error on y' = z y under R(oo) = 0.
_C2, _C3 = 0.27, 0.54
_B3 = (2 - 3 * _C2) / (6 * _C3 * (_C3 - _C2))
_B2 = (3 * _C3 - 2) / (6 * _C2 * (_C3 - _C2))
_GAMMA3 = 0.676960878834351


def _third_order(c2: float, c3: float, theta: Row, gamma: float) -> Tableau:
    """Any Runge-Kutta method of three stages; T_i = I - (I - N)^3 + theta_i N (I - N)^2.

    These have tau_1 = 0 in every stage, and the order is 3 if b.theta = 0.
    """
    b3 = (2 - 3 * c2) / (6 * c3 * (c3 - c2))
    b2 = (3 * c3 - 2) / (6 * c2 * (c3 - c2))
    b = (1 - b2 - b3, b2, b3)
    a32 = 1 / (6 * b3 * c2)
    beta = tuple((3 + x, -3 - 2 * x, 1 + x) for x in theta)
    return Tableau(((), (c2,), (c3 - a32, a32)), b, beta, gamma, 3)


_THETA = (-2.4, -1.8)
_THETA3 = -((1 - _B2 - _B3) * _THETA[0] + _B2 * _THETA[1]) / _B3
MODIFIED3 = _third_order(_C2, _C3, (*_THETA, _THETA3), _GAMMA3)
# The same operator in every stage: Heun's and Kutta's methods, gamma such that R(oo) = 0.
SINGLY2 = Tableau(((), (1.0,)), (0.5, 0.5), ((2.0, -1.0),) * 2, 1.0, 2)
SINGLY3 = _third_order(0.5, 1.0, (0.0, 0.0, 0.0), 1.8796148798)


class RungeKuttaTASE(OneStep, dfx.AbstractAdaptiveSolver[None]):
    """A filtered Runge-Kutta method as a diffrax solver; see `msrktase2` and `msrktase3`.

    **Arguments:** `tableau`; `jacobian`, how W is found and factorised.
    """

    tableau: Tableau = eqx.field(static=True)
    jacobian: Jacobian = Dense()

    term_structure: ClassVar[Any] = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., Any]] = PolynomialInterpolation

    def order(self, terms: Any) -> int:
        """That of the tableau."""
        del terms
        return self.tableau.order

    def advance(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        """One step; the error is that of the embedded method."""
        control, length = terms.contr(t0, t1), t1 - t0
        start, unravel = ravel_pytree(y0)

        def slope(t: Any, y: Array) -> Array:
            return ravel_pytree(terms.vf_prod(t, unravel(y), args, control))[0]

        first, push = jax.linearize(slope, jnp.asarray(t0), start)
        matrix = self.jacobian.matrix(
            lambda v: push(jnp.zeros_like(t0), v), start, t0, y0, args, control
        )
        vectors = self._filtered(slope, first, push, matrix, start, t0, length)
        table = self.tableau
        y1 = unravel(start + _combined(table.weights, vectors))
        error = unravel(_combined(table.error, vectors))
        coefficients = [unravel(_combined(weights, vectors)) for weights in table.dense]
        dense = {"y0": y0, "coefficients": jax.tree.map(lambda *c: jnp.stack(c), *coefficients)}
        return y1, error, dense

    def _filtered(
        self, slope: Any, first: Array, push: Any, matrix: Any, start: Array, t0: Any, length: Any
    ) -> Shaped[Array, "stages powers d"]:
        """h N^l f_i, for all l and i."""
        table = self.tableau
        factors = self.jacobian.factors(matrix, table.gamma)
        forcing = table.gamma * push(jnp.asarray(length), jnp.zeros_like(start))
        vectors: list[Array] = []
        stages: list[Array] = []
        for row, beta in zip(table.a, table.beta, strict=True):
            at = start + sum(x * k for x, k in zip(row, stages, strict=True))
            current = slope(t0 + sum(row) * length, at) if row else first
            powers: list[Array] = []
            for _ in beta:
                current = factors.solve(current + forcing)
                powers.append(current)
            stages.append(jnp.asarray(sum(x * v for x, v in zip(beta, powers, strict=True))))
            vectors.append(jnp.stack(powers))
        return jnp.stack(vectors)


def _combined(weights: np.ndarray, vectors: Shaped[Array, "stages powers d"]) -> Array:
    """Unrolled, for some ten vectors: a product with a matrix would keep XLA from fusing it."""
    pairs = zip(weights.ravel(), vectors.reshape(-1, vectors.shape[-1]), strict=True)
    return jnp.asarray(sum(float(w) * v for w, v in pairs))


def msrktase2(gamma: float = 0.5, jacobian: Jacobian = Dense()) -> RungeKuttaTASE:  # noqa: B008
    """Order 2, two stages of two solves, L-stable, for loose tolerances (`msrktase`).

    **Arguments:** `gamma`, A-stable from 0.41783 on; `jacobian`, such as `Banded(1, 1)`.

    Raises `InputError` for a `gamma` below that.
    """
    if not gamma >= 0.41783:
        raise InputError(f"gamma {gamma}: below 0.41783 the method is not A-stable; 0.5 is good")
    return RungeKuttaTASE(_modified2(gamma), jacobian)


def msrktase3(jacobian: Jacobian = Dense()) -> RungeKuttaTASE:  # noqa: B008
    """Order 3, three stages of three solves, A- and L-stable, for 1e-3 to 1e-6 (`msrktase`)."""
    return RungeKuttaTASE(MODIFIED3, jacobian)


def singly_rktase2(jacobian: Jacobian = Dense()) -> RungeKuttaTASE:  # noqa: B008
    """Order 2 with the same operator in both stages: what `msrktase2` is to improve on."""
    return RungeKuttaTASE(SINGLY2, jacobian)


def singly_rktase3(jacobian: Jacobian = Dense()) -> RungeKuttaTASE:  # noqa: B008
    """Order 3 with the same operator in all stages: what `msrktase3` is to improve on."""
    return RungeKuttaTASE(SINGLY3, jacobian)
