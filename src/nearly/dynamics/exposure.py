"""Valuation adjustments by simulation without networks: nested Monte Carlo, and regression.

What `deep-xva` is measured beside. Both draw default times and portfolio values along outer paths
and take means of discounted losses and costs; they differ in how they find the value and the margin
at a node: by more paths from there, or by a polynomial fitted to all paths at that time. Both give
FVA without a further layer: it is linear, and its expectation needs the other adjustments' cash
flows only.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.core.tally import counted
from nearly.dynamics.backward_paths import STEPS, Path, simulate, stopped, unstopped
from nearly.dynamics.market import Market
from nearly.dynamics.xva import CleanValue, Structure


class NestedMonteCarlo(eqx.Module):
    """Inner paths from every node of every outer path; the dial is the number of outer paths.

    **Arguments:**

    - `steps`: of the outer paths. Inner paths take one, which is exact here.
    - `inner`: paths for a value.
    - `later`: states after the margin period, whose values' quantile is the margin; all from the
      same inner noise, which cancels in the gain.

    Cost: `dial * steps * inner * (later + 1)` path steps. The inner paths' noise biases what is
    convex in the value, CVA and DVA, upwards.
    """

    steps: int = 25
    inner: int = 64
    later: int = 128
    dials: ClassVar[tuple[int, ...]] = (16, 64)

    def __call__(self, market: Market, dial: int, *, key: Any, dtype: str = "float32") -> Any:
        """The adjustments by name; raises `InputError` for no path."""
        if dial < 1:
            raise InputError(f"{dial} outer paths: give at least 1")
        return _nested(self, market, int(dial), key, dtype)


class LeastSquaresMonteCarlo(eqx.Module):
    """Values by regression on polynomials; the dial is the number of paths.

    **Arguments:**

    - `steps`: of the paths; the margin period must be a whole number of them.
    - `degree`: of the polynomials in the logarithm of the geometric mean, the portfolio's state.

    The margin is that of Cornish and Fisher: mean, deviation and skewness of the gain over the
    margin period, all by regression, move a normal quantile. Cost: `dial * steps` path steps, and
    four times `steps` least-squares problems.
    """

    steps: int = 25
    degree: int = 4
    dials: ClassVar[tuple[int, ...]] = (4096, 16384)

    def __call__(self, market: Market, dial: int, *, key: Any, dtype: str = "float32") -> Any:
        """The adjustments by name; raises `InputError` for too few paths."""
        if dial <= 2 * self.degree:
            raise InputError(f"{dial} paths cannot fit a degree of {self.degree}: give more")
        delay = market.delay / market.horizon * self.steps
        if market.margined and abs(delay - round(delay)) > 1e-6:
            raise InputError(
                f"a delay of {market.delay:.4g} years is {delay:.4g} of {self.steps} steps: choose "
                "steps such that it is a whole number of them"
            )
        return _regressed(self, market, int(dial), max(round(delay), 1), key, dtype)


nested_monte_carlo = NestedMonteCarlo()
least_squares_monte_carlo = LeastSquaresMonteCarlo()


@eqx.filter_jit
def _nested(
    method: NestedMonteCarlo, market: Market, outer: int, key: Any, dtype: str
) -> dict[str, Array]:
    structure = Structure(market, dtype=dtype)
    equation = structure.equation(CleanValue(market), outputs=1, defaultable=False)
    rates = equation.drift(None, None)[: market.assets]
    factor = equation.diffusion(None, None)[: market.assets, : market.assets]

    def ahead(x: Array, wait: Array, key: Any, count: int) -> Array:
        draws = jax.random.normal(key, (count, market.assets), dtype)
        draws = jax.vmap(counted(lambda z, start: z, STEPS), in_axes=(0, None))(draws, x)
        return x + rates * wait + jnp.sqrt(wait) * draws @ factor.T

    def value(t: Array, x: Array, key: Any) -> Array:
        left = jnp.maximum(market.horizon - t, 0)
        payoffs = jax.vmap(market.payoff)(ahead(x, left, key, method.inner))
        return jnp.exp(-market.rate * left) * jnp.mean(payoffs)

    def node(t: Array, x: Array, key: Any) -> tuple[Array, Array]:
        value_key, state_key = jax.random.split(key)
        now = value(t, x, value_key)
        if not market.margined:
            return now, jnp.zeros_like(now)
        wait = jnp.clip(market.horizon - t, 0, market.delay)
        states = ahead(x, wait, state_key, method.later)
        # The same noise for all values: it cancels in their differences.
        later = jax.vmap(lambda y: value(t + wait, y, value_key))(states)
        return now, jnp.quantile(later - now, market.level)

    outside = structure.equation(CleanValue(market), outputs=1, defaultable=True)

    def one(key: Any) -> dict[str, Array]:
        path_key, node_key = jax.random.split(key)
        path = simulate(outside, method.steps, path_key)
        assets = path.states[:, : market.assets]
        keys = jax.random.split(node_key, method.steps + 1)
        values, margins = jax.lax.map(lambda i: node(*i), (path.times, assets, keys))
        return cash_flows(market, path, values, margins)

    found = jax.lax.map(one, jax.random.split(key, outer), batch_size=8)
    return jax.tree.map(lambda samples: jnp.mean(samples, axis=0), found)


@eqx.filter_jit
def _regressed(
    method: LeastSquaresMonteCarlo, market: Market, count: int, delay: int, key: Any, dtype: str
) -> dict[str, Array]:
    equation = Structure(market, dtype=dtype).equation(
        CleanValue(market), outputs=1, defaultable=True
    )

    def both(key: Any) -> tuple[Path, Path]:
        free_key, exit_key = jax.random.split(key)
        free = unstopped(equation, method.steps, free_key)
        return free, stopped(equation, free, exit_key)

    free, ended = jax.vmap(both)(jax.random.split(key, count))
    times = free.times[0]
    means, here = (_geometric_means(market, path) for path in (free, ended))
    # Each fit is evaluated on the free paths, at the nodes of those that end, and at their next.
    places = jnp.stack([means, here, jnp.concatenate([here[1:], here[-1:]])], axis=1)
    payoffs = jax.vmap(market.payoff)(free.states[:, -1, : market.assets])
    discounted = jnp.exp(-market.rate * (market.horizon - times))[:, None] * payoffs

    def fitted(targets: Array) -> Array:
        return jax.lax.map(lambda node: _fit(method.degree, *node), (means, targets, places))

    at_end = jax.vmap(jax.vmap(lambda mean: market.payoff(mean[None])))(places[-1])
    values = fitted(discounted).at[-1].set(at_end)
    margins = jnp.zeros_like(values)
    if market.margined:
        own = values[:, 0]
        gains = jnp.concatenate([own[delay:], jnp.tile(own[-1:], (delay, 1))]) - own
        expected = fitted(gains)
        left = gains - expected[:, 0]
        spread, third = fitted(left**2), fitted(left**3)
        least = market.spot * jnp.finfo(dtype).eps  # deviations below are rounding
        deviation = jnp.sqrt(jnp.maximum(spread, least**2))
        skewness = jnp.clip(third / deviation / deviation / deviation, -2, 2)
        high = norm.ppf(jnp.asarray(market.level, dtype))
        margins = expected + deviation * (high + (high**2 - 1) / 6 * skewness)
    along = (_on_path(ended, times, grid) for grid in (values, margins))
    flows = jax.vmap(lambda path, v, m: cash_flows(market, path, v, m))(ended, *along)
    return jax.tree.map(lambda samples: jnp.mean(samples, axis=0), flows)


def _geometric_means(market: Market, paths: Path) -> Float[Array, "nodes paths"]:
    """Their logarithms."""
    return jnp.mean(paths.states[..., : market.assets], axis=-1).T


def _fit(degree: int, state: Array, targets: Array, places: Array) -> Array:
    """A polynomial fitted to targets, at other places."""
    spread = jnp.std(state) + jnp.finfo(state.dtype).eps

    def basis(at: Array) -> Array:
        centred = (at - jnp.mean(state)) / spread
        return jnp.clip(centred, -5, 5)[..., None] ** jnp.arange(degree + 1)

    return basis(places) @ jnp.linalg.lstsq(basis(state), targets)[0]


def _on_path(paths: Path, times: Array, grid: Float[Array, "nodes 3 paths"]) -> Array:
    """What the fits say along paths [paths, nodes]; between two of them at an exit."""
    number = jnp.arange(grid.shape[2])
    last = paths.exit - 1
    share = (paths.times[number, paths.exit] - times[last]) / (times[1] - times[0])
    end = (1 - share) * grid[last, 2, number] + share * grid[paths.exit, 1, number]
    return grid[:, 1].T.at[number, paths.exit].set(end)


def cash_flows(
    market: Market,
    path: Path,
    values: Float[Array, " nodes"],
    margins: Float[Array, " nodes"],
) -> dict[str, Float[Array, ""]]:
    """What the adjustments of one path are the means of, discounted to time 0.

    **Arguments:** the clean value and the margin at the nodes of the path.
    """
    times = path.times
    discount = jnp.exp(-market.rate * times)
    open_values = (1 - market.collateral) * values
    at = path.exit
    theirs = market.counterparty.loss * jnp.maximum(open_values[at] - margins[at], 0)
    ours = market.bank.loss * jnp.maximum(-(open_values[at] + margins[at]), 0)
    held = discount * jnp.append(path.held, 0)
    colva = market.collateral_spread * market.collateral * held * values
    mva = market.margin_spread * held * margins
    cva = discount[at] * jnp.where(path.side == 0, theirs, 0)
    dva = discount[at] * jnp.where(path.side == 1, ours, 0)
    funding = market.funding_spread
    # What an adjustment of a later time takes from what is funded before it.
    share = 1 - jnp.exp(-funding * times)
    fva = jnp.sum(funding * jnp.exp(-funding * times) * held * (open_values - margins))
    fva = fva - jnp.sum(share * (colva + mva)) - share[at] * (cva - dva)
    return {
        "value": values[0],
        "margin": margins[0],
        "colva": jnp.sum(colva),
        "cva": cva,
        "dva": dva,
        "mva": jnp.sum(mva),
        "fva": fva,
    }
