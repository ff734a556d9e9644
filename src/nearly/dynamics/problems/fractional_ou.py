"""The fractional Ornstein-Uhlenbeck equation, as an ordinary one of a longer state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.core.tally import counted
from nearly.dynamics.brownian import GridBrownianPath
from nearly.dynamics.fractional import markov_fractional
from nearly.dynamics.problems.stochastic import StochasticProblem
from nearly.dynamics.problems.stochastic_equations import DIFFUSION, DRIFT, Equation


class _Linear(eqx.Module):
    """The drift A y."""

    matrix: Float[Array, "state state"]

    def __call__(self, t: Any, y: Any, args: Any) -> Any:
        return self.matrix @ y


class _Constant(eqx.Module):
    """The diffusion b."""

    push: Float[Array, " state"]

    def __call__(self, t: Any, y: Any, args: Any) -> Any:
        return self.push


class FractionalOrnsteinUhlenbeck(Equation):
    """dX = -r X dt + s dB, B the Markov approximation of fractional Brownian motion (type II).

    The state is X and the `size` processes whose weighted sum B is, all driven by one Brownian
    motion; `fastest` is the speed of the fastest. What a solver gets wrong of this equation is
    measured; how far B is from fractional Brownian motion says `markov_fractional(...)
    .relative_error()`. The truth is the linear equation's, integrated over each cell of the path
    with its moments: it leaves an error of the fourth order in a cell times `fastest`.
    """

    hurst: float = 0.7
    rate: float = 1.0
    volatility: float = 1.0
    size: int = 5
    fastest: float = 20.0
    specialists: ClassVar[tuple[str, ...]] = ("diffrax-shark",)

    @property
    def start(self) -> Any:
        return np.concatenate([np.ones(1), np.zeros(self.size)])

    def system(self) -> tuple[Any, Any]:
        """A [state, state] and b [state] of dy = A y dt + b dW."""
        noise = markov_fractional(self.hurst, self.size, self.end, fastest=self.fastest * self.end)
        g, w = noise.speeds, noise.weights * self.volatility
        top = jnp.concatenate([jnp.array([-self.rate], g.dtype), -w * g])
        below = jnp.concatenate([jnp.zeros((self.size, 1), g.dtype), jnp.diag(-g)], axis=1)
        return jnp.concatenate([top[None], below]), jnp.append(jnp.sum(w), jnp.ones_like(g))

    def terms(self, solver: Any, path: Any) -> Any:
        del solver
        matrix, push = self.system()
        drift: Any = counted(_Linear(matrix), DRIFT)
        noise: Any = counted(_Constant(push), DIFFUSION)
        return dfx.MultiTerm(dfx.ODETerm(drift), dfx.ControlTerm(noise, path))

    @property
    def truth(self) -> Callable[[GridBrownianPath], Any]:
        return self.exact

    def exact(self, path: GridBrownianPath) -> Any:
        """X and the processes at the end, on a path."""
        a, b = self.system()
        cell = self.end / path.n
        nodes = jnp.arange(path.n, dtype=b.dtype) * cell
        parts = jax.vmap(lambda t: path.evaluate(t, t + cell, use_levy=True))(nodes)
        first = cell * (parts.W / 2 + parts.H)
        second = cell**2 * (parts.W / 3 + parts.H / 2 - parts.K)
        decay = jax.scipy.linalg.expm(a * cell)
        # int exp(A (h - v)) b dW_v = b W + A int exp(A h) (1 - A v) b W_v dv to the fourth order
        pushes = jnp.outer(parts.W, b)
        pushes += jnp.outer(first, a @ decay @ b) - jnp.outer(second, a @ decay @ a @ b)

        def step(y: Any, push: Any) -> Any:
            return decay @ y + push, None

        return jax.lax.scan(step, jnp.asarray(self.start, b.dtype), pushes)[0]


def fractional_ou(
    hurst: float = 0.7, size: int = 5, paths: int = 200, cells: int = 1024, seed: int = 0
) -> StochasticProblem:
    """The fractional Ornstein-Uhlenbeck equation of a Hurst index, by `size` processes.

    Raises `InputError` for a `hurst` outside of (0, 1) or a `size` below 1.
    """
    if not 0 < hurst < 1:
        raise InputError(f"hurst={hurst} must lie between 0 and 1, such as 0.7")
    if size < 1:
        raise InputError(f"size={size}: give at least 1 process, such as 5")
    equation = FractionalOrnsteinUhlenbeck(hurst=hurst, size=size)
    return StochasticProblem(
        equation=equation, paths=paths, cells=cells, seed=seed, name="fractional-ou"
    )
