"""Learned differential equations: a flow that classifies, the moments of a noisy spiral."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.dynamics.brownian import GridBrownianPath
from nearly.dynamics.lamba import LambaEulerHeun
from nearly.dynamics.problems.trajectories import TrajectoryLearning, evaluations
from nearly.dynamics.regularizers import Solve
from nearly.training.architectures import MLP, mlp, normal_init

INFERENCE_STEPS = 4096


class NeuralEquation(TrajectoryLearning):
    """Train the vector field of a differential equation that is solved with adaptive steps.

    A method (protocol `neural-equations`) is `(problem, dial, *, key) -> model`; those of the
    catalogue are `nearly.dynamics.trainers.Trainer`s, whose dial is the weight of a penalty. They
    ask the problem for the `initial` model, the `equation` to solve for a batch, and its `loss`;
    a batch is solved at once, with one step size.

    **Subclasses** define these three.
    """

    steps: eqx.AbstractVar[int]
    batch: eqx.AbstractVar[int | None]
    protocol: ClassVar[str] = "neural-equations"

    @abstractmethod
    def initial(self, key: Any) -> Any:
        """A model to train."""

    @abstractmethod
    def equation(self, model: Any, data: Any, *, key: Any) -> Solve:
        """What is solved for a batch of data, its vector field wrapped by `evaluations`."""

    @abstractmethod
    def read(self, model: Any, values: Any) -> Any:
        """The predictions, from the equation's values."""

    @abstractmethod
    def loss(self, predictions: Any, data: Any) -> Any:
        """The mean loss of a batch's predictions."""

    @abstractmethod
    def optimizer(self) -> optax.GradientTransformation:
        """With what it is trained: the same object each time."""

    def settings(self) -> NeuralEquation:
        """The problem without its data and the length of training: what a loss needs."""
        return dataclasses.replace(self, train=None, test=None, steps=1)

    def predict(self, model: Any, data: Any, *, key: Any) -> Any:
        solve = self.equation(model, data, key=key)
        solve = dataclasses.replace(solve, adjoint=dfx.ForwardMode(), max_steps=INFERENCE_STEPS)
        return self.read(model, solve())


class Labelled(NamedTuple):
    """Inputs `[n, size]` and their classes `[n]`."""

    inputs: Any
    classes: Any


class TimeField(eqx.Module):
    """A network of state and time as the vector field of a batch `[n, size]`."""

    network: MLP

    def __call__(self, t: Any, y: Float[Array, "n size"], args: Any) -> Float[Array, "n size"]:
        del args
        time = jnp.full((y.shape[0], 1), t, y.dtype)
        return jax.vmap(self.network)(jnp.concatenate([y, time], axis=1))


class Classifier(eqx.Module):
    """A vector field, and a linear map from the end of its flow to the scores of the classes."""

    field: TimeField
    readout: eqx.nn.Linear


class FlowClassification(NeuralEquation):
    """Classify points by where a learned vector field takes them from time 0 to 1.

    The field is one hidden layer of state and time. The error is the share of held-out points
    that are `misclassified`, beside the `cross entropy`. All held-out points are solved at once.

    **Arguments:**

    - `train`, `test`: `Labelled` points. `hidden`: units of the layer. `rtol`: relative and
      absolute tolerance of Tsit5's steps. `steps`, `batch`, `learning_rate` (which falls
      to 0 by a cosine): of training by Adam.
    """

    train: Any
    test: Any
    hidden: int = 64
    rtol: float = 1e-5
    steps: int = 600
    batch: int | None = 256
    learning_rate: float = 1e-2
    adjoint: Any = dfx.RecursiveCheckpointAdjoint()
    name: str = "flow-classification"
    dtype: ClassVar[str] = "float32"
    error_name: ClassVar[str] = "misclassified"

    def __check_init__(self) -> None:
        if not 0 < self.rtol < 1:
            raise InputError(f"rtol={self.rtol} must lie between 0 and 1, such as 1e-5")
        if min(self.hidden, self.steps, self.batch or 1) < 1 or self.learning_rate <= 0:
            raise InputError("hidden, steps, batch and learning_rate must be positive")

    def initial(self, key: Any) -> Classifier:
        first, last = jax.random.split(key)
        size, classes = self.train.inputs.shape[1], int(np.max(self.train.classes)) + 1
        network = mlp([size + 1, self.hidden, size], first, jnp.tanh, gain=1.0)
        readout = eqx.nn.Linear(size, classes, dtype=jnp.float32, key=last)
        return Classifier(TimeField(network), normal_init(readout, last))

    def equation(self, model: Classifier, data: Labelled, *, key: Any) -> Solve:
        del key
        field = dfx.ODETerm(evaluations(model.field))
        start, end = jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32)
        return Solve(
            *(field, dfx.Tsit5(), start, end, jnp.asarray(data.inputs, jnp.float32)),
            rtol=self.rtol,
            atol=self.rtol,
            adjoint=self.adjoint,
        )

    def read(self, model: Classifier, values: Any) -> Any:
        return jax.vmap(model.readout)(values)

    def loss(self, predictions: Any, data: Labelled) -> Any:
        losses = optax.softmax_cross_entropy_with_integer_labels(predictions, data.classes)
        return jnp.mean(losses)

    def optimizer(self) -> optax.GradientTransformation:
        return _optimizer(optax.adam, self.learning_rate, self.steps)

    def errors(self, value: Any) -> Mapping[str, float]:
        scores, classes = np.asarray(value, np.float64), np.asarray(self.test.classes)
        if not np.isfinite(scores).all():
            return {"misclassified": np.inf, "cross entropy": np.inf}
        top = scores.max(axis=1, keepdims=True)
        logs = scores - top - np.log(np.sum(np.exp(scores - top), axis=1, keepdims=True))
        return {
            "misclassified": float(np.mean(scores.argmax(axis=1) != classes)),
            "cross entropy": float(-np.mean(logs[np.arange(len(classes)), classes])),
        }


# ---- a stochastic equation


class Moments(NamedTuple):
    """Means and variances `[times, 2]` of an ensemble."""

    means: Any
    variances: Any


class CubeField(eqx.Module):
    """A network of the cubes of the state, as the drift of a batch `[n, size]`."""

    network: MLP

    def __call__(self, t: Any, y: Float[Array, "n size"], args: Any) -> Float[Array, "n size"]:
        del t, args
        return jax.vmap(self.network)(y**3)


class LinearDiffusion(eqx.Module):
    """A linear map of the state, as the diagonal diffusion of a batch."""

    layer: eqx.nn.Linear

    def __call__(self, t: Any, y: Float[Array, "n size"], args: Any) -> Any:
        del t, args
        return lx.DiagonalLinearOperator(jax.vmap(self.layer)(y))


class NoisyField(eqx.Module):
    """Drift and diffusion."""

    drift: CubeField
    diffusion: LinearDiffusion


class SpiralSDE(NeuralEquation):
    """Match the moments of a noisy spiral by a learned Stratonovich equation.

    The truth is dx = A x^3 dt + 0.2 x o dW, x^3 and the noise componentwise, A = [[-0.1, -2],
    [2, -0.1]], from (2, 0) over a unit of time. The error, `moments`, is the mean square of the
    differences in mean plus that in variance over 30 times, from those of an ensemble that training
    did not see.

    **Arguments:**

    - `train`, `test`: `Moments` of two ensembles. `paths`: of the model, in training and in use,
      solved at once. `rtol`: relative and absolute tolerance of `LambaEulerHeun`.
      `steps`, `learning_rate` (which falls to 0 by a cosine): of training by AdaBelief.

    Drift and diffusion calls count alike as `nfe`.
    """

    train: Any
    test: Any
    paths: int = 100
    rtol: float = 0.1
    steps: int = 250
    learning_rate: float = 1e-2
    batch: int | None = None
    name: str = "spiral-sde"
    dtype: ClassVar[str] = "float32"
    error_name: ClassVar[str] = "moments"

    CELLS: ClassVar[int] = 64
    REFINEMENTS: ClassVar[int] = 5

    def __check_init__(self) -> None:
        if self.paths < 2:
            raise InputError(f"paths={self.paths}: give at least 2, for their variance")
        if not 0 < self.rtol < 1:
            raise InputError(f"rtol={self.rtol} must lie between 0 and 1, such as 0.1")

    def initial(self, key: Any) -> NoisyField:
        first, last = jax.random.split(key)
        drift = mlp([2, 50, 2], first, jnp.tanh, gain=1.0)
        layer = normal_init(eqx.nn.Linear(2, 2, dtype=jnp.float32, key=last), last, 0.1)
        return NoisyField(CubeField(drift), LinearDiffusion(layer))

    def equation(self, model: NoisyField, data: Moments, *, key: Any) -> Solve:
        start, end = jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32)
        shape = jax.ShapeDtypeStruct((self.paths, 2), jnp.float32)
        path = GridBrownianPath(key, start, end, self.CELLS, shape, refinements=self.REFINEMENTS)
        terms = dfx.MultiTerm(
            dfx.ODETerm(evaluations(model.drift)),
            dfx.ControlTerm(evaluations(model.diffusion), path),
        )
        y0 = jnp.broadcast_to(jnp.array([2.0, 0.0], jnp.float32), (self.paths, 2))
        return Solve(
            *(terms, LambaEulerHeun(), start, end, y0),
            rtol=self.rtol,
            atol=self.rtol,
            ts=jnp.linspace(start, end, len(TIMES), dtype=jnp.float32),
            dtmin=1 / self.CELLS / 2**self.REFINEMENTS,
        )

    def read(self, model: NoisyField, values: Any) -> Moments:
        return Moments(jnp.mean(values, axis=1), jnp.var(values, axis=1))

    def loss(self, predictions: Moments, data: Moments) -> Any:
        of_means = jnp.mean((predictions.means - data.means) ** 2)
        return of_means + jnp.mean((predictions.variances - data.variances) ** 2)

    def optimizer(self) -> optax.GradientTransformation:
        return _optimizer(optax.adabelief, self.learning_rate, self.steps)

    def errors(self, value: Any) -> Mapping[str, float]:
        pairs = zip(value, self.test, strict=True)
        with np.errstate(over="ignore", invalid="ignore"):
            parts = [np.mean((np.asarray(v, np.float64) - t) ** 2) for v, t in pairs]
        found = dict(zip(("means", "variances"), map(float, parts), strict=True))
        total = sum(found.values())
        return {"moments": total if np.isfinite(total) else np.inf, **found}


TIMES = np.linspace(0, 1, 30)


def spiral_moments(seed: int, paths: int = 4000, substeps: int = 20) -> Moments:
    """Moments of the true spiral over `TIMES`, by Heun's method with `substeps` between two."""
    draw = np.random.default_rng(seed)
    matrix = np.array([[-0.1, -2.0], [2.0, -0.1]])
    h = TIMES[1] / substeps
    x = np.tile([2.0, 0.0], (paths, 1))
    found = [x]
    for _ in TIMES[1:]:
        for _ in range(substeps):
            dw = 0.2 * np.sqrt(h) * draw.normal(size=x.shape)
            first = h * x**3 @ matrix.T + x * dw
            ahead = x + first
            x = x + (first + h * ahead**3 @ matrix.T + ahead * dw) / 2
        found.append(x)
    values = np.stack(found)
    return Moments(values.mean(axis=1).astype(np.float32), values.var(axis=1).astype(np.float32))


@lru_cache  # an optimiser made anew would compile the training loop anew
def _optimizer(make: Callable[[Any], Any], rate: float, steps: int) -> optax.GradientTransformation:
    """On a learning rate that falls to 0 by a cosine: what is judged is the last step's model."""
    return make(optax.cosine_decay_schedule(rate, steps))


# ---- instances


def annuli_points(seed: int, n: int) -> Labelled:
    """Points of a disc of radius 1/2 (class 0) and of an annulus of radii 1 to 1.5 (class 1)."""
    draw = np.random.default_rng(seed)
    classes = np.arange(n) % 2
    low, high = np.where(classes, 1.0, 0.0), np.where(classes, 1.5, 0.5)
    radius = np.sqrt(low**2 + draw.uniform(size=n) * (high**2 - low**2))
    angle = draw.uniform(0, 2 * np.pi, n)
    inputs = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return Labelled(inputs.astype(np.float32), classes.astype(np.int32))


def annuli(
    train: int = 2000,
    test: int = 1000,
    hidden: int = 64,
    steps: int = 600,
    batch: int = 256,
    rtol: float = 1e-5,
    seed: int = 0,
) -> FlowClassification:
    """A disc within an annulus, which no flow of the plane can part: hard to solve when learned.

    `train`, `test`: points of each, drawn from `seed`.
    """
    return FlowClassification(
        train=annuli_points(2 * seed, train),
        test=annuli_points(2 * seed + 1, test),
        hidden=hidden,
        steps=steps,
        batch=batch,
        rtol=rtol,
        name="annuli",
    )


def digits_flow(
    hidden: int = 64,
    steps: int = 400,
    batch: int = 128,
    rtol: float = 1e-6,
    seed: int = 0,
    learning_rate: float = 1e-2,
) -> FlowClassification:
    """Handwritten digits of 64 pixels, split by `seed`."""
    from nearly.datasets.real import digits

    data = digits(seed)
    return FlowClassification(
        train=Labelled(data.train_inputs.astype(np.float32), data.train_targets),
        test=Labelled(data.test_inputs.astype(np.float32), data.test_targets),
        hidden=hidden,
        steps=steps,
        batch=batch,
        rtol=rtol,
        learning_rate=learning_rate,
        name="digits-flow",
    )


def spiral(paths: int = 100, steps: int = 250, rtol: float = 0.1, seed: int = 0) -> SpiralSDE:
    """The noisy spiral; its ensembles of 4,000 paths are drawn from `seed`."""
    return SpiralSDE(
        train=spiral_moments(2 * seed),
        test=spiral_moments(2 * seed + 1),
        paths=paths,
        steps=steps,
        rtol=rtol,
    )
