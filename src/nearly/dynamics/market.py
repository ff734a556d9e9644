"""A portfolio, its two parties and their default barriers: what valuation adjustments are of
(`deep-xva`), with closed forms where the portfolio hangs on one lognormal value.
"""

from __future__ import annotations

import math

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from nearly.core.errors import InputError, UnknownName

KINDS = ("call", "forward")


class Obligor(eqx.Module):
    """Who defaults when the value of its assets, a geometric Brownian motion, hits a barrier.

    **Arguments:** `assets` at time 0 and `barrier` below it; `volatility`; `loss` given default.
    """

    assets: float = 1.0
    barrier: float = 0.7
    volatility: float = 0.2
    loss: float = 0.6

    def __check_init__(self) -> None:
        if not 0 < self.barrier < self.assets:
            raise InputError(
                f"barrier={self.barrier} must lie between 0 and the assets, {self.assets}"
            )
        if not self.volatility > 0:
            raise InputError(f"volatility={self.volatility} must be positive")

    @property
    def distance(self) -> float:
        """The logarithm of assets over barrier."""
        return math.log(self.assets / self.barrier)

    def survival(self, t: Float[Array, "*t"], rate: float) -> Float[Array, "*t"]:
        """The probability of no default up to t > 0."""
        drift, sigma = rate - self.volatility**2 / 2, self.volatility
        root = sigma * jnp.sqrt(t)
        mirrored = jnp.exp(-2 * drift * self.distance / sigma**2)
        near = norm.cdf((self.distance + drift * t) / root)
        return near - mirrored * norm.cdf((drift * t - self.distance) / root)

    def density(self, t: Float[Array, "*t"], rate: float) -> Float[Array, "*t"]:
        """The density of the time of default at t > 0."""
        drift, sigma = rate - self.volatility**2 / 2, self.volatility
        decay = jnp.exp(-((self.distance + drift * t) ** 2) / (2 * sigma**2 * t))
        return self.distance / (sigma * jnp.sqrt(2 * jnp.pi * t**3)) * decay


class Market(eqx.Module):
    """A portfolio on the geometric mean of some assets, between a bank and a counterparty.

    All is under the pricing measure. The states of its equations are the logarithms of the assets,
    of the counterparty's and of the bank's assets.

    **Arguments:**

    - `kind`: `"call"` or `"forward"` on the geometric mean at `strike`, held by the bank.
    - `assets`: how many, all worth `spot` with `volatility` and pairwise `correlation`.
    - `counterparty`, `bank`; their assets are independent of each other, and those of the
      counterparty have `wrong_way` correlation with each asset of the portfolio.
    - `horizon`, `rate`: in years, per year.
    - `collateral`: the part of the value that is posted. `margined`: whether there is initial
      margin, the `level` quantile of what the value gains within `delay` years.
    - `collateral_spread`, `margin_spread`, `funding_spread`: what collateral, margin and funding
      cost above the rate.

    Raises `UnknownName` for another kind, `InputError` for bad numbers.
    """

    kind: str = eqx.field(static=True, default="call")
    assets: int = eqx.field(static=True, default=1)
    spot: float = 100.0
    strike: float = 100.0
    volatility: float = 0.2
    correlation: float = 0.0
    counterparty: Obligor = Obligor()
    bank: Obligor = Obligor(barrier=0.6)
    wrong_way: float = 0.0
    horizon: float = 250 / 252
    rate: float = 0.03
    collateral: float = 0.0
    margined: bool = eqx.field(static=True, default=False)
    level: float = 0.99
    delay: float = 10 / 252
    collateral_spread: float = 0.01
    margin_spread: float = 0.02
    funding_spread: float = 0.03

    def __check_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownName("portfolio", self.kind, KINDS)
        if self.assets < 1:
            raise InputError(f"assets={self.assets}: give at least 1")
        if not -1 / max(self.assets - 1, 1) < self.correlation < 1:
            raise InputError(
                f"correlation={self.correlation} of {self.assets} assets must lie above "
                f"{-1 / max(self.assets - 1, 1):.3g} and below 1"
            )
        if not 0 <= self.collateral <= 1:
            raise InputError(f"collateral={self.collateral} must lie between 0 and 1")

    def payoff(self, logs: Float[Array, " assets"]) -> Float[Array, ""]:
        """What the bank gets at the horizon."""
        gain = jnp.exp(jnp.mean(logs)) - self.strike
        return jnp.maximum(gain, 0) if self.kind == "call" else gain

    # The geometric mean is lognormal: all that follows is of it alone.

    @property
    def spread(self) -> float:
        """The volatility of the geometric mean."""
        count = self.assets
        return self.volatility * math.sqrt((1 + (count - 1) * self.correlation) / count)

    @property
    def carry(self) -> float:
        """By how much its drift falls short of the rate."""
        return (self.volatility**2 - self.spread**2) / 2

    def value(self, t: Float[Array, "*t"], mean: Float[Array, "*t"]) -> Float[Array, "*t"]:
        """The clean value at time t, given the geometric mean; Black and Scholes."""
        left = jnp.maximum(self.horizon - t, 1e-12)
        forward = mean * jnp.exp((self.rate - self.carry) * left)
        discount = jnp.exp(-self.rate * left)
        if self.kind == "forward":
            return discount * (forward - self.strike)
        root = self.spread * jnp.sqrt(left)
        up = jnp.log(forward / self.strike) / root + root / 2
        return discount * (forward * norm.cdf(up) - self.strike * norm.cdf(up - root))

    def margin(self, t: Float[Array, "*t"], mean: Float[Array, "*t"]) -> Float[Array, "*t"]:
        """The quantile of what the value gains within the delay (or up to the horizon).

        The value rises with the geometric mean, so its quantile is the value at the mean's.
        """
        if not self.margined:
            return jnp.zeros_like(mean)
        wait = jnp.clip(self.horizon - t, 0, self.delay)
        drift = self.rate - self.carry - self.spread**2 / 2
        high = norm.ppf(jnp.asarray(self.level, jnp.result_type(mean)))
        later = mean * jnp.exp(drift * wait + self.spread * jnp.sqrt(wait) * high)
        return self.value(t + wait, later) - self.value(t, mean)

    def correlations(self) -> Float[Array, "noises noises"]:
        """Of the Brownian motions: the assets, the counterparty, the bank.

        Raises `InputError` where there are no such Brownian motions.
        """
        count = self.assets
        matrix = jnp.eye(count + 2)
        matrix = matrix.at[:count, :count].set(
            (1 - self.correlation) * jnp.eye(count) + self.correlation
        )
        return matrix.at[:count, count].set(self.wrong_way).at[count, :count].set(self.wrong_way)
