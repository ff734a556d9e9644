"""The optimizers as the catalogue lists them: learning rates tuned, the same trials for all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from nearly.core.problem import Tuned
from nearly.curvature import fisher
from nearly.optimize import accelerate, adaptive, kronecker, model_building, subspace
from nearly.optimize.parallel_iterations import optex as _optex
from nearly.optimize.problems import scheduled
from nearly.optimize.problems.finite_sum import WithRate
from nearly.optimize.target_space import target_surrogates as _target_surrogates

RATES = tuple(float(f"{rate:.3g}") for rate in np.geomspace(1e-4, 10, 11))
"""Half-decades. Methods whose rates are in other units than Adam's need the upper end."""


def _tuned(make: Callable[[Any], Any]) -> Tuned:
    return Tuned(partial(WithRate, make), {"learning_rate": RATES})


def _decaying(make: Callable[[Any], Any], shape: Callable[[int], Any]) -> Tuned:
    return Tuned(partial(scheduled.Decaying, make, shape=shape), {"learning_rate": RATES})


def _refined(make: Callable[[Any], Any], order: int) -> Tuned:
    return Tuned(partial(scheduled.Refined, make, order=order), {"learning_rate": RATES})


def _orthogonal_adam(rate: Any) -> optax.GradientTransformation:
    return optax.chain(adaptive.orthogonal_gradient(), optax.adam(rate))


def _heavy_ball(rate: Any) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=0.9)


def _adahessian(rate: Any) -> optax.GradientTransformationExtraArgs:
    return adaptive.adahessian(rate, key=jax.random.key(0))


def _mfac(rate: Any) -> optax.GradientTransformation:
    return fisher.mfac(rate, window=64)


def _momentum_polyak(rate: Any) -> optax.GradientTransformationExtraArgs:
    return adaptive.momentum_polyak(largest=rate)


def _moving_average_polyak(rate: Any) -> optax.GradientTransformationExtraArgs:
    return adaptive.moving_average_polyak(largest=rate)


def _interpolation_sgd(rate: Any) -> optax.GradientTransformation:
    return accelerate.interpolation_sgd(rate, growth=10.0)


def _triple_momentum(rate: Any) -> optax.GradientTransformation:
    return accelerate.triple_momentum(0.01 / rate, 1 / rate)  # for a condition of 100


def _armijo_sgd(rate: Any) -> optax.GradientTransformation:
    search = optax.scale_by_backtracking_linesearch(15, slope_rtol=0.1, max_learning_rate=rate)
    chained = optax.chain(optax.sgd(1.0), search)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        needed = {name: extra[name] for name in ("value", "grad", "value_fn")}  # others it refuses
        return chained.update(updates, state, params, **needed)

    return optax.GradientTransformationExtraArgs(chained.init, update)


def _kfac(rate: Any) -> optax.GradientTransformationExtraArgs:
    return kronecker.kfac(rate, key=jax.random.key(0))


def _kfac_empirical(rate: Any) -> optax.GradientTransformationExtraArgs:
    return kronecker.kfac(rate)


def _mkor(rate: Any) -> optax.GradientTransformationExtraArgs:
    return kronecker.mkor(_heavy_ball(rate))


def _optex_adam(rate: Any) -> optax.GradientTransformationExtraArgs:
    return _optex(optax.adam(rate))


adan = _tuned(adaptive.adan)
adahessian = _tuned(_adahessian)
adagrad_norm = _tuned(adaptive.adagrad_norm)
mfac = _tuned(_mfac)
orthogonal_adam = _tuned(_orthogonal_adam)
shampoo = _tuned(kronecker.shampoo)
kfac = _tuned(_kfac)
kfac_empirical = _tuned(_kfac_empirical)
mkor = _tuned(_mkor)
momentum_polyak = _tuned(_momentum_polyak)
moving_average_polyak = _tuned(_moving_average_polyak)
fosi_adam = _tuned(subspace.fosi_adam)
fosi_heavy_ball = _tuned(subspace.fosi_heavy_ball)
target_surrogates = _tuned(_target_surrogates)
optex_adam = _tuned(_optex_adam)
linear_decay_sgd = _decaying(optax.sgd, scheduled.linear_decay)
linear_decay_adam = _decaying(optax.adam, scheduled.linear_decay)
refined_sgd = _refined(optax.sgd, 2)
refined_adam = _refined(optax.adam, 1)
interpolation_sgd = _tuned(_interpolation_sgd)
model_building_sgd = _tuned(model_building.model_building_sgd)

sgd = _tuned(optax.sgd)
armijo_sgd = _tuned(_armijo_sgd)
cosine_adam = _decaying(optax.adam, scheduled.cosine_decay)
triple_momentum = _tuned(_triple_momentum)
heavy_ball = _tuned(_heavy_ball)
adam = _tuned(optax.adam)
nadam = _tuned(optax.nadam)
lion = _tuned(optax.lion)
optax_adan = _tuned(optax.adan)
muon = _tuned(optax.contrib.muon)
sophia = _tuned(optax.contrib.sophia)
momo = _tuned(optax.contrib.momo)
polyak_sgd = _tuned(optax.polyak_sgd)
