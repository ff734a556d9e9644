"""Grid-based fields with known derivatives: what a distance to a circle looks like in a grid."""

from __future__ import annotations

import itertools
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_matrix, hstack
from scipy.sparse.linalg import lsqr

from nearly.derivatives.grid_field import GridField

RADIUS = 0.5
CELLS = (16, 32, 64, 128)
SAMPLES = 40_000
ITERATIONS = 60


def ring(draw: np.random.Generator, count: int) -> np.ndarray:
    """Points around the circle, between 0.6 and 1.4 of its radius."""
    angles = draw.uniform(0, 2 * np.pi, count)
    radii = RADIUS * draw.uniform(0.6, 1.4, count)
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


@lru_cache(1)
def circle_levels() -> tuple[np.ndarray, ...]:
    """The distance to a circle as a sum of bilinear grids, fitted by least squares to samples.

    The fit is stopped early, as training is, so it errs by a little everywhere.
    """
    draw = np.random.default_rng(7)
    points = draw.uniform(-1, 1, (SAMPLES, 2))
    values = np.linalg.norm(points, axis=1) - RADIUS
    system = hstack([_interpolation(points, n) for n in CELLS]).tocsr()
    solution = np.asarray(lsqr(system, values, iter_lim=ITERATIONS)[0])
    parts = np.split(solution, np.cumsum([(n + 1) ** 2 for n in CELLS])[:-1])
    return tuple(part.reshape(n + 1, n + 1, 1) for part, n in zip(parts, CELLS, strict=True))


def circle_field(dtype: str) -> GridField:
    """The field of those levels."""
    return GridField(tuple(jnp.asarray(level, dtype) for level in circle_levels()))


def _interpolation(points: np.ndarray, cells: int) -> csr_matrix:
    """The matrix from a grid's values to those at the points: four corners in each row."""
    place = (points + 1) / 2 * cells
    low = np.clip(np.floor(place), 0, cells - 1).astype(int)
    share = place - low
    rows, columns, entries = [], [], []
    for upper in itertools.product((0, 1), repeat=2):
        corner = low + np.array(upper)
        rows.append(np.arange(len(points)))
        columns.append(corner[:, 0] * (cells + 1) + corner[:, 1])
        entries.append(np.where(upper, share, 1 - share).prod(1))
    indices = (np.concatenate(rows), np.concatenate(columns))
    return csr_matrix((np.concatenate(entries), indices), (len(points), (cells + 1) ** 2))
