"""Losses that mend rollouts of a one-step predictor: the controls of `pde-refiner`.

Both are `(stepper, window, key) -> scalar` for `fit`; errors count in units of the increment.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.operators.curriculum import Window
from nearly.operators.refiner import Refiner


def pushforward_loss(model: Refiner, window: Window, key: Any) -> Float[Array, ""]:
    """The squared error from the first frame, plus that from the stepper's own second frame.

    No gradient passes through the second frame: it is a perturbed input with the stepper's own
    kind of error. Windows of 3 frames. **Cost:** three calls of the network, two of them with
    gradients.
    """
    first_key, second_key = jax.random.split(key)

    def one(states: Array, parameters: Array) -> Array:
        made = model(states[0], parameters, key=first_key)
        own = jax.lax.stop_gradient(made)
        later = model(own, parameters, key=second_key)
        errors = model.scaling.increment(
            jnp.stack([states[1], states[2]]), jnp.stack([made, later])
        )
        return jnp.sum(jnp.mean(errors**2, tuple(range(1, errors.ndim))))

    return jnp.mean(jax.vmap(one)(window.states, window.parameters))


class SobolevLoss(eqx.Module):
    """The squared error of one step with its Fourier modes weighted by (1 + k^2)^order.

    **Arguments:** `order`: of the Sobolev norm; k is the integer wave number over `unit`, the
    box's own being 1.

    Raises `InputError` for a negative order.
    """

    order: float = eqx.field(static=True, default=1.0)
    unit: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        if self.order < 0 or self.unit <= 0:
            raise InputError(
                f"order={self.order} must not be negative, unit={self.unit} must be positive"
            )

    def __call__(self, model: Refiner, window: Window, key: Any) -> Float[Array, ""]:
        def one(states: Array, parameters: Array) -> Array:
            made = model(states[0], parameters, key=key)
            return jnp.mean(self._filtered(model.scaling.increment(states[1], made)) ** 2)

        return jnp.mean(jax.vmap(one)(window.states, window.parameters))

    def _filtered(self, error: Array) -> Array:
        grid = error.shape[1:]
        axes = tuple(range(1, error.ndim))
        waves = [np.fft.fftfreq(n, 1 / n) for n in grid[:-1]] + [
            np.fft.rfftfreq(grid[-1], 1 / grid[-1])
        ]
        square = sum(np.square(k / self.unit) for k in np.meshgrid(*waves, indexing="ij"))
        weight = jnp.asarray((1 + square) ** (self.order / 2), error.dtype)
        return jnp.fft.irfftn(jnp.fft.rfftn(error, axes=axes) * weight, grid, axes)
