"""Lipschitz bounds: sound, exact where that is known, tighter than their baselines."""

import functools
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError, NotProven
from nearly.curvature import lipschitz
from nearly.curvature.lipschitz import activations
from nearly.curvature.lipschitz.backward import jacobian_bounds
from nearly.curvature.lipschitz.bounds import (
    IntervalPropagation,
    LinearPropagation,
    NormProduct,
    RecurJac,
    lipschitz_bound,
    prepared,
    sampled_lower_bound,
)
from nearly.curvature.lipschitz.branch_and_bound import BranchAndBound, refine, start
from nearly.curvature.lipschitz.chain import Chain, chain_of
from nearly.curvature.lipschitz.exact import exact_lipschitz
from nearly.curvature.lipschitz.forward import Interval, pre_activation_bounds

SIZES = (3, 6, 5, 2)
METHODS = (LinearPropagation(), RecurJac(), IntervalPropagation(), NormProduct())


def weights_of(seed, sizes=SIZES):
    draw = np.random.default_rng(seed).normal
    weights = [draw(size=(n, m)) * np.sqrt(2 / m) for m, n in pairwise(sizes)]
    return weights, [draw(size=n) * 0.1 for n in sizes[1:]]


def chain(seed, activation=activations.relu, sizes=SIZES):
    weights, biases = weights_of(seed, sizes)
    with jax.enable_x64(True):
        arrays = (tuple(map(jnp.asarray, part)) for part in (weights, biases))
        return Chain(*arrays, (activation,) * (len(weights) - 1))


def box(seed, radius, size=3):
    centre = np.random.default_rng(100 + seed).normal(size=size)
    return centre - radius, centre + radius


def batch_of_bounds(networks, activation, radius):
    """Bounds and samples of many networks at once: one compilation."""
    with jax.enable_x64(True):
        chains = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *[chain(s, activation) for s in range(networks)]
        )
        lower, upper = (
            jnp.stack([jnp.asarray(box(s, radius)[e]) for s in range(networks)]) for e in (0, 1)
        )

        @jax.jit
        @jax.vmap
        def both(one, low, high, key):
            bounds = jacobian_bounds(one, pre_activation_bounds(one, Interval(low, high))[:-1])
            draws = jax.random.uniform(key, (200, 3), jnp.float64)
            points = low + draws * (high - low)
            met = jax.vmap(jax.jacrev(one))(points)
            outputs = jax.vmap(one)(points)
            return bounds, met, outputs, pre_activation_bounds(one, Interval(low, high))[-1]

        keys = jax.random.split(jax.random.key(0), networks)
        return jax.tree.map(np.asarray, both(chains, lower, upper, keys))


def assert_sound(bounds, met, outputs, range_, rounded=0.0):
    loss = rounded * (1 + np.abs(met))
    assert np.all(bounds.lower[:, None] <= met + loss) and np.all(
        met - loss <= bounds.upper[:, None]
    )
    assert np.all((np.abs(met) - loss).sum(-1) <= bounds.row_sums[:, None])
    assert np.all(range_.lower[:, None] <= outputs) and np.all(outputs <= range_.upper[:, None])


def test_never_below_a_sample():
    assert_sound(*batch_of_bounds(50, activations.relu, 0.3))


@pytest.mark.slow
@pytest.mark.parametrize("radius", [0.0, 1e-9, 0.02, 0.3, 3.0])
@pytest.mark.parametrize(
    "activation",
    [
        activations.relu,
        activations.leaky_relu(0.1),
        activations.tanh,
        activations.sigmoid,
        activations.softplus,
        activations.silu,
        activations.elu,
        activations.gelu,
        activations.gelu_tanh,
    ],
    ids=lambda a: a.name,
)
def test_never_below_a_sample_on_a_thousand_networks(activation, radius):
    # Automatic differentiation of this form takes 1 - tanh^2, times factors that grow as z^3.
    rounded = 1e-13 if activation is activations.gelu_tanh else 0.0
    assert_sound(*batch_of_bounds(1000, activation, radius), rounded=rounded)


def test_never_below_the_exact_value_and_in_order():
    for seed in range(5):
        one, ends = chain(seed), box(seed, 0.3)
        exact = exact_lipschitz(one, *ends)
        linear, recursive, interval, product = (
            lipschitz_bound(one, *ends, method=m) for m in METHODS
        )
        branched = lipschitz_bound(one, *ends, method=BranchAndBound(branches=300))
        assert sampled_lower_bound(one, *ends) <= exact * (1 + 1e-6)
        assert exact <= branched * (1 + 1e-6)
        assert branched <= linear <= recursive <= interval <= product


@pytest.mark.slow
def test_never_below_the_exact_value_on_many_networks():
    unsolved = 0
    for seed in range(200):
        one, ends = chain(seed), box(seed, 0.02 + 0.005 * seed)
        try:
            exact = exact_lipschitz(one, *ends)
        except NotProven:  # the integer program's solver gives up now and then
            unsolved += 1
            continue
        assert exact <= lipschitz_bound(one, *ends) * (1 + 1e-6)
    assert unsolved <= 10


def test_one_hidden_unit_by_hand():
    # f(x) = 3 relu(2 x + 1): slope 6 where x > -1/2, else 0; on [-1, 1] the constant is 6.
    with jax.enable_x64(True):
        one = Chain(
            (jnp.asarray([[2.0]]), jnp.asarray([[3.0]])),
            (jnp.asarray([1.0]), jnp.asarray([0.0])),
            (activations.relu,),
        )
    assert lipschitz_bound(one, [-1.0], [1.0]) == pytest.approx(6, rel=1e-12)
    assert exact_lipschitz(one, [-1.0], [1.0]) == pytest.approx(6, rel=1e-6)
    assert lipschitz_bound(one, [-1.0], [-0.6]) == pytest.approx(0, abs=1e-12)


def test_a_linear_model_has_its_matrix_norm():
    model = eqx.nn.Linear(4, 3, key=jax.random.key(0))
    weight = np.asarray(model.weight, np.float64)
    for norm, order in (("1", 1), ("2", 2), ("inf", np.inf)):
        bound = lipschitz_bound(model, -np.ones(4), np.ones(4), norm)
        assert bound == pytest.approx(np.linalg.norm(weight, order), rel=1e-10)
        assert bound >= np.linalg.norm(weight, order)


def test_at_a_point_the_bound_is_the_jacobian():
    one, (low, _) = chain(1, activations.tanh), box(1, 0.0)
    with jax.enable_x64(True):
        jacobian = np.asarray(jax.jacrev(one)(jnp.asarray(low)))
    exact = np.abs(jacobian).sum(axis=1).max()
    assert lipschitz_bound(one, low, low) == pytest.approx(exact, rel=1e-9)


def test_the_excess_over_the_jacobian_shrinks_linearly_with_the_box():
    one, (centre, _) = chain(2, activations.tanh), box(2, 0.0)
    exact = lipschitz_bound(one, centre, centre)
    gaps = [lipschitz_bound(one, centre - r, centre + r) - exact for r in (1e-3, 1e-4, 1e-5)]
    assert gaps[1] / gaps[0] == pytest.approx(0.1, rel=0.1)
    assert gaps[2] / gaps[1] == pytest.approx(0.1, rel=0.1)


def test_scaling_the_outputs_scales_the_bound():
    one, ends = chain(3), box(3, 0.3)
    with jax.enable_x64(True):
        scaled = eqx.tree_at(lambda c: c.weights[-1], one, 4.0 * one.weights[-1])
    assert lipschitz_bound(scaled, *ends) == pytest.approx(4 * lipschitz_bound(one, *ends))


def test_recurjac_is_the_published_recursion():
    weights, _ = weights_of(4)
    one, ends = chain(4), box(4, 0.6)
    with jax.enable_x64(True):
        found = pre_activation_bounds(one, prepared(one, *ends)[1])[:-1]
    on = [np.asarray(b.upper) > 0 for b in found]
    always = [np.asarray(b.lower) >= 0 for b in found]
    entries = recursion(weights, [a * 1.0 for a in always], [b * 1.0 for b in on])
    bound = lipschitz_bound(one, *ends, method=RecurJac())
    assert bound == pytest.approx(entries.sum(axis=1).max(), rel=1e-9)


def recursion(weights, least, most):
    """Zhang et al., backward: the sizes of the Jacobian's entries, one entry at a time."""
    last = len(weights) - 1
    low, high = {last: weights[-1]}, {last: weights[-1]}

    def column(coefficients, k, row, sign):
        below, above = low[k + 1][row], high[k + 1][row]
        bound, kept = 0.0, np.zeros_like(coefficients)
        for i, w in enumerate(sign * coefficients):
            a, b = least[k][i], most[k][i]
            if a == b or below[i] >= 0 or above[i] <= 0:
                grows = (w > 0) == (below[i] >= 0)
                kept[i] = w * (b if grows else a)
            else:
                bound += b * (w * above[i] if w > 0 else w * below[i])
        if k == last - 1:
            return bound + kept @ weights[-1][row]
        return bound + column(weights[k + 1] @ kept, k + 1, row, 1)

    for k in reversed(range(last)):
        shape = (weights[-1].shape[0], weights[k].shape[1])
        ups, downs = np.zeros(shape), np.zeros(shape)
        for row in range(shape[0]):
            for entry in range(shape[1]):
                ups[row, entry] = column(weights[k][:, entry], k, row, 1)
                downs[row, entry] = -column(weights[k][:, entry], k, row, -1)
        low[k], high[k] = downs, ups
    return np.maximum(np.abs(low[0]), np.abs(high[0]))


@pytest.mark.slow
def test_better_slopes_only_tighten():
    gains = []
    for seed in (0, 4, 5):
        one, ends = chain(seed, activations.tanh), box(seed, 0.5)
        plain = lipschitz_bound(one, *ends)
        better = lipschitz_bound(one, *ends, method=LinearPropagation(slope_steps=10))
        assert sampled_lower_bound(one, *ends) <= better <= plain
        gains.append(plain - better)
    assert max(gains) > 0.1


def test_branching_resumes_where_it_stopped():
    one, ends = chain(7), box(7, 0.9)
    with jax.enable_x64(True):
        double, interval = prepared(one, *ends)
    settings = BranchAndBound(branches=33)
    first = refine(start(double, interval, settings), double, settings)
    second = refine(first, double, BranchAndBound(branches=200))
    assert second.bound <= first.bound
    assert sampled_lower_bound(one, *ends) <= second.bound
    assert first.attained_bound <= second.attained_bound <= second.bound


def test_an_unmodified_equinox_model():
    model = eqx.nn.MLP(3, 2, 6, 1, activation=jax.nn.gelu, key=jax.random.key(1))
    ends = box(0, 0.1)
    points = np.random.default_rng(0).uniform(*ends, (50, 3))
    largest = max(np.abs(np.asarray(jax.jacrev(model)(jnp.asarray(p, jnp.float32)))).sum(1).max()
                  for p in points)  # fmt: skip
    assert largest * (1 - 1e-5) <= lipschitz_bound(model, *ends) < 3 * largest


def test_convolutions_pooling_and_layers_in_a_row():
    keys = jax.random.split(jax.random.key(2), 3)
    model = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(1, 2, 3, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.AvgPool2d(2, 2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(8, 4, key=keys[1]),
            eqx.nn.Identity(),
            eqx.nn.Linear(4, 2, key=keys[2]),
            eqx.nn.Lambda(jnp.tanh),
        ]
    )
    found = chain_of(model, (1, 6, 6))
    x = np.random.default_rng(3).normal(size=(1, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(found(jnp.ravel(jnp.asarray(x))), model(jnp.asarray(x)), rtol=1e-5)
    names = [a.name for a in found.activations]
    assert names == ["relu", "identity", "identity", "tanh"]


def test_activations_are_recognised_in_all_their_spellings():
    for function, known in (
        (jnp.tanh, activations.tanh),
        (jax.nn.gelu, activations.gelu_tanh),
        (functools.partial(jax.nn.gelu, approximate=False), activations.gelu),
        (functools.partial(jax.nn.leaky_relu, negative_slope=0.3), activations.leaky_relu(0.3)),
        (activations.softplus, activations.softplus),
    ):
        model = eqx.nn.MLP(2, 1, 3, 1, activation=function, key=jax.random.key(0))
        assert chain_of(model, (2,)).activations == (known,)


@pytest.mark.slow
def test_the_bound_can_be_differentiated():
    one, ends = chain(8, activations.tanh), box(8, 0.2)
    with jax.enable_x64(True):
        double, interval = prepared(one, *ends)
        bound = LinearPropagation()

        def at(shift):
            moved = eqx.tree_at(lambda c: c.weights[0], double, double.weights[0] * shift)
            return bound(moved, interval, "inf")

        slope = jax.grad(at)(jnp.asarray(1.0))
        step = 1e-6
        difference = (at(jnp.asarray(1 + step)) - at(jnp.asarray(1 - step))) / (2 * step)
    assert float(slope) == pytest.approx(float(difference), rel=1e-4)


@pytest.mark.slow
def test_single_precision_rounds_outward_too():
    one, ends = chain(9), box(9, 0.2)
    exact = lipschitz_bound(one, *ends)
    single = one.astype(jnp.float32)
    interval = Interval(*(jnp.asarray(e, jnp.float32) for e in ends))
    bound = float(LinearPropagation()(single, interval, "inf"))
    assert exact * (1 - 1e-6) < bound < exact * 1.05


def twice_activated():
    layers = [eqx.nn.Linear(3, 2, key=jax.random.key(0)), *[eqx.nn.Lambda(jax.nn.relu)] * 2]
    return eqx.nn.Sequential(layers)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lipschitz_bound(chain(0), np.ones(3), np.zeros(3)), InputError, "not exceed"),
        (lambda: lipschitz_bound(chain(0), np.zeros(2), np.ones(2)), InputError, "takes 3 inputs"),
        (lambda: lipschitz_bound(chain(0), np.zeros(2), np.ones(3)), InputError, "one shape"),
        (
            lambda: lipschitz_bound(chain(0), *box(0, 0.1), "2", BranchAndBound()),
            InputError,
            "norm='inf'",
        ),
        (lambda: exact_lipschitz(chain(0, activations.tanh), *box(0, 0.1)), InputError, "tanh"),
        (lambda: exact_lipschitz(chain(0), *box(0, 3.0), seconds=1e-9), NotProven, "was not found"),
        (lambda: LinearPropagation(slope_steps=-1), InputError, "slope_steps -1"),
        (lambda: BranchAndBound(branches=0), InputError, "branches 0"),
        (lambda: chain_of(eqx.nn.LayerNorm(3), (3,)), InputError, "LayerNorm"),
        (lambda: chain_of(eqx.nn.Lambda(jnp.sin), (3,)), InputError, "sin"),
        (lambda: chain_of(twice_activated(), (3,)), InputError, "must follow"),
        (lambda: chain_of(eqx.nn.Identity(), (3,)), InputError, "no affine"),
        (lambda: Chain((), (), ()), InputError, "one activation fewer"),
    ],
)
def test_errors_name_value_and_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_package_offers_what_it_says():
    for name in lipschitz.__all__:
        assert getattr(lipschitz, name) is not None
