"""Dense output of our own solvers."""

from __future__ import annotations

from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp


class PolynomialInterpolation(dfx.AbstractLocalInterpolation):
    """`y0 + c_1 theta + c_2 theta^2 + …`, where theta goes from 0 to 1 along the step.

    **Arguments:** `t0`, `t1`; `y0`; `coefficients`, c_1, c_2, … stacked, of y's structure.
    """

    t0: Any
    t1: Any
    y0: Any
    coefficients: Any

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True) -> Any:
        del left
        if t1 is not None:
            return jax.tree.map(jnp.subtract, self.evaluate(t1), self.evaluate(t0))
        empty = self.t0 == self.t1
        theta = jnp.where(empty, 0, (t0 - self.t0) / jnp.where(empty, 1, self.t1 - self.t0))

        def at(y: Any, coefficients: Any) -> Any:
            total = jnp.zeros_like(y)
            for coefficient in coefficients[::-1]:
                total = (total + coefficient) * theta.astype(coefficient.real.dtype)
            return y + total

        return jax.tree.map(at, self.y0, self.coefficients)
