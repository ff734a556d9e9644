"""Newton-type minimisers: exactness, orders, invariances, errors, optimistix's protocol."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from nearly.core import catalogue
from nearly.core.lazy import load
from nearly.core.tally import tally
from nearly.errors import InputError
from nearly.optimize import newton
from nearly.optimize.newton import factor as factors

TIGHT = (1e-12, 1e-12)
SEARCHING = {
    "gradient-normalized": newton.GradientNormalizedNewton(*TIGHT),
    "super-universal": newton.SuperUniversalNewton(*TIGHT),
    "universal": newton.UniversalNewton(*TIGHT),
    "armijo": newton.ArmijoNewton(*TIGHT),
    "cubic": newton.LazyCubicNewton(*TIGHT, period=1),
    "lazy-cubic": newton.LazyCubicNewton(*TIGHT, period=4),
    "lazy-regularized": newton.LazyRegularizedNewton(*TIGHT, period=4),
}
NEEDING_A_CONSTANT = {
    "root": newton.RootNewton(*TIGHT, constant=1.0),
    "affine-invariant": newton.AffineInvariantCubicNewton(*TIGHT, constant=1.0),
    "accelerated": newton.AcceleratedCubicNewton(*TIGHT, constant=1.0),
}
ALL = SEARCHING | NEEDING_A_CONSTANT


def test_every_catalogued_class_is_among_them():
    found = [load(line.target) for line in catalogue.methods("minimisers").values()]
    ours = {type(m) for m in found if type(m).__module__.startswith("nearly.optimize")}
    assert ours <= {type(minimiser) for minimiser in ALL.values()}


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def softened(y, scale):
    """Convex, smooth, its minimum at (1, -1/2) where a is 1 and b is -1/2."""
    first, second = y["a"] - 1, y["b"] + 0.5
    return scale * (jnp.sqrt(1 + first**2) + jnp.cosh(second) + 0.3 * (first + second) ** 2)


START = {"a": np.float64(3.0), "b": np.float64(1.5)}


def solve(minimiser, y=START, scale=1.0, **options):
    options = {"max_steps": 300, "throw": False, **options}
    return optx.minimise(softened, minimiser, y, jnp.asarray(scale), **options)


@pytest.mark.parametrize("name", ALL)
def test_a_pytree_is_minimised(name):
    found = solve(ALL[name])
    if name != "accelerated":  # whose values need not fall: it stops by the number of steps
        assert found.result == optx.RESULTS.successful
    accuracy = 1e-4 if name == "accelerated" else 1e-7
    np.testing.assert_allclose([found.value["a"], found.value["b"]], [1, -0.5], atol=accuracy)


@pytest.mark.parametrize("name", SEARCHING)
def test_in_single_precision(name):
    start = jax.tree.map(np.float32, START)
    minimiser = eqx.tree_at(lambda m: (m.rtol, m.atol), SEARCHING[name], (1e-5, 1e-5))
    found = optx.minimise(softened, minimiser, start, jnp.float32(1), max_steps=300, throw=False)
    assert found.value["a"].dtype == np.float32
    np.testing.assert_allclose([found.value["a"], found.value["b"]], [1, -0.5], atol=2e-3)


@pytest.mark.parametrize("name", SEARCHING)
def test_derivatives_and_batches_pass_through(name):
    def shifted(y, a):
        return jnp.sum((y - a) ** 2 + (y - a) ** 4) + 1

    def minimum(a):
        return optx.minimise(shifted, SEARCHING[name], jnp.zeros(2), a, max_steps=300).value

    many = jnp.asarray([[1.0, 2.0], [-1.0, 0.5]])
    np.testing.assert_allclose(jax.jit(jax.vmap(minimum))(many), many, atol=1e-6)
    np.testing.assert_allclose(jax.jacrev(minimum)(many[0]), np.eye(2), atol=1e-6)


@pytest.mark.parametrize("name", SEARCHING)
def test_the_second_output_belongs_to_the_answer(name):
    found = optx.minimise(
        lambda y, _: (jnp.sum((y - 1) ** 4) + jnp.sum(y**2), 2 * y),
        SEARCHING[name],
        jnp.full(2, 3.0),
        has_aux=True,
    )
    np.testing.assert_allclose(found.aux, 2 * found.value, rtol=1e-12)


@pytest.mark.parametrize("name", ["universal", "root", "affine-invariant", "armijo"])
def test_no_change_of_variables_moves_damped_newton(name):
    """In z = T^-1 y the iterates are T^-1 times those in y."""
    transform = jnp.asarray([[2.0, 1.0], [-0.5, 3.0]])

    def function(y, _):
        return jnp.sum(jnp.cosh(y - jnp.asarray([1.0, -2.0]))) + (y[0] - y[1]) ** 2

    start, steps = jnp.asarray([3.0, 1.0]), {"max_steps": 4, "throw": False}
    plain = optx.minimise(function, ALL[name], start, **steps).value
    moved = optx.minimise(
        lambda z, a: function(transform @ z, a),
        ALL[name],
        jnp.linalg.solve(transform, start),
        **steps,
    ).value
    np.testing.assert_allclose(transform @ moved, plain, rtol=1e-9)


def test_one_factorisation_serves_a_period():
    minimiser = newton.LazyCubicNewton(0.0, 0.0, period=2, constant=100.0)
    with tally() as counts:
        jax.block_until_ready(solve(minimiser, max_steps=8).value)
    # That of the start, and one for each of the three cycles that are followed by another.
    assert counts.read()["factorisations*"] == 4


def test_convergence_is_quadratic_without_a_constant():
    def gap(steps):
        y = solve(SEARCHING["gradient-normalized"], max_steps=steps).value
        return abs(y["a"] - 1) + abs(y["b"] + 0.5)

    gaps = np.array([gap(steps) for steps in range(3, 9)])
    near = (gaps < 1e-1) & (gaps > 1e-7)
    assert near.sum() >= 2
    first, second = gaps[near][:2]
    assert second < 3 * first**1.5


# ---- factors


def test_the_cubic_step_is_a_minimum_of_its_model():
    key = jax.random.key(0)
    matrix = jax.random.normal(key, (6, 6), "float64")
    matrix = matrix + matrix.T  # indefinite
    gradient = jax.random.normal(jax.random.fold_in(key, 1), (6,), "float64")
    for scale in (1e-6, 1.0, 1e6):
        step = factors.factorise(matrix).cubic_step(jnp.asarray(scale), gradient, jnp.zeros(()))
        radius = scale * jnp.linalg.norm(step) / 2
        residual = gradient + matrix @ step + radius * step
        rounding = 1e-14 * float(jnp.linalg.norm(matrix) * jnp.linalg.norm(step))
        np.testing.assert_allclose(residual, 0, atol=1e-8 + rounding)
        assert jnp.linalg.eigvalsh(matrix)[0] + radius > -1e-8 * max(1.0, radius)


def test_the_hard_case_of_the_cubic_step():
    """The gradient has no part along the lowest eigenvector: by hand, shift 1 and length 2."""
    matrix, gradient = jnp.diag(jnp.asarray([-1.0, 3.0])), jnp.asarray([0.0, 4.0])
    step = factors.factorise(matrix).cubic_step(jnp.ones(()), gradient, jnp.zeros(()))
    np.testing.assert_allclose(jnp.abs(step), [3**0.5, 1], rtol=1e-6)


def test_a_rank_one_factor_agrees_with_the_dense_one():
    vector, gradient = jnp.asarray([1.0, -2.0, 0.5]), jnp.asarray([0.3, 1.0, -1.0])
    dense = factors.factorise(1.7 * jnp.outer(vector, vector))
    thin = factors.RankOne(jnp.asarray(1.7), vector)
    shift = jnp.asarray(0.3)
    np.testing.assert_allclose(thin.solve(shift, gradient), dense.solve(shift, gradient))
    np.testing.assert_allclose(thin.least(), dense.least(), atol=1e-12)
    for constant in (0.1, 10.0):
        ours, theirs = (f.cubic_step(jnp.asarray(constant), gradient, shift) for f in (thin, dense))
        np.testing.assert_allclose(ours, theirs, rtol=1e-7)


def test_approximate_hessians_find_the_minimum_too():
    def residuals(y, _):
        return jnp.stack([10 * (y[1] - y[0] ** 2), 1 - y[0]])

    minimiser = newton.GradientNormalizedNewton(*TIGHT, hessian=factors.GaussNewton(residuals))
    found = optx.minimise(lambda y, a: jnp.sum(residuals(y, a) ** 2), minimiser, jnp.zeros(2))
    np.testing.assert_allclose(found.value, [1, 1], atol=1e-8)

    matrix = jnp.asarray([[2.0, 0.3], [0.1, 1.0], [0.5, -1.0]])
    rank_one = newton.GradientNormalizedNewton(1e-9, 1e-14, hessian=factors.Fisher(4.0))
    found = optx.minimise(
        lambda y, _: jnp.sum((matrix @ (y - 1)) ** 2) ** 2 / 4, rank_one, jnp.zeros(2), throw=False
    )
    np.testing.assert_allclose(found.value, [1, 1], atol=0.05)


# ---- errors


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: newton.GradientNormalizedNewton(-1.0, 0.0), "rtol -1.0"),
        (lambda: newton.GradientNormalizedNewton(0.0, 0.0, smoothness=0.0), "smoothness 0.0"),
        (lambda: newton.UniversalNewton(0.0, 0.0, growth=1.0), "growth 1.0"),
        (lambda: newton.UniversalNewton(0.0, 0.0, power=0.1), "power 0.1"),
        (lambda: newton.RootNewton(0.0, 0.0, constant=0.0), "constant 0.0"),
        (lambda: newton.RootNewton(0.0, 0.0, constant=1.0, order=5.0), "order 5.0"),
        (lambda: newton.LazyCubicNewton(0.0, 0.0, period=0), "period 0"),
        (lambda: newton.ArmijoNewton(0.0, 0.0, shrink=1.0), "shrink 1.0"),
        (lambda: newton.AcceleratedCubicNewton(0.0, 0.0, constant=1.0, radius=0.0), "radius 0.0"),
        (lambda: newton.SuperUniversalNewton(0.0, 0.0, power=2.0), "power 2.0"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize("name", SEARCHING)
def test_a_value_that_is_not_finite_ends_the_run_with_a_code(name):
    found = optx.minimise(
        lambda y, _: jnp.sum(jnp.log(y)), SEARCHING[name], jnp.full(2, -1.0), throw=False
    )
    assert found.result == optx.RESULTS.nonlinear_divergence


@pytest.mark.parametrize("name", SEARCHING)
def test_running_out_of_steps_has_optimistix_code(name):
    assert solve(SEARCHING[name], max_steps=1).result == optx.RESULTS.nonlinear_max_steps_reached
