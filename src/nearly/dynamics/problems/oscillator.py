"""The equation of an oscillator as a vector field that says what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class Oscillator(eqx.Module):
    """`epsilon^2 u'' + a(x) u = 0` for u with a real and an imaginary part.

    The vector is (Re u, epsilon Re u', Im u, epsilon Im u').

    **Arguments:** `coefficient`, a, a real function of x that JAX can trace; `epsilon` > 0.
    """

    coefficient: Callable[[Any], Any]
    epsilon: float

    def __call__(self, x: Any, y: Float[Array, " 4"], args: Any) -> Float[Array, " 4"]:
        del args
        a = self.coefficient(x)
        return jnp.stack([y[1], -a * y[0], y[3], -a * y[2]]) / self.epsilon
