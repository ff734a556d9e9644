"""Deep hedging: trade a stock so as to replicate an option, with costs, under Heston's model.

    d log S = -v/2 dt + sqrt(v) dW,   d v = kappa (theta - v) dt + xi sqrt(v) dB,   dW dB = rho dt

is simulated by full-truncation Euler steps (v's positive part wherever it is used). A recurrent
network sees log S, the volatility, the time left and its position, and chooses the next position.
The profit of a path is

    premium + sum_t p_t (S_{t+1} - S_t) - cost sum_t S_t |p_t - p_{t-1}| - payoff

with positions p, the stock being bought from nothing and sold at the end. The premium is the mean
payoff.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from nearly.core.errors import InputError, UnknownName
from nearly.curvature.recurrent import LinearLSTMCell
from nearly.curvature.steps import scan
from nearly.optimize.problems.finite_sum import FiniteSum
from nearly.optimize.problems.tasks import TargetTask

SPOT = 100.0
SCALE = 0.1  # log S and the volatility are divided by it, for inputs of the network near 1


class Heston(eqx.Module):
    """Heston's model, without drift; years and variances per year.

    **Arguments:** `kappa`, at which the variance returns to `theta`; `xi`, its volatility; `rho`,
    its correlation with the stock; `start`, the variance at the beginning.
    """

    kappa: float = 2.0
    theta: float = 0.04
    xi: float = 0.5
    rho: float = -0.7
    start: float = 0.04

    def __check_init__(self) -> None:
        for name in ("kappa", "theta", "start"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} {getattr(self, name)} must be positive")
        if not self.xi >= 0:
            raise InputError(f"xi {self.xi} must be at least 0")
        if not -1 <= self.rho <= 1:
            raise InputError(f"rho {self.rho} must lie in [-1, 1]: it is a correlation")

    def paths(
        self, random: np.random.Generator, count: int, steps: int, years: float
    ) -> Float[np.ndarray, "paths times 2"]:
        """Prices and variances at `steps + 1` times, from `SPOT`, by full-truncation Euler."""
        width = years / steps
        log, v = np.full(count, np.log(SPOT)), np.full(count, self.start)
        seen = [np.stack([np.exp(log), v], axis=-1)]
        for _ in range(steps):
            first, second = random.normal(size=(2, count)) * np.sqrt(width)
            other = self.rho * first + np.sqrt(1 - self.rho**2) * second
            positive = np.maximum(v, 0)
            log = log - positive / 2 * width + np.sqrt(positive) * first
            v = (
                v
                + self.kappa * (self.theta - positive) * width
                + self.xi * np.sqrt(positive) * other
            )
            seen.append(np.stack([np.exp(log), np.maximum(v, 0)], axis=-1))
        return np.stack(seen, axis=1)


class Hedger(eqx.Module):
    """An LSTM from what is known at a time to the position held until the next."""

    cell: LinearLSTMCell
    head: eqx.nn.Linear

    @staticmethod
    def of(hidden: int, key: PRNGKeyArray) -> Hedger:
        for_cell, for_head = jax.random.split(key)
        cell = LinearLSTMCell.of(eqx.nn.LSTMCell(4, hidden, key=for_cell))
        return Hedger(cell, eqx.nn.Linear(hidden, 1, key=for_head))

    def __call__(self, path: Float[Array, "times 2"]) -> Float[Array, " steps"]:
        """The positions held after each time but the last."""
        prices, variances = path[:-1].T
        steps = len(prices)
        known = jnp.stack(
            [
                jnp.log(prices / SPOT) / SCALE,
                jnp.sqrt(variances) / SCALE,
                1 - jnp.arange(steps).astype(path.dtype) / steps,
            ],
            axis=-1,
        )

        def body(carry: Any, now: Array) -> tuple[Any, Array]:
            state, position = carry
            state = self.cell(jnp.append(now, position), state)
            position = self.head(state[0])[0]
            return (state, position), position

        zeros = jnp.zeros(self.head.in_features, path.dtype)
        start = ((zeros, zeros), jnp.zeros((), path.dtype))
        return scan(body, start, known)[1]


class Ledger(eqx.Module):
    """What a position costs and earns on a path."""

    cost: float
    premium: float
    strike: float = SPOT

    def costs(self, path: Float[Array, "times 2"], positions: Float[Array, " steps"]) -> Array:
        """Proportional to the value traded, the final sale included."""
        zero = jnp.zeros(1, positions.dtype)
        trades = jnp.diff(positions, prepend=zero, append=zero)
        return self.cost * jnp.sum(path[:, 0] * jnp.abs(trades))

    def profit(self, path: Float[Array, "times 2"], positions: Float[Array, " steps"]) -> Array:
        """The premium and the gains, less the costs and a call's payoff."""
        gains = jnp.sum(positions * jnp.diff(path[:, 0]))
        payoff = jnp.maximum(path[-1, 0] - self.strike, 0)
        return self.premium + gains - self.costs(path, positions) - payoff


class _Hedge(TargetTask):
    """Hedging by an LSTM; the outputs are profits."""

    ledger: Ledger
    hidden: int = eqx.field(static=True)

    def start(self, key: Any) -> PyTree:
        return Hedger.of(self.hidden, key)

    def outputs(self, params: PyTree, inputs: Array) -> Float[Array, " batch"]:
        return jax.vmap(lambda path: self.ledger.profit(path, params(path)))(inputs)

    @abc.abstractmethod
    def losses_of(
        self, outputs: Float[Array, "batch ..."], targets: Array
    ) -> Float[Array, " batch"]: ...


class QuadraticHedge(_Hedge):
    """Half the squared distance of the profit from a target: a mean-variance trade-off.

    A target of 1 / aversion makes it, but for a constant, quadratic utility: the variance and the
    squared mean, halved, less the mean over the aversion. A likelihood, of normal profits.
    """

    def losses_of(
        self, outputs: Float[Array, "batch ..."], targets: Array
    ) -> Float[Array, " batch"]:
        return (outputs - targets) ** 2 / 2

    def draw_of(self, outputs: Float[Array, "batch ..."], key: PRNGKeyArray) -> Array:
        return outputs + jax.random.normal(key, outputs.shape, outputs.dtype)


class EntropicHedge(_Hedge):
    """Exponential utility, whose minimisers are those of the entropic risk; target 1 / aversion.

    Per path (exp(-aversion profit) - 1) / aversion. No likelihood: take the batch's own targets.
    """

    def losses_of(
        self, outputs: Float[Array, "batch ..."], targets: Array
    ) -> Float[Array, " batch"]:
        return jnp.expm1(-outputs / targets) * targets


RISKS: dict[str, type[_Hedge]] = {"quadratic": QuadraticHedge, "entropic": EntropicHedge}


class DeepHedging(FiniteSum):
    """`FiniteSum` over paths, which also tells the profit's variance and the costs on others."""

    error_name: ClassVar[str] = "training loss"

    def errors(self, value: PyTree) -> Mapping[str, float]:
        like = eqx.filter_eval_shape(self.task.start, jax.random.key(0))
        hedger = eqx.combine(jax.tree.map(jnp.asarray, value), like)
        profits, costs = (np.asarray(x, np.float64) for x in self.outcomes(hedger))
        return {
            **super().errors(value),
            "profit variance": float(np.var(profits)),
            "transaction cost": float(np.mean(costs)),
        }

    def outcomes(self, hedger: Hedger) -> tuple[Float[Array, " paths"], Float[Array, " paths"]]:
        """The profit and the costs on each test path."""
        ledger: Ledger = self.task.ledger  # pyright: ignore[reportAttributeAccessIssue]
        paths = jnp.asarray(self.test_inputs, self.dtype)

        @jax.jit
        def both(hedger: Hedger, paths: Array) -> tuple[Array, Array]:
            positions = jax.vmap(hedger)(paths)
            return jax.vmap(ledger.profit)(paths, positions), jax.vmap(ledger.costs)(
                paths, positions
            )

        return both(hedger, paths)


def deep_hedging(
    risk: str = "quadratic",
    aversion: float = 1.0,
    cost: float = 0.002,
    hidden: int = 16,
    paths: int = 4096,
    times: int = 30,
    batch: int = 256,
    steps: tuple[int, ...] = (100, 300),
    instance: int = 0,
) -> DeepHedging:
    """A call at the money for 30 days, hedged daily by an LSTM (`kfac-deep-hedging`).

    **Arguments:**

    - `risk`: "quadratic", of utility profit - aversion / 2 profit^2, or "entropic".
    - `aversion`, per unit of money where the stock costs 100. The quadratic risk takes any; under
      the entropic one losses of more than 50 / aversion overflow, so start with 0.2.
    - `cost`, the share of the traded value that is lost. `hidden`, the LSTM's size.
    - `paths` to train on, and as many for testing; `times` at which it trades; `instance`, the
      paths' seed. `batch` and `steps` as `FiniteSum`'s.

    Raises `InputError` for an aversion that is not positive or a negative cost, `UnknownName` for
    another risk.
    """
    if risk not in RISKS:
        raise UnknownName("risk", risk, RISKS)
    if not aversion > 0:
        raise InputError(f"aversion {aversion} must be positive")
    if not cost >= 0:
        raise InputError(f"cost {cost} must be at least 0")
    random = np.random.default_rng(instance)
    both = Heston().paths(random, 2 * paths, times, times / 365)
    payoffs = np.maximum(both[:paths, -1, 0] - SPOT, 0)
    targets = np.full(2 * paths, 1 / aversion)
    return DeepHedging(
        task=RISKS[risk](Ledger(cost, float(np.mean(payoffs))), hidden),
        inputs=both[:paths],
        targets=targets[:paths],
        test_inputs=both[paths:],
        test_targets=targets[paths:],
        batch=batch,
        steps=steps,
        name="deep-hedging",
    )
