"""What `hybrid-field-derivatives` promises, on the distance to a circle in grids of 128 cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nearly.core.claim import Expected, claim
from nearly.derivatives.grid_field import fine_tune, grid_field
from nearly.derivatives.local_fit import gaussian_stencil, local_polynomial, sobol_stencil
from nearly.derivatives.problems.fields import RADIUS, circle_field, ring
from nearly.training.loop import fit

SIGMA = 0.02  # a little above the finest cell, 1/64
SAMPLES = 256
BASE_STEPS = 1000
STEPS = (0.0125, 0.025, 0.05, 0.1, 0.2)
SCALED = "a circle in 2-D, bilinear grids of 16 to 128 cells, instead of surfaces in hash grids"


def _field() -> Any:
    return circle_field("float32")


def _points(seed: int = 0, count: int = 1000) -> Any:
    return jnp.asarray(ring(np.random.default_rng(100 + seed), count), jnp.float32)


def _angle(gradient: Callable[[Any], Any], points: Any) -> float:
    """Root mean square angle between gradients and the circle's normals, in radians."""
    found = np.asarray(jax.jit(jax.vmap(gradient))(points), np.float64)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    normal = np.asarray(points, np.float64)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    sines = found[:, 0] * normal[:, 1] - found[:, 1] * normal[:, 0]
    return float(np.sqrt(np.mean(np.arcsin(np.clip(sines, -1, 1)) ** 2)))


def _differences(step: float) -> Callable[[Any], Any]:
    """Central differences, as the peers of grid-based fields take them."""
    field, axes = _field(), jnp.eye(2, dtype=jnp.float32) * step
    return lambda x: jax.vmap(lambda e: (field(x + e) - field(x - e)) / (2 * step))(axes)


def _fit_of(seed: int, degree: int = 2) -> Any:
    offsets = gaussian_stencil(jax.random.key(seed), SAMPLES, 2)
    return local_polynomial(_field(), offsets, SIGMA, degree=degree)


@claim(
    "hybrid-field-derivatives",
    "normals-more-accurate-than-automatic-ones",
    cost="medium",
    expected=Expected(
        "root mean square angle of automatic gradients to the normals over that of the quadratic "
        "fit as published, 256 normal samples, sigma .02",
        ">=",
        4.0,
        "derived: gradients of a piecewise bilinear field err independently from cell to cell, and "
        "a stencil 4 sigma wide covers 26 cells of 1/64, so averaging gains about 5",
        scaled=SCALED,
    ),
)
def normals() -> list[float]:
    return [
        _angle(jax.grad(_field()), _points(seed))
        / _angle(lambda x, s=seed: _fit_of(s)(x).gradient, _points(seed))
        for seed in range(3)
    ]


@claim(
    "hybrid-field-derivatives",
    "normals-more-accurate-than-the-best-finite-differences",
    cost="medium",
    expected=Expected(
        "smallest angle error of central differences over steps .0125 to .2 over that of the "
        "quadratic fit as published",
        ">=",
        1.0,
        "abstract: more accurate derivatives; the rival is given its best step by hindsight",
        scaled=SCALED,
    ),
)
def against_differences() -> list[float]:
    return [
        min(_angle(_differences(step), _points(seed)) for step in STEPS)
        / _angle(lambda x, s=seed: _fit_of(s)(x).gradient, _points(seed))
        for seed in range(3)
    ]


@claim(
    "hybrid-field-derivatives",
    "curvature-where-automatic-differentiation-has-none",
    cost="medium",
    expected=Expected(
        "root mean square relative error of the Laplacian from the quadratic fit (that of "
        "automatic differentiation is 1: bilinear pieces have none)",
        "<=",
        0.2,
        "derived: value errors of about h^2/8 u'' = 6e-5 over sigma^2 = 4e-4, averaged over 26 "
        "cells, against a Laplacian of about 2: some 2 to 5 percent, with a margin of 4",
        scaled=SCALED,
    ),
)
def curvature() -> list[float]:
    found = []
    for seed in range(3):
        points = _points(seed)
        laplacians = np.asarray(
            jax.jit(jax.vmap(lambda x, s=seed: _fit_of(s)(x).laplacian))(points)
        )
        relative = laplacians * np.linalg.norm(points, axis=1) - 1
        found.append(float(np.sqrt(np.mean(relative**2))))
    return found


@claim(
    "hybrid-field-derivatives",
    "fixed-stencil-at-least-as-good-as-random-ones",
    cost="medium",
    expected=Expected(
        "angle error with normal samples over that with as many Sobol points and opposites, the "
        "smallest of 3 seeds",
        ">=",
        1.0,
        "derived: a stencil of opposites separates odd from even errors, and Sobol points cover "
        "the cells more evenly than independent ones",
        scaled=SCALED,
    ),
)
def fixed_stencil() -> list[float]:
    fixed = local_polynomial(_field(), sobol_stencil(SAMPLES, 2), SIGMA)
    return [
        _angle(lambda x, s=seed: _fit_of(s)(x).gradient, _points(seed))
        / _angle(lambda x: fixed(x).gradient, _points(seed))
        for seed in range(3)
    ]


# ------------------------------------------------------------------ fine-tuning


def _hybrid(seed: int) -> Any:
    """Grids decoded by a ReLU network, as in the paper, trained on the distance to the circle."""

    def loss(field: Any, points: Any, _: Any) -> Any:
        distance = jnp.linalg.norm(points, axis=1) - RADIUS
        return jnp.mean((jax.vmap(field)(points) - distance) ** 2)

    def points(key: Any) -> Any:
        return jax.random.uniform(key, (1024, 2), jnp.float32, -1, 1)

    start = grid_field(2, jax.random.key(seed), cells=(16, 32, 64))
    rate = optax.adam(optax.cosine_decay_schedule(1e-2, BASE_STEPS))
    key = jax.random.key(seed + 100)
    return fit(loss, start, points, optimizer=rate, steps=BASE_STEPS, key=key).model


@claim(
    "hybrid-field-derivatives",
    "fine-tuning-makes-automatic-gradients-accurate",
    cost="slow",
    expected=Expected(
        "angle error of automatic gradients before fine-tuning over after, 40 epochs of 8192 "
        "points, Adam 2e-4, gradient weight 1",
        ">=",
        1.0,
        "abstract: fine-tuning yields accurate derivatives directly while preserving the signal",
        scaled="a circle in 2-D, grids of 16, 32 and 64 cells decoded by 32 ReLUs",
    ),
)
def fine_tuning() -> list[float]:
    found = []
    for seed in range(3):
        field, offsets = _hybrid(seed), gaussian_stencil(jax.random.key(seed), SAMPLES, 2)
        fitted = local_polynomial(field, offsets, 2 * SIGMA)
        tuned = fine_tune(fitted, _points(seed + 10, 8192), key=jax.random.key(seed)).model
        before, after = (_angle(jax.grad(f), _points(seed)) for f in (field, tuned))
        found.append(before / after)
    return found


@claim(
    "hybrid-field-derivatives",
    "fine-tuning-of-grids-without-a-network",
    cost="medium",
    expected=Expected(
        "angle error of automatic gradients before fine-tuning over after, 40 epochs of 8192 "
        "points, Adam 2e-4, gradient weight 1, on sums of bilinear grids",
        ">=",
        1.0,
        "abstract: fine-tuning yields accurate derivatives directly while preserving the signal",
        scaled=SCALED,
    ),
    limits="where features are the values themselves, Adam's steps of 2e-4 are larger than the "
    "errors of the values (8e-5): the tuned field is rougher than the one before",
)
def fine_tuning_of_grids() -> list[float]:
    found = []
    for seed in range(3):
        tuned = fine_tune(_fit_of(seed), _points(seed + 10, 8192), key=jax.random.key(seed)).model
        before, after = (_angle(jax.grad(f), _points(seed)) for f in (_field(), tuned))
        found.append(before / after)
    return found
