"""What neural differential equations promise beyond their gradients: what each kind can learn."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nearly.core.claim import Expected, claim
from nearly.dynamics import neural
from nearly.dynamics.data_paths import hermite_path
from nearly.training import fit

PAPER = "neural-differential-equations"
SEEDS = (0, 1, 2)


def squared_error(model: Any, batch: Any, key: Any) -> Any:
    """The mean over a batch (inputs, targets) of one number each."""
    del key
    inputs, targets = batch
    return jnp.mean((jax.vmap(model)(inputs)[:, 0] - targets) ** 2)


def adam(rate: float, updates: int) -> Any:
    """Adam with a rate that falls to a hundredth along a cosine."""
    return optax.adam(optax.cosine_decay_schedule(rate, updates, 0.01))


# ---- ordinary: trajectories do not cross

TURN_UPDATES = 500
TURN_ADAM = adam(1e-2, TURN_UPDATES)


def first(y: Any) -> Any:
    """The first component."""
    return y[:1]


def turning_error(extra: int, seed: int) -> float:
    """Mean squared error on [-1, 1] of x -> -x, learned with so many further components."""
    start, order = jax.random.split(jax.random.key(seed))
    model = neural.NeuralODE(
        neural.field(1 + extra, start, activation=jnp.tanh),
        neural.Augment(extra),
        first,
        neural.fixed(dfx.Tsit5(), 16),
    )
    inputs = jnp.linspace(-1, 1, 64, dtype=jnp.float32)[:, None]
    data = (inputs, -inputs[:, 0])
    run = fit(squared_error, model, data, optimizer=TURN_ADAM, steps=TURN_UPDATES, key=order)
    return float(squared_error(run.model, data, None))


@claim(
    PAPER,
    "augmentation-crosses-trajectories",
    cost="slow",
    expected=Expected(
        "mean squared error of a neural ODE on the line for x -> -x over that with one further "
        "component",
        ">=",
        100.0,
        "derived: the thesis shows that augmented neural ODEs are universal approximators and "
        "others are not; without crossing the end grows with the start, and the best growing "
        "approximation of -x is 0, with an error of 1/3; a hundredth of that is the least that "
        "counts as an approximation",
        scaled="fields of two hidden layers of 32, 64 points, 500 updates",
    ),
)
def augmentation_crosses_trajectories() -> list[float]:
    return [turning_error(0, seed) / turning_error(1, seed) for seed in SEEDS]


# ---- controlled: functionals of irregular series

TIMES = np.linspace(0.0, 1.0, 64)
TRAIN, TEST, KEPT = 1024, 512, 0.5
UPDATES, BATCH = 1500, 64
ADAM = adam(5e-3, UPDATES)


class Recurrent(eqx.Module):
    """The peer: a gated recurrent unit that is told how long ago it last saw something."""

    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __init__(self, size: int, key: Any) -> None:
        first, last = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(3, size, key=first)
        self.readout = eqx.nn.Linear(size, 1, key=last)

    def __call__(self, series: Any) -> Any:
        times, values = series
        seen = ~jnp.isnan(values[:, 0])

        def step(carry: Any, inputs: Any) -> Any:
            state, last = carry
            time, value, is_seen = inputs
            observed = jnp.append(jnp.where(is_seen, value, 0), time - last)
            new = self.cell(observed, state)
            return (jnp.where(is_seen, new, state), jnp.where(is_seen, time, last)), None

        start = (jnp.zeros(self.cell.hidden_size), jnp.zeros(()))
        (state, _), _ = jax.lax.scan(step, start, (times, values, seen))
        return self.readout(state)


class Controlled(eqx.Module):
    """A neural CDE along the smooth path through what was seen."""

    equation: neural.NeuralCDE

    def __call__(self, series: Any) -> Any:
        return self.equation(hermite_path(*series))


def controlled(key: Any) -> Controlled:
    """2,241 parameters, 32 steps of Heun's method."""
    return Controlled(neural.neural_cde(2, 1, key, integration=neural.fixed(dfx.Heun(), 32)))


def recurrent(key: Any) -> Recurrent:
    """2,226 parameters."""
    return Recurrent(25, key)


def curves(count: int, key: Any) -> tuple[Any, Any]:
    """Plane curves of three random harmonics at `TIMES` [count, times, 2], and the areas they sweep
    about the origin, in units of their own deviation."""
    size, phase = jax.random.split(key)
    orders = np.arange(1, 4)
    sizes = jax.random.normal(size, (count, 2, 3), jnp.float32) / orders
    phases = jax.random.uniform(phase, (count, 2, 3), jnp.float32, 0, 2 * np.pi)
    angles = np.pi * orders * TIMES[:, None]

    def along(shift: float) -> Any:
        waves = jnp.sin(angles[None, :, None] + phases[:, None] + shift)
        return sizes[:, None] * waves

    values = jnp.sum(along(0.0), -1)
    slopes = jnp.sum(np.pi * orders * along(np.pi / 2), -1)
    rates = values[..., 0] * slopes[..., 1] - values[..., 1] * slopes[..., 0]
    areas = jnp.trapezoid(rates, TIMES, axis=1) / 2
    return values, areas / jnp.std(areas)


def observed(values: Any, key: Any) -> Any:
    """Series of which some observations, each by chance, are missing; the ends are seen."""
    seen = jax.random.bernoulli(key, KEPT, values.shape[:2])
    seen = seen.at[:, 0].set(True).at[:, -1].set(True)
    times = jnp.broadcast_to(jnp.asarray(TIMES, values.dtype), values.shape[:2])
    return times, jnp.where(seen[..., None], values, jnp.nan)


@eqx.filter_jit
def outputs(model: Any, series: Any) -> Any:
    """Of all series, [count]."""
    return jax.vmap(model)(series)[:, 0]


@cache
def compared(seed: int) -> dict[str, tuple[float, float]]:
    """For each model its error on new curves, and how far two ways of observing them are apart."""
    keys = jax.random.split(jax.random.key(seed), 7)
    values, areas = curves(TRAIN, keys[0])
    data = (observed(values, keys[1]), areas)
    fresh, truth = curves(TEST, keys[2])
    once, again = (observed(fresh, key) for key in keys[3:5])
    found: dict[str, tuple[float, float]] = {}
    makers: dict[str, Callable[[Any], Any]] = {"cde": controlled, "gru": recurrent}
    for name, make in makers.items():
        run = fit(
            squared_error,
            make(keys[5]),
            data,
            optimizer=ADAM,
            steps=UPDATES,
            batch=BATCH,
            key=keys[6],
        )
        first, second = (outputs(run.model, series) for series in (once, again))
        error = jnp.sqrt(jnp.mean((first - truth) ** 2))
        found[name] = float(error), float(jnp.sqrt(jnp.mean((first - second) ** 2)))
    return found


_SERIES = (
    "the area swept by a plane curve of which half of 64 observations are missing at random, "
    "neural CDE and gated recurrent unit with time differences of 2,200 parameters each"
)
_SIZES = "1,024 synthetic curves, 1,500 updates"


def ratio(place: int, seed: int) -> float:
    """Of the recurrent unit's figure to the neural CDE's."""
    found = compared(seed)
    return found["gru"][place] / found["cde"][place]


@claim(
    PAPER,
    "functional-of-irregular-series",
    cost="slow",
    expected=Expected(
        "root mean square error on new curves of the recurrent unit over that of the neural CDE: "
        + _SERIES,
        ">=",
        1.0,
        "derived: the abstract has CDEs for learning functions of irregular time series; the area "
        "is the second term of the signature, which a controlled equation with a linear field "
        "gives exactly; not to be worse than the recurrent unit is the least",
        scaled=_SIZES,
    ),
)
def functional_of_irregular_series() -> list[float]:
    return list(map(partial(ratio, 0), SEEDS))


@claim(
    PAPER,
    "the-path-counts-not-its-samples",
    cost="slow",
    expected=Expected(
        "root mean square change of the output when the same curve is observed at other times, of "
        "the recurrent unit over that of the neural CDE: " + _SERIES,
        ">=",
        1.0,
        "derived: a CDE sees the path, which two sets of observations share but for interpolation; "
        "a recurrent unit takes as many steps as there are observations",
        scaled=_SIZES,
    ),
)
def the_path_counts_not_its_samples() -> list[float]:
    return list(map(partial(ratio, 1), SEEDS))
