"""Bandits over a solver's parameter: their distributions by hand, what they learn, their errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq, lsq_linear

from nearly.core.errors import InputError
from nearly.linear import bandits
from nearly.linear.autotune import Autotuned, relaxation_factors
from nearly.linear.bandits import (
    Bandit,
    BinnedTsallisINF,
    ChebyshevContextual,
    Choice,
    TsallisINF,
    TsallisState,
)

ARMS = 5
BANDITS = {
    "tsallis": TsallisINF(ARMS),
    "binned": BinnedTsallisINF(ARMS, 4, -1.0, 1.0),
    "chebyshev": ChebyshevContextual(ARMS, -1.0, 1.0),
}


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def test_tsallis_weights_solve_their_equation() -> None:
    rng = np.random.default_rng(0)
    k, rounds, mean = rng.uniform(0, 40, ARMS), 17, 3.0
    state = TsallisState(jnp.asarray(k), jnp.asarray(mean * rounds), jnp.asarray(float(rounds)))
    p = TsallisINF(ARMS).probabilities(state, jnp.asarray(0.0))
    eta = 2 / np.sqrt(rounds + 1)

    def excess(x: float) -> float:
        return float(np.sum(4 / (eta * (k / mean - x)) ** 2) - 1)

    x = brentq(excess, k.min() / mean - 1e3, k.min() / mean - 1e-9, xtol=1e-14)
    np.testing.assert_allclose(p, 4 / (eta * (k / mean - x)) ** 2, rtol=1e-9)


@pytest.mark.parametrize("name", BANDITS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_is_known_at_first(name: str, dtype: str) -> None:
    bandit: Bandit = BANDITS[name]
    p = bandit.probabilities(bandit.init(dtype), jnp.asarray(0.3, dtype))
    assert p.dtype == dtype
    np.testing.assert_allclose(p, 1 / ARMS, rtol=1e-5)


def play(learner: Autotuned, cost: Any, contexts: Any, seed: int) -> tuple[Any, Any]:
    """Costs and choices of a learner whose 'solver' is the parameter itself."""

    @jax.jit
    def run(key: Any) -> Any:
        def turn(state: Any, context: Any) -> Any:
            parameter, state = learner.suggest(state, context)
            paid = cost(parameter, context)
            return learner.update(state, paid), (paid, parameter)

        return jax.lax.scan(turn, learner.init(key), contexts)[1]

    return run(jax.random.key(seed))


def parameter(x: Any) -> Any:
    return x


def test_tsallis_finds_the_best_fixed_arm() -> None:
    grid = jnp.arange(ARMS, dtype=jnp.float64)
    rounds = 3000
    noise = jax.random.uniform(jax.random.key(9), (rounds,), jnp.float64)
    learner = Autotuned(parameter, grid)
    costs, chosen = play(learner, lambda a, c: 2 + 2 * jnp.abs(a - 3) + c, noise, 0)
    assert np.mean(np.asarray(chosen[-500:]) == 3) > 0.8
    halves = [np.sum(np.asarray(costs - noise - 2)[i:j]) for i, j in ((0, 1500), (1500, 3000))]
    assert halves[1] < 0.5 * halves[0]  # the regret grows ever more slowly


@pytest.mark.parametrize("name", ["binned", "chebyshev"])
def test_a_context_beats_the_best_fixed_arm(name: str) -> None:
    grid = jnp.linspace(-1, 1, ARMS, dtype=jnp.float64)
    contexts = jax.random.uniform(jax.random.key(1), (3000,), jnp.float64, -1, 1)

    def cost(a: Any, c: Any) -> Any:
        return 1 + 10 * (a - c) ** 2

    costs, _ = play(Autotuned(parameter, grid, BANDITS[name]), cost, contexts, 0)
    fixed = float(jnp.min(jnp.mean(jax.vmap(lambda a: cost(a, contexts))(grid), axis=1)))
    best = float(jnp.mean(jnp.min(jax.vmap(lambda a: cost(a, contexts))(grid), axis=0)))
    learnt = float(jnp.mean(costs[-1500:]))
    assert best <= learnt < best + 0.4 * (fixed - best)


def test_coefficients_are_the_bounded_least_squares() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(30, 4)), rng.normal(size=30)
    bound = np.array([0.02, 1.0, 0.05, 1.0])
    mine = bandits._bounded_least_squares(  # pyright: ignore[reportPrivateUsage]
        jnp.asarray(a.T @ a), jnp.asarray(a.T @ b), jnp.asarray(bound)
    )
    np.testing.assert_allclose(mine, lsq_linear(a, b, (-bound, bound)).x, atol=1e-8)


def test_the_regression_learns_a_polynomial_of_the_context() -> None:
    bandit = ChebyshevContextual(2, -1.0, 1.0, features=3)
    state = bandit.init("float64")
    for c in np.linspace(-1, 1, 9):
        choice = Choice(jnp.asarray(0), jnp.asarray(1.0), jnp.asarray(c))
        state = bandit.update(state, choice, jnp.asarray(5 + c + 2 * (2 * c**2 - 1)))
    theta = bandit._coefficients(state)[0]  # pyright: ignore[reportPrivateUsage]
    np.testing.assert_allclose(theta, [4, 1, 2], atol=1e-10)  # losses count from one


@pytest.mark.parametrize("name", BANDITS)
def test_learners_run_in_batches(name: str) -> None:
    grid = jnp.linspace(-1, 1, ARMS, dtype=jnp.float32)
    learner = Autotuned(parameter, grid, BANDITS[name])

    @jax.jit
    @jax.vmap
    def one(key: Any) -> Any:
        _, state = learner.suggest(learner.init(key), 0.2)
        return learner.bandit.probabilities(learner.update(state, 7.0).bandit, jnp.float32(0.2))

    p = one(jax.random.split(jax.random.key(0), 6))
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert np.all(np.asarray(p) >= 0)


def test_a_loss_of_one_everywhere_leaves_the_arms_equal() -> None:
    bandit = TsallisINF(ARMS)
    state = bandit.init("float64")
    choice = Choice(jnp.asarray(2), jnp.asarray(0.2), jnp.asarray(0.0))
    state = bandit.update(state, choice, jnp.asarray(1.0))
    np.testing.assert_allclose(bandit.probabilities(state, jnp.asarray(0.0)), 1 / ARMS)


def test_what_cannot_be_learnt_is_refused() -> None:
    with pytest.raises(InputError, match="1 arms"):
        TsallisINF(1)
    with pytest.raises(InputError, match="between 2"):
        ChebyshevContextual(3, 2.0, 1.0)
    with pytest.raises(InputError, match="0 bins"):
        BinnedTsallisINF(3, 0, 0.0, 1.0)
    with pytest.raises(InputError, match="1 Chebyshev"):
        ChebyshevContextual(3, 0.0, 1.0, features=1)
    with pytest.raises(InputError, match=r"shape \(20,\)"):
        Autotuned(parameter, relaxation_factors("float64"), TsallisINF(3))
