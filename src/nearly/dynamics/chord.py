"""Simplified Newton iterations: one factorisation serves several of them, or several equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Inexact, Int, Shaped

from nearly.core.errors import InputError

Vector = Inexact[Array, " d"]


class _State(eqx.Module):
    change: Vector
    size: Shaped[Array, ""]
    before: Shaped[Array, ""]
    count: Int[Array, ""]


class GivenFactors(optx.AbstractRootFinder[Any, Any, Any, _State]):
    """Finds roots of functions of a vector by iterations `y - solve(function(y))`.

    `options["solve"]` is a function that about inverts the derivative. Differs from optimistix's
    `Chord` in that it factorises nothing itself, and in its scale: each entry is measured by its
    own size or that of `options["size"]`, whose rounding errors it has, or a thousandth of the
    largest one's, so that no absolute tolerance is needed.

    **Arguments:** `rtol`, `atol`: the error at which it stops, as estimated from the rate of
    convergence; never less than some rounding errors.
    """

    rtol: float = 1e-10
    atol: float = 0.0
    norm: Callable[[Any], Any] = optx.max_norm

    def __check_init__(self) -> None:
        if not (0 < self.rtol < 1 and self.atol >= 0):
            raise InputError(
                f"rtol {self.rtol} must lie between 0 and 1, atol {self.atol} be at least 0"
            )

    def init(
        self, fn: Any, y: Vector, args: Any, options: Any, f_struct: Any, aux_struct: Any, tags: Any
    ) -> _State:
        del fn, args, options, f_struct, aux_struct, tags
        infinite = jnp.asarray(jnp.inf, y.real.dtype)
        return _State(jnp.full_like(y, jnp.inf), infinite, infinite, jnp.asarray(0))

    def step(
        self, fn: Any, y: Vector, args: Any, options: Any, state: _State, tags: Any
    ) -> tuple[Vector, _State, Any]:
        del tags
        residual, aux = fn(y, args)
        change = options["solve"](residual)
        y = y - change
        own = jnp.maximum(jnp.abs(y), options.get("size", 0))
        own = jnp.maximum(own, 1e-3 * jnp.max(own))
        scale = self.atol + max(self.rtol, _rounding(y)) * own
        scale = jnp.where(scale == 0, 1, scale)
        # Both by the scale of today: y may have lost decades of its size.
        size, before = self.norm(change / scale), self.norm(state.change / scale)
        return y, _State(change, size, before, state.count + 1), aux

    def terminate(
        self, fn: Any, y: Vector, args: Any, options: Any, state: _State, tags: Any
    ) -> tuple[Bool[Array, ""], optx.RESULTS]:
        del fn, args, options, tags
        rate = state.size / state.before
        left = jnp.where(state.count > 1, state.size * rate / (1 - rate), jnp.inf)
        small = state.size <= _rounding(y) / max(self.rtol, _rounding(y))
        done = small | ((rate < 1) & (left <= 1))
        # Near rounding errors the changes need not fall any more.
        lost = (state.count > 1) & (rate > 2) & (state.size > 1e4)
        lost = lost | ~jnp.isfinite(state.size) & (state.count > 0)
        result = optx.RESULTS.where(
            lost, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful
        )
        return done | lost, result

    def postprocess(
        self,
        fn: Any,
        y: Vector,
        aux: Any,
        args: Any,
        options: Any,
        state: _State,
        tags: Any,
        result: optx.RESULTS,
    ) -> tuple[Vector, Any, dict[str, Any]]:
        del fn, args, options, state, tags, result
        return y, aux, {}


class PatientChord(dfx.VeryChord):
    """diffrax's iteration for implicit stages, which here goes on for as long as it converges.

    In diffrax 0.7.2 it has diverged, and so the step is refused, where two iterations were not
    enough or their changes are rounding errors: KenCarp4 then may not end, Kvaerno5 takes two to
    twelve times the steps. A change of less than `kappa` tolerances, or some rounding errors, is
    the last here, and only changes that more than double diverge.
    """

    def terminate(
        self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any
    ) -> tuple[Any, Any]:
        stop, result = super().terminate(fn, y, args, options, state, tags)
        relative = jnp.where(self.rtol == 0, jnp.inf, self.rtol)
        enough = jnp.clip(_rounding(state.diffsize) / relative, self.kappa, 1)
        small = (state.step >= 2) & (state.diffsize < enough)
        fine = small | (state.diffsize <= 2 * state.diffsize_prev)
        early = fine & (result == optx.RESULTS.nonlinear_divergence)
        return stop | small, optx.RESULTS.where(early, optx.RESULTS.successful, result)


def _rounding(y: Array) -> float:
    return 50 * float(jnp.finfo(y.dtype).eps)


def root(
    function: Callable[[Vector], Vector],
    solve: Callable[[Vector], Vector],
    start: Vector,
    finder: GivenFactors,
    most: int,
    size: Any = 0.0,
) -> tuple[Vector, optx.RESULTS]:
    """The root of a function, and whether it was found within `most` iterations.

    `size` is that of what the function adds up. Derivatives are those of the root, whatever the
    iterations were.
    """
    found = optx.root_find(
        lambda y, _: function(y),
        finder,
        jax.lax.stop_gradient(start),
        options={"solve": solve, "size": jax.lax.stop_gradient(size)},
        max_steps=most,
        throw=False,
    )
    return found.value, found.result
