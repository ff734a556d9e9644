"""Polynomial preconditioners (`polynomial-preconditioning`).

`symmetric_polynomial` cuts the gaps between the largest eigenvalues without knowing them, from a
few traces; `chebyshev_polynomial`, the classical one, needs the ends of the spectrum. Both are
lineax operators, for conjugate gradients or the minimisers of `preconditioned_descent`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree

from nearly.core.errors import InputError
from nearly.linear.iteration import axpy, tree_dot
from nearly.linear.krylov import lanczos, ritz_pairs
from nearly.linear.operators.registration import register
from nearly.linear.systems import Method, conjugate_gradient

PowerSums = Callable[[lx.AbstractLinearOperator, int], Float[Array, " order"]]


class SymmetricPolynomial(lx.AbstractLinearOperator):
    """P_tau = s_tau I - B P_(tau-1) over s_tau, s_k the elementary symmetric polynomials of eig(B).

    tau = 0 is the identity and tau = n - 1 a multiple of the inverse. The condition number of
    B P_tau is that of B times s_tau(all but the largest) / s_tau(all but the smallest). Only the
    ratios s_(k-1) / s_k are kept, so that nothing overflows. `tau` products with B.
    """

    operator: lx.AbstractLinearOperator
    ratios: Float[Array, " tau"]
    tags: ClassVar[frozenset[object]] = frozenset([lx.positive_semidefinite_tag])

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        result = vector
        for ratio in self.ratios:
            result = axpy(-ratio, self.operator.mv(result), vector)
        return result

    def as_matrix(self) -> Float[Array, "n n"]:
        matrix = self.operator.as_matrix()
        identity = result = jnp.eye(len(matrix), dtype=matrix.dtype)
        for ratio in self.ratios:
            result = identity - ratio * matrix @ result
        return result

    def transpose(self) -> SymmetricPolynomial:
        return self

    def in_structure(self) -> Any:
        return self.operator.in_structure()

    def out_structure(self) -> Any:
        return self.operator.in_structure()


class ChebyshevPolynomial(lx.AbstractLinearOperator):
    """The polynomial p with the smallest largest |1 - x p(x)| on [lower, upper], applied to B.

    `degree` products with B, by the three-term recurrence of the semi-iteration.
    """

    operator: lx.AbstractLinearOperator
    lower: Float[Array, ""]
    upper: Float[Array, ""]
    degree: int = eqx.field(static=True)
    tags: ClassVar[frozenset[object]] = frozenset([lx.positive_semidefinite_tag])

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        centre, radius = (self.upper + self.lower) / 2, (self.upper - self.lower) / 2
        relative = centre / radius
        factor = 1 / relative
        change = jax.tree.map(lambda v: v / centre, vector)
        result = change
        for _ in range(self.degree):
            residual = axpy(-1.0, self.operator.mv(result), vector)
            after = 1 / (2 * relative - factor)
            change = axpy(
                after * factor,
                change,
                jax.tree.map(lambda r, a=after: 2 * a / radius * r, residual),
            )
            factor, result = after, axpy(1.0, change, result)
        return result

    def as_matrix(self) -> Float[Array, "n n"]:
        structure: Any = self.operator.in_structure()
        return jax.vmap(self.mv, in_axes=1, out_axes=1)(
            jnp.eye(structure.size, dtype=structure.dtype)
        )

    def transpose(self) -> ChebyshevPolynomial:
        return self

    def in_structure(self) -> Any:
        return self.operator.in_structure()

    def out_structure(self) -> Any:
        return self.operator.in_structure()


register(SymmetricPolynomial)
register(ChebyshevPolynomial)


# ------------------------------------------------------------------ power sums of the eigenvalues


def exact_power_sums(operator: lx.AbstractLinearOperator, order: int) -> Float[Array, " order"]:
    """tr B, ..., tr B^order of the dense matrix, from half as many powers. O(n^3 order / 2)."""
    powers = [operator.as_matrix()]
    while 2 * len(powers) < order:
        powers.append(powers[-1] @ powers[0])
    sums = [jnp.trace(powers[0])]
    sums += [jnp.sum(powers[k // 2 - 1] * powers[(k + 1) // 2 - 1]) for k in range(2, order + 1)]
    return jnp.stack(sums)


def hutchinson_power_sums(key: Any, probes: int = 32) -> PowerSums:
    """An estimator of tr B, ..., tr B^order by random signs: order / 2 products for each probe.

    Its errors are of relative size 1/sqrt(probes) times how much the spectrum is concentrated; too
    few probes make an indefinite preconditioner, which `symmetric_polynomial` refuses.
    """
    if probes < 1:
        raise InputError(f"probes {probes} must be at least 1")

    def sums(operator: lx.AbstractLinearOperator, order: int) -> Float[Array, " order"]:
        def one(key: Any) -> Array:
            powers = [_signs(key, operator)]
            while 2 * (len(powers) - 1) < order:
                powers.append(operator.mv(powers[-1]))
            return jnp.stack(
                [tree_dot(powers[k // 2], powers[(k + 1) // 2]) for k in range(1, order + 1)]
            )

        return jnp.mean(jax.lax.map(one, jax.random.split(key, probes)), axis=0)

    return sums


def _signs(key: Any, operator: lx.AbstractLinearOperator) -> PyTree[Array]:
    leaves, structure = jax.tree.flatten(operator.in_structure())
    keys = jax.random.split(key, len(leaves))
    signs = [
        jax.random.rademacher(k, leaf.shape, leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, signs)


def elementary_symmetric(power_sums: Float[Array, " order"]) -> Float[Array, " order_and_one"]:
    """s_0, ..., s_order from power sums, by Newton and Girard's identities.

    They subtract: where the largest eigenvalues differ by a factor g, s_k loses about (k - 1)
    log10 g digits, so take float64 for large gaps.
    """
    symmetric = [jnp.ones((), power_sums.dtype)]
    for k in range(1, len(power_sums) + 1):
        terms = [(-1) ** (i - 1) * symmetric[k - i] * power_sums[i - 1] for i in range(1, k + 1)]
        symmetric.append(jnp.sum(jnp.stack(terms)) / k)
    return jnp.stack(symmetric)


# ------------------------------------------------------------------ making preconditioners


def symmetric_polynomial(
    operator: lx.AbstractLinearOperator,
    degree: int,
    power_sums: PowerSums = exact_power_sums,
) -> SymmetricPolynomial:
    """The symmetric-polynomial preconditioner of a positive semidefinite operator.

    **Arguments:**

    - `operator`: B, positive semidefinite; neither this nor symmetry is checked.
    - `degree`: tau, from 0 to n - 1: so many of the largest eigenvalues no longer matter.
    - `power_sums`: `exact_power_sums`, or `hutchinson_power_sums(key, probes)` where the matrix is
      not at hand, or any function (operator, order) -> traces of the powers.

    Raises `InputError` for a degree out of range; and an error, also under jit, where P_tau turns
    out indefinite (by estimated traces, or rounding in a wide spectrum): found by its Rayleigh
    quotients on 2 degree + 4 Ritz vectors of B. The paper assumes exact traces and has no check.
    """
    size = operator.in_size()
    if not 0 <= degree < size:
        raise InputError(
            f"degree {degree} must be from 0 to {size - 1}, one less than the unknowns"
        )
    if degree == 0:
        dtype = jax.tree.leaves(operator.in_structure())[0].dtype
        return SymmetricPolynomial(operator, jnp.zeros(0, dtype))
    sums = power_sums(operator, degree)
    trace = sums[0]
    symmetric = elementary_symmetric(sums / trace ** jnp.arange(1, degree + 1, dtype=sums.dtype))
    ratios = symmetric[:-1] / symmetric[1:] / trace
    made = SymmetricPolynomial(operator, ratios)
    indefinite = ~(jnp.all(ratios > 0) & (smallest_rayleigh_quotient(made, 2 * degree + 4) > 0))
    ratios = eqx.error_if(
        ratios,
        indefinite,
        f"the symmetric polynomial of degree {degree} is indefinite: its traces are not accurate "
        "enough. Take more probes (or exact traces), float64, or a lower degree.",
    )
    return SymmetricPolynomial(operator, ratios)


def smallest_rayleigh_quotient(
    preconditioner: SymmetricPolynomial, vectors: int
) -> Float[Array, ""]:
    """The least <v, P v> over Ritz vectors v of B: below 0 if P is seen to be indefinite."""
    operator = preconditioner.operator
    count = min(vectors, operator.in_size())
    _, ritz = ritz_pairs(lanczos(operator, _signs(jax.random.key(0), operator), count))
    return jnp.min(jax.lax.map(lambda v: tree_dot(v, preconditioner.mv(v)), ritz))


def chebyshev_polynomial(
    operator: lx.AbstractLinearOperator, degree: int, condition: float = 30.0
) -> ChebyshevPolynomial:
    """The Chebyshev preconditioner for [upper / condition, upper], upper from 10 Lanczos steps.

    `condition` 30 is what smoothers use; the condition number of B if it is known. Raises
    `InputError` unless condition > 1 and degree >= 0.
    """
    if degree < 0 or not condition > 1:
        raise InputError(f"degree {degree} must be at least 0 and condition {condition} above 1")
    start = _signs(jax.random.key(0), operator)
    upper = 1.1 * ritz_pairs(lanczos(operator, start, min(10, operator.in_size())))[0][-1]
    return ChebyshevPolynomial(operator, upper / condition, upper, degree)


def condition_bound(eigenvalues: Float[np.ndarray, " n"], degree: int) -> float:
    """The condition number of B P_tau: (largest / smallest) s_tau(others) / s_tau(others).

    In float64 from the eigenvalues, by sums of positive terms.
    """
    ordered = np.sort(np.asarray(eigenvalues, np.float64))[::-1] / np.max(eigenvalues)
    without_largest = _symmetric_of(ordered[1:], degree)
    without_smallest = _symmetric_of(ordered[:-1], degree)
    return float(ordered[0] / ordered[-1] * without_largest / without_smallest)


def _symmetric_of(values: Float[np.ndarray, " n"], degree: int) -> float:
    symmetric = np.zeros(degree + 1)
    symmetric[0] = 1.0
    for value in values:
        symmetric[1:] = symmetric[1:] + value * symmetric[:-1]
    return float(symmetric[degree])


# ------------------------------------------------------------------ for the catalogue


def symmetric_polynomial_cg(operator: lx.AbstractLinearOperator) -> Method:
    """Conjugate gradients with the symmetric polynomial of degree 3, traces by 32 probes."""
    estimate = hutchinson_power_sums(jax.random.key(0))
    degree = min(3, operator.in_size() - 1)
    return conjugate_gradient, {"preconditioner": symmetric_polynomial(operator, degree, estimate)}


def chebyshev_cg(operator: lx.AbstractLinearOperator) -> Method:
    """Conjugate gradients with the Chebyshev polynomial of degree 3 for the upper spectrum."""
    return conjugate_gradient, {"preconditioner": chebyshev_polynomial(operator, 3)}
