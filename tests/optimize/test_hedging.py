"""Deep hedging: paths against closed forms, profits by hand, both optimizers on equal terms."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.errors import InputError, UnknownName
from nearly.optimize import kfac
from nearly.optimize.problems.hedging import (
    SPOT,
    EntropicHedge,
    Heston,
    Ledger,
    QuadraticHedge,
    deep_hedging,
)


def test_without_volatility_of_the_variance_it_is_black_and_scholes():
    paths = Heston(xi=0.0).paths(np.random.default_rng(0), 200_000, 10, 0.25)
    payoff = np.maximum(paths[:, -1, 0] - SPOT, 0)
    spread = 0.2 * math.sqrt(0.25)
    price = SPOT * math.erf(spread / 2 / math.sqrt(2))
    error = 4 * np.std(payoff) / math.sqrt(len(payoff))
    assert abs(np.mean(payoff) - price) < error
    np.testing.assert_allclose(paths[..., 1], 0.04, rtol=1e-12)


def test_the_price_is_a_martingale_and_the_variance_returns_to_its_mean():
    model = Heston(start=0.09)
    paths = model.paths(np.random.default_rng(1), 100_000, 30, 1.0)
    finals = paths[:, -1]
    assert abs(np.mean(finals[:, 0]) - SPOT) < 4 * np.std(finals[:, 0]) / 300
    expected = 0.04 + 0.05 * (1 - 2.0 / 30) ** 30  # that of the Euler scheme
    assert abs(np.mean(finals[:, 1]) - expected) < 0.003
    assert np.min(paths[..., 1]) >= 0
    down = np.corrcoef(np.diff(np.log(paths[:, :2, 0])).ravel(), np.diff(paths[:, :2, 1]).ravel())
    assert abs(down[0, 1] + 0.7) < 0.01


def test_profit_and_costs_by_hand():
    path = jnp.asarray([[100.0, 0.04], [110.0, 0.04], [105.0, 0.04]])
    positions = jnp.asarray([0.5, 0.2])
    ledger = Ledger(cost=0.01, premium=3.0)
    costs = 0.01 * (100 * 0.5 + 110 * 0.3 + 105 * 0.2)
    np.testing.assert_allclose(ledger.costs(path, positions), costs, rtol=1e-6)
    profit = 3 + 0.5 * 10 - 0.2 * 5 - costs - 5
    np.testing.assert_allclose(ledger.profit(path, positions), profit, rtol=1e-6)


def test_quadratic_utility_is_the_loss_but_for_a_constant():
    profits = jnp.asarray([-1.0, 0.0, 2.0])
    target = jnp.full(3, 1 / 0.5)
    losses = QuadraticHedge(Ledger(0.0, 0.0), 4).losses_of(profits, target)
    utility = profits - 0.5 / 2 * profits**2
    np.testing.assert_allclose(losses + utility / 0.5, 0.5 * target**2, rtol=1e-6)


def test_the_entropic_loss_is_exponential_utility():
    profits = jnp.asarray([-1.0, 0.0, 2.0])
    losses = EntropicHedge(Ledger(0.0, 0.0), 4).losses_of(profits, jnp.full(3, 1 / 0.5))
    np.testing.assert_allclose(losses, (np.exp(-0.5 * profits) - 1) / 0.5, rtol=1e-6)


@pytest.fixture(scope="module")
def small():
    return deep_hedging(paths=64, times=5, hidden=4, batch=32, steps=(40,), cost=0.0, aversion=5.0)


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(optax.adam(0.05), id="adam"),
        pytest.param(kfac(0.3, key=jax.random.key(0)), id="kfac", marks=pytest.mark.slow),
    ],
)
def test_hedging_is_learnt_by_a_recurrent_network(small, optimizer):
    standin = small.build(optimizer, 40, key=None)
    run = eqx.filter_jit(lambda s: small.apply(s, key=jax.random.key(1)))
    found = small.errors(jax.device_get(run(standin)))
    unhedged = np.var(np.maximum(small.test_inputs[:, -1, 0] - SPOT, 0))
    assert found["profit variance"] < 0.4 * unhedged
    assert found["training loss"] < 0.4 * unhedged / 2
    assert found["transaction cost"] == 0


def test_the_network_has_no_parameter_outside_of_its_layers(small):
    from nearly.curvature.named_layers import linear_layer_names, uncovered

    hedger = eqx.filter(small.task.start(jax.random.key(0)), eqx.is_inexact_array)
    assert uncovered(hedger) == ()
    assert linear_layer_names(hedger) == ("cell.input_gates", "cell.hidden_gates", "head")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: deep_hedging(aversion=0.0), "aversion 0.0"),
        (lambda: deep_hedging(cost=-1.0), "cost -1.0"),
        (lambda: Heston(xi=-1.0), "xi -1.0"),
        (lambda: Heston(rho=2.0), "rho 2.0"),
        (lambda: Heston(kappa=0.0), "kappa 0.0"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_an_unknown_risk_is_named():
    with pytest.raises(UnknownName, match="quadratic"):
        deep_hedging(risk="quadratik")
