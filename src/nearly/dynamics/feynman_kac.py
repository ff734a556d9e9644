"""Parabolic equations on the half line with variable exponents, by grid and by expectation
(`variable-exponent-parabolic`).

`u_t = 1/2 sigma^2 x^(2 q(x)) u_xx + mu x^(p(x)) u_x - V(x) u`, `u(x, 0) = f(x)`, and the same u as
`E[exp(-int V(X)) f(X_t)]` over the paths `dX = mu X^p(X) dt + sigma X^q(X) dW` from x.

Everything is done in the logarithm s = ln x, where no path can cross zero and the equation is
uniformly parabolic as long as `x^(p - 1)` and `x^(q - 1)` are bounded:
`u_t = a^2/2 u_ss + (b - a^2/2) u_s - V u` with `a = sigma e^((q-1)s)` and `b = mu e^((p-1)s)`.
A method of the protocol `feynman-kac-solvers` is a builder `(equation, dial, *, key) -> solver`;
a solver is a function `(points, *, key) -> values` at the horizon, both [points].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.core.tally import counted

UPDATES = "updates"
CHUNK = 4096  # paths drawn together: a chunk of 128 steps is 4 MB in float64
REPLICATES = 8  # independent scramblings of a Sobol sequence, for its standard error
NODES = 64  # of Gauss-Hermite quadrature for the expectation of the control variate


Number = float | Array  # a setting that may be learned


class Bump(eqx.Module):
    """The exponent `1 + height exp(-(ln x - centre)^2 / width^2)`: 1 near zero and far out."""

    height: Number = 0.0
    centre: Number = 0.0
    width: Number = 1.0

    def __check_init__(self) -> None:
        if isinstance(self.width, (int, float)) and not self.width > 0:
            raise InputError(f"width={self.width} of an exponent's bump must be positive")

    def __call__(self, x: Float[Array, ""]) -> Float[Array, ""]:
        return 1 + self.height * jnp.exp(-(((jnp.log(x) - self.centre) / self.width) ** 2))


class Killing(eqx.Module):
    """The potential `rate (1 + slope / (1 + x))`."""

    rate: Number = 0.03
    slope: Number = 0.0

    def __call__(self, x: Float[Array, ""]) -> Float[Array, ""]:
        return self.rate * (1 + self.slope / (1 + x))


def logistic(x: Float[Array, ""]) -> Float[Array, ""]:
    """`x / (1 + x)`: smooth and bounded, rising where a path is likely to be."""
    return x / (1 + x)


class VariableExponents(eqx.Module):
    """The Cauchy problem and, which is the same, the stochastic equation.

    **Arguments:**

    - `initial`: f, bounded. `horizon`: the time at which u is asked for.
    - `drift`, `volatility`: mu and sigma > 0.
    - `drift_exponent`, `volatility_exponent`: p and q, of x > 0; `x^(p(x) - 1)` must be bounded.
    - `potential`: V >= 0, of x.

    All functions are scalar and traceable. Raises `InputError` for a volatility or a horizon that
    is not positive.
    """

    initial: Callable[[Any], Any] = logistic
    drift: Number = 0.05
    volatility: Number = 0.2
    drift_exponent: Callable[[Any], Any] = Bump()
    volatility_exponent: Callable[[Any], Any] = Bump()
    potential: Callable[[Any], Any] = Killing()
    horizon: Number = 1.0

    def __check_init__(self) -> None:
        for name in ("volatility", "horizon"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not value > 0:  # a traced one cannot be asked
                raise InputError(f"{name}={value} must be positive")

    def coefficients(
        self, s: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        """At s = ln x: the diffusion a, the drift b - a^2/2, and V."""
        x = jnp.exp(s)
        diffusion = self.volatility * jnp.exp((self.volatility_exponent(x) - 1) * s)
        drift = self.drift * jnp.exp((self.drift_exponent(x) - 1) * s)
        return diffusion, drift - diffusion**2 / 2, jnp.asarray(self.potential(x), s.dtype)

    def lognormal(self, s: Float[Array, ""], noise: Float[Array, ""]) -> Float[Array, ""]:
        """f at the end of the path with p = q = 1 from s whose Brownian motion ends in `noise`."""
        end = s + (self.drift - self.volatility**2 / 2) * self.horizon + self.volatility * noise
        return self.initial(jnp.exp(end))

    def lognormal_mean(self, s: Float[Array, ""]) -> Float[Array, ""]:
        """Its expectation, by Gauss-Hermite quadrature."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        nodes, weights = (jnp.asarray(v, s.dtype) for v in (nodes, weights / np.sum(weights)))
        ends = jax.vmap(lambda z: self.lognormal(s, jnp.sqrt(self.horizon) * z))(nodes)
        return weights @ ends


# ---- on a grid


class GridSolver(eqx.Module):
    """Crank-Nicolson on a logarithmic grid: see `crank_nicolson`."""

    equation: VariableExponents
    intervals: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    reach: float = eqx.field(static=True)

    def __call__(self, points: Float[Array, " points"], *, key: Any) -> Float[Array, " points"]:
        del key
        targets = jnp.log(points)
        grid = logarithmic_grid(self.equation, targets, self.intervals, self.reach)
        return _cubic(grid, self.march(grid), targets)

    def march(self, grid: Float[Array, " nodes"]) -> Float[Array, " nodes"]:
        """u at the horizon on an equidistant grid of s, with zero slope at both ends."""
        half = self.equation.horizon / self.steps / 2
        lower, diagonal, upper = (half * band for band in generator(self.equation, grid))
        update = jax.vmap(counted(lambda value: value, UPDATES))

        def step(_: Any, u: Array) -> Array:
            u = update(u)
            # The bands end in zeros, so nothing wraps around.
            right = u + diagonal * u + lower * jnp.roll(u, 1) + upper * jnp.roll(u, -1)
            solve = jax.lax.linalg.tridiagonal_solve
            return solve(-lower, 1 - diagonal, -upper, right[:, None])[:, 0]

        start = jax.vmap(self.equation.initial)(jnp.exp(grid))
        return jax.lax.fori_loop(0, self.steps, step, start)


def logarithmic_grid(
    equation: VariableExponents, logs: Float[Array, " points"], intervals: int, reach: float
) -> Float[Array, " nodes"]:
    """Equidistant s from `reach` standard deviations below the least to those above the largest."""
    margin = reach * equation.volatility * equation.horizon**0.5
    margin += 2 * abs(equation.drift) * equation.horizon
    return jnp.linspace(logs.min() - margin, logs.max() + margin, intervals + 1)


def generator(
    equation: VariableExponents, grid: Float[Array, " nodes"]
) -> tuple[Float[Array, " nodes"], Float[Array, " nodes"], Float[Array, " nodes"]]:
    """Central differences of `a^2/2 u_ss + (b - a^2/2) u_s - V u`, with zero slope at both ends.

    The bands below, on and above the diagonal, each as long as the grid.
    """
    width = grid[1] - grid[0]
    diffusion, drift, potential = jax.vmap(equation.coefficients)(grid)
    spread, flow = diffusion**2 / 2 / width**2, drift / 2 / width
    # Zero slope: the node outside mirrors the one inside, and the flow has nothing to carry.
    lower = (spread - flow).at[0].set(0).at[-1].set(2 * spread[-1])
    upper = (spread + flow).at[-1].set(0).at[0].set(2 * spread[0])
    return lower, -2 * spread - potential, upper


def _cubic(grid: Array, values: Array, targets: Array) -> Array:
    """Lagrange's cubic through the four nodes around each target."""
    place = (targets - grid[0]) / (grid[1] - grid[0])
    first = jnp.clip(jnp.floor(place).astype(int) - 1, 0, grid.size - 4)
    t = place - first
    weights = jnp.stack(
        [
            -(t - 1) * (t - 2) * (t - 3) / 6,
            t * (t - 2) * (t - 3) / 2,
            -t * (t - 1) * (t - 3) / 2,
            t * (t - 1) * (t - 2) / 6,
        ]
    )
    return jnp.sum(weights * values[first + jnp.arange(4)[:, None]], axis=0)


class CrankNicolson(eqx.Module):
    """Crank-Nicolson in time, central differences in ln x; the dial is the number of intervals.

    **Arguments:**

    - `intervals_per_step`: intervals over time steps; both errors are of second order.
    - `reach`: how many standard deviations `sigma sqrt(T)` the grid goes beyond the points.

    All points share one grid. Cost: `intervals * steps`; error of second order in both. The paper
    does the same; the interpolation between nodes is ours, cubic, so that it costs no order.
    """

    intervals_per_step: int = 4
    reach: float = 8.0
    dials: ClassVar[tuple[int, ...]] = (16, 32, 64, 128, 256, 512, 1024)
    random: ClassVar[bool] = False

    def __call__(self, equation: VariableExponents, dial: int, *, key: Any) -> GridSolver:
        """The solver; raises `InputError` for fewer than 8 intervals."""
        del key
        if dial < 8:
            raise InputError(f"{dial} intervals are too few for Crank-Nicolson: give at least 8")
        return GridSolver(equation, dial, max(dial // self.intervals_per_step, 1), self.reach)


# ---- by expectation


class PathSolver(eqx.Module):
    """The mean over paths: see `MonteCarlo` and `QuasiMonteCarlo`.

    `increments` [replicates, paths, steps] are standard normals drawn beforehand; without them each
    call draws `chunks` chunks of its own.
    """

    equation: VariableExponents
    steps: int = eqx.field(static=True)
    chunks: int = eqx.field(static=True)
    paths: int = eqx.field(static=True)
    antithetic: bool = eqx.field(static=True)
    control: bool = eqx.field(static=True)
    increments: Float[Array, "replicates paths steps"] | None = None

    def __call__(self, points: Float[Array, " points"], *, key: Any) -> Float[Array, " points"]:
        return self.estimate(points, key=key)[0]

    def estimate(
        self, points: Float[Array, " points"], *, key: Any
    ) -> tuple[Float[Array, " points"], Float[Array, " points"]]:
        """The means and their standard errors; all points share the noise."""
        logs = jnp.log(points)
        if self.increments is not None:
            means = jax.lax.map(lambda z: self._chunk(logs, z), self.increments)
            return self._replicated(logs, means)

        def draw(key: Any) -> Any:
            return self._chunk(logs, jax.random.normal(key, (self.paths, self.steps), logs.dtype))

        return self._pooled(logs, jax.lax.map(draw, jax.random.split(key, self.chunks)))

    def _chunk(self, logs: Array, normals: Array) -> Array:
        """First and second moments over a chunk: [points, 5]."""
        samples = jax.vmap(lambda s: jax.vmap(lambda z: self._sample(s, z))(normals))(logs)
        value, control = samples[..., 0], samples[..., 1]
        moments = (value, control, value**2, value * control, control**2)
        return jnp.stack([jnp.mean(m, axis=1) for m in moments], axis=-1)

    def _sample(self, s: Array, normals: Array) -> Array:
        """The value and, centred, the control variate of a path, or of it and its mirror image."""
        sample = _path(self.equation, s, normals)
        if self.antithetic:
            sample = (sample + _path(self.equation, s, -normals)) / 2
        return sample - jnp.stack([jnp.zeros_like(s), self.equation.lognormal_mean(s)])

    def _pooled(self, logs: Array, moments: Array) -> tuple[Array, Array]:
        value, control, square, product, power = jnp.moveaxis(jnp.mean(moments, axis=0), -1, 0)
        variance, covariance = square - value**2, product - value * control
        spread = power - control**2
        if self.control:
            slope = jnp.where(spread > 0, covariance / jnp.where(spread > 0, spread, 1), 0)
            value, variance = value - slope * control, variance - slope * covariance
        return value, jnp.sqrt(jnp.maximum(variance, 0) / (self.chunks * self.paths))

    def _replicated(self, logs: Array, moments: Array) -> tuple[Array, Array]:
        value, control, _, product, power = jnp.moveaxis(moments, -1, 0)
        if self.control:
            slope = jnp.sum(product - value * control, 0) / jnp.sum(power - control**2, 0)
            value = value - slope * control
        count = value.shape[0]
        return jnp.mean(value, 0), jnp.std(value, 0, ddof=1) / jnp.sqrt(1.0 * count)


def _path(equation: VariableExponents, s: Array, normals: Array) -> Array:
    """Euler in ln x: the discounted value at the end, and the same of p = q = 1, V = V(start)."""
    step = equation.horizon / normals.shape[0]
    # Marked together with the start, so that paths from several starts are counted apart.
    mark = jax.vmap(counted(lambda z, s: z, UPDATES), in_axes=(0, None))
    noise = jnp.sqrt(step) * mark(normals, s)

    def advance(carry: Any, increment: Array) -> tuple[Any, None]:
        y, killed = carry
        diffusion, drift, potential = equation.coefficients(y)
        moved = y + drift * step + diffusion * increment
        # The trapezium needs V at the step's end too, which the next step evaluates.
        return (moved, killed + potential * step), None

    (end, killed), _ = jax.lax.scan(advance, (s, jnp.zeros_like(s)), noise)
    first, last = (jnp.asarray(equation.potential(jnp.exp(v)), s.dtype) for v in (s, end))
    killed = killed + (last - first) * step / 2
    value = jnp.exp(-killed) * equation.initial(jnp.exp(end))
    return jnp.stack([value, equation.lognormal(s, jnp.sum(noise))])


class MonteCarlo(eqx.Module):
    """The mean over paths of Euler's scheme in ln x; the dial is the number of paths.

    **Arguments:**

    - `steps`: of each path; the bias is of first order in their size.
    - `antithetic`: whether each path comes with its mirror image (two paths of the dial).
    - `control`: whether the same path with p = q = 1, whose mean is known, is subtracted, with the
      coefficient that the same paths suggest (a bias of one over their number).

    Cost: `paths * steps` for each point; error `1 / sqrt(paths)`, beside the bias. Euler in x, as
    one would write it first, can cross zero.
    """

    steps: int = 128
    antithetic: bool = True
    control: bool = True
    dials: ClassVar[tuple[int, ...]] = (2**8, 2**10, 2**12, 2**14, 2**16, 2**18)

    def __check_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps}: give at least 1")

    def __call__(self, equation: VariableExponents, dial: int, *, key: Any) -> PathSolver:
        """The solver; raises `InputError` for fewer than 4 paths."""
        del key
        if dial < 4:
            raise InputError(f"{dial} paths are too few for a mean and its error: give at least 4")
        count = dial // 2 if self.antithetic else dial
        chunk = min(count, CHUNK)
        return PathSolver(
            equation, self.steps, -(-count // chunk), chunk, self.antithetic, self.control
        )


class QuasiMonteCarlo(eqx.Module):
    """The same mean over scrambled Sobol points; the dial is the number of paths.

    The first coordinates drive the principal components of the Brownian path, which hold most of
    its variance. Eight independent scramblings, an eighth of the paths each, give the standard
    error. The points are drawn on the host when the solver is built, and kept: `paths * steps`
    numbers. Arguments as in `MonteCarlo`.
    """

    steps: int = 128
    control: bool = True
    dials: ClassVar[tuple[int, ...]] = (2**8, 2**10, 2**12, 2**14)

    def __call__(self, equation: VariableExponents, dial: int, *, key: Any) -> PathSolver:
        """The solver; raises `InputError` unless the dial is a power of two from 16 on."""
        if dial < 2 * REPLICATES or dial & (dial - 1):
            raise InputError(f"{dial} paths: Sobol points come in powers of two, from 16 on")
        seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
        normals = _sobol_normals(dial // REPLICATES, self.steps, seed)
        dtype = jnp.zeros(()).dtype
        return PathSolver(
            equation, self.steps, 1, dial, False, self.control, jnp.asarray(normals, dtype)
        )


def _sobol_normals(paths: int, steps: int, seed: int) -> np.ndarray:
    """Standard normal increments [replicates, paths, steps] of principal components by Sobol."""
    from scipy.special import ndtri
    from scipy.stats import qmc

    times = np.arange(1, steps + 1)
    variances, components = np.linalg.eigh(np.minimum.outer(times, times).astype(float))
    order = np.argsort(-variances)
    paths_of = (components * np.sqrt(variances))[:, order]
    increments = np.diff(paths_of, axis=0, prepend=0)
    generator = np.random.default_rng(seed)
    found = [
        ndtri(np.clip(qmc.Sobol(steps, rng=generator).random(paths), 1e-12, 1 - 1e-12))
        for _ in range(REPLICATES)
    ]
    return np.stack(found) @ increments.T


crank_nicolson = CrankNicolson()
monte_carlo = MonteCarlo()
plain_monte_carlo = MonteCarlo(antithetic=False, control=False)
quasi_monte_carlo = QuasiMonteCarlo()
