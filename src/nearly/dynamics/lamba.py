"""Euler-Heun with an embedded error estimate: adaptive steps for Stratonovich equations."""

from __future__ import annotations

from typing import Any, ClassVar

import diffrax as dfx
import jax
import jax.numpy as jnp


class LambaEulerHeun(dfx.AbstractAdaptiveSolver[Any], dfx.AbstractStratonovichSolver[Any]):
    """Heun's method for Stratonovich equations, with the error estimate of its drift and its noise.

    **Arguments:**

    - `delta`: the weight of the drift's part of the estimate.

    Terms are `MultiTerm(ODETerm(drift), ControlTerm(diffusion, path))`, the diffusion diagonal
    (a `lineax.DiagonalLinearOperator`) or otherwise commutative: adaptive steps converge for no
    other noise. Strong order 1/2, 1 for commutative noise. With f the drift, g the diffusion, K the
    Euler step of the drift alone, the estimate is

        delta (h / 2) (f(K) - f(y)) + (g(y + g(y) sqrt(h)) - g(y)) dW^2 / (2 sqrt(h)).

    **Cost:** three calls of the drift and three of the diffusion a step. `diffrax.EulerHeun`, which
    estimates nothing, makes one and two; `diffrax.HalfSolver` around it three and six.

    The solver with which `solver-heuristic-regularization` trains stochastic equations. The
    estimate is handed to the controller component by component, which scales each by its own
    tolerance, as in the authors' solver.
    """

    delta: Any = 1.0
    term_structure: ClassVar[Any] = dfx.MultiTerm[
        tuple[dfx.AbstractTerm[Any, Any], dfx.AbstractTerm[Any, Any]]
    ]
    interpolation_cls: ClassVar[Any] = dfx.LocalLinearInterpolation

    def order(self, terms: Any) -> int:
        return 1

    def strong_order(self, terms: Any) -> float:
        return 0.5

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> None:
        """No state."""

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> Any:
        """One step, and its error estimate."""
        drift, diffusion = terms.terms
        dt, dw = drift.contr(t0, t1), diffusion.contr(t0, t1)
        root = jax.tree.map(lambda w: jnp.sqrt(jnp.abs(t1 - t0)).astype(w.dtype), dw)
        f, g = drift.vf(t0, y0, args), diffusion.vf(t0, y0, args)
        f_dt, g_dw = drift.prod(f, dt), diffusion.prod(g, dw)
        k = _sum(y0, f_dt)
        predicted = _sum(k, g_dw)
        f_end = drift.vf_prod(t1, predicted, args, dt)
        g_end = diffusion.vf_prod(t1, predicted, args, dw)
        y1 = _sum(y0, _half(_sum(_sum(f_dt, f_end), _sum(g_dw, g_end))))

        # Along each noise: its step is sqrt(h), its correction goes with the square of dW.
        along = jax.tree.map(lambda w, r: jnp.full_like(w, r), dw, root)
        squared = jax.tree.map(lambda w, r: w**2 / (2 * r), dw, root)
        aside = _sum(y0, diffusion.prod(g, along))
        of_drift = _difference(drift.vf_prod(t1, k, args, dt), f_dt)
        noisy = diffusion.vf_prod(t0, aside, args, squared)
        of_noise = _difference(noisy, diffusion.prod(g, squared))
        error = jax.tree.map(lambda a, b: self.delta * a / 2 + b, of_drift, of_noise)
        return y1, error, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        """Drift and diffusion at a point."""
        return terms.vf(t0, y0, args)


def _sum(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _difference(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.subtract, a, b)


def _half(a: Any) -> Any:
    return jax.tree.map(lambda x: x / 2, a)
