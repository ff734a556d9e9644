"""Roots of symmetric positive definite matrices by products and solves (`fast-matrix-square-root`).

A^(1/p) and A^(-1/p) of one matrix or a batch, without an eigendecomposition: polynomials and
rationals (`TaylorRoot`, `PadeRoot`) and iterations (`NewtonSchulzRoot`, `NewtonRoot`), with the
exact `EighRoot` beside them. All share one derivative, which solves the equation that the root
satisfies instead of differentiating how it was computed: finite where eigenvalues coincide (there
`jnp.linalg.eigh`'s is not), of any order, forward and reverse.

What is approximated is wrong beyond some condition number, silently: `condition_limit` says where
for a method, `root_error` measures it for a result, `checked_root` raises.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.linear.lyapunov import Lyapunov, converged_lyapunov, solve_power_equation

Scale = Callable[[Array], Array]  # a batch of matrices -> a positive number for each


def frobenius_norm(matrix: Float[Array, "*batch n n"]) -> Float[Array, "*batch"]:
    """|A|_F, the paper's scale: never below the largest eigenvalue, up to sqrt(n) above it."""
    return jnp.linalg.norm(matrix, axis=(-2, -1))


def spectral_norm(matrix: Float[Array, "*batch n n"]) -> Float[Array, "*batch"]:
    """The largest eigenvalue, from below, by 16 steps of the power method. O(n^2)."""

    def step(_: Any, vector: Array) -> Array:
        image = (matrix @ vector[..., None])[..., 0]
        return image / jnp.linalg.norm(image, axis=-1, keepdims=True)

    vector = jax.lax.fori_loop(0, 16, step, jnp.linalg.norm(matrix, axis=-1))
    return jnp.linalg.norm((matrix @ vector[..., None])[..., 0], axis=-1)


def geometric_mean(matrix: Float[Array, "*batch n n"]) -> Float[Array, "*batch"]:
    """det(A)^(1/n), by Cholesky: n^3/3 flops.

    With it a Padé root errs alike at both ends of the spectrum, so that its error at condition
    number k is what it would be at sqrt(k) with the spectral norm.
    """
    factor = jnp.linalg.cholesky(matrix)
    diagonal = jnp.diagonal(factor, axis1=-2, axis2=-1)
    return jnp.exp(2 * jnp.mean(jnp.log(diagonal), axis=-1))


class AbstractRoot(eqx.Module):
    """A method for A^(1/root), root a whole number that is not 0: -2 is the inverse square root.

    A subclass gives `of_scaled`, the root of matrices whose scale is 1. The dial of a problem
    replaces the field that `dial` names by one of `dials`.

    **Arguments** of all of them, by keyword:

    - `scale`: what a matrix is divided by first: `frobenius_norm`, `spectral_norm`,
      `geometric_mean`, or any function of a batch.
    - `lyapunov`: how the derivative's equation is solved: `converged_lyapunov`, or
      `fixed_lyapunov` for the published eight steps.
    """

    scale: Scale = eqx.field(default=frobenius_norm, static=True, kw_only=True)
    lyapunov: Lyapunov = eqx.field(default=converged_lyapunov, static=True, kw_only=True)
    dial: eqx.AbstractClassVar[str]
    dials: eqx.AbstractClassVar[tuple[Any, ...]]

    @abstractmethod
    def of_scaled(self, matrix: Float[Array, "*batch n n"], root: int) -> Array:
        """X^(1/root) where the scale of X is 1."""

    def __call__(
        self, matrix: Float[Array, "*batch n n"], root: int = 2
    ) -> Float[Array, "*batch n n"]:
        """A^(1/root) of symmetric positive definite matrices; their antisymmetric part is dropped.

        Raises `InputError` for a root that the method cannot take.
        """
        if root == 0:
            raise InputError("root 0 is no power: use 2 for A^(1/2), -2 for its inverse")
        return _root(self, root)(0.5 * (matrix + jnp.swapaxes(matrix, -2, -1)))

    def at(self, dial: Any) -> AbstractRoot:
        """This method at another setting of its dial."""
        return replace(self, **{self.dial: dial}) if self.dial else self

    def unchecked(self, matrix: Array, root: int) -> Array:
        """The root, differentiated by tracing through whatever computes it."""
        factor = jax.lax.stop_gradient(self.scale(matrix))[..., None, None]
        return factor ** (1 / root) * self.of_scaled(matrix / factor, root)


def _root(method: AbstractRoot, root: int) -> Callable[[Array], Array]:
    """The root as a function whose derivative solves sum_k Y^k dY Y^(p-1-k) = d(Y^p)."""

    @jax.custom_jvp
    def apply(matrix: Array) -> Array:
        return method.unchecked(matrix, root)

    @apply.defjvp
    def push(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        (matrix,), (tangent,) = primals, tangents
        value = apply(matrix)
        power = tangent
        if root < 0:  # Y^p = A^-1, so d(Y^p) = -A^-1 dA A^-1
            inverse = _power(value, -root)
            power = -inverse @ tangent @ inverse
        return value, solve_power_equation(value, power, abs(root), method.lyapunov)

    return apply


class TaylorRoot(AbstractRoot):
    """The Taylor polynomial of (1 - z)^(1/p) at Z = I - A/scale (MTP).

    `degree` - 1 products. Its error at the smallest eigenvalue falls as its power `degree`:
    enough for condition numbers of a few tens.
    """

    degree: int = eqx.field(default=10, static=True)
    dial: ClassVar[str] = "degree"
    dials: ClassVar[tuple[int, ...]] = (2, 4, 6, 8, 10, 14, 20)

    def __check_init__(self) -> None:
        _positive("degree", self.degree)

    def of_scaled(self, matrix: Float[Array, "*batch n n"], root: int) -> Array:
        return _polynomial(taylor_coefficients(root, self.degree), _identity(matrix) - matrix)


class PadeRoot(AbstractRoot):
    """The diagonal Padé approximant of (1 - z)^(1/p) at Z = I - A/scale (MPA).

    `degree` - 1 products and one solve. Numerator and denominator share the powers of Z.
    """

    degree: int = eqx.field(default=5, static=True)
    dial: ClassVar[str] = "degree"
    dials: ClassVar[tuple[int, ...]] = (1, 2, 3, 4, 5, 6, 8)

    def __check_init__(self) -> None:
        _positive("degree", self.degree)

    def of_scaled(self, matrix: Float[Array, "*batch n n"], root: int) -> Array:
        numerator, denominator = pade_coefficients(root, self.degree)
        powers = _powers(_identity(matrix) - matrix, self.degree)
        return jnp.linalg.solve(_combine(denominator, powers), _combine(numerator, powers))


class NewtonSchulzRoot(AbstractRoot):
    """The coupled Newton-Schulz iteration: A^(1/2) and A^(-1/2) by three products a step.

    Converges quadratically, once the smallest scaled eigenvalue, which grows by 9/4 a step, is
    near 1. Raises `InputError` for other roots.
    """

    steps: int = eqx.field(default=5, static=True)
    dial: ClassVar[str] = "steps"
    dials: ClassVar[tuple[int, ...]] = (2, 3, 5, 8, 12, 16)

    def __check_init__(self) -> None:
        _positive("steps", self.steps)

    def of_scaled(self, matrix: Float[Array, "*batch n n"], root: int) -> Array:
        if abs(root) != 2:
            raise InputError(f"Newton-Schulz takes root 2 or -2, not {root}: use NewtonRoot")
        value, inverse = matrix, _identity(matrix)
        for _ in range(self.steps):
            step = 1.5 * _identity(matrix) - 0.5 * inverse @ value
            value, inverse = value @ step, step @ inverse
        return value if root > 0 else inverse


class NewtonRoot(AbstractRoot):
    """The coupled Newton iteration for A^(-1/p), any p, as in Shampoo.

    About log2(p) + 3 products a step; A^(1/p) is A times the (p-1)-th power of the inverse root.
    """

    steps: int = eqx.field(default=10, static=True)
    dial: ClassVar[str] = "steps"
    dials: ClassVar[tuple[int, ...]] = (2, 5, 10, 15, 20, 30)

    def __check_init__(self) -> None:
        _positive("steps", self.steps)

    def of_scaled(self, matrix: Float[Array, "*batch n n"], root: int) -> Array:
        order, identity = abs(root), _identity(matrix)
        inverse, rest = identity, matrix
        for _ in range(self.steps):
            step = ((order + 1) * identity - rest) / order
            inverse, rest = inverse @ step, _power(step, order) @ rest
        return inverse if root < 0 else matrix @ _power(inverse, order - 1)


class EighRoot(AbstractRoot):
    """The root by eigendecomposition, to rounding error, with the derivative of its family.

    About 9 n^3 flops on a CPU, and slow on accelerators. Eigenvalues below 0 count as 0.
    """

    dial: ClassVar[str] = ""
    dials: ClassVar[tuple[Any, ...]] = ()

    def of_scaled(self, matrix: Float[Array, "*batch n n"], root: int) -> Array:
        values, vectors = jnp.linalg.eigh(matrix)
        powers = jnp.maximum(values, 0) ** (1 / root)
        return (vectors * powers[..., None, :]) @ jnp.swapaxes(vectors, -2, -1)


# ------------------------------------------------------------------ how wrong is it


def root_error(
    matrix: Float[Array, "*batch n n"], value: Float[Array, "*batch n n"], root: int = 2
) -> Float[Array, "*batch"]:
    """How wrong a root is: |Y^p A^-1 - I|_F / (p sqrt(n)), for negative roots |Y^p A - I|_F.

    To first order it is the root mean square of the relative errors of Y's eigenvalues, the small
    ones counting as much as the large. Some log2(p) + 1 products, and a solve for positive roots;
    cond(A) rounding errors are its floor.
    """
    order, size = abs(root), matrix.shape[-1]
    power = _power(value, order)
    quotient = jnp.linalg.solve(matrix, power) if root > 0 else power @ matrix
    return frobenius_norm(quotient - _identity(matrix)) / (order * size**0.5)


def checked_root(
    method: AbstractRoot, tolerance: float
) -> Callable[[Float[Array, "*batch n n"], int], Float[Array, "*batch n n"]]:
    """`method`, but a result whose `root_error` exceeds the tolerance raises, also under jit."""

    def root_of(matrix: Float[Array, "*batch n n"], root: int = 2) -> Float[Array, "*batch n n"]:
        value = method(matrix, root)
        error = jax.lax.stop_gradient(root_error(matrix, value, root))
        return eqx.error_if(
            value,
            ~jnp.all(error <= tolerance),
            f"{type(method).__name__} leaves a relative error above {tolerance:g}: a matrix is too "
            "ill-conditioned for it (see condition_limit) or not positive definite. Use more "
            "terms or steps, scale=geometric_mean, or EighRoot.",
        )

    return root_of


def condition_limit(method: AbstractRoot, tolerance: float, root: int = 2) -> float:
    """The largest ratio of scale to smallest eigenvalue with a relative error within tolerance.

    With `spectral_norm` that ratio is the condition number; with `frobenius_norm` it is up to
    sqrt(n) times as large; with `geometric_mean` a Padé root's limit is the square of it. Found by
    bisection on numbers, since a root of a matrix is the root of its eigenvalues; infinite if
    there is no limit below 1e12.
    """

    def error(log_ratio: float) -> float:
        x = np.exp(-log_ratio)
        with jax.enable_x64(True):
            value = method.of_scaled(jnp.full((1, 1), x, jnp.float64), root)
        return abs(float(value[0, 0]) * x ** (-1 / root) - 1)

    low, high = 0.0, float(np.log(1e12))
    if not error(high) > tolerance:
        return float("inf")
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if error(middle) <= tolerance else (low, middle)
    return float(np.exp(low))


# ------------------------------------------------------------------ coefficients and powers


@lru_cache(64)
def taylor_coefficients(root: int, degree: int) -> tuple[float, ...]:
    """Of (1 - z)^(1/root) at 0, from the constant up, exact before the last rounding."""
    power, coefficients = Fraction(1, root), [Fraction(1)]
    for k in range(degree):
        coefficients.append(coefficients[-1] * (k - power) / (k + 1))
    return tuple(map(float, coefficients))


@lru_cache(64)
def pade_coefficients(root: int, degree: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Numerator and denominator of the [degree/degree] approximant of (1 - z)^(1/root) at 0.

    2F1(-m, -a - m; -2m; z) / 2F1(-m, a - m; -2m; z) for the power a.
    """
    power = Fraction(1, root)
    return _hypergeometric(-power - degree, degree), _hypergeometric(power - degree, degree)


def _hypergeometric(second: Fraction, degree: int) -> tuple[float, ...]:
    terms = [Fraction(1)]
    for k in range(degree):
        terms.append(terms[-1] * (k - degree) * (second + k) / ((k - 2 * degree) * (k + 1)))
    return tuple(map(float, terms))


def _polynomial(coefficients: tuple[float, ...], z: Array) -> Array:
    """By Horner's rule, whose first product with the identity is left out."""
    *rest, second, first = coefficients
    result = first * z + second * _identity(z)
    for coefficient in reversed(rest):
        result = z @ result + coefficient * _identity(z)
    return result


def _powers(z: Array, degree: int) -> list[Array]:
    powers = [_identity(z), z]
    while len(powers) <= degree:
        powers.append(powers[-1] @ z)
    return powers


def _combine(coefficients: tuple[float, ...], powers: list[Array]) -> Array:
    return sum(
        (c * p for c, p in zip(coefficients, powers, strict=True)), jnp.zeros_like(powers[0])
    )


def _power(matrix: Array, exponent: int) -> Array:
    if exponent == 0:
        return _identity(matrix)
    half = _power(matrix, exponent // 2) if exponent > 1 else _identity(matrix)
    square = half @ half if exponent > 1 else half
    if exponent == 1:
        return matrix
    return square @ matrix if exponent % 2 else square


def _identity(matrix: Array) -> Array:
    return jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} {value} must be a whole number of at least 1")


# What the catalogue offers.
taylor = TaylorRoot()
pade = PadeRoot()
pade_geometric = PadeRoot(scale=geometric_mean)
newton_schulz = NewtonSchulzRoot()
newton = NewtonRoot()
eigh = EighRoot()
