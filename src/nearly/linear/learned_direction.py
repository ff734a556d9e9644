"""Deep conjugate directions: search directions from a network (`deep-conjugate-direction`).

The network looks at the unit residual on the grid and proposes a direction. Flexible conjugate
gradients make it conjugate to the two before it and step to the minimum along it, so the network
decides how fast the iteration is, never whether its answer is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Bool, Float

from nearly.core.errors import InputError
from nearly.core.progress import Progress, silent
from nearly.core.store import cache_folder, digest_of
from nearly.linear.flexible_cg import FlexibleConjugateGradient
from nearly.linear.grids import laplacian
from nearly.linear.krylov import lanczos, ritz_pairs
from nearly.linear.operators import bare
from nearly.training.loop import fit

Grid = Float[Array, "..."]
WIDE: dict[str, Any] = {"kernel_size": 3, "padding": 1}


class ResidualPair(eqx.Module):
    """Two convolutions with ReLU around which the input is passed on."""

    first: eqx.nn.Conv
    second: eqx.nn.Conv

    def __init__(self, dimension: int, channels: int, key: Any) -> None:
        one, two = jax.random.split(key)
        self.first = _conv(dimension, channels, channels, one, **WIDE)
        self.second = _conv(dimension, channels, channels, two, **WIDE)

    def __call__(self, x: Array) -> Array:
        return x + jax.nn.relu(self.second(jax.nn.relu(self.first(x))))


def _conv(dimension: int, channels_in: int, channels_out: int, key: Any, **settings: Any) -> Any:
    return eqx.nn.Conv(dimension, channels_in, channels_out, key=key, dtype=jnp.float32, **settings)


class DirectionNetwork(eqx.Module):
    """From a residual on a grid of any size to a direction on it, in two resolutions.

    A linear convolution; residual pairs; the mean over blocks of 2, residual pairs on the coarse
    grid, back by repetition, added to what came before; residual pairs; a linear map to one
    channel. All convolutions are 3 wide, without bias in the first and the last, and nothing
    depends on the grid's size: odd sizes are filled up with zeros.

    **Arguments:**

    - `dimension`: of the grid, 2 or 3.
    - `channels`: 16 in the paper.
    - `pairs`: of residual convolutions before, on and after the coarse grid.

    **Cost:** about `2 * 9 * channels^2 * (sum(fine pairs) * 2 + coarse pairs / 2)` flops per point
    of a 2-D grid; see `flops`.
    """

    first: eqx.nn.Conv
    before: tuple[ResidualPair, ...]
    coarse: tuple[ResidualPair, ...]
    after: tuple[ResidualPair, ...]
    last: eqx.nn.Conv
    dimension: int = eqx.field(static=True)

    def __init__(
        self,
        dimension: int,
        key: Any,
        *,
        channels: int = 16,
        pairs: tuple[int, int, int] = (2, 3, 2),
    ) -> None:
        if dimension not in (2, 3):
            raise InputError(f"a grid of dimension {dimension}; networks are for 2 and 3")
        if channels < 1 or min(pairs) < 1:
            raise InputError(f"{channels} channels and pairs {pairs} must all be positive")
        first, last, *keys = jax.random.split(key, 2 + sum(pairs))
        blocks = [ResidualPair(dimension, channels, k) for k in keys]
        self.first = _conv(dimension, 1, channels, first, use_bias=False, **WIDE)
        self.before = tuple(blocks[: pairs[0]])
        self.coarse = tuple(blocks[pairs[0] : pairs[0] + pairs[1]])
        self.after = tuple(blocks[pairs[0] + pairs[1] :])
        self.last = _conv(dimension, channels, 1, last, use_bias=False, kernel_size=1)
        self.dimension = dimension

    def __call__(self, residual: Grid) -> Grid:
        """The direction for a residual of unit norm on the grid."""
        if residual.ndim != self.dimension:
            raise InputError(
                f"a residual of shape {residual.shape} for a network of dimension "
                f"{self.dimension}: give it on the grid"
            )
        padded = jnp.pad(residual, [(0, n % 2) for n in residual.shape])
        x = _through(self.before, self.first(padded[None].astype(jnp.float32)))
        y = _repeated(_through(self.coarse, _halved(x)))
        out = self.last(_through(self.after, x + y))[0]
        return out[tuple(slice(n) for n in residual.shape)].astype(residual.dtype)

    def flops(self, shape: Sequence[int]) -> float:
        """Multiplications and additions of one direction on a grid of this shape."""
        compiled = jax.jit(self.__call__).lower(jax.ShapeDtypeStruct(tuple(shape), jnp.float32))
        analysis = cast("dict[str, float]", compiled.compile().cost_analysis())
        return float(analysis["flops"])


def _through(blocks: Sequence[ResidualPair], x: Array) -> Array:
    for block in blocks:
        x = block(x)
    return x


def _halved(x: Array) -> Array:
    blocks = [size for n in x.shape[1:] for size in (n // 2, 2)]
    return x.reshape(x.shape[0], *blocks).mean(axis=tuple(range(2, x.ndim * 2 - 1, 2)))


def _repeated(x: Array) -> Array:
    for axis in range(1, x.ndim):
        x = jnp.repeat(x, 2, axis=axis)
    return x


class LearnedDirection(eqx.Module):
    """A network as a function of the residual, for flexible conjugate gradients.

    Normalises the residual first, for the network knows unit vectors only, and keeps directions
    away from where `mask` is zero (inside obstacles, where there is no unknown).
    """

    network: DirectionNetwork
    mask: Bool[Array, ...] | None = None

    def __call__(self, residual: Grid) -> Grid:
        norm = jnp.linalg.norm(residual.ravel())
        direction = self.network(residual / jnp.where(norm > 0, norm, 1))
        return direction if self.mask is None else direction * self.mask


def direction_loss(
    network: Callable[[Grid], Grid], operator: lx.AbstractLinearOperator, unit: Grid
) -> Float[Array, ""]:
    """How much of a unit residual is left after the best step along the network's direction.

    `|b - (q.b / q.Aq) A q|^2` with `q = network(b)`: it needs no solution, and does not depend on
    the scale of q.
    """
    q = network(unit)
    image = operator.mv(q)
    energy = jnp.vdot(q, image)
    tiny = jnp.finfo(energy.dtype).tiny
    step = jnp.vdot(q, unit) / jnp.where(energy > tiny, energy, 1)
    return jnp.sum((unit - step * image) ** 2)


def ritz_mixtures(
    vectors: Float[Array, "count ..."], values: Float[Array, " count"], samples: int, key: Any
) -> Float[Array, "samples ..."]:
    """Unit right-hand sides that are mixtures of Ritz vectors, rich in the smooth ones.

    Coefficients are normal, nine times as large for the half (and a twentieth more) of the vectors
    of lowest Ritz value, as published; Ritz values below 1e-8 of the largest are left out.

    **Arguments:** Ritz vectors and values; how many to draw.
    """
    count = values.size
    order = jnp.argsort(values)
    lowest = jnp.zeros((count,), bool).at[order[: count // 2 + count // 20]].set(True)
    scale = jnp.where(lowest, 9.0, 1.0) * (values > 1e-8 * jnp.max(values))
    draws = jax.random.normal(key, (samples, count), vectors.dtype) * scale.astype(vectors.dtype)
    mixed = jnp.tensordot(draws, vectors, axes=1)
    norms = jnp.linalg.norm(mixed.reshape(samples, -1), axis=1)
    return mixed / norms.reshape(-1, *[1] * (mixed.ndim - 1))


class RitzMixtures(eqx.Module):
    """`ritz_mixtures` of one operator as data for `nearly.training.fit`: key -> batch."""

    vectors: Float[Array, "count ..."]
    values: Float[Array, " count"]
    batch: int = eqx.field(static=True)

    def __call__(self, key: Any) -> Float[Array, "batch ..."]:
        return ritz_mixtures(self.vectors, self.values, self.batch, key)


class _MeanLoss(eqx.Module):
    operator: lx.AbstractLinearOperator

    def __call__(self, network: DirectionNetwork, batch: Array, key: Any) -> Float[Array, ""]:
        del key
        return jnp.mean(jax.vmap(lambda unit: direction_loss(network, self.operator, unit))(batch))


class Recipe(eqx.Module):
    """How a direction network is trained: once for a family of grids, on the empty grid.

    **Arguments:**

    - `shape`: of the grid it is trained on. Networks do not depend on it, so one serves larger
      grids and grids with obstacles, as well as its radius of sight allows.
    - `channels`, `pairs`: of the network.
    - `krylov`: Lanczos steps, whose Ritz vectors make the right-hand sides (10,000 in the paper).
    - `steps`, `batch`, `rate`: of Adam. The paper's rate of 1e-4 is for days; 2e-3, decayed by a
      cosine, is for minutes.
    - `seed`: of all that is random.
    """

    shape: tuple[int, ...] = eqx.field(default=(64, 64), static=True)
    channels: int = eqx.field(default=8, static=True)
    pairs: tuple[int, int, int] = eqx.field(default=(2, 3, 2), static=True)
    krylov: int = eqx.field(default=400, static=True)
    steps: int = eqx.field(default=1500, static=True)
    batch: int = eqx.field(default=10, static=True)
    rate: float = eqx.field(default=2e-3, static=True)
    seed: int = eqx.field(default=0, static=True)

    def train(
        self, *, progress: Progress = silent, checkpoint: Path | str | None = None
    ) -> DirectionNetwork:
        """A network trained from Ritz vectors of the Laplacian on the empty grid.

        `checkpoint` keeps and takes up an unfinished or finished training. Raises `InputError` if
        the training diverged.

        **Cost:** `krylov * points` numbers; `steps * batch` directions with their gradients, about
        two minutes on a core with the defaults.
        """
        for_network, for_lanczos, for_steps = jax.random.split(jax.random.key(self.seed), 3)
        operator = laplacian(self.shape, jnp.float32)
        random = jax.random.normal(for_lanczos, self.shape, jnp.float32)
        # Grown from A times a random vector, as published: smooth parts matter less at first.
        values, vectors = ritz_pairs(lanczos(operator, operator.mv(random), self.krylov))
        network = DirectionNetwork(
            len(self.shape), for_network, channels=self.channels, pairs=self.pairs
        )
        trained = fit(
            _MeanLoss(operator),
            network,
            RitzMixtures(vectors, values, self.batch),
            optimizer=_adam(self.rate, self.steps),
            steps=self.steps,
            key=for_steps,
            progress=progress,
            checkpoint=checkpoint,
        )
        if trained.status != "done":
            raise InputError(f"training {self} ended early: {trained.reason}; lower its rate")
        return trained.model

    def cached(self, progress: Progress = silent) -> DirectionNetwork:
        """The trained network, from the cache folder if it was trained before."""
        folder = cache_folder() / "networks"
        folder.mkdir(parents=True, exist_ok=True)
        digest = digest_of(self, Path(__file__).read_bytes())
        assert digest is not None
        return self.train(progress=progress, checkpoint=folder / f"directions-{digest[:20]}.npz")


@lru_cache
def _adam(rate: float, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


RECIPES = {2: Recipe(), 3: Recipe(shape=(16, 16, 16), krylov=300)}


class DeepConjugateDirection(eqx.Module):
    """From an operator on a grid to its learned directions: a preconditioner by network.

    `FlexibleConjugateGradient(1e-6, preconditioner=DeepConjugateDirection(network))` is the solver
    of `deep-conjugate-direction`; obstacles are read off the operator.
    """

    network: DirectionNetwork

    def __call__(self, operator: lx.AbstractLinearOperator) -> LearnedDirection:
        return LearnedDirection(self.network, getattr(bare(operator), "mask", None))


def deep_conjugate_direction(
    operator: lx.AbstractLinearOperator,
) -> tuple[FlexibleConjugateGradient, dict[str, Any]]:
    """Flexible conjugate gradients with directions from a network (`deep-conjugate-direction`).

    The network is trained on the empty grid of 64^2 or 16^3 points, once; its weights are kept in
    the cache folder. Differs from the authors' program: the residual is updated instead of computed
    anew, one product a step for their two; weights have the size for minutes of training.

    **Arguments:** a positive definite operator on a grid of dimension 2 or 3, as `StencilOperator`.

    **Returns:** the solver, and the options of `lineax.linear_solve` that hold the network.

    **Raises:** `InputError` for an operator on anything else.

    **Cost:** of a step, one product and one direction: 11,000 flops a point, a thousand products
    with a five-point stencil.
    """
    structure: Any = operator.in_structure()
    shape = getattr(structure, "shape", ())
    if len(shape) not in RECIPES:
        raise InputError(
            f"learned directions need an operator on a grid of dimension 2 or 3, not {structure}"
        )
    learned = DeepConjugateDirection(RECIPES[len(shape)].cached())(operator)
    return FlexibleConjugateGradient(1e-6, max_steps=2000), {"preconditioner": learned}
