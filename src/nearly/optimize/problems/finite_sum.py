"""`FiniteSum`: minimise a mean over samples from batches of it, with optimizers of optax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from nearly.core.errors import InputError
from nearly.core.problem import Problem
from nearly.core.tally import counted
from nearly.curvature.batches import CaptureFunction
from nearly.optimize.problems.tasks import TargetTask, Task

ORACLE = "losses"
MODEL = "model"


Train = Callable[["WithRate"], Any]


class WithRate(eqx.Module):
    """An optimizer whose learning rate is an array, so that no rate is compiled for anew.

    **Arguments:** `make`: learning rate -> optax transformation; `learning_rate`.
    """

    make: Callable[[Any], optax.GradientTransformation] = eqx.field(static=True)
    learning_rate: Any

    def __call__(self) -> optax.GradientTransformation:
        return self.make(self.learning_rate)

    def prepared(self, steps: int, train: Train) -> WithRate:
        """The optimizer for a run of so many steps: the place to make a schedule for it.

        **Arguments:** `steps` of the run; `train`: optimizer -> its state after a run of so many
        steps on other batches, which costs what the run itself does and is billed as set-up.
        """
        del steps, train
        return self


class Fixed(eqx.Module):
    """An optimizer as it is."""

    optimizer: Any = eqx.field(static=True)

    def __call__(self) -> optax.GradientTransformation:
        return self.optimizer


class _Oracle:
    """What a task tells of a batch, each loss and each pass of a model counted."""

    def __init__(self, task: Task, static: PyTree) -> None:
        self.task, self.static = task, static

    def __call__(self, params: PyTree, inputs: Array, targets: Array) -> tuple[PyTree, Any]:
        """The gradient, and the further arguments of an optimizer's update."""
        if isinstance(self.task, TargetTask):
            return self._apart(self.task, params, inputs, targets)
        losses = counted(self.task.losses, ORACLE)

        def value_fn(candidate: PyTree, *_: Any, **__: Any) -> Any:
            return jnp.mean(losses(eqx.combine(candidate, self.static), inputs, targets))

        value, grad = jax.value_and_grad(value_fn)(params)
        return grad, {"value": value, "value_fn": value_fn, "obj_fn": value_fn}

    def capture_fn(self, inputs: Array, targets: Array) -> CaptureFunction:
        """What passes through the model's layers for this batch, once it is called."""
        apart = isinstance(self.task, TargetTask)
        draw = counted(self.task.draw, MODEL if apart else ORACLE)
        units = (ORACLE, MODEL) if apart else (ORACLE,)
        return CaptureFunction(self.task.losses, self.static, inputs, targets, draw, None, units)

    def _apart(self, task: TargetTask, params: PyTree, inputs: Any, targets: Any) -> Any:
        losses, model = counted(task.losses_of, ORACLE), counted(task.outputs, MODEL)

        def model_fn(candidate: PyTree) -> Any:
            return model(eqx.combine(candidate, self.static), inputs)

        def loss_fn(outputs: Any) -> Any:
            return jnp.mean(losses(outputs, targets))

        # One oracle from the parameters on, so that a product with its Hessian is counted as one.
        whole = counted(lambda m, x, t: task.losses_of(model(m, x), t), ORACLE)

        def value_fn(candidate: PyTree, *_: Any, **__: Any) -> Any:
            return jnp.mean(whole(eqx.combine(candidate, self.static), inputs, targets))

        outputs, pull = jax.vjp(model_fn, params)
        value, output_grad = jax.value_and_grad(loss_fn)(outputs)
        (grad,) = pull(output_grad)
        return grad, {
            "value": value,
            "value_fn": value_fn,
            "obj_fn": value_fn,
            "model_fn": model_fn,
            "loss_fn": loss_fn,
            "outputs": outputs,
            "output_grad": output_grad,
        }


class FiniteSum(Problem):
    """Train by optimizer steps on batches; the dial is the number of steps.

    A method (protocol `optax`) is an optax transformation, or a `WithRate`: a function from a
    learning rate to one. `nearly.Tuned(partial(WithRate, make), {"learning_rate": rates})` is
    tuned with all rates at once, in one program. One whose schedule depends on the number of steps
    overrides `WithRate.prepared`.

    Each `update` is given `value`, `grad` and `value_fn` (and `obj_fn`, another name for it) of its
    batch; where the task is a `TargetTask` also `model_fn` (parameters -> outputs), `loss_fn`
    (outputs -> loss), the `outputs` at the parameters and `output_grad`, the loss's gradient there.
    `capture_fn(params, key=None)` tells what passes through the model's linear layers, and costs a
    gradient when it is called (`nearly.curvature.batches`).
    Batches are drawn with replacement from the run's key, the same for every method. The
    error is the mean loss over all training samples; beside it stand the mistakes on the test
    samples. Work is counted in gradients of a batch (`losses vjps`); products with a Hessian come
    on top as `losses jvps`. A `TargetTask`'s model is billed apart, as `model` and `model vjps`:
    the same number, but for methods that step in the space of outputs.

    **Arguments:** `task`, the model and its loss; training and test samples, NumPy arrays; `batch`
    (0 for all samples); `steps`, the dials.
    """

    task: Task
    inputs: np.ndarray
    targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray
    batch: int = 64
    steps: tuple[int, ...] = (100, 300, 1000)
    name: str = "finite-sum"
    dtype: str = "float32"
    error_name: ClassVar[str] = "training loss"
    work_name: ClassVar[str] = f"{ORACLE} vjps"
    protocol: ClassVar[str] = "optax"

    def __check_init__(self) -> None:
        if not 0 <= self.batch <= len(self.inputs):
            raise InputError(
                f"batch {self.batch} must lie between 1 and the {len(self.inputs)} samples, or be "
                "0 for all of them"
            )
        if not self.steps or min(self.steps) < 1:
            raise InputError(f"steps {self.steps} must be positive numbers of optimizer steps")

    def dials(self, method: Any) -> Sequence[int]:
        return self.steps

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        if isinstance(method, WithRate):
            return self._prepared(method, int(dial), key), jnp.asarray(int(dial))
        if not isinstance(method, optax.GradientTransformation):
            raise InputError(
                f"a {type(method).__name__} is no optimizer: give an optax transformation, or "
                "WithRate(make, learning_rate)"
            )
        return Fixed(method), jnp.asarray(int(dial))

    def _prepared(self, method: WithRate, steps: int, key: Any) -> WithRate:
        def train(optimizer: WithRate) -> Any:
            return _trained(self, (optimizer, jnp.asarray(steps)), key)[1]

        ready = method.prepared(steps, train)
        rate = jnp.asarray(ready.learning_rate, self.dtype)
        return eqx.tree_at(lambda m: m.learning_rate, ready, rate)

    def apply(self, standin: Any, *, key: Any) -> PyTree:
        return self.train(standin, key)[0]

    def train(self, standin: Any, key: Any) -> tuple[PyTree, Any]:
        """The parameters after training, and the optimizer's state.

        `standin`: an optimizer's maker and the number of steps: an array, so that one program
        serves all dials; with an int what training ends with can be differentiated.
        """
        method, steps = standin
        optimizer = optax.with_extra_args_support(method())
        for_start, for_batches = jax.random.split(key)
        params, static = eqx.partition(self.task.start(for_start), eqx.is_inexact_array)
        params = jax.tree.map(lambda leaf: leaf.astype(self.dtype), params)
        inputs, targets = self._samples(self.inputs, self.targets)
        oracle = _Oracle(self.task, static)

        def advance(index: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            params, state = carry
            chosen = self._chosen(jax.random.fold_in(for_batches, index))
            batch = inputs[chosen], targets[chosen]
            grad, extra = oracle(params, *batch)
            extra |= {"grad": grad, "capture_fn": oracle.capture_fn(*batch)}
            updates, state = optimizer.update(grad, state, params, **extra)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, steps, advance, (params, optimizer.init(params)))

    def trials(self, methods: Sequence[Any], dial: Any, *, key: Any) -> Sequence[float] | None:
        """Runs learning rates side by side in one compiled program."""
        found = self.side_by_side(methods, dial, key=key)
        return None if found is None else [errors[self.error_name] for errors in found]

    def side_by_side(
        self, methods: Sequence[Any], dial: Any, *, key: Any
    ) -> list[Mapping[str, float]] | None:
        """The errors of methods that differ in their arrays only; None if they differ in more."""
        if not all(isinstance(m, WithRate) for m in methods):
            return None
        steps = jnp.asarray(int(dial))
        other = jax.random.fold_in(key, steps)
        ready = [self._prepared(m, int(dial), other) for m in methods]
        if len({jax.tree.structure(m) for m in ready}) > 1:
            return None
        together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ready)
        found = jax.device_get(_all_trained(self, together, steps, key))
        each = [jax.tree.map(lambda leaf: leaf[i], found) for i in range(len(methods))]  # noqa: B023
        return [self.errors(value) for value in each]

    def errors(self, value: PyTree) -> Mapping[str, float]:
        like = eqx.filter_eval_shape(self.task.start, jax.random.key(0))
        static = eqx.partition(like, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))[1]
        model = eqx.combine(jax.tree.map(jnp.asarray, value), static)
        train = self.task.losses(model, *self._samples(self.inputs, self.targets))
        test = self._samples(self.test_inputs, self.test_targets)
        return {
            "training loss": float(np.mean(np.asarray(train, np.float64))),
            "test mistakes": float(self.task.mistakes(model, *test)),
        }

    def _samples(self, inputs: Any, targets: Any) -> tuple[Array, Array]:
        whole = np.issubdtype(targets.dtype, np.integer)
        return jnp.asarray(inputs, self.dtype), jnp.asarray(targets, None if whole else self.dtype)

    def _chosen(self, key: Any) -> Array:
        if self.batch == 0:
            return jnp.arange(len(self.inputs))
        return jax.random.randint(key, (self.batch,), 0, len(self.inputs))


@eqx.filter_jit
def _trained(problem: FiniteSum, standin: Any, key: Any) -> tuple[PyTree, Any]:
    return problem.train(standin, key)


@eqx.filter_jit
def _all_trained(problem: FiniteSum, methods: WithRate, steps: Array, key: Any) -> PyTree:
    return jax.vmap(lambda method: problem.apply((method, steps), key=key))(methods)
