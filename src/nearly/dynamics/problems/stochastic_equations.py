"""The room's stochastic equations: their terms for any solver, how their truth is known."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.tally import counted
from nearly.dynamics.brownian import GridBrownianPath
from nearly.dynamics.cir import DIE, CIRStepSize, CIRTerm, HOStS

DRIFT = "drift"
DIFFUSION = "diffusion"


@dataclass(frozen=True)
class Reference:
    """How a truth without a closed form is found: arguments of `diffeqsolve`, and how fine.

    `dials` are the steps per cell of the path (for an adaptive controller: the tolerances) of the
    truth and of a solution that is less fine; their difference is the truth's uncertainty.
    """

    arguments: Mapping[str, Any]
    dials: tuple[float, float]


class Equation(eqx.Module):
    """A stochastic equation, in Stratonovich's form, from 0 to `end`.

    A subclass holds its coefficients and says its `start`, its `truth`, its `terms` and, where
    that is more than one Brownian motion, the shape of its `noise`. `specialists` are the
    catalogue's names of solvers that not every equation can be given.
    """

    end: float = 1.0
    specialists: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def start(self) -> Any:
        """A pytree of NumPy arrays."""

    @property
    @abstractmethod
    def truth(self) -> Reference | Callable[[GridBrownianPath], Any]:
        """How the solution at the end is known: a function of the path, or a finer solution."""

    @property
    def noise(self) -> tuple[int, ...]:
        """The shape of the Brownian motion."""
        return ()

    @abstractmethod
    def terms(self, solver: Any, path: Any) -> Any:
        """The equation in the form a solver takes, its drift and diffusion counted."""


class Diffusion(Equation):
    """dy = drift dt + diffusion o dW; for Ito solvers with `ito_drift`, where that differs."""

    @abstractmethod
    def drift(self, t: Any, y: Any, args: Any) -> Any:
        """Stratonovich's."""

    def ito_drift(self, t: Any, y: Any, args: Any) -> Any:
        """Ito's."""
        return self.drift(t, y, args)

    @abstractmethod
    def diffusion(self, t: Any, y: Any, args: Any) -> Any:
        """What multiplies the noise."""

    def terms(self, solver: Any, path: Any) -> Any:
        ito = isinstance(solver, dfx.AbstractItoSolver)
        drift = counted(self.ito_drift if ito else self.drift, DRIFT)
        noise: Any = counted(self.diffusion, DIFFUSION)
        field: Any = drift
        return dfx.MultiTerm(dfx.ODETerm(field), dfx.ControlTerm(noise, path))


class GeometricBrownian(Diffusion):
    """dy = mu y dt + s y dW (Ito)."""

    growth: float = 0.5
    volatility: float = 0.8

    @property
    def start(self) -> Any:
        return np.ones(())

    def drift(self, t: Any, y: Any, args: Any) -> Any:
        return (self.growth - self.volatility**2 / 2) * y

    def ito_drift(self, t: Any, y: Any, args: Any) -> Any:
        return self.growth * y

    def diffusion(self, t: Any, y: Any, args: Any) -> Any:
        return self.volatility * y

    @property
    def truth(self) -> Callable[[GridBrownianPath], Any]:
        return self.exact

    def exact(self, path: GridBrownianPath) -> Any:
        rate = self.growth - self.volatility**2 / 2
        return jnp.exp(rate * self.end + self.volatility * path.evaluate(self.end))


class OrnsteinUhlenbeck(Diffusion):
    """dy = -r y dt + s dW: its solution is an integral of the path, taken cell by cell with the
    path's own moments, which leaves an error of the fourth order in a cell."""

    rate: float = 2.0
    volatility: float = 1.0
    specialists: ClassVar[tuple[str, ...]] = ("diffrax-shark",)

    @property
    def start(self) -> Any:
        return np.ones(())

    def drift(self, t: Any, y: Any, args: Any) -> Any:
        return -self.rate * y

    def diffusion(self, t: Any, y: Any, args: Any) -> Any:
        return jnp.full_like(y, self.volatility)

    @property
    def truth(self) -> Callable[[GridBrownianPath], Any]:
        return self.exact

    def exact(self, path: GridBrownianPath) -> Any:
        r, cell = self.rate, self.end / path.n
        nodes = jnp.arange(path.n, dtype=jnp.float64) * cell
        parts = jax.vmap(lambda t: path.evaluate(t, t + cell, use_levy=True))(nodes)
        # y(t + h) = e^-rh y + s int e^-r(h-v) dW_v = e^-rh y + s (W - r int e^-r(h-v) W_v dv)
        first = cell * (parts.W / 2 + parts.H)
        second = cell**2 * (parts.W / 3 + parts.H / 2 - parts.K)
        decay = math.exp(-r * cell)
        pushes = parts.W - r * decay * (first + r * second)
        weights = self.volatility * jnp.exp(-r * (self.end - nodes - cell))
        return math.exp(-r * self.end) * self.start + jnp.sum(weights * pushes)


JUDGES = ("hosts", "die", "hosts-constant", "die-constant")


class CoxIngersollRoss(Diffusion):
    """dy = a (b - y) dt + s sqrt(y) dW (Ito), with a = b = 1 and a start of 1.

    Its truth is that of a `judge`: "hosts" or "die" with `CIRStepSize` at the finer of the
    `tolerances`, or either "-constant", with a step for each cell of the path. Judge one solver by
    the other, or, where the volatility leaves constant steps an order, adaptive ones by those.
    """

    volatility: float = 2.2
    judge: str = "die"
    tolerances: tuple[float, float] = (2.0**-10, 2.0**-9)
    specialists: ClassVar[tuple[str, ...]] = (
        "hosts",
        "hosts-adaptive",
        "drift-implicit-euler",
        "drift-implicit-euler-adaptive",
    )

    @property
    def start(self) -> Any:
        return np.ones(())

    @property
    def truth(self) -> Reference:
        scheme, _, constant = self.judge.partition("-")
        solver = {"hosts": HOStS(), "die": DIE()}[scheme]
        if constant:
            return Reference({"solver": solver}, (1.0, 0.5))
        controller = CIRStepSize(1.0, 1e-12)  # as small as the path resolves
        return Reference({"solver": solver, "stepsize_controller": controller}, self.tolerances)

    def drift(self, t: Any, y: Any, args: Any) -> Any:
        return 1 - self.volatility**2 / 4 - y

    def ito_drift(self, t: Any, y: Any, args: Any) -> Any:
        return 1 - y

    def diffusion(self, t: Any, y: Any, args: Any) -> Any:
        return self.volatility * jnp.sqrt(jnp.where(y > 0, y, 1)) * (y > 0)

    def terms(self, solver: Any, path: Any) -> Any:
        if isinstance(solver, (HOStS, DIE)):
            return CIRTerm(1.0, 1.0, self.volatility, path)
        return super().terms(solver, path)


class NonCommutative(Diffusion):
    """dx = dV, dy = x o dW: y is the area that two Brownian motions sweep.

    No solver that sees increments only can have strong order above 1/2 here. Its truth is the sum
    of the path's cells.
    """

    @property
    def start(self) -> Any:
        return np.zeros(2)

    @property
    def noise(self) -> tuple[int, ...]:
        return (2,)

    @property
    def truth(self) -> Reference:
        return Reference({"solver": dfx.EulerHeun()}, (1.0, 0.5))

    def drift(self, t: Any, y: Any, args: Any) -> Any:
        return jnp.zeros_like(y)

    def diffusion(self, t: Any, y: Any, args: Any) -> Any:
        return jnp.diag(jnp.stack([jnp.ones_like(y[0]), y[0]]))


def _funnel_gradient(x: Any, args: Any) -> Any:
    del args
    return jax.grad(funnel_potential)(x)


def funnel_potential(x: Any) -> Any:
    """Neal's funnel: v ~ N(0, 9), the others given v ~ N(0, e^v); minus log density."""
    v, rest = x[0], x[1:]
    return v**2 / 18 + jnp.exp(-v) * jnp.sum(rest**2) / 2 + rest.size * v / 2


class FunnelLangevin(Equation):
    """Kinetic Langevin motion in Neal's funnel, of unit friction and damping, from rest."""

    end: float = 2.0
    size: int = 10
    gradient: Callable[..., Any] = _funnel_gradient
    specialists: ClassVar[tuple[str, ...]] = ("diffrax-quicsort", "diffrax-shark")

    @property
    def start(self) -> Any:
        return np.full(self.size, 0.5), np.zeros(self.size)

    @property
    def noise(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def truth(self) -> Reference:
        return Reference({"solver": dfx.QUICSORT(taylor_threshold=0.01)}, (1.0, 0.5))

    def terms(self, solver: Any, path: Any) -> Any:
        del solver
        gradient: Any = counted(self.gradient, DRIFT)
        drift = dfx.UnderdampedLangevinDriftTerm(1.0, 1.0, gradient)
        return dfx.MultiTerm(drift, dfx.UnderdampedLangevinDiffusionTerm(1.0, 1.0, path))
