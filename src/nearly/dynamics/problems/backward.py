"""`BackwardProblem` and `ValuationAdjustments`: values at time 0 that have closed forms."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array

from nearly.core.errors import InputError, UnknownName
from nearly.core.problem import Problem
from nearly.core.tally import tally
from nearly.dynamics.backward_paths import STEPS, BackwardEquation
from nearly.dynamics.market import Market, Obligor

NEGLIGIBLE = 1e-4  # what is less, beside the largest value asked for, is not judged


class Found(eqx.Module):
    """What a method found, by name, and the path steps it took."""

    values: dict[str, Any]
    steps: int = eqx.field(static=True)


class _ValuesAtStart(Problem):
    """All work is done once, so a run's work is what `build` took, in path steps."""

    error_name: ClassVar[str] = "largest relative error"
    work_name: ClassVar[str] = STEPS

    @abstractmethod
    def truths(self) -> Mapping[str, float]:
        """What the values are, by name."""

    @abstractmethod
    def solved(self, method: Any, dial: int, key: Any) -> Mapping[str, Any]:
        """What a method finds, by the same names."""

    def dials(self, method: Any) -> Sequence[int]:
        return getattr(method, "dials", (1024, 4096, 16384))

    def build(self, method: Any, dial: Any, *, key: Any) -> Found:
        if not callable(method):
            raise InputError(f"a {type(method).__name__} is no method here: give a function")
        with tally() as counts:
            values = dict(self.solved(method, int(dial), key))
        return Found(values, counts.read().get(STEPS, 0))

    def apply(self, standin: Found, *, key: Any) -> Mapping[str, Any]:
        return standin.values

    def work(self, standin: Found) -> Mapping[str, float]:
        return {STEPS: standin.steps} if standin.steps else {}

    def seconds(self, use: Callable[[], Any], standin: Any) -> Sequence[float]:
        return ()  # a use reads a number; the set-up's seconds are the method's

    def errors(self, value: Mapping[str, Any]) -> Mapping[str, float]:
        truths = self.truths()
        least = NEGLIGIBLE * max(map(abs, truths.values()))
        found = {
            name: abs(float(value[name]) - truth) / abs(truth)
            for name, truth in truths.items()
            if abs(truth) > least
        }
        return {self.error_name: max(found.values()), **found}


# ---- one equation


class BackwardProblem(_ValuesAtStart):
    """Find Y at time 0 of a backward equation whose solution is known.

    A method (protocol `bsde-solvers`) is a function `(equation, dial, *, key) -> Y_0` [outputs],
    the dial its own: training steps, or paths. The error is relative; work is counted in path
    steps, each one step of Euler's scheme for one path.

    **Arguments:** `equation`; `exact`: its solution, `(t, x) -> [outputs]`.
    """

    equation: BackwardEquation
    exact: Callable[[Any, Any], Any]
    name: str = "backward"
    dtype: str = "float32"
    protocol: ClassVar[str] = "bsde-solvers"

    def truths(self) -> Mapping[str, float]:
        with jax.enable_x64(True):
            start = jnp.asarray(np.asarray(self.equation.start), jnp.float64)
            values = np.asarray(self.exact(jnp.zeros((), start.dtype), start))
        return {f"y{i}": float(value) for i, value in enumerate(values)}

    def solved(self, method: Any, dial: int, key: Any) -> Mapping[str, Any]:
        values = method(self.equation, dial, key=key)
        return {f"y{i}": value for i, value in enumerate(values)}


class LogisticWave(eqx.Module):
    """`u = logistic(t + mean x)`, for X = sigma W: the driver is quadratic in (y, z)."""

    size: int = eqx.field(static=True)
    sigma: float

    def exact(self, t: Any, x: Any) -> Array:
        return jax.nn.sigmoid(t + jnp.mean(x))[None]

    def driver(self, t: Any, x: Any, y: Any, z: Any, seen: Any) -> Array:
        push = jnp.sum(z) * self.sigma / self.size
        return push * (y - 0.5 - self.size / self.sigma**2)

    def payoff(self, t: Any, x: Any, side: Any, seen: Any) -> Array:
        return self.exact(t, x)


class HamiltonJacobi(eqx.Module):
    """`u_t + Laplace u = |grad u|^2`, `u(T, x) = ln((1 + |x|^2) / 2)`, by Cole and Hopf.

    The solution is known at x = 0: a mean over a chi-squared variable.
    """

    size: int = eqx.field(static=True)
    horizon: float

    def exact(self, t: Any, x: Any) -> Array:
        from scipy.stats import chi2

        spread = 2 * (self.horizon - float(t))
        mean = chi2(self.size).expect(lambda c: 2 / (1 + spread * c))
        return -jnp.log(jnp.asarray(mean))[None]

    def driver(self, t: Any, x: Any, y: Any, z: Any, seen: Any) -> Array:
        return -jnp.sum(z**2, axis=-1) / 2

    def payoff(self, t: Any, x: Any, side: Any, seen: Any) -> Array:
        return jnp.log((1 + jnp.sum(x**2)) / 2)[None]


class FirstPassage(eqx.Module):
    """One unit paid, discounted, when a Brownian motion with drift first comes down to 0."""

    drift: float
    sigma: float
    rate: float
    horizon: float

    def exact(self, t: Any, x: Any) -> Array:
        left = jnp.maximum(self.horizon - t, 1e-12)
        root = self.sigma * jnp.sqrt(left)
        fast = (self.drift**2 + 2 * self.rate * self.sigma**2) ** 0.5
        towards = jnp.exp(-(self.drift + fast) / self.sigma**2 * x)
        away = jnp.exp(-(self.drift - fast) / self.sigma**2 * x)
        near, far = norm.cdf((-x + fast * left) / root), norm.cdf((-x - fast * left) / root)
        return towards * near + away * far

    def driver(self, t: Any, x: Any, y: Any, z: Any, seen: Any) -> Array:
        return -self.rate * y

    def payoff(self, t: Any, x: Any, side: Any, seen: Any) -> Array:
        return jnp.where(side == 0, jnp.ones_like(x), 0)

    def distances(self, t: Any, x: Any) -> Array:
        return x


class _Constant(eqx.Module):
    """Coefficients that do not change."""

    value: Array

    def __call__(self, t: Any, x: Any) -> Array:
        return self.value


def _equation(
    part: Any, start: Any, sigma: float, drift: float, horizon: float, **more: Any
) -> Any:
    start = jnp.asarray(start, jnp.float32)
    size = start.size
    return BackwardEquation(
        start=start,
        horizon=horizon,
        noises=size,
        drift=_Constant(jnp.full(size, drift, start.dtype)),
        diffusion=_Constant(sigma * jnp.eye(size, dtype=start.dtype)),
        driver=part.driver,
        payoff=part.payoff,
        **more,
    )


def logistic_wave(size: int = 20, horizon: float = 1.0) -> BackwardProblem:
    """A travelling wave in many dimensions, with a driver that is quadratic in (y, z)."""
    part = LogisticWave(size, size**0.5)
    equation = _equation(part, np.zeros(size), part.sigma, 0.0, horizon)
    return BackwardProblem(equation=equation, exact=part.exact, name=f"logistic-wave-{size}")


def hamilton_jacobi(size: int = 20, horizon: float = 1.0) -> BackwardProblem:
    """A Hamilton-Jacobi-Bellman equation in many dimensions, with a driver quadratic in z."""
    part = HamiltonJacobi(size, horizon)
    equation = _equation(part, np.zeros(size), 2**0.5, 0.0, horizon)
    return BackwardProblem(equation=equation, exact=part.exact, name=f"hamilton-jacobi-{size}")


def first_passage(
    start: float = 0.35, sigma: float = 0.2, rate: float = 0.03, horizon: float = 1.0
) -> BackwardProblem:
    """A unit paid at default: the equation ends where its path leaves the half line."""
    part = FirstPassage(rate - sigma**2 / 2, sigma, rate, horizon)
    equation = _equation(part, [start], sigma, part.drift, horizon, distances=part.distances)
    return BackwardProblem(equation=equation, exact=part.exact, name="first-passage")


# ---- all layers of a portfolio


class ValuationAdjustments(_ValuesAtStart):
    """Find the value, the margin and the adjustments of a portfolio at time 0.

    A method (protocol `xva-solvers`) is a function `(market, dial, *, key, dtype)` to the values by
    name (see `nearly.dynamics.xva.ADJUSTMENTS`), or to something with a `report()` of them. The
    error is the largest relative one of those that are not negligible; each stands beside it. Work
    is counted in path steps, inner ones included.

    The truth is by quadrature in time and in the geometric mean, from the laws of the first
    passages; so the parties' assets must be independent of the portfolio's.
    """

    market: Market
    name: str = "valuation-adjustments"
    dtype: str = "float32"
    protocol: ClassVar[str] = "xva-solvers"

    def __check_init__(self) -> None:
        if self.market.wrong_way:
            raise InputError(
                f"wrong_way={self.market.wrong_way}: there is no closed form to measure against; "
                "use the methods on the market itself"
            )

    def truths(self) -> Mapping[str, float]:
        return closed_adjustments(self.market)

    def solved(self, method: Any, dial: int, key: Any) -> Mapping[str, Any]:
        found = method(self.market, dial, key=key, dtype=self.dtype)
        return found.report() if hasattr(found, "report") else found


TIMES, MEANS, WIDEST = 64, 2001, 9.0  # nodes of the quadrature


def closed_adjustments(market: Market) -> dict[str, float]:
    """The adjustments of a market without wrong-way risk, to about six digits.

    Gauss and Legendre in time, on either side of the horizon less the margin period; equidistant in
    the logarithm of the geometric mean.
    """
    with jax.enable_x64(True):
        return {name: float(value) for name, value in _integrated(market).items()}


@eqx.filter_jit
def _integrated(market: Market) -> dict[str, Array]:
    times, weights = _time_quadrature(market)
    noise = jnp.linspace(-WIDEST, WIDEST, MEANS)
    chances = norm.pdf(noise) * (noise[1] - noise[0])
    t = times[:, None]
    growth = (market.rate - market.carry - market.spread**2 / 2) * t
    means = market.spot * jnp.exp(growth + market.spread * jnp.sqrt(t) * noise)
    grid = jnp.broadcast_to(t, means.shape)
    values, margins = market.value(grid, means), market.margin(grid, means)
    open_values = (1 - market.collateral) * values
    discount = jnp.exp(-market.rate * times)

    def mean(samples: Array) -> Array:
        return discount * (samples @ chances)

    they, we = market.counterparty, market.bank
    theirs, ours = (party.survival(times, market.rate) for party in (they, we))
    first, second = (
        they.density(times, market.rate) * ours,
        we.density(times, market.rate) * theirs,
    )
    alive = theirs * ours
    flows = {
        "colva": market.collateral_spread * market.collateral * mean(values) * alive,
        "cva": they.loss * mean(jnp.maximum(open_values - margins, 0)) * first,
        "dva": we.loss * mean(jnp.maximum(-(open_values + margins), 0)) * second,
        "mva": market.margin_spread * mean(margins) * alive,
    }
    total = flows["cva"] - flows["dva"] + flows["mva"] + flows["colva"]
    decay = jnp.exp(-market.funding_spread * times)
    funded = market.funding_spread * decay * mean(open_values - margins) * alive
    flows["fva"] = funded - (1 - decay) * total
    zero, spot = jnp.zeros(()), jnp.asarray(market.spot)
    return {
        "value": market.value(zero, spot),
        "margin": market.margin(zero, spot),
        **{name: weights @ flow for name, flow in flows.items()},
    }


def _time_quadrature(market: Market) -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(TIMES)
    cut = market.horizon - market.delay
    parts = [(0.0, cut), (cut, market.horizon)] if cut > 0 else [(0.0, market.horizon)]
    times = [low + (high - low) * (nodes + 1) / 2 for low, high in parts]
    scaled = [(high - low) / 2 * weights for low, high in parts]
    return jnp.asarray(np.concatenate(times)), jnp.asarray(np.concatenate(scaled))


MARKETS: Mapping[str, Market] = {
    # One long call: no debit side, nothing posted.
    "call": Market(),
    # Either side may owe: DVA is not zero.
    "forward": Market(kind="forward", bank=Obligor(barrier=0.7)),
    # Half of the value and an initial margin are posted.
    "margined": Market(collateral=0.5, margined=True),
    "basket": Market(assets=10, volatility=0.3, correlation=0.3, collateral=0.5, margined=True),
}


def valuation_adjustments(case: str = "call", dtype: str = "float32") -> ValuationAdjustments:
    """A named market; raises `UnknownName` for another case."""
    if case not in MARKETS:
        raise UnknownName("market", case, MARKETS)
    return ValuationAdjustments(market=MARKETS[case], name=f"xva-{case}", dtype=dtype)
