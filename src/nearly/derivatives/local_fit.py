"""Derivatives of noisy or piecewise functions by local polynomial fits.

A grid-based neural field, a table or a ReLU network is accurate in its values and useless in its
automatic derivatives: those of the interpolation. A polynomial fitted to samples around x averages
the noise out, and its coefficients are the derivatives (`hybrid-field-derivatives`).

    fit = local_polynomial(field, sobol_stencil(256, 3), sigma=0.02)
    fit(x).gradient, fit(x).hessian, fit(x).curvature

`Smooth(fit)` is the field itself with these as its first two derivatives in all of JAX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from nearly.core.errors import InputError

Field = Callable[[Float[Array, " d"]], Float[Array, ""]]
Offsets = Float[Array, "k d"]

# ------------------------------------------------------------------ stencils


def gaussian_stencil(
    key: Key[Array, ""], points: int, dimension: int, dtype: Any = None
) -> Offsets:
    """Independent normal offsets of unit spread, as in the paper: a new set for every key."""
    return jax.random.normal(key, (points, dimension), dtype or jnp.float32)


def ball_stencil(key: Key[Array, ""], points: int, dimension: int, dtype: Any = None) -> Offsets:
    """Offsets uniform in the ball of radius 1."""
    return jax.random.ball(key, dimension, shape=(points,), dtype=dtype or jnp.float32)


def box_stencil(key: Key[Array, ""], points: int, dimension: int, dtype: Any = None) -> Offsets:
    """Offsets uniform in the box from -1 to 1."""
    kind = dtype or jnp.float32
    return jax.random.uniform(key, (points, dimension), kind, minval=-1, maxval=1)


def sobol_stencil(points: int, dimension: int, dtype: Any = None) -> Offsets:
    """A fixed set of normal offsets: Sobol points, each with its opposite.

    Nothing is random, so the fit is a fixed linear filter; opposites make odd and even
    derivatives independent of each other's errors. Raises `InputError` for an odd number.
    """
    if points % 2 or points < 2:
        raise InputError(f"{points} points do not come in pairs of opposites: give an even number")
    from scipy.stats import norm, qmc

    half = qmc.Sobol(dimension, scramble=True, rng=0).random_base2((points // 2 - 1).bit_length())
    offsets = norm.ppf(half[: points // 2])
    return jnp.asarray(np.concatenate([offsets, -offsets]), dtype or jnp.float32)


# ------------------------------------------------------------------ the fit


class Fitted(eqx.Module):
    """A polynomial fitted around a point, with the spread of what it did not fit.

    - `coefficients`: of 1, z_i, z_i^2/2 and z_i z_j, in z = (y - x)/sigma.
    - `filter`: their dependence on the samples, `noise`: standard deviation of the residuals.
    """

    coefficients: Float[Array, " n"]
    filter: Float[Array, "n k"]
    noise: Float[Array, ""]
    sigma: Float[Array, ""]
    dimension: int = eqx.field(static=True)

    @property
    def value(self) -> Float[Array, ""]:
        """The smoothed value."""
        return self.coefficients[0]

    @property
    def gradient(self) -> Float[Array, " d"]:
        """The first derivatives."""
        return self.coefficients[1 : self.dimension + 1] / self.sigma

    @property
    def hessian(self) -> Float[Array, "d d"]:
        """The second derivatives; raises `InputError` after a fit of degree 1."""
        d = self.dimension
        self._check_degree()
        matrix = jnp.diag(self.coefficients[d + 1 : 2 * d + 1])
        rows, columns = np.array(list(combinations(range(d), 2)), int).reshape(-1, 2).T
        mixed = self.coefficients[2 * d + 1 :]
        return matrix.at[rows, columns].set(mixed).at[columns, rows].set(mixed) / self.sigma**2

    @property
    def laplacian(self) -> Float[Array, ""]:
        """The sum of the second derivatives; raises as `hessian`."""
        self._check_degree()
        return (
            jnp.sum(self.coefficients[self.dimension + 1 : 2 * self.dimension + 1]) / self.sigma**2
        )

    @property
    def curvature(self) -> Float[Array, ""]:
        """The mean curvature of the level set through x, div(n)/(d - 1); raises as `hessian`."""
        g, h = self.gradient, self.hessian
        norm = jnp.linalg.norm(g)
        return (jnp.trace(h) - g @ h @ g / norm**2) / (norm * (self.dimension - 1))

    @property
    def gradient_error(self) -> Float[Array, " d"]:
        """The standard error of each first derivative, if the noise of samples is independent."""
        rows = self.filter[1 : self.dimension + 1]
        return self.noise * jnp.linalg.norm(rows, axis=1) / self.sigma

    @property
    def laplacian_error(self) -> Float[Array, ""]:
        """The standard error of the Laplacian, likewise."""
        self._check_degree()
        rows = self.filter[self.dimension + 1 : 2 * self.dimension + 1]
        return self.noise * jnp.linalg.norm(rows.sum(0)) / self.sigma**2

    def _check_degree(self) -> None:
        if len(self.coefficients) == self.dimension + 1:
            raise InputError("a fit of degree 1 has no second derivatives: fit with degree=2")


class LocalPolynomial(eqx.Module):
    """A field with the stencil on which polynomials are fitted; called with x, a `Fitted`."""

    field: Field
    offsets: Offsets
    filter: Float[Array, "n k"]
    sigma: Float[Array, ""]
    degree: int = eqx.field(static=True)
    inside: Callable[[Any], Any] | None = eqx.field(static=True)

    def __call__(self, x: Float[Array, " d"]) -> Fitted:
        y = x + self.sigma * self.offsets
        if self.inside is None:
            return self._fitted(jax.vmap(self.field)(y), self.filter, len(y))
        kept = jax.vmap(self.inside)(y)
        safe = jnp.where(kept[:, None], y, x)
        basis = jnp.where(kept[:, None], monomials(self.offsets, self.degree), 0)
        found = self._fitted(jax.vmap(self.field)(safe), jnp.linalg.pinv(basis), kept.sum(), kept)
        enough = kept.sum() >= basis.shape[1]
        return jax.tree.map(lambda leaf: jnp.where(enough, leaf, jnp.nan), found)

    def _fitted(
        self,
        samples: Float[Array, " k"],
        filters: Float[Array, "n k"],
        count: Any,
        kept: Bool[Array, " k"] | None = None,
    ) -> Fitted:
        # One value is taken off all: the fit is exact for constants, and in float32 a large one
        # would drown the differences that derivatives are made of.
        middle = samples[0]
        coefficients = filters @ (samples - middle)
        residuals = samples - middle - monomials(self.offsets, self.degree) @ coefficients
        if kept is not None:
            residuals = jnp.where(kept, residuals, 0)
        freedom = jnp.maximum(count - len(coefficients), 1)
        noise = jnp.sqrt(jnp.sum(residuals**2) / freedom)
        first = jnp.zeros_like(coefficients).at[0].set(middle)
        return Fitted(coefficients + first, filters, noise, self.sigma, self.offsets.shape[1])


def local_polynomial(
    field: Field,
    offsets: Offsets,
    sigma: float | Float[Array, ""],
    *,
    degree: int = 2,
    inside: Callable[[Any], Any] | None = None,
) -> LocalPolynomial:
    """Fit polynomials to a field around any point (`hybrid-field-derivatives`).

    **Arguments:**

    - `offsets`: where to sample, in units of sigma: 256 of `gaussian_stencil` in the paper;
      `sobol_stencil` gives a fixed filter of less error.
    - `sigma`: the size of the stencil, in the units of x; near the grid's cell. `choose_sigma`
      finds it from the field.
    - `degree`: 1 for gradients, 2 for those and second derivatives (and less bias in gradients).
    - `inside`: x -> bool; samples outside the domain are left out. A point with too few samples
      inside gives NaN.

    **Returns:** a module x -> `Fitted`: value, gradient, Hessian, Laplacian, curvature and
    standard errors. To be jitted, mapped and differentiated.

    Raises `InputError` for a degree other than 1 and 2, a sigma that is not positive, and fewer
    offsets than coefficients.

    Cost: one evaluation of the field per offset and one product of a matrix with the samples. The
    published code solves normal equations in raw coordinates, which in float32 fails for a small
    sigma; here coordinates are centred and scaled, and the pseudo-inverse is computed once.
    """
    if degree not in (1, 2):
        raise InputError(f"degree {degree} must be 1 or 2")
    if isinstance(sigma, (int, float)) and not sigma > 0:
        raise InputError(f"sigma {sigma} must be positive, near the size of a grid cell")
    basis = monomials(offsets, degree)
    if basis.shape[0] < basis.shape[1]:
        raise InputError(
            f"{basis.shape[0]} samples cannot determine the {basis.shape[1]} coefficients of "
            f"degree {degree} in {offsets.shape[1]} dimensions: take more offsets or degree 1"
        )
    size = jnp.asarray(sigma, offsets.dtype)
    return LocalPolynomial(field, offsets, jnp.linalg.pinv(basis), size, degree, inside)


def monomials(offsets: Offsets, degree: int) -> Float[Array, "k n"]:
    """1, z_i and, of degree 2, z_i^2/2 and z_i z_j for i < j, in this order, at each offset."""
    columns = [jnp.ones_like(offsets[:, :1]), offsets]
    if degree == 2:
        pairs = list(combinations(range(offsets.shape[1]), 2))
        columns.append(offsets**2 / 2)
        columns += [(offsets[:, i] * offsets[:, j])[:, None] for i, j in pairs]
    return jnp.concatenate(columns, axis=1)


# ------------------------------------------------------------------ as a differentiable function


class Smooth(eqx.Module):
    """The field itself, with fitted first and second derivatives in place of automatic ones.

    Drops into any code that differentiates in x, forward or reverse. Derivatives in the field's
    own parameters stay automatic. Raises `InputError` on second derivatives of a fit of degree 1.
    """

    fit: LocalPolynomial

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        return _value(self.fit, x)


@eqx.filter_custom_jvp
def _value(fit: Any, x: Any) -> Any:
    return fit.field(x)


@_value.def_jvp
def _value_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (fit, x), (fit_dot, x_dot) = primals, tangents
    tangent = jnp.zeros((), x.dtype) if x_dot is None else jnp.vdot(_gradient(fit, x), x_dot)
    value, moved = _value(fit, x), _moved(lambda f: f.field(x), fit, fit_dot)
    return value, tangent if moved is None else tangent + moved


@eqx.filter_custom_jvp
def _gradient(fit: Any, x: Any) -> Any:
    return fit(x).gradient


@_gradient.def_jvp
def _gradient_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (fit, x), (fit_dot, x_dot) = primals, tangents
    fitted = fit(x)
    tangent = jnp.zeros_like(x) if x_dot is None else fitted.hessian @ x_dot
    moved = _moved(lambda f: f(x).gradient, fit, fit_dot)
    return fitted.gradient, tangent if moved is None else tangent + moved


def _moved(function: Callable[[Any], Any], fit: Any, fit_dot: Any) -> Any:
    """The tangent that moving parameters cause; None if none move."""
    if not jax.tree.leaves(fit_dot):
        return None
    return eqx.filter_jvp(function, (fit,), (fit_dot,))[1]


# ------------------------------------------------------------------ the size of the stencil


def choose_sigma(
    field: Field,
    points: Float[Array, "m d"],
    offsets: Offsets,
    sigmas: Sequence[float],
    *,
    degree: int = 2,
    cell: float = 0.0,
    strictness: float = 2.0,
) -> float:
    """The size of stencil that suits a field, by Lepski's rule on gradients at some points.

    **Arguments:**

    - `sigmas`: sizes to choose from, in increasing order, not below the cell.
    - `cell`: the length over which errors of the field are alike, such as the grid's cell; 0 if
      samples are independently noisy. Within a cell more samples do not average anything out.
    - `strictness`: how many standard errors may lie between the estimates of two sizes.

    **Returns:** the median over the points of the largest size whose gradient agrees with those of
    all smaller sizes: beyond it bias, as sigma^2, exceeds noise, as 1/sigma.

    Raises `InputError` if the sizes are not increasing. Costs a fit for every size and point.
    """
    if list(sigmas) != sorted(set(sigmas)):
        raise InputError(f"sigmas {list(sigmas)} must increase")
    gradients, errors = [], []
    for sigma in sigmas:
        fit = jax.jit(jax.vmap(local_polynomial(field, offsets, sigma, degree=degree)))(points)
        gradients.append(np.asarray(jax.vmap(lambda f: f.gradient)(fit), np.float64))
        single = np.asarray(jax.vmap(lambda f: f.gradient_error)(fit), np.float64)
        errors.append(np.linalg.norm(single, axis=1) * _inflation(sigma, cell, offsets.shape))
    at_points = zip(np.stack(gradients, axis=1), np.stack(errors, axis=1), strict=True)
    chosen = [_lepski(g, e, strictness) for g, e in at_points]
    return float(sigmas[int(np.median(chosen))])


def _inflation(sigma: float, cell: float, shape: tuple[int, ...]) -> float:
    """How much larger errors are as only so many cells meet in the stencil, 4 sigma wide."""
    points, dimension = shape
    cells = (1 + 4 * sigma / cell) ** dimension if cell else math.inf
    return math.sqrt(points / min(points, cells))


def _lepski(gradients: np.ndarray, errors: np.ndarray, strictness: float) -> int:
    for larger in range(1, len(gradients)):
        apart = np.linalg.norm(gradients[larger] - gradients[:larger], axis=1)
        if np.any(apart > strictness * (errors[larger] + errors[:larger])):
            return larger - 1
    return len(gradients) - 1
