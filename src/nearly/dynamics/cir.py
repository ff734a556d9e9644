"""The Cox-Ingersoll-Ross equation: two splittings of high order, and steps that shrink near zero.

dy = a (b - y) dt + s sqrt(y) dW   (Ito);   = a (c - y) dt + s sqrt(y) o dW,   c = b - s^2 / 4a
"""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from nearly.core.errors import InputError
from nearly.dynamics.one_step import OneStep

Values = PyTree[Float[Array, "..."]]


class CIRField(eqx.Module):
    """What a `CIRTerm` gives a solver at a time and a value: drift and diffusion, and the law.

    All are of the structure of y; `level` is Stratonovich's, c.
    """

    drift: Any
    diffusion: Any
    reversion: Any
    level: Any
    volatility: Any


class CIRTerm(dfx.AbstractTerm[Any, Any]):
    """dy = a (b - y) dt + s sqrt(y) dW, elementwise, for `HOStS`, `DIE` and Stratonovich solvers.

    **Arguments:**

    - `reversion` a > 0, `level` b > 0, `volatility` s > 0: numbers, arrays of the shape of y, or
      pytrees of its structure.
    - `path`: a Brownian path of the shape of y; with space-time areas for `HOStS`.

    A solver that is given it alone (`diffrax.Heun()`) sees the Stratonovich drift a (c - y). Values
    below zero, which the exact solution never has, diffuse as zero does.
    """

    reversion: Any
    level: Any
    volatility: Any
    path: dfx.AbstractBrownianPath[Any]

    def __check_init__(self) -> None:
        for name in ("reversion", "level", "volatility"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not value > 0:
                raise InputError(f"{name}={value} must be positive, such as 1.0")

    def vf(self, t: Any, y: Any, args: Any) -> CIRField:
        """Drift and diffusion at y."""
        del t, args
        a, b, s = (_spread(x, y) for x in (self.reversion, self.level, self.volatility))
        c = jax.tree.map(lambda a, b, s: b - s**2 / (4 * a), a, b, s)
        drift = jax.tree.map(lambda a, c, y: a * (c - y), a, c, y)
        diffusion = jax.tree.map(lambda s, y: s * _root(y), s, y)
        return CIRField(drift, diffusion, a, c, s)

    def contr(self, t0: Any, t1: Any, **kwargs: Any) -> Any:
        """The step, and the path over it."""
        return t1 - t0, self.path.evaluate(t0, t1, **kwargs)

    def prod(self, vf: CIRField, control: Any) -> Any:
        """The increment of an Euler step."""
        step, noise = control
        increment = noise.W if isinstance(noise, dfx.AbstractBrownianIncrement) else noise
        return jax.tree.map(
            lambda f, g, w: f * jnp.asarray(step, f.dtype) + g * w,
            *(vf.drift, vf.diffusion, increment),
        )


def _spread(value: Any, y: Any) -> Any:
    """A coefficient for each leaf of y."""
    if jax.tree.structure(value) == jax.tree.structure(y):
        return value
    return jax.tree.map(lambda _: value, y)


def _root(y: Any) -> Any:
    """The square root of the positive part, with a gradient of zero where there is none.

    NaN stays NaN, so that a solve that has broken down shows it.
    """
    return jnp.where(y <= 0, 0, jnp.sqrt(jnp.where(y <= 0, 1, y)))


class _CIRSolver(OneStep, dfx.AbstractStratonovichSolver[None]):
    """A step of a known law from the step's size and the path over it."""

    term_structure: ClassVar[Any] = CIRTerm
    interpolation_cls: ClassVar[Any] = dfx.LocalLinearInterpolation

    @property
    def term_compatible_contr_kwargs(self) -> Any:
        return {"use_levy": True}

    def order(self, terms: Any) -> int:
        """Of the equation without noise."""
        del terms
        return 1

    def advance(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any
    ) -> tuple[Any, None, dict[str, Any]]:
        """One step, without an estimate of its error: for one there is `diffrax.HalfSolver`."""
        law = terms.vf(t0, y0, args)
        step, noise = terms.contr(t0, t1, use_levy=True)
        y1 = self.after(y0, law, step, noise)
        return y1, None, {"y0": y0, "y1": y1}

    @abstractmethod
    def after(self, y: Values, law: CIRField, step: Any, noise: Any) -> Values:
        """The value after a step."""


class HOStS(_CIRSolver):
    """High order Strang splitting: two exact diffusions between three exact drifts.

    Takes a `CIRTerm` whose path has space-time areas. Strong order 1.5 for low volatility; what
    remains of it near zero, where the square root has no derivatives, `CIRStepSize` restores.

    Backwards in time (t1 < t0) along the same path it undoes its own steps exactly, as a flow of
    Stratonovich's does, but for values that came to zero: those forget where they came from.

    **Cost:** one query of the path, two square roots, two exponentials a step.

    From `virtual-brownian-tree-integrals` (section 5.1), after Foster, dos Reis and Strange. Below
    zero square roots are those of zero, as in the paper.
    """

    @property
    def minimal_levy_area(self) -> Any:
        return dfx.AbstractSpaceTimeLevyArea

    def strong_order(self, terms: Any) -> float:
        """Where the volatility is low."""
        del terms
        return 1.5

    def after(self, y: Values, law: CIRField, step: Any, noise: Any) -> Values:
        """The value after a step."""
        if not isinstance(noise, dfx.AbstractSpaceTimeLevyArea):
            raise InputError(
                f"HOStS needs a path with levy_area=diffrax.SpaceTimeLevyArea, not "
                f"{type(noise).__name__}"
            )
        # Backwards diffrax negates step, increment and area; but the area between a path and its
        # chord is the same from either end.
        area = jax.tree.map(lambda h: jnp.sign(jnp.asarray(step, h.dtype)) * h, noise.H)
        law_and_noise = (law.reversion, law.level, law.volatility, noise.W, area)
        return jax.tree.map(partial(_split, jnp.asarray(step)), y, *law_and_noise)


def _split(step: Any, y: Any, a: Any, c: Any, s: Any, w: Any, h: Any) -> Any:
    """Drift, diffusion, drift, diffusion, drift."""
    step = step.astype(y.dtype)
    outer = jnp.exp(-a * step * (3 - math.sqrt(3)) / 6)
    inner = jnp.exp(-a * step / math.sqrt(3))
    area = math.sqrt(3) * h
    y = outer * y + (1 - outer) * c
    y = jnp.square(_root(y) + s / 2 * (w / 2 + area))
    y = inner * y + (1 - inner) * c
    y = jnp.square(_root(y) + s / 2 * (w / 2 - area))
    return outer * y + (1 - outer) * c


class DIE(_CIRSolver):
    """Drift-implicit Euler for the square root of the value (Alfonsi 2005).

    Takes a `CIRTerm`. Never negative. Strong order 1 for low volatility.

    **Cost:** one query of the path and two square roots a step.

    The rival of `virtual-brownian-tree-integrals` (section 5.1). Where the volatility is so high
    that the implicit equation has no solution, its root is taken as zero. Backwards in time, for
    steps shorter than 2 / a, it converges to the past of a value that did not come to zero.
    """

    @property
    def minimal_levy_area(self) -> Any:
        return dfx.AbstractBrownianIncrement

    def strong_order(self, terms: Any) -> float:
        """Where the volatility is low."""
        del terms
        return 1.0

    def after(self, y: Values, law: CIRField, step: Any, noise: Any) -> Values:
        """The value after a step."""
        law_and_noise = (law.reversion, law.level, law.volatility, noise.W)
        return jax.tree.map(partial(_implicit, jnp.asarray(step)), y, *law_and_noise)


def _implicit(step: Any, y: Any, a: Any, c: Any, s: Any, w: Any) -> Any:
    """The square of the root x of x = sqrt(y) + s w / 2 + step (a c / x - a x) / 2."""
    step = step.astype(y.dtype)
    p = _root(y) + s / 2 * w
    q = 2 + a * step
    return jnp.square(jnp.maximum((p + _root(p**2 + q * a * c * step)) / q, 0))


class CIRStepSize(dfx.AbstractStepSizeController[Any, Any]):
    """Steps of (tolerance y)^(2/3), for `HOStS` and `DIE`: small where the value is near zero.

    **Arguments:**

    - `tolerance`: > 0. `smallest`, `largest`: bounds of a step. The path must answer queries that
      are `smallest` apart (`GridBrownianPath`'s `refinements`).

    A step is rejected if it is a tenth longer than the rule allows at the smaller of the values at
    its ends, and tried again with what the rule allows there. `dt0` must be None. For values of
    more than one component the smallest decides. The solvers estimate no error; with
    `diffrax.HalfSolver` around them a `diffrax.PIDController` serves too.

    From `virtual-brownian-tree-integrals` (section 5.1).
    """

    tolerance: Any
    smallest: Any
    largest: Any = math.inf

    def __check_init__(self) -> None:
        for name in ("tolerance", "smallest", "largest"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not value > 0:
                raise InputError(f"{name}={value} must be positive, such as 1e-3")

    def wrap(self, direction: Any) -> CIRStepSize:
        """The same in either direction of time."""
        del direction
        return self

    def init(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        dt0: Any,
        args: Any,
        func: Any,
        error_order: Any,
    ) -> Any:
        """The end of the first step."""
        del terms, t1, args, func, error_order
        if dt0 is not None:
            raise InputError(f"dt0={dt0}: CIRStepSize chooses the first step, pass dt0=None")
        return t0 + self._allowed(y0, t0), ()

    def adapt_step_size(
        self,
        t0: Any,
        t1: Any,
        y0: Any,
        y1_candidate: Any,
        args: Any,
        y_error: Any,
        error_order: Any,
        controller_state: Any,
    ) -> Any:
        """Whether a step is kept, and the next one."""
        del args, y_error, error_order
        at_end = self._allowed(y1_candidate, t0)
        least = jnp.minimum(self._allowed(y0, t0), at_end)
        keep = t1 - t0 < 1.1 * least
        start = jnp.where(keep, t1, t0)
        end = start + jnp.where(keep, at_end, least)
        return keep, start, end, False, controller_state, dfx.RESULTS.successful

    def _allowed(self, y: Any, t: Any) -> Any:
        time = jnp.result_type(t)
        each = [jnp.min(leaf).astype(time) for leaf in jax.tree.leaves(y)]
        least = jnp.maximum(jnp.min(jnp.stack(each)), 0)
        return jnp.clip(jnp.cbrt(self.tolerance * least) ** 2, self.smallest, self.largest)
