"""The Cox-Ingersoll-Ross equation: two splittings of high order, and steps that shrink near zero.

dy = a (b - y) dt + s sqrt(y) dW   (Ito);   = a (c - y) dt + s sqrt(y) o dW,   c = b - s^2 / 4a
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.errors import InputError

Values = Float[Array, "*shape"]


class CIRField(eqx.Module):
    """What a `CIRTerm` gives a solver at a time and a value: drift and diffusion, and the law."""

    drift: Any
    diffusion: Any
    reversion: Any
    level: Any
    volatility: Any


class CIRTerm(dfx.AbstractTerm[Any, Any]):
    """dy = a (b - y) dt + s sqrt(y) dW, elementwise, for `HOStS`, `DIE` and Stratonovich solvers.

    **Arguments:**

    - `reversion` a > 0, `level` b > 0, `volatility` s > 0: numbers, or arrays of the shape of y.
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
        drift = self.reversion * (self.stratonovich_level - y)
        root = jnp.sqrt(jnp.where(y > 0, y, 1)) * (y > 0)
        return CIRField(drift, self.volatility * root, self.reversion, self.level, self.volatility)

    @property
    def stratonovich_level(self) -> Any:
        """c = b - s^2 / 4a: negative where the volatility is high."""
        return self.level - self.volatility**2 / (4 * self.reversion)

    def contr(self, t0: Any, t1: Any, **kwargs: Any) -> Any:
        """The step, and the path over it."""
        return t1 - t0, self.path.evaluate(t0, t1, **kwargs)

    def prod(self, vf: CIRField, control: Any) -> Any:
        """The increment of an Euler step."""
        step, noise = control
        increment = noise.W if isinstance(noise, dfx.AbstractBrownianIncrement) else noise
        return vf.drift * step + vf.diffusion * increment


class _CIRSolver(dfx.AbstractStratonovichSolver[Any]):
    """A step of a known law from the step's size and the path over it."""

    term_structure: ClassVar[Any] = CIRTerm
    interpolation_cls: ClassVar[Callable[..., Any]] = dfx.LocalLinearInterpolation

    @property
    def term_compatible_contr_kwargs(self) -> Any:
        return {"use_levy": True}

    def order(self, terms: Any) -> int:
        """Of the equation without noise."""
        del terms
        return 1

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> None:
        """There is no state."""
        del terms, t0, t1, y0, args

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        """The vector field."""
        return terms.vf(t0, y0, args)

    def step(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        args: Any,
        solver_state: None,
        made_jump: Any,
    ) -> Any:
        """One step, for `diffrax.diffeqsolve`."""
        del solver_state, made_jump
        law = terms.vf(t0, y0, args)
        step, noise = terms.contr(t0, t1, use_levy=True)
        y1 = self.advanced(y0, law, jnp.asarray(step, jnp.result_type(y0)), noise)
        return y1, None, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful

    def advanced(self, y: Values, law: CIRField, step: Any, noise: Any) -> Values:
        raise NotImplementedError


class HOStS(_CIRSolver):
    """High order Strang splitting: two exact diffusions between three exact drifts.

    Takes a `CIRTerm` whose path has space-time areas. Strong order 1.5 for low volatility; what
    remains of it near zero, where the square root has no derivatives, `CIRStepSize` restores.

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

    def advanced(self, y: Values, law: CIRField, step: Any, noise: Any) -> Values:
        """The value after a step."""
        if not isinstance(noise, dfx.AbstractSpaceTimeLevyArea):
            raise InputError(
                f"HOStS needs a path with levy_area=diffrax.SpaceTimeLevyArea, not "
                f"{type(noise).__name__}"
            )
        a, s = law.reversion, law.volatility
        rest = law.level - s**2 / (4 * a)
        outer = jnp.exp(-a * step * (3 - math.sqrt(3)) / 6)
        inner = jnp.exp(-a * step / math.sqrt(3))
        area = math.sqrt(3) * noise.H
        y = outer * y + (1 - outer) * rest
        y = jnp.square(_root(y) + s / 2 * (noise.W / 2 + area))
        y = inner * y + (1 - inner) * rest
        y = jnp.square(_root(y) + s / 2 * (noise.W / 2 - area))
        return outer * y + (1 - outer) * rest


class DIE(_CIRSolver):
    """Drift-implicit Euler for the square root of the value (Alfonsi 2005).

    Takes a `CIRTerm`. Never negative. Strong order 1 for low volatility.

    **Cost:** one query of the path and two square roots a step.

    The rival of `virtual-brownian-tree-integrals` (section 5.1). Where the volatility is so high
    that the implicit equation has no solution, its root is taken as zero.
    """

    @property
    def minimal_levy_area(self) -> Any:
        return dfx.AbstractBrownianIncrement

    def strong_order(self, terms: Any) -> float:
        """Where the volatility is low."""
        del terms
        return 1.0

    def advanced(self, y: Values, law: CIRField, step: Any, noise: Any) -> Values:
        """The value after a step."""
        a, s = law.reversion, law.volatility
        rest = law.level - s**2 / (4 * a)
        p = _root(y) + s / 2 * noise.W
        q = 2 + a * step
        return jnp.square(jnp.maximum((p + _root(p**2 + q * a * rest * step)) / q, 0))


def _root(y: Any) -> Any:
    """The square root of the positive part, with a gradient of zero where there is none."""
    return jnp.sqrt(jnp.where(y > 0, y, 1)) * (y > 0)


class CIRStepSize(dfx.AbstractStepSizeController[Any, Any]):
    """Steps of (tolerance y)^(2/3), for `HOStS` and `DIE`: small where the value is near zero.

    **Arguments:**

    - `tolerance`: > 0. `smallest`, `largest`: bounds of a step. The path must answer queries that
      are `smallest` apart (`GridBrownianPath`'s `refinements`).

    A step is rejected if it is a tenth longer than the rule allows at the smaller of the values at
    its ends, and tried again with what the rule allows there. `dt0` must be None. For values of
    more than one component the smallest decides.

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
        least = jnp.maximum(jnp.min(y), 0).astype(jnp.result_type(t))
        return jnp.clip(jnp.cbrt(self.tolerance * least) ** 2, self.smallest, self.largest)
