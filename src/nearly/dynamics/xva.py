"""Valuation adjustments of a portfolio, layer by layer (`deep-xva`).

Each layer is a backward equation or a quantile, solved by networks, that sees the layers below it
along the same paths:

1. clean value V;
2. initial margin IM, the quantile of what V gains within the margin period of risk, and ColVA, what
   the collateral C = collateral V costs;
3. CVA and DVA, the losses when the counterparty or the bank defaults first, and MVA, what the
   initial margin costs;
4. FVA, what funding all that is not collateralised costs, which lowers what is to be funded.

With tau the first default and all discounted at the rate:
`ColVA = E int_0^tau s_C C dt`, `MVA = E int_0^tau s_M IM dt`,
`CVA = E LGD_C (V - C - IM)^+` where the counterparty defaults first, `DVA = E LGD_B (V - C + IM)^-`
where the bank does, and `FVA = E int_0^tau s_F (V - C - IM - XVA - FVA) dt` with
`XVA = CVA - DVA + MVA + ColVA`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.dynamics.backward_paths import BackwardEquation, Path, simulate
from nearly.dynamics.bsde import BackwardSolution, DeepBSDE
from nearly.dynamics.market import Market
from nearly.dynamics.quantile import PinballRegression, Quantile

FLATTEST = 0.2  # of the payoff's deviation: values that move less are not told apart from it
ADJUSTMENTS = ("value", "margin", "colva", "cva", "dva", "mva", "fva")


# ---- the equations


class _Brownian(eqx.Module):
    """Coefficients of the logarithms of the assets: Euler's scheme is exact."""

    rates: Float[Array, " states"]
    factor: Float[Array, "states noises"]

    def drift(self, t: Any, x: Any) -> Array:
        del t, x
        return self.rates

    def diffusion(self, t: Any, x: Any) -> Array:
        del t, x
        return self.factor


class Default(eqx.Module):
    """How far the counterparty (side 0) and the bank (side 1) are from default."""

    barriers: Float[Array, " 2"]

    def __call__(self, t: Any, x: Any) -> Array:
        del t
        return x[-2:] - self.barriers


class _Tilt(eqx.Module):
    """A constant push of the last two Brownian motions: those of the parties' assets."""

    push: Float[Array, " noises"]

    def __call__(self, t: Any, x: Any) -> Array:
        del t, x
        return self.push


class Structure(eqx.Module):
    """The forward half of all layers of a market, in some precision; `pushes` tilts the parties."""

    market: Market
    pushes: tuple[float, float] = (0.0, 0.0)
    dtype: str = eqx.field(static=True, default="float32")

    @property
    def states(self) -> int:
        return self.market.assets + 2

    def volatilities(self) -> Array:
        market = self.market
        parties = [market.counterparty.volatility, market.bank.volatility]
        return jnp.asarray([market.volatility] * market.assets + parties, self.dtype)

    def default(self) -> Default:
        market = self.market
        barriers = jnp.asarray([market.counterparty.barrier, market.bank.barrier], self.dtype)
        return Default(jnp.log(barriers))

    def equation(self, layer: Any, *, outputs: int, defaultable: bool) -> BackwardEquation:
        """The backward equation with a layer's driver and payoff."""
        market, sigma = self.market, self.volatilities()
        worth = [market.spot] * market.assets + [market.counterparty.assets, market.bank.assets]
        factor = sigma[:, None] * jnp.linalg.cholesky(market.correlations()).astype(self.dtype)
        forward = _Brownian(market.rate - sigma**2 / 2, factor)
        push = jnp.zeros(self.states, self.dtype).at[-2:].set(jnp.asarray(self.pushes, self.dtype))
        tilted = any(self.pushes) and defaultable
        return BackwardEquation(
            start=jnp.log(jnp.asarray(worth, self.dtype)),
            horizon=market.horizon,
            noises=self.states,
            drift=forward.drift,
            diffusion=forward.diffusion,
            driver=layer.driver,
            payoff=layer.payoff,
            distances=self.default() if defaultable else None,
            tilt=_Tilt(push) if tilted else None,
            outputs=outputs,
            active=0 if defaultable else market.assets,
        )


class CleanValue(eqx.Module):
    market: Market

    def driver(self, t: Any, x: Any, y: Any, z: Any, seen: Any) -> Array:
        return -self.market.rate * y

    def payoff(self, t: Any, x: Any, side: Any, seen: Any) -> Array:
        return self.market.payoff(x[: self.market.assets])[None]


class _Collateral(eqx.Module):
    """Sees V."""

    market: Market

    def driver(self, t: Any, x: Any, y: Any, z: Any, seen: Any) -> Array:
        posted = self.market.collateral * seen[0]
        return self.market.collateral_spread * posted - self.market.rate * y

    def payoff(self, t: Any, x: Any, side: Any, seen: Any) -> Array:
        return jnp.zeros_like(x[:1])


class _Credit(eqx.Module):
    """Sees V and IM; its components are CVA, DVA and MVA."""

    market: Market

    def driver(self, t: Any, x: Any, y: Any, z: Any, seen: Any) -> Array:
        cost = self.market.margin_spread * seen[1]
        return jnp.stack([jnp.zeros_like(cost), jnp.zeros_like(cost), cost]) - self.market.rate * y

    def payoff(self, t: Any, x: Any, side: Any, seen: Any) -> Array:
        market, open_value = self.market, (1 - self.market.collateral) * seen[0]
        theirs = market.counterparty.loss * jnp.maximum(open_value - seen[1], 0)
        ours = market.bank.loss * jnp.maximum(-(open_value + seen[1]), 0)
        losses = (
            jnp.where(side == 0, theirs, 0),
            jnp.where(side == 1, ours, 0),
            jnp.zeros_like(theirs),
        )
        return jnp.stack(losses)


class _Funding(eqx.Module):
    """Sees V, IM, ColVA, CVA, DVA, MVA."""

    market: Market

    def driver(self, t: Any, x: Any, y: Any, z: Any, seen: Any) -> Array:
        value, margin, colva, cva, dva, mva = seen
        funded = (1 - self.market.collateral) * value - margin - (cva - dva + mva + colva) - y
        return self.market.funding_spread * funded - self.market.rate * y

    def payoff(self, t: Any, x: Any, side: Any, seen: Any) -> Array:
        return jnp.zeros_like(x[:1])


# ---- what the layers say along a path


class MarginNetwork(eqx.Module):
    """IM as a function `(t, x)`: the quantile of the gain over its standard deviation, times that.

    Zero if the market has none.
    """

    market: Market
    clean: BackwardSolution
    quantile: Quantile | None

    def __call__(self, t: Float[Array, ""], x: Float[Array, " states"]) -> Float[Array, ""]:
        if self.quantile is None:
            return jnp.zeros_like(t)
        features, deviation = margin_features(self.market, self.clean, t, x)
        return deviation * self.quantile(features)


def margin_features(
    market: Market, clean: BackwardSolution, t: Float[Array, ""], x: Float[Array, " states"]
) -> tuple[Float[Array, " features"], Float[Array, ""]]:
    """What the margin is learned from, and the linear estimate of the gain's deviation."""
    wait = jnp.clip(market.horizon - t, 0, market.delay)
    # A learned Z passes through zero where it should only be small, and gains over it run wild.
    least = FLATTEST * clean.scale[0] / clean.equation.horizon**0.5
    deviation = jnp.sqrt((jnp.sum(clean.control(t, x) ** 2) + least**2) * wait)
    return jnp.concatenate([t[None], x[: market.assets]]), deviation


class _Seen(eqx.Module):
    """What the layers found so far say along a path: V, IM, ColVA, and CVA, DVA, MVA."""

    clean: BackwardSolution
    margin: MarginNetwork | None = None
    layers: tuple[BackwardSolution, ...] = ()

    def __call__(self, path: Path) -> Array:
        found = [self.clean.along(path)]
        if self.margin is not None:
            found.append(jax.vmap(self.margin)(path.times, path.states)[:, None])
        for layer in self.layers:
            # A layer that sees less than all of what is seen reads its own part, the first.
            seen = eqx.tree_at(lambda p: p.seen, path, jnp.concatenate(found, axis=1))
            found.append(layer.along(seen))
        return jnp.concatenate(found, axis=1)


class Valuation(eqx.Module):
    """The layers' solutions; `report` gives the adjustments at time 0."""

    market: Market
    clean: BackwardSolution
    margin: MarginNetwork
    colva: BackwardSolution
    credit: BackwardSolution
    funding: BackwardSolution

    def report(self) -> dict[str, Float[Array, ""]]:
        """By name: see `ADJUSTMENTS`."""
        start = self.clean.equation.start
        cva, dva, mva = self.credit.initial
        return {
            "value": self.clean.initial[0],
            "margin": self.margin(jnp.zeros_like(start[0]), start),
            "colva": self.colva.initial[0],
            "cva": cva,
            "dva": dva,
            "mva": mva,
            "fva": self.funding.initial[0],
        }


# ---- the method


class DeepXVA(eqx.Module):
    """All layers by networks, one after the other; the dial is the number of training steps.

    **Arguments:**

    - `solver`: of the backward equations; the dial replaces its `iterations`.
    - `quantile`: of the initial margin; its level is replaced by the market's.
    - `refinement`: steps, for one of the solver's, of the paths on which the margin is learned; the
      gain over the margin period then has its curvature. `margin_paths`: how many of them.
    - `pushes`: the tilt of the counterparty's and the bank's assets, in their Brownian motions per
      square root of a year; negative pushes towards default.

    Differs from the paper: the margin is learned relative to `|Z| sqrt(delay)`, the deviation were
    the gain linear in the noise; one solver and one size of network for all layers. Cost: four
    trainings of a `DeepBSDE` and one quantile regression, each layer paying for those below it
    along its paths.
    """

    solver: DeepBSDE = DeepBSDE()
    quantile: PinballRegression = PinballRegression()
    refinement: int = 5
    margin_paths: int = 8192
    pushes: tuple[float, float] = (0.0, 0.0)
    dials: ClassVar[tuple[int, ...]] = (200,)

    def __call__(self, market: Market, dial: int, *, key: Any, dtype: str = "float32") -> Valuation:
        """The valuation of a market."""
        structure = Structure(market, self.pushes, dtype)
        solver = dataclasses.replace(self.solver, iterations=int(dial))
        keys = jax.random.split(key, 5)
        equation = structure.equation(CleanValue(market), outputs=1, defaultable=False)
        clean = solver(equation, key=keys[0])
        margin = self.margin_of(market, clean, dial, key=keys[1])
        layers: list[BackwardSolution] = []
        for part, outputs, key in (
            (_Collateral(market), 1, keys[2]),
            (_Credit(market), 3, keys[3]),
            (_Funding(market), 1, keys[4]),
        ):
            equation = structure.equation(part, outputs=outputs, defaultable=True)
            layers.append(solver(equation, key=key, observe=_Seen(clean, margin, tuple(layers))))
        return Valuation(market, clean, margin, *layers)

    def margin_of(
        self, market: Market, clean: BackwardSolution, dial: int, *, key: Any
    ) -> MarginNetwork:
        """The margin of a clean value; raises `InputError` if no step ends with the delay."""
        if not market.margined:
            return MarginNetwork(market, clean, None)
        fine = self.solver.steps * self.refinement
        delay = market.delay / market.horizon * fine
        if abs(delay - round(delay)) > 1e-6 or round(delay) < 1:
            raise InputError(
                f"a delay of {market.delay:.4g} years is {delay:.4g} of {fine} steps: choose steps "
                "and refinement such that it is a whole number of them"
            )
        path_key, fit_key = jax.random.split(key)
        features, gains = _gains(
            market, clean, fine, round(delay), self.refinement, self.margin_paths, path_key
        )
        regression = dataclasses.replace(self.quantile, level=market.level, iterations=int(dial))
        return MarginNetwork(market, clean, regression(features, gains, key=fit_key))


@eqx.filter_jit
def _gains(
    market: Market,
    clean: BackwardSolution,
    steps: int,
    delay: int,
    stride: int,
    paths: int,
    key: Any,
) -> tuple[Array, Array]:
    """Features and relative gains of the clean value over the delay, from every stride-th step."""
    starts = jnp.arange(0, steps - delay + 1, stride)

    def one(key: Any) -> tuple[Array, Array]:
        path = simulate(clean.equation, steps, key)
        value = clean.along(path)[:, 0]
        features, deviations = jax.vmap(lambda t, x: margin_features(market, clean, t, x))(
            path.times[starts], path.states[starts]
        )
        floor = jnp.finfo(value.dtype).eps * market.spot
        return features, (value[starts + delay] - value[starts]) / (deviations + floor)

    features, gains = jax.lax.map(one, jax.random.split(key, paths), batch_size=256)
    return features.reshape(-1, features.shape[-1]), gains.reshape(-1)


deep_xva = DeepXVA()
tilted_deep_xva = DeepXVA(pushes=(-1.0, -1.0))
