"""Functions from values on tensor grids: what the classical solvers hand back."""

from abc import abstractmethod
from functools import reduce

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError


class Axis(eqx.Module):
    """The nodes along one coordinate, and what values at them mean in between."""

    count: eqx.AbstractVar[int]

    @abstractmethod
    def nodes(self) -> Float[np.ndarray, " count"]:
        """Where the values are."""

    @abstractmethod
    def weights(self, x: Float[Array, " n"]) -> Float[Array, "n count"]:
        """What each node's value contributes at x."""

    @abstractmethod
    def derivative(self, order: int) -> Float[np.ndarray, "count count"]:
        """The matrix from values at the nodes to derivatives there; `order` is 1 or 2."""


class Uniform(Axis):
    """Equidistant nodes with both ends; second-order differences, cubic interpolation.

    The differences at the two ends are left zero: boundary values are given there.
    """

    count: int
    lower: float
    upper: float

    def __check_init__(self) -> None:
        if self.count < 4:
            raise InputError(f"count={self.count} must be at least 4 nodes a coordinate")

    @property
    def spacing(self) -> float:
        return (self.upper - self.lower) / (self.count - 1)

    def nodes(self) -> Float[np.ndarray, " count"]:
        return np.linspace(self.lower, self.upper, self.count)

    def weights(self, x: Float[Array, " n"]) -> Float[Array, "n count"]:
        place = (x - self.lower) / self.spacing
        first = jnp.clip(jnp.floor(place) - 1, 0, self.count - 4)
        local = (place - first)[:, None]
        cubic = jnp.concatenate(
            [
                reduce(jnp.multiply, [(local - k) / (j - k) for k in range(4) if k != j])
                for j in range(4)
            ],
            axis=1,
        )
        offset = jnp.arange(self.count)[None] - first[:, None].astype(int)
        inside = (offset >= 0) & (offset < 4)
        return jnp.where(inside, jnp.take_along_axis(cubic, jnp.clip(offset, 0, 3), 1), 0)

    def derivative(self, order: int) -> Float[np.ndarray, "count count"]:
        stencil = {1: (-0.5, 0.0, 0.5), 2: (1.0, -2.0, 1.0)}[order]
        matrix = np.zeros((self.count, self.count))
        inner = np.arange(1, self.count - 1)
        for shift, value in zip((-1, 0, 1), stencil, strict=True):
            matrix[inner, inner + shift] = value / self.spacing**order
        return matrix


class Chebyshev(Axis):
    """Chebyshev's extreme points; polynomial interpolation by the barycentric formula."""

    count: int
    lower: float
    upper: float

    def __check_init__(self) -> None:
        if self.count < 3:
            raise InputError(f"count={self.count} must be at least 3 nodes a coordinate")

    def nodes(self) -> Float[np.ndarray, " count"]:
        angles = np.pi * np.arange(self.count) / (self.count - 1)
        return self.lower + (self.upper - self.lower) * (1 - np.cos(angles)) / 2

    def _barycentric(self) -> np.ndarray:
        signs = (-1.0) ** np.arange(self.count)
        signs[[0, -1]] /= 2
        return signs

    def weights(self, x: Float[Array, " n"]) -> Float[Array, "n count"]:
        gaps = x[:, None] - jnp.asarray(self.nodes(), x.dtype)[None]
        met = gaps == 0
        terms = jnp.asarray(self._barycentric(), x.dtype) / jnp.where(met, 1, gaps)
        smooth = terms / terms.sum(1, keepdims=True)
        return jnp.where(met.any(1, keepdims=True), met.astype(x.dtype), smooth)

    def derivative(self, order: int) -> Float[np.ndarray, "count count"]:
        nodes, signs = self.nodes(), self._barycentric()
        gaps = nodes[:, None] - nodes[None] + np.eye(self.count)
        matrix = signs[None] / signs[:, None] / gaps
        np.fill_diagonal(matrix, 0)
        np.fill_diagonal(matrix, -matrix.sum(1))  # a constant has no slope
        return np.linalg.matrix_power(matrix, order)


class Fourier(Axis):
    """Equidistant nodes of a periodic coordinate [0, length); trigonometric interpolation."""

    count: int
    length: float

    def __check_init__(self) -> None:
        if self.count < 4 or self.count % 2:
            raise InputError(f"count={self.count} must be even and at least 4")

    def nodes(self) -> Float[np.ndarray, " count"]:
        return np.arange(self.count) * (self.length / self.count)

    def weights(self, x: Float[Array, " n"]) -> Float[Array, "n count"]:
        turn = 2 * jnp.pi / self.length * (x[:, None] - jnp.asarray(self.nodes(), x.dtype)[None])
        turn = turn - 2 * jnp.pi * jnp.round(turn / (2 * jnp.pi))
        met = jnp.abs(turn) < jnp.finfo(x.dtype).eps
        apart = jnp.where(met, 1, turn)
        kernel = jnp.sin(self.count / 2 * apart) / (self.count * jnp.tan(apart / 2))
        return jnp.where(met, 1, kernel)

    def derivative(self, order: int) -> Float[np.ndarray, "count count"]:
        wave = 2j * np.pi / self.length * np.fft.fftfreq(self.count, 1 / self.count)
        if order % 2:
            wave[self.count // 2] = 0  # its sine vanishes on the nodes
        columns = np.fft.ifft(
            wave[:, None] ** order * np.fft.fft(np.eye(self.count), axis=0), axis=0
        )
        return columns.real


class GridFunction(eqx.Module):
    """A function of points `[n, d] -> [n]` from values on a tensor grid, one axis a coordinate.

    **Cost:** n (m_1 + ... + m_d) weights and n m_1 ... m_d products: for judging, not for loops.
    """

    values: Float[Array, "*grid"]
    axes: tuple[Axis, ...]

    def __check_init__(self) -> None:
        shape = tuple(axis.count for axis in self.axes)
        if self.values.shape != shape:
            raise InputError(f"values of shape {self.values.shape} on a grid of {shape} nodes")

    def __call__(self, points: Float[Array, "n d"]) -> Float[Array, " n"]:
        total = jnp.broadcast_to(self.values, (points.shape[0], *self.values.shape))
        for coordinate, axis in enumerate(self.axes):
            weights = axis.weights(points[:, coordinate])
            total = jnp.einsum("nm,nm...->n...", weights, total)
        return total
