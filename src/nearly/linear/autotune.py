"""Tune any parameter of any solver over a sequence of systems, from its costs alone.

A learner over a sequence is `init(key) -> state`, `suggest(state, context) -> (solver, state)`,
`update(state, outcome) -> state`, where `solver` is an ordinary solver and `outcome` what its use
cost (iterations, matvecs, seconds).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.linear.bandits import (
    Bandit,
    BinnedTsallisINF,
    ChebyshevContextual,
    Choice,
    TsallisINF,
)
from nearly.linear.conjugate_gradient import ConjugateGradient
from nearly.linear.problems.sequence import Systems
from nearly.linear.relaxation import Sor, Ssor
from nearly.linear.stationary import Stationary

ARMS = 20


class Autotuning(eqx.Module):
    """What a learner knows: its bandit's state, its random key, what it suggested last."""

    bandit: Any
    key: Any
    choice: Choice


class Autotuned(eqx.Module):
    """A solver whose parameter is learnt while a sequence of systems is solved.

    After each system the learner is told what the solve cost; nothing else about the system is
    looked at, and nothing is computed beside the solves. Over T systems the mean cost approaches
    that of the best fixed parameter of the grid as `sqrt(arms / T)`; with a context, that of the
    best parameter for each context (`learning-to-relax`).

    **Arguments:**

    - `make`: a parameter (scalar array) -> a solver, as `lambda omega: SOR(omega, rtol=1e-8)`.
      Any solver will do, of linear systems or not. Let the parameter be an array leaf of the
      solver, then nothing is recompiled.
    - `grid`: the values it may take. Shape (arms,). Limit the solver's iterations: a ruinous value
      must be tried a few times to be known.
    - `bandit`: by default `TsallisINF`; `ChebyshevContextual` or `BinnedTsallisINF` use a context.

    **Cost:** O(arms) a system. Safe under jit, vmap and scan.
    """

    make: Callable[[Float[Array, ""]], Any]
    grid: Float[Array, " arms"]
    bandit: Bandit

    def __init__(
        self,
        make: Callable[[Float[Array, ""]], Any],
        grid: Float[Array, " arms"],
        bandit: Bandit | None = None,
    ) -> None:
        self.make = make
        self.grid = grid
        self.bandit = TsallisINF(grid.size) if bandit is None else bandit

    def __check_init__(self) -> None:
        if self.grid.ndim != 1 or self.grid.size != self.bandit.arms:
            raise InputError(
                f"a grid of shape {self.grid.shape} for a bandit of {self.bandit.arms} arms; "
                "give one value for each arm"
            )

    def init(self, key: Any) -> Autotuning:
        """The state before the first system; `key` decides all that is drawn."""
        zero = jnp.zeros((), self.grid.dtype)
        none = Choice(jnp.zeros((), int), jnp.ones((), self.grid.dtype), zero)
        return Autotuning(self.bandit.init(self.grid.dtype), key, none)

    def suggest(self, state: Autotuning, context: Any = 0.0) -> tuple[Any, Autotuning]:
        """A solver for the next system, and the state that remembers it.

        `context` is a number that says how the next system differs, for bandits that use one.
        """
        draw, key = jax.random.split(state.key)
        choice = self.bandit.draw(state.bandit, jnp.asarray(context, self.grid.dtype), draw)
        return self.make(self.grid[choice.arm]), Autotuning(state.bandit, key, choice)

    def update(self, state: Autotuning, outcome: Any) -> Autotuning:
        """The state after the suggested solver has cost `outcome`, at least one."""
        loss = jnp.asarray(outcome, self.grid.dtype)
        known = self.bandit.update(state.bandit, state.choice, loss)
        return Autotuning(known, state.key, state.choice)


class Informed(eqx.Module):
    """The learner that need not learn: it computes the parameter from the context by a rule.

    What a contextual learner is measured against where the best parameter is known.
    """

    make: Callable[[Float[Array, ""]], Any]
    rule: Callable[[Float[Array, ""]], Float[Array, ""]]

    def init(self, key: Any) -> tuple[()]:
        del key
        return ()

    def suggest(self, state: tuple[()], context: Any = 0.0) -> tuple[Any, tuple[()]]:
        return self.make(self.rule(context)), state

    def update(self, state: tuple[()], outcome: Any) -> tuple[()]:
        del outcome
        return state


# ---- what the paper tunes: the relaxation factor of SOR, and of conjugate gradients with SSOR


def sor(omega: Float[Array, ""]) -> Stationary:
    """SOR with the limit of 10,000 sweeps that the paper sets ruinous factors."""
    return Stationary(1e-8, preconditioner=Sor(omega), max_steps=10_000)


def ssor_cg(omega: Float[Array, ""]) -> ConjugateGradient:
    """Conjugate gradients with SSOR, with the same limit."""
    return ConjugateGradient(1e-8, preconditioner=Ssor(omega), max_steps=10_000)


def _tuned(make: Callable[[Float[Array, ""]], Any], bandit: Bandit) -> Autotuned:
    return Autotuned(make, relaxation_factors(float), bandit)


def tsallis_sor(systems: Systems) -> Autotuned:
    """SOR whose factor approaches the best fixed one (`learning-to-relax`)."""
    del systems
    return _tuned(sor, TsallisINF(ARMS))


def tsallis_ssor_cg(systems: Systems) -> Autotuned:
    """Conjugate gradients with SSOR whose factor approaches the best fixed one."""
    del systems
    return _tuned(ssor_cg, TsallisINF(ARMS))


def binned_sor(systems: Systems) -> Autotuned:
    """SOR whose factor is learnt apart for five bins of the context."""
    return _tuned(sor, BinnedTsallisINF(ARMS, 5, *systems.contexts))


def binned_ssor_cg(systems: Systems) -> Autotuned:
    """Conjugate gradients with SSOR whose factor is learnt apart for five bins of the context."""
    return _tuned(ssor_cg, BinnedTsallisINF(ARMS, 5, *systems.contexts))


def chebyshev_sor(systems: Systems) -> Autotuned:
    """SOR whose factor approaches the best one for each context."""
    return _tuned(sor, ChebyshevContextual(ARMS, *systems.contexts))


def chebyshev_ssor_cg(systems: Systems) -> Autotuned:
    """Conjugate gradients with SSOR whose factor approaches the best one for each context."""
    return _tuned(ssor_cg, ChebyshevContextual(ARMS, *systems.contexts))


def relaxation_factors(dtype: Any) -> Float[Array, " arms"]:
    """The grid of relaxation factors of `learning-to-relax`: twenty from 1 to 1.95."""
    return jnp.linspace(1.0, 1.95, ARMS, dtype=dtype)
