"""Variational inference under fractional noise: exact laws, exact bounds, gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

from nearly.core.errors import InputError
from nearly.dynamics.brownian import GridBrownianPath
from nearly.dynamics.fractional import fractional_terms
from nearly.dynamics.fractional_inference import (
    AffineControl,
    AffineNoise,
    FractionalSDE,
    GaussianObservations,
    StepNoise,
    affine_control,
    affine_noise,
    control_network,
    evidence_bound,
    noise_network,
)
from nearly.training import fit

KEY = jax.random.key(0)


def still(t: Any, x: Any, args: Any) -> Any:
    return jnp.zeros_like(x)


def unit(t: Any, x: Any, args: Any) -> Any:
    return jnp.ones_like(x)


def decay(t: Any, x: Any, args: Any) -> Any:
    return -x


def steady(t: Any, x: Any, y: Any, args: Any) -> Any:
    return args * jnp.ones_like(x)


def equation(control: Any = steady, hurst: float = 0.7, **settings: Any) -> Any:
    logit = jnp.log(jnp.asarray(hurst / (1 - hurst), jnp.result_type(float)))
    given: dict[str, Any] = {"steps": 4, "size": 3, **settings}
    return FractionalSDE(still, unit, control, logit, **given)


@pytest.mark.parametrize(
    "kind", ["riemann-liouville", pytest.param("stationary", marks=pytest.mark.slow)]
)
def test_nodes_have_their_law_however_fast_the_processes(kind: Any) -> None:
    """Without drift X is B, in four steps, of which each takes the fastest process 250 of its
    times. u = 0.8 adds 0.8 sum w (1 - exp(-g t)) / g, and diverges by 0.8^2 / 2."""
    with jax.enable_x64(True):
        sde = equation(fastest=1000.0, kind=kind)

        @jax.jit
        def follow(push: Any) -> Any:
            keys = jax.random.split(KEY, 20_000)
            found = jax.vmap(lambda key: sde.posterior(jnp.zeros(1), key, push))(keys)
            noise = sde.noise()
            return *found, noise, noise.covariance(*jnp.meshgrid(times, times))

        times = np.arange(1, 5) / 4
        nodes, _, noise, truth = follow(0.0)
        found = nodes[:, 1:, 0].T @ nodes[:, 1:, 0] / 20_000
        np.testing.assert_allclose(found, truth, atol=0.03 * truth.max())
        nodes, divergence, *_ = follow(0.8)
        mean = 0.8 * noise.weights @ (-np.expm1(-noise.speeds) / noise.speeds)
        assert nodes[:, -1, 0].mean() == pytest.approx(float(mean), abs=0.02)
        assert divergence.mean() == pytest.approx(0.32, abs=0.02)


def test_terms_for_diffrax_spend_one_number_on_a_control_of_several_components() -> None:
    noise = jax.jit(lambda: equation().noise())()
    path = GridBrownianPath(KEY, 0.0, 1.0, 4, (2,))
    terms = fractional_terms(still, unit, noise, path, lambda t, state, args: 0.8 + 0 * state[0])
    start = (jnp.zeros(2), jnp.zeros((3, 2)), jnp.zeros(()))
    _, _, rate = terms.vf(0.0, start, None)[0]
    assert rate == pytest.approx(0.64)
    pushed = terms.terms[1].prod(terms.terms[1].vf(0.0, start, None), jnp.ones(2))
    assert [part.shape for part in pushed] == [(2,), (3, 2), ()]
    assert pushed[2] == 0


def test_steps_of_the_drift_are_of_second_order() -> None:
    """Without noise, dX = -X: Heun's factor at each step."""
    with jax.enable_x64(True):
        sde = FractionalSDE(decay, still, steady, jnp.zeros(()), steps=4, size=2)
        ends = eqx.filter_jit(sde.prior)(jnp.ones(1), KEY)[:, 0]
        np.testing.assert_allclose(ends, (1 - 0.25 + 0.25**2 / 2) ** np.arange(5), rtol=1e-12)


def evidence(sde: FractionalSDE, data: Any) -> Any:
    """Of X = B seen with errors: a Gaussian."""
    times = (np.asarray(data.nodes) * sde.end / sde.steps).astype(float)
    covariance = jax.jit(lambda: sde.noise().covariance(*np.meshgrid(times, times)))()
    covariance += float(data.deviation) ** 2 * jnp.eye(times.size)
    return jax.scipy.stats.multivariate_normal.logpdf(
        data.values[:, 0], jnp.zeros(times.size), covariance
    )


def test_one_observation_has_its_bound_in_closed_form() -> None:
    """u = a in a single step: log p - KL by hand, and less than the evidence."""
    with jax.enable_x64(True):
        a, deviation, seen = 0.3, 0.5, 0.9
        sde = equation(steps=1, size=2)
        data = GaussianObservations(jnp.array([1]), jnp.array([[seen]]), deviation)
        estimate = partial(evidence_bound, sde, data, jnp.zeros(1), samples=200_000, args=a)
        bound, noise = jax.jit(lambda key: (estimate(key), sde.noise()))(KEY)
        mean = a * noise.weights @ (-np.expm1(-noise.speeds) / noise.speeds)
        spread = noise.covariance(1.0, 1.0)
        square = (seen - mean) ** 2 + spread
        truth = -square / (2 * deviation**2) - np.log(deviation * np.sqrt(2 * np.pi)) - a**2 / 2
        assert bound == pytest.approx(float(truth), abs=0.05)
        assert bound < evidence(sde, data)


def test_the_true_law_of_the_noise_makes_every_sample_the_evidence() -> None:
    """A single step is a Gaussian model: X = a . xi, seen with errors, conditioned by hand."""
    with jax.enable_x64(True):
        data = GaussianObservations(jnp.array([1]), jnp.array([[0.9]]), 0.1)
        noise = jax.jit(lambda: equation(steps=1, size=2).noise())()
        speeds = np.append(0, noise.speeds)
        rates = speeds[:, None] + speeds
        covariance = np.where(rates > 0, -np.expm1(-rates) / np.where(rates > 0, rates, 1), 1)
        a = scipy.linalg.sqrtm(covariance)[:, 1:] @ np.asarray(noise.weights)
        total = 0.1**2 + a @ a
        root = np.linalg.cholesky(np.eye(3) - np.outer(a, a) / total)
        law = StepNoise(jnp.asarray(a * 0.9 / total)[:, None], jnp.asarray(root))
        sde = equation(lambda t, x, y, args: law, steps=1, size=2)

        @jax.jit
        def bound(key: Any) -> Any:
            return evidence_bound(sde, data, jnp.zeros(1), key)

        for key in jax.random.split(KEY, 3):
            assert bound(key) == pytest.approx(float(evidence(sde, data)), rel=1e-9)


def loss(sde: Any, data: Any, key: Any) -> Any:
    def one(values: Any, number: Any, key: Any) -> Any:
        seen = GaussianObservations(data.nodes, values, data.deviation)
        return evidence_bound(sde, seen, jnp.zeros(1), key, samples=8, args=number)

    numbers = jnp.arange(data.values.shape[0])
    return -jnp.mean(jax.vmap(one)(data.values, numbers, jax.random.split(key, numbers.size)))


class Data(eqx.Module):
    nodes: Any
    values: Any
    deviation: float


TWO_SERIES = jnp.array([[0.3, 0.8, 0.2], [-0.9, -0.1, 0.4]])[..., None]


def gap(control: Any, steps: int) -> float:
    """Evidence less trained bound of two series of three observations, a series."""
    sde = equation(control, steps=steps)
    data = Data(jnp.arange(1, 4) * (steps // 3), TWO_SERIES, 0.3)
    run = fit(
        lambda model, batch, key: loss(model, data, key),
        sde,
        lambda key: jnp.zeros(1),
        optimizer=optax.adam(optax.exponential_decay(0.05, 1500, 0.01)),
        steps=1500,
        key=KEY,
        trainable=eqx.tree_at(lambda s: s.logit, jax.tree.map(eqx.is_array, sde), False),
    )
    bound = -np.mean([loss(run.model, data, k) for k in jax.random.split(KEY, 20)])
    return float(np.mean([evidence(sde, Data(data.nodes, v, 0.3)) for v in TWO_SERIES]) - bound)


@pytest.mark.slow
def test_an_affine_control_reaches_the_evidence() -> None:
    """The steps, in which u is constant, cost about .02 an observation."""
    with jax.enable_x64(True):
        assert -0.01 < gap(affine_control(2, 1, 3, 60, dtype=jnp.float64), 60) < 0.1


@pytest.mark.slow
def test_affine_noise_reaches_the_evidence_in_steps_as_long_as_the_data_are_apart() -> None:
    with jax.enable_x64(True):
        assert abs(gap(affine_noise(2, 1, 3, 3, dtype=jnp.float64), 3)) < 0.005
        assert gap(affine_control(2, 1, 3, 3, dtype=jnp.float64), 3) > 0.5


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences() -> None:
    """In the drift and the Hurst index (the control is held still in one of its two integrals)."""
    with jax.enable_x64(True):
        key, other = jax.random.split(KEY)
        control = control_network(1, 2, key, width=4, dtype=jnp.float64)
        data = GaussianObservations(jnp.array([2, 4]), jnp.array([[0.4], [-0.2]]), 0.4)

        def bound(logit: Any, rate: Any) -> Any:
            def drift(t: Any, x: Any, args: Any) -> Any:
                return -rate * x

            sde = FractionalSDE(drift, unit, control, logit, steps=4, size=2)
            return evidence_bound(sde, data, jnp.zeros(1), other, samples=4)

        pull = jax.jit(jax.grad(bound, (0, 1)))
        value = jax.jit(bound)
        at, e = (jnp.asarray(0.3), jnp.asarray(0.7)), 1e-5
        slopes = pull(*at)
        for place, slope in enumerate(slopes):
            up, down = ([a + s * e * (i == place) for i, a in enumerate(at)] for s in (1, -1))
            assert slope == pytest.approx(float(value(*up) - value(*down)) / (2 * e), rel=1e-5)


@pytest.mark.parametrize("network", [control_network, noise_network])
def test_networks_start_at_the_prior_in_single_precision_too(network: Any) -> None:
    control = network(2, 3, KEY, width=4)
    sde = FractionalSDE(still, unit, control, jnp.zeros((), jnp.float32), steps=4, size=3)
    nodes, divergence = eqx.filter_jit(sde.posterior)(jnp.ones(2, jnp.float32), KEY)
    assert nodes.shape == (5, 2)
    assert nodes.dtype == jnp.float32
    assert np.all(np.isfinite(nodes))
    assert divergence == pytest.approx(0, abs=1e-6)


def test_affine_controls_read_their_own_series_and_step() -> None:
    control = affine_control(2, 1, 1, 4)
    control = eqx.tree_at(lambda c: c.offsets, control, control.offsets.at[1, 2, 0].set(3.0))
    control = eqx.tree_at(lambda c: c.gains, control, control.gains.at[2, 1, 0].set(10.0))
    assert isinstance(control, AffineControl)
    x, y = jnp.ones(1), jnp.full((1, 1), 0.2)
    assert control(0.5, x, y, 1) == 10.0  # (3 + 10 * 0.2) over the root of 1 / 4
    assert control(0.5, x, y, 0) == 4.0
    assert control(0.25, x, y, 1) == 0.0


def test_affine_noise_reads_its_own_series_and_step() -> None:
    law = affine_noise(2, 1, 1, 4)
    law = eqx.tree_at(lambda n: n.offsets, law, law.offsets.at[1, 2, 0, 0].set(3.0))
    law = eqx.tree_at(lambda n: n.gains, law, law.gains.at[2, 0, 1, 0].set(10.0))
    law = eqx.tree_at(lambda n: n.squares, law, law.squares.at[2].set(jnp.log(2.0)))
    assert isinstance(law, AffineNoise)
    x, y = jnp.ones(1), jnp.full((1, 1), 0.2)
    np.testing.assert_allclose(law(0.5, x, y, 1).mean, [[5.0], [0.0]])
    np.testing.assert_allclose(law(0.5, x, y, 0).mean, [[2.0], [0.0]])
    np.testing.assert_allclose(law(0.5, x, y, 0).root, [[2, 0], [np.log(2), 2]], rtol=1e-6)
    np.testing.assert_array_equal(law(0.25, x, y, 1).root, np.eye(2))


def test_mistakes_name_value_and_remedy() -> None:
    for settings, message in (({"end": 0.0}, "end=0.0"), ({"steps": 0}, "steps=0")):
        with pytest.raises(InputError, match=message):
            equation(**settings)
