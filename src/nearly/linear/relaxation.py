"""Relaxation: Jacobi, SOR and SSOR, as preconditioners and as stationary iterations.

A preconditioner here is a function from an operator to a lineax operator that approximates the
inverse. It can be handed to any solver: to ours as `preconditioner`, to lineax's as
`options={"preconditioner": ssor(operator)}`.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.linear.operators import CallableOperator, bare, is_definite
from nearly.linear.triangular import reverse_sweep, sweep

Scalar = Float[Array, ""] | float


def _check_factor(omega: Scalar, end: float) -> None:
    if isinstance(omega, (int, float)) and not 0 < omega <= end:
        raise InputError(f"a relaxation factor of {omega}; give one above 0 and below {end:g}")


class Jacobi(eqx.Module):
    """`omega D^-1`: the inverse of the diagonal, damped by `omega`.

    **Cost:** one multiplication for each unknown.
    """

    omega: Scalar = 1.0

    def __check_init__(self) -> None:
        _check_factor(self.omega, 2)

    def __call__(self, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        structure: Any = operator.in_structure()
        diagonal = lx.diagonal(operator).reshape(structure.shape)
        inverse = lx.DiagonalLinearOperator(self.omega / diagonal)
        if not is_definite(operator):
            return inverse
        return lx.TaggedLinearOperator(inverse, lx.positive_semidefinite_tag)


class Sor(eqx.Module):
    """`(D / omega + L)^-1`: one sweep of successive over-relaxation, in the natural order.

    `omega = 1` is Gauss and Seidel's. Not symmetric: for conjugate gradients use `Ssor`.

    **Arguments:** `omega` between 0 and 2; an array is not checked, so that it can be traced.

    **Cost:** of a sweep, 2 flops for each entry below the diagonal; on a grid as many dependent
    steps as there are wavefronts (`learning-to-relax`).
    """

    omega: Scalar = 1.0

    def __check_init__(self) -> None:
        _check_factor(self.omega, 2)

    def __call__(self, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        return CallableOperator(sweep(bare(operator), self.omega), operator.in_structure())


class Ssor(eqx.Module):
    """The inverse of `M = (D + omega L) D^-1 (D + omega L)^T / (omega (2 - omega))`.

    A sweep forwards and one backwards, in the natural order, in which over-relaxation helps
    conjugate gradients most: on the Poisson problem the best factor brings the condition number
    from O(n^2) to O(n) for n points along a side. Symmetric for symmetric operators; for others L^T
    is replaced by the upper triangle.

    **Arguments:** `omega` strictly between 0 and 2; an array is not checked.

    **Cost:** twice that of `Sor`.
    """

    omega: Scalar = 1.0

    def __check_init__(self) -> None:
        _check_factor(self.omega, 2)
        if isinstance(self.omega, (int, float)) and self.omega == 2:
            raise InputError("a relaxation factor of 2 makes SSOR singular; give one below 2")

    def __call__(self, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        structure: Any = operator.in_structure()
        inside = bare(operator)
        there, back = sweep(inside, self.omega), reverse_sweep(inside, self.omega)
        scale = (2 - self.omega) / self.omega * lx.diagonal(operator).reshape(structure.shape)
        tags = frozenset([lx.positive_semidefinite_tag] if is_definite(operator) else [])
        return CallableOperator(_ThereAndBack(there, scale, back), structure, tags)


class _ThereAndBack(eqx.Module):
    there: Any
    scale: Array
    back: Any

    def __call__(self, vector: Array) -> Array:
        return self.back(self.scale * self.there(vector))


def optimal_factor(spectral_radius: Scalar) -> Scalar:
    """Young's best factor for SOR, `1 + (beta / (1 + sqrt(1 - beta^2)))^2`.

    For consistently ordered matrices, whose Jacobi iteration has the spectral radius beta < 1.
    """
    beta = spectral_radius
    return 1 + (beta / (1 + jnp.sqrt(1 - beta**2))) ** 2
