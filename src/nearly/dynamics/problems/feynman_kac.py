"""`FeynmanKac`: values of a parabolic equation with variable exponents at a few points."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from nearly.core.errors import InputError, UnknownName
from nearly.core.problem import Host, Problem
from nearly.core.store import Store, digest_of, source_digest
from nearly.dynamics.feynman_kac import (
    UPDATES,
    Bump,
    Killing,
    VariableExponents,
)

DEGREES = (96, 144)  # of the polynomials of the truth: the difference is its uncertainty
REACH = (8.0, 9.0)  # standard deviations that their intervals go beyond the points


class FeynmanKac(Problem):
    """Find u at some points at the horizon, by a grid or by an expectation.

    A method (protocol `feynman-kac-solvers`) is a builder `(equation, dial, *, key) -> solver`, see
    `nearly.dynamics.feynman_kac`. The dial is the number of intervals of a grid or of paths of a
    mean; a method may say its own `dials`, and that it is not `random`.

    The error is the largest over the points. Work is counted in updates: one node of a grid
    advanced by one step, or one path.

    The truth is spectral and knows neither: polynomials on Chebyshev nodes in ln x, exact in time
    by a matrix exponential, of two degrees on two intervals, whose difference is its uncertainty.

    **Arguments:** `equation`; `points`, where u is asked for, x > 0.
    """

    equation: VariableExponents
    points: tuple[float, ...] = (0.5, 1.0, 2.0)
    name: str = "feynman-kac"
    dtype: str = "float64"
    error_name: ClassVar[str] = "largest error"
    work_name: ClassVar[str] = UPDATES
    protocol: ClassVar[str] = "feynman-kac-solvers"

    def __check_init__(self) -> None:
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"dtype {self.dtype!r} must be float32 or float64")
        if not self.points or min(self.points) <= 0:
            raise InputError(f"points {self.points} must be positive numbers")

    def dials(self, method: Any) -> Sequence[int]:
        return getattr(method, "dials", (2**8, 2**10, 2**12, 2**14))

    def random(self, method: Any) -> bool:
        return getattr(method, "random", True)

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        if not callable(method):
            raise InputError(
                f"a {type(method).__name__} is no method here: give a builder "
                "(equation, dial, *, key) -> solver"
            )
        return method(self.equation, int(dial), key=key)

    def apply(self, standin: Any, *, key: Any) -> Any:
        """The values at the points, [points]."""
        if isinstance(standin, Host):
            return standin(np.asarray(self.points), key=key)
        return standin(jnp.asarray(self.points, self.dtype), key=key)

    def truth(self) -> Mapping[str, np.ndarray]:
        """`values` at the points and their `uncertainty`, kept in the store."""
        digest = digest_of("spectral truth", source_digest(), dataclasses.replace(self, name=""))
        compute = self._found
        return compute() if digest is None else Store().truth(digest, compute)

    def _found(self) -> Mapping[str, np.ndarray]:
        rough, fine = (
            spectral(self.equation, np.asarray(self.points), degree, reach)
            for degree, reach in zip(DEGREES, REACH, strict=True)
        )
        return {"values": fine, "uncertainty": np.max(np.abs(fine - rough))}

    def floor(self) -> float:
        return max(float(self.truth()["uncertainty"]), 1e-13)

    def errors(self, value: Any) -> Mapping[str, float]:
        gaps = np.abs(np.asarray(value, np.float64) - self.truth()["values"])
        return {"largest error": float(np.max(gaps)), "mean error": float(np.mean(gaps))}


def spectral(
    equation: VariableExponents, points: np.ndarray, degree: int, reach: float
) -> np.ndarray:
    """u at the horizon at some x, by collocation in ln x and the exponential of its matrix.

    **Arguments:** `degree` of the polynomials; `reach`: standard deviations `sigma sqrt(T)` that
    their interval goes beyond the points, with zero slope at its ends.

    Cost: `degree^3`. The error falls exponentially with the degree for analytic coefficients.
    """
    from scipy.interpolate import BarycentricInterpolator
    from scipy.linalg import expm

    logs = np.log(points)
    margin = reach * equation.volatility * equation.horizon**0.5
    margin += 2 * abs(equation.drift) * equation.horizon
    low, high = logs.min() - margin, logs.max() + margin
    nodes = np.cos(np.pi * np.arange(degree + 1) / degree)
    slope = _differentiation(nodes) * 2 / (high - low)
    s = low + (nodes + 1) / 2 * (high - low)
    with jax.enable_x64(True):
        parts = _on_nodes(equation, jnp.asarray(s))
    start, diffusion, drift, potential = (np.asarray(part)[:, None] for part in parts)
    generator = diffusion**2 / 2 * (slope @ slope) + drift * slope - np.diag(potential[:, 0])
    # Zero slope at both ends says what the values there are, given those inside.
    ends, inside = np.array([0, degree]), np.arange(1, degree)
    lift = -np.linalg.solve(slope[ends][:, ends], slope[ends][:, inside])
    reduced = generator[inside][:, inside] + generator[inside][:, ends] @ lift
    values = np.empty(degree + 1)
    values[inside] = expm(equation.horizon * reduced) @ start[inside, 0]
    values[ends] = lift @ values[inside]
    order = np.random.default_rng(0).permutation(degree + 1)  # products of its weights overflow
    return BarycentricInterpolator(s[order], values[order])(logs)


@eqx.filter_jit
def _on_nodes(equation: VariableExponents, s: Array) -> tuple[Array, ...]:
    return jax.vmap(equation.initial)(jnp.exp(s)), *jax.vmap(equation.coefficients)(s)


def _differentiation(nodes: np.ndarray) -> np.ndarray:
    """The matrix that differentiates polynomials given at Chebyshev nodes."""
    count = len(nodes)
    scale = np.ones(count)
    scale[[0, -1]] = 2
    scale *= (-1.0) ** np.arange(count)
    gaps = nodes[:, None] - nodes + np.eye(count)
    matrix = np.outer(scale, 1 / scale) / gaps
    return matrix - np.diag(matrix.sum(axis=1))


EQUATIONS: Mapping[str, VariableExponents] = {
    "lognormal": VariableExponents(),
    "exponent-bump": VariableExponents(
        drift_exponent=Bump(0.3), volatility_exponent=Bump(0.3), potential=Killing(0.03, 1.0)
    ),
    "exponent-dip": VariableExponents(
        drift_exponent=Bump(0.5, 0.4),
        volatility_exponent=Bump(-0.4, 0.2, 0.8),
        potential=Killing(0.03, 1.0),
    ),
    "exponent-wide": VariableExponents(
        drift_exponent=Bump(-0.3, 0.0, 2.0),
        volatility_exponent=Bump(0.5, 0.0, 2.0),
        potential=Killing(0.03, 1.0),
    ),
}


def feynman_kac(case: str = "exponent-bump", dtype: str = "float64") -> FeynmanKac:
    """A named equation; `lognormal` has p = q = 1 and a constant V.

    Raises `UnknownName` for another case.
    """
    if case not in EQUATIONS:
        raise UnknownName("equation with variable exponents", case, EQUATIONS)
    return FeynmanKac(equation=EQUATIONS[case], name=f"feynman-kac-{case}", dtype=dtype)
