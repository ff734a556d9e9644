"""MSRKTASE: conditions of order and stability, one step by hand, what a step costs."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

from nearly.core.tally import counted, tally
from nearly.dynamics import wmethods
from nearly.dynamics.jacobians import Banded, Dense, Given, Sparse, banded_factors, coloured
from nearly.errors import InputError

TABLEAUX = {
    "modified2": wmethods.msrktase2().tableau,
    "modified2, gamma 0.7": wmethods.msrktase2(0.7).tableau,
    "modified3": wmethods.MODIFIED3,
    "singly2": wmethods.SINGLY2,
    "singly3": wmethods.SINGLY3,
}
RIGHT = {2: [1, 0, 1 / 2], 3: [1, 0, 1 / 2, 1 / 3, 1 / 6, 0, 0, 0]}


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def stability(table, z):
    """Step over value for y' = z y, W = z, from the definition."""
    n = 1 / (1 - table.gamma * z)
    stages = []
    for row, beta in zip(table.a, table.beta, strict=True):
        at = 1 + sum(x * k for x, k in zip(row, stages, strict=True))
        stages.append(sum(x * n ** (i + 1) for i, x in enumerate(beta)) * z * at)
    return 1 + sum(x * k for x, k in zip(table.b, stages, strict=True))


@pytest.mark.parametrize("name", TABLEAUX)
def test_order_conditions(name):
    table = TABLEAUX[name]
    right = np.array(RIGHT[table.order])
    np.testing.assert_allclose(table.moments @ table.weights.ravel(), right, atol=1e-12)
    # Dense output: the same with h theta for h, here at 0.3, but for the condition of a c.
    powers = np.array([1, 1, 2, 3, 3, 2, 2, 2])[: len(right)]
    at = sum(0.3 ** (k + 1) * w for k, w in enumerate(table.dense))
    found = table.moments @ at.ravel() - right * 0.3**powers
    np.testing.assert_allclose(np.delete(found, 4) if len(found) > 4 else found, 0, atol=1e-12)
    np.testing.assert_allclose(table.dense.sum(axis=0), table.weights, atol=1e-12)


@pytest.mark.parametrize("name", ["modified2", "modified2, gamma 0.7", "modified3"])
def test_stability(name):
    table = TABLEAUX[name]
    axis = 1j * np.geomspace(1e-3, 1e4, 2000)
    assert np.all(np.abs(stability(table, axis)) <= 1 + 1e-12)
    assert abs(stability(table, -1e12)) < 1e-9
    z = np.array([-1e-2, -2e-2])
    defect = np.abs(stability(table, z) - np.exp(z))
    np.testing.assert_allclose(np.log2(defect[1] / defect[0]), table.order + 1, atol=0.2)


@pytest.mark.parametrize("name", ["modified2", "modified3"])
def test_the_error_estimate_is_of_its_order_and_blind_to_what_is_damped(name):
    table = TABLEAUX[name]
    found = table.moments @ table.error.ravel()
    kept = [0, 1] if table.order == 2 else [0, 1, 2, 5, 6, 7]
    np.testing.assert_allclose(found[kept], 0, atol=1e-12)
    np.testing.assert_allclose(found[2 if table.order == 2 else 4], RIGHT[table.order][-1] or 1 / 6)


def step(solver, field, y, h=0.1, t=0.0):
    term = dfx.ODETerm(field)
    return solver.step(term, t, t + h, jnp.asarray(y), None, None, False)


@pytest.mark.parametrize("make", [wmethods.msrktase2, wmethods.msrktase3])
def test_one_step_on_a_linear_equation(make):
    solver = make()
    for z in (-0.3, -50.0, 1.0):
        y1, _, dense, _, _ = step(solver, lambda t, y, args, z=z: 10 * z * y, [1.0])
        np.testing.assert_allclose(y1[0], stability(solver.tableau, z), rtol=1e-12)
        inner = solver.interpolation_cls(t0=0.0, t1=0.1, **dense)
        np.testing.assert_allclose(inner.evaluate(0.1), y1, rtol=1e-10)
        np.testing.assert_allclose(inner.evaluate(0.0), 1.0)
    assert abs(step(solver, lambda t, y, args: -1e9 * y, [1.0])[1][0]) < 1e-6


def test_stiff_forcing_does_no_harm():
    """y = t solves y' = -1e8 (y - t) + 1; without df/dt a step would miss it by h."""
    for make in (wmethods.msrktase2, wmethods.msrktase3):
        y1 = step(make(), lambda t, y, args: -1e8 * (y - t) + 1, [0.0])[0]
        np.testing.assert_allclose(y1, 0.1, atol=1e-7)


def test_a_step_has_one_jacobian_and_one_factorisation():
    oracle = counted(lambda t, y, args: -(y**3) + t, "f")
    for make, stages, powers in ((wmethods.msrktase2, 2, 2), (wmethods.msrktase3, 3, 3)):
        with tally() as counts:
            solver = make()
            jax.block_until_ready(jax.jit(lambda y, s=solver: step(s, oracle, y)[0])(jnp.ones(4)))
        found = counts.read()
        assert found["Jacobians*"] == found["factorisations*"] == 1
        assert found["solves*"] == stages * powers
        assert found["f"] == stages
        assert found["f jvps"] == 5  # four columns and the derivative with respect to time


def heat(t, y, args):
    """Nonlinear diffusion on a line, with a source that depends on time."""
    padded = jnp.concatenate([jnp.zeros(1), y, jnp.zeros(1)])
    return 50 * (padded[2:] - 2 * y + padded[:-2]) - y**3 + jnp.cos(t)


@eqx.filter_jit
def stepped(jacobian, field, y):
    return step(wmethods.msrktase2(jacobian=jacobian), field, y)[0]


def test_forms_of_the_jacobian_agree():
    size = 40
    y = jnp.sin(jnp.arange(size) / 5.0)
    tridiagonal = sp.diags_array(
        [np.ones(size - 1), np.ones(size), np.ones(size - 1)], offsets=[-1, 0, 1]
    )
    want = stepped(Dense(), heat, y)
    exact = Given(lambda t, y, args: jax.jacfwd(lambda v: heat(t, v, args))(y))
    for jacobian in (Banded(1, 1), Sparse.of(tridiagonal), exact):
        got = stepped(jacobian, heat, y)
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_a_sparse_jacobian_in_any_order_of_the_unknowns():
    size = 40
    order = np.random.default_rng(0).permutation(size)
    back = np.argsort(order)
    pattern = np.abs(np.subtract.outer(order, order)) <= 1
    sparse = Sparse.of(pattern)
    assert (sparse.pattern.lower, sparse.pattern.upper) == (1, 1)
    assert sparse.pattern.colours.max() == 2
    mixed = lambda t, y, args: heat(t, y[back], args)[order]  # noqa: E731
    y = jnp.cos(jnp.arange(size) / 3.0)
    want = stepped(Dense(), heat, y[back])
    got = stepped(sparse, mixed, y)
    np.testing.assert_allclose(got[back], want, rtol=1e-12)
    full = Sparse.of(np.ones((size, size)))
    assert not full.pattern.narrow and full.pattern.colours.max() == size - 1
    np.testing.assert_allclose(stepped(full, mixed, y)[back], want, rtol=1e-12)


@pytest.mark.parametrize(("lower", "upper"), [(0, 0), (1, 1), (3, 1), (0, 2), (2, 0)])
def test_banded_factors_with_row_exchanges(lower, upper):
    random = np.random.default_rng(1)
    size = 9
    rows = random.normal(size=(size, lower + upper + 1))
    if lower and upper:
        rows[::2, lower] *= 1e-3  # pivots that must be exchanged
    full = np.zeros((size, size))
    for i in range(size):
        for m in range(lower + upper + 1):
            if 0 <= i - lower + m < size:
                full[i, i - lower + m] = rows[i, m]
            else:
                rows[i, m] = 0
    x = random.normal(size=size)
    got = banded_factors(jnp.asarray(rows), lower).solve(jnp.asarray(full @ x))
    np.testing.assert_allclose(got, np.linalg.solve(full, full @ x), rtol=1e-8, atol=1e-8)


def test_columns_of_one_colour_share_no_row():
    pattern = np.random.default_rng(2).random((30, 30)) < 0.08
    colours = coloured(sp.csr_array(pattern), np.arange(30))
    for colour in range(colours.max() + 1):
        assert np.all(pattern[:, colours == colour].sum(axis=1) <= 1)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"gamma 0\.2"):
        wmethods.msrktase2(0.2)
    with pytest.raises(InputError, match="lower -1"):
        Banded(-1, 1)
    with pytest.raises(InputError, match="must be square"):
        Sparse.of(np.ones((2, 3)))
    with pytest.raises(InputError, match="must be 1 x 1"):
        step(
            wmethods.msrktase2(jacobian=Given(lambda t, y, a: np.eye(2))), lambda t, y, a: y, [1.0]
        )
    with pytest.raises(InputError, match="2 unknowns"):
        sparse = Sparse.of(np.eye(2))
        step(wmethods.msrktase2(jacobian=sparse), lambda t, y, a: y, [1.0])
    with pytest.raises(InputError, match="order 4"):
        wmethods.Tableau(((),), (1.0,), ((1.0,),), 0.5, 4)
    with pytest.raises(InputError, match="gamma 0"):
        wmethods.Tableau(((),), (1.0,), ((1.0,),), 0.0, 2)
