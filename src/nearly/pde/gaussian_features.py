"""Physics-informed Gaussians (`physics-informed-gaussians`): a mesh that trains.

A few features, each a sum of Gaussians with centres, widths and weights of their own, feed a tiny
network. First and second derivatives are written out, which is several times cheaper than
differentiating automatically: `jet` hands them to the residual.

How this differs from the paper: widths are a softplus of what is trained, since there a width that
crosses zero makes the gradient explode; loss, points and L-BFGS are those of `Collocation`.
"""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nearly.core.errors import InputError
from nearly.pde.collocation import Collocation
from nearly.pde.equations import BoundaryValueProblem, Jet, Point
from nearly.training.architectures import MLP, mlp


class Features(eqx.Module):
    """sum_g weight_kg exp(-|A_kg (x - mean_kg)|^2 / 2) for each feature k."""

    @abstractmethod
    def factors(self) -> Float[Array, "k g d d"]:
        """A, whose square A^T A is each Gaussian's precision."""

    @abstractmethod
    def jet(self, x: Point) -> Jet:
        """Values `[k]`, and their first and pure second derivatives `[k, d]`."""


class DiagonalGaussians(Features):
    """Gaussians with a width along each coordinate."""

    means: Float[Array, "k g d"]
    raw_widths: Float[Array, "k g d"]
    weights: Float[Array, "k g"]

    def factors(self) -> Float[Array, "k g d d"]:
        return (1 / jax.nn.softplus(self.raw_widths))[..., None] * jnp.eye(self.means.shape[-1])

    def jet(self, x: Point) -> Jet:
        inverse = 1 / jax.nn.softplus(self.raw_widths)
        gaps = (x - self.means) * inverse
        bumps = self.weights * jnp.exp(-0.5 * jnp.sum(gaps**2, axis=-1))
        first = -gaps * inverse
        second = first**2 - inverse**2
        return _summed(bumps, first, second)


class RotatedGaussians(Features):
    """Gaussians with a full covariance: widths along axes of their own.

    The axes are a Cayley transform of a skew matrix, (I - K)^-1 (I + K): a rotation in any
    dimension, d (d - 1) / 2 numbers, none at the start.
    """

    means: Float[Array, "k g d"]
    raw_widths: Float[Array, "k g d"]
    skew: Float[Array, "k g r"]
    weights: Float[Array, "k g"]

    def factors(self) -> Float[Array, "k g d d"]:
        d = self.means.shape[-1]
        upper = jnp.zeros((*self.skew.shape[:-1], d, d), self.skew.dtype)
        upper = upper.at[..., *jnp.triu_indices(d, 1)].set(self.skew)
        skew = upper - jnp.swapaxes(upper, -1, -2)
        eye = jnp.eye(d, dtype=self.skew.dtype)
        rotation = jnp.linalg.solve(eye - skew, eye + skew)
        return rotation / jax.nn.softplus(self.raw_widths)[..., None]

    def jet(self, x: Point) -> Jet:
        factors = self.factors()
        gaps = jnp.einsum("kgij,kgj->kgi", factors, x - self.means)
        bumps = self.weights * jnp.exp(-0.5 * jnp.sum(gaps**2, axis=-1))
        first = -jnp.einsum("kgij,kgi->kgj", factors, gaps)
        second = first**2 - jnp.sum(factors**2, axis=-2)
        return _summed(bumps, first, second)


def _summed(bumps: Array, first: Array, second: Array) -> Jet:
    """The jets of sums of bumps from the derivatives of their logarithms."""
    weighted = bumps[..., None]
    return Jet(bumps.sum(1), (weighted * first).sum(1), (weighted * second).sum(1))


class GaussianNetwork(eqx.Module):
    """u(x) = MLP(features(x)), with `jet` in closed form through the features."""

    features: Features
    body: MLP

    def __call__(self, x: Point) -> Float[Array, ""]:
        return self.body(self.features.jet(x).value)[0]

    def jet(self, x: Point) -> Jet:
        inside = self.features.jet(x)

        def along(first: Array, second: Array) -> tuple[Array, Array, Array]:
            # The second derivative of body(phi(s)) along a curve with velocity `first` and
            # acceleration `second`: the chain rule leaves no Hessian to be formed.
            def slope(phi: Array, velocity: Array) -> tuple[Array, Array]:
                value, rate = jax.jvp(self.body, (phi,), (velocity,))
                return value[0], rate[0]

            (value, rate), (_, bend) = jax.jvp(slope, (inside.value, first), (first, second))
            return value, rate, bend

        value, rate, bend = jax.vmap(along, (1, 1))(inside.gradient, inside.second)
        return Jet(value[0], rate, bend)


class GaussianMesh(eqx.Module):
    """A factory of `GaussianNetwork`s for `Collocation`.

    **Arguments:**

    - `gaussians`: of each of the `features`; 800 and 4 in the paper.
    - `spread`: the widths at the start, on the domain scaled to [-1, 1]; 0.1 in the paper. With
      fewer Gaussians wider ones leave no holes: 0.1 (800 / gaussians)^(1 / d) overlap as much.
      `weight`: the standard deviation of the weights at the start.
    - `hidden`: the width of the one hidden tanh layer.

    Centres start uniformly over the domain. Raises `InputError` unless all are positive.
    """

    gaussians: int = eqx.field(default=100, static=True)
    features: int = eqx.field(default=4, static=True)
    spread: float = eqx.field(default=0.1, static=True)
    weight: float = eqx.field(default=0.01, static=True)
    hidden: int = eqx.field(default=16, static=True)

    def __check_init__(self) -> None:
        if min(self.gaussians, self.features, self.spread, self.weight, self.hidden) <= 0:
            raise InputError(
                f"gaussians={self.gaussians}, features={self.features}, spread={self.spread}, "
                f"weight={self.weight} and hidden={self.hidden} must be positive"
            )

    def __call__(
        self, equation: BoundaryValueProblem, *, key: Key[Array, ""], dtype: Any
    ) -> GaussianNetwork:
        first, second, third = jax.random.split(key, 3)
        lower, upper = jnp.asarray(equation.lower, dtype), jnp.asarray(equation.upper, dtype)
        shape = (self.features, self.gaussians, equation.dimension)
        means = lower + (upper - lower) * jax.random.uniform(first, shape, dtype)
        widths = jnp.broadcast_to(self.spread * (upper - lower) / 2, shape)
        raw_widths = jnp.log(jnp.expm1(widths))  # softplus takes it back
        weights = self.weight * jax.random.normal(second, shape[:2], dtype)
        body = mlp([self.features, self.hidden, 1], third, jnp.tanh, gain=5 / 3, dtype=dtype)
        return GaussianNetwork(self._features(means, raw_widths, weights), body)

    def _features(self, means: Array, raw_widths: Array, weights: Array) -> Features:
        return DiagonalGaussians(means, raw_widths, weights)


class RotatedMesh(GaussianMesh):
    """`GaussianMesh` with full covariances."""

    def _features(self, means: Array, raw_widths: Array, weights: Array) -> Features:
        d = means.shape[-1]
        skew = jnp.zeros((*means.shape[:-1], d * (d - 1) // 2), means.dtype)
        return RotatedGaussians(means, raw_widths, skew, weights)


class FixedFeatures(Features):
    """Gaussians whose centres and widths do not train: the paper's ablation."""

    inside: DiagonalGaussians

    def factors(self) -> Float[Array, "k g d d"]:
        return jax.lax.stop_gradient(self.inside.factors())

    def jet(self, x: Point) -> Jet:
        held = jax.lax.stop_gradient(self.inside)
        return eqx.tree_at(lambda f: f.weights, held, self.inside.weights).jet(x)


class FixedMesh(GaussianMesh):
    """`GaussianMesh` with centres and widths as they were drawn."""

    def _features(self, means: Array, raw_widths: Array, weights: Array) -> Features:
        return FixedFeatures(DiagonalGaussians(means, raw_widths, weights))


def physics_informed_gaussians(mesh: GaussianMesh | None = None, **settings: Any) -> Collocation:
    """Collocation with a Gaussian mesh, trained by L-BFGS alone as in the paper.

    `settings` are those of `Collocation`; the weight of the residual is the paper's 1e-4.
    """
    chosen: dict[str, Any] = {"weight": 1e-4, "adam": 0.0, **settings}
    return Collocation(network=mesh or GaussianMesh(), **chosen)


gaussians = physics_informed_gaussians()
rotated_gaussians = physics_informed_gaussians(RotatedMesh())
