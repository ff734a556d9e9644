"""`GridBrownianPath`: the path of diffrax's tree, the joint law, queries anywhere."""

from __future__ import annotations

import itertools
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.dynamics.brownian import GridBrownianPath

AREAS = [dfx.BrownianIncrement, dfx.SpaceTimeLevyArea, dfx.SpaceTimeTimeLevyArea]
# The first three begin and end at nodes of a grid of 4 that is halved once.
INTERVALS = np.array([(0.5, 1.25), (0.25, 0.5), (0.0, 2.0), (0.3, 1.77)])


@pytest.mark.parametrize(
    "area", [pytest.param(a, marks=[] if a is AREAS[1] else pytest.mark.slow) for a in AREAS]
)
def test_it_is_the_path_of_diffrax_s_tree(area: Any) -> None:
    """On the grid, where it goes on below the grid, and between (W and H of the bridge)."""
    with jax.enable_x64(True):

        @jax.jit
        def both(key: Any, ends: Any) -> Any:
            ours = GridBrownianPath(key, 0.0, 2.0, 4, (3,), area, refinements=1)
            theirs = dfx.VirtualBrownianTree(0.0, 2.0, 2 / 8, (3,), key, area)
            read = [lambda e, p=p: p.evaluate(e[0], e[1], use_levy=True) for p in (ours, theirs)]
            return [jax.vmap(f)(ends) for f in read]

        found = both(jax.random.key(3), INTERVALS)
        same = 3 if area is AREAS[2] else 4  # K's bridge has the same law, not the same values
        for a, b in zip(*(jax.tree.leaves(x) for x in found), strict=True):
            np.testing.assert_allclose(a[:same], b[:same], atol=1e-13)


def test_doubling_the_cells_leaves_the_path_at_its_nodes() -> None:
    with jax.enable_x64(True):
        ends = np.array([(-1.0, 2.0), (-1.0, 0.0), (1.0, 2.0)])

        @jax.jit
        def both(key: Any) -> Any:
            paths = (GridBrownianPath(key, -1.0, 2.0, n, (), AREAS[1]) for n in (3, 6))
            return [jax.vmap(lambda e: p.evaluate(*e, use_levy=True))(ends) for p in paths]  # noqa: B023

        a, b = both(jax.random.key(0))
        np.testing.assert_allclose([a.W, a.H], [b.W, b.H], atol=1e-13)


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.slow), 6])
def test_neighbouring_intervals_have_the_joint_law_of_brownian_motion(n: int) -> None:
    """W, H, K of three intervals, all ends but two between nodes: nine independent normals."""
    count = 40_000
    path = GridBrownianPath(jax.random.key(n), 0.0, 2.0, n, (count,), AREAS[2], refinements=2)
    ends = np.array([0.0, 0.55, 1.3, 2.0], np.float32)
    standard = []
    for first, last in itertools.pairwise(ends):
        increment = path.evaluate(jnp.asarray(first), jnp.asarray(last), use_levy=True)
        h = last - first
        parts = zip((increment.W, increment.H, increment.K), (1, 12, 720), strict=True)
        standard += [np.asarray(x) * np.sqrt(c / h) for x, c in parts]
    values = np.stack(standard)
    assert np.max(np.abs(values.mean(axis=1))) < 4.5 / np.sqrt(count)
    excess = values @ values.T / count - np.eye(9)
    assert np.max(np.abs(excess) / np.sqrt(1 + np.eye(9))) < 4.5 / np.sqrt(count)
    kurtosis = np.mean(values**4, axis=1) - 3
    assert np.max(np.abs(kurtosis)) < 4.5 * np.sqrt(96 / count)


def test_areas_of_a_whole_are_those_of_its_parts() -> None:
    """By the integrals that define them, from two parts of it."""
    with jax.enable_x64(True):
        path = GridBrownianPath(jax.random.key(5), 0.0, 1.0, 4, (), AREAS[2], refinements=1)
        a, b, c = np.array([0.3, 0.5, 0.9])
        first, second, whole = (
            jax.tree.map(np.asarray, path.evaluate(*map(jnp.asarray, ends), use_levy=True))
            for ends in ((a, b), (b, c), (a, c))
        )

    def integrals(x: Any) -> tuple[float, float]:
        """Of W_v and of v W_v over an interval of length dt."""
        return x.dt * (x.W / 2 + x.H), x.dt**2 * (x.W / 3 + x.H / 2 - x.K)

    d1, d2 = b - a, c - b
    (p1, q1), (p2, q2) = integrals(first), integrals(second)
    p = p1 + p2 + d2 * first.W
    q = q1 + q2 + d1 * p2 + first.W * (c - a + d1) * d2 / 2
    np.testing.assert_allclose(integrals(whole), (p, q), atol=1e-14)
    np.testing.assert_allclose(whole.W, first.W + second.W, atol=1e-14)


def test_it_drives_diffeqsolve_as_the_increments_say() -> None:
    keys = jax.random.split(jax.random.key(1), 7)

    def solved(key: Any) -> Any:
        path = GridBrownianPath(key, 0.0, 1.0, 10)
        noise = dfx.ControlTerm(lambda t, y, args: 0.5 * y, path)
        terms = dfx.MultiTerm(dfx.ODETerm(lambda t, y, args: -y), noise)
        solution = dfx.diffeqsolve(terms, dfx.Euler(), 0.0, 1.0, 0.1, jnp.float32(1.0))
        steps = jnp.diff(jax.vmap(path.evaluate)(jnp.arange(11, dtype=jnp.float32) / 10))
        return solution.ys[0], jnp.prod(1 - 0.1 + 0.5 * steps)

    ours, by_hand = jax.jit(jax.vmap(solved))(keys)
    np.testing.assert_allclose(ours, by_hand, rtol=1e-5)
    assert len(set(np.asarray(ours).tolist())) == 7


def test_pytrees_precision_and_no_gradient() -> None:
    with jax.enable_x64(True):
        shape = {
            "x": jax.ShapeDtypeStruct((2,), jnp.float32),
            "y": jax.ShapeDtypeStruct((), jnp.float64),
        }
        path = GridBrownianPath(jax.random.key(1), 0.0, 1.0, 5, shape, AREAS[1])
        increment, slopes = jax.jvp(
            lambda t: path.evaluate(t, 0.7, use_levy=True), (jnp.asarray(0.11),), (jnp.ones(()),)
        )
        assert {n: w.dtype.name for n, w in increment.W.items()} == {"x": "float32", "y": "float64"}
        assert increment.H["x"].shape == (2,)
        assert increment.dt["y"] == pytest.approx(0.59)
        assert not any(np.any(slope) for slope in jax.tree.leaves((slopes.W, slopes.H)))


def test_a_time_that_rounding_moved_is_its_node_and_outside_is_nan() -> None:
    path = GridBrownianPath(jax.random.key(1), 0.0, 1.0, 1000)
    third = np.nextafter(np.float32(0.1) + np.float32(0.2), np.float32(1))
    ends = np.array([(0, third), (0, 0.3), (0.3, 0.3), (0, 1.7), (-0.2, 0.3)], np.float32)
    found = np.asarray(jax.vmap(path.evaluate)(*ends.T))
    assert found[0] == found[1] and found[2] == 0.0
    assert np.all(np.isnan(found[3:]))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"n": 0}, "n=0 cells: give at least 1"),
        ({"levy_area": int}, "is not one of diffrax.BrownianIncrement"),
        ({"refinements": -1}, "refinements=-1: give between"),
        ({"shape": jax.ShapeDtypeStruct((2,), jnp.int32)}, "real floating-point"),
    ],
)
def test_bad_settings_name_value_and_remedy(fault: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GridBrownianPath(jax.random.key(0), 0.0, 1.0, **({"n": 4} | fault))
