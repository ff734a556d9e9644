"""Surrogates in output space: many steps for one loss gradient (`target-surrogates`).

Where the loss is dear and the model is cheap, ask for the loss's gradient at the model's outputs
z = f(x) once, and descend in the parameters on the surrogate that it makes:

    g = gradient of loss at z
    s(y) = <g, f(y) - z> + |f(y) - z|^2 / (2 eta B),    B samples, loss their mean
    m steps of any optimizer on s, from x

With eta at most 1 / L, L the smoothness of a sample's loss in its output (1 for half the squared
error, 1/4 for logistic, 1/2 for softmax), s lies above the loss: in full batches no step raises it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree
from optax import tree_utils as trees

from nearly.core.errors import InputError
from nearly.optimize.adaptive.settings import Rate, check_positive, needs_params, rate_at


class TargetSearch(eqx.Module):
    """eta by Armijo's rule in the space of outputs, from a little more than the last one.

    Each trial is a call of the loss (no gradient, and no pass of the model).

    **Arguments:** `slope`, the share of the slope that must be gained, in (0, 1); `shrink` in
    (0, 1), at a trial that fails; `grow` above 1, from step to step; `largest`, and where it
    starts; `trials`, at most.
    """

    slope: float = 0.5
    shrink: float = 0.9
    grow: float = 1.8
    largest: float = 100.0
    trials: int = 100

    def __check_init__(self) -> None:
        if not (0 < self.slope < 1 and 0 < self.shrink < 1):
            raise InputError(f"slope {self.slope} and shrink {self.shrink} must lie in (0, 1)")
        if not (self.grow > 1 and self.largest > 0 and self.trials >= 1):
            raise InputError(
                f"grow {self.grow} must be above 1, largest {self.largest} positive, trials "
                f"{self.trials} at least 1"
            )

    @property
    def search(self) -> optax.GradientTransformationExtraArgs:
        """Optax's line search with these settings; a rate of 1 is `largest`."""
        return optax.scale_by_backtracking_linesearch(
            self.trials, self.slope, self.shrink, self.grow
        )


class TargetState(NamedTuple):
    """Steps taken, and the state of the search for eta (None without one)."""

    steps: Int[Array, ""]
    search: Any


def armijo(largest: float = 10.0) -> optax.GradientTransformationExtraArgs:
    """Gradient descent by Armijo's rule, for `inner`: the authors' settings.

    A step must gain half of what the slope promises, shrinks by 0.9 and starts from `largest`.
    """
    check_positive(largest=largest)
    search = optax.scale_by_backtracking_linesearch(
        100, slope_rtol=0.5, decrease_factor=0.9, increase_factor=1.1
    )
    return optax.chain(optax.sgd(largest), search)


def target_surrogates(
    eta: Rate | TargetSearch,
    inner_steps: int = 10,
    inner: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Several parameter steps for each gradient of the loss, on its surrogate in output space.

    **Arguments:**

    - `eta`: step size in output space: a number (1 / L in full batches), a schedule (such as one
      that falls with the root of the steps, for convergence on batches), or a `TargetSearch`.
    - `inner_steps`: m. One inner step of `optax.sgd(rate)` is SGD.
    - `inner`: the optimizer on the surrogate, begun anew each time (None: `armijo()`). It is given
      `value`, `grad` and `value_fn` of the surrogate.

    `update` takes the gradient in the parameters, which is the surrogate's at its start, and needs
    the parameters, `value`, `model_fn` (parameters -> outputs, on the batch), `loss_fn` (outputs ->
    mean loss), `outputs` at the parameters and `output_grad`, the loss's gradient there;
    `FiniteSum` passes them where its task is a `TargetTask`. What changes the gradient before it in
    a chain would make it another function's: put clipping or weight decay into `inner`.

    Advice: where a pass of the model is not free, give `inner` a rate, such as `optax.adam(1e-2)`:
    the trials of `armijo` are two thirds of the passes.

    Raises `InputError` for values out of range, or an update without these arguments. Costs no
    further loss gradient, m - 1 gradients of the model, and with `armijo` some tens of its passes:
    they are cheap only where the loss is dear.

    Paper: `target-surrogates`. Its quadratic term is halved here as in the paper, not as in the
    authors' code. Within the m steps the inner search tries a step longer by 1.1 each time (theirs
    by 1.8^(1 / batches in an epoch)).
    """
    if inner_steps < 1:
        raise InputError(f"inner_steps {inner_steps} must be at least 1")
    if isinstance(eta, (int, float)):
        check_positive(eta=eta)
    optimizer = optax.with_extra_args_support(armijo() if inner is None else inner)

    def init(params: PyTree) -> TargetState:
        state = eta.search.init(params) if isinstance(eta, TargetSearch) else None
        return TargetState(jnp.zeros((), jnp.int32), state)

    def update(
        updates: PyTree,
        state: TargetState,
        params: Any = None,
        *,
        value: Any = None,
        model_fn: Callable[[PyTree], PyTree] | None = None,
        loss_fn: Callable[[PyTree], Any] | None = None,
        outputs: PyTree = None,
        output_grad: PyTree = None,
        **extra: Any,
    ) -> tuple[PyTree, TargetState]:
        del extra
        needs_params(params, "target_surrogates")
        if model_fn is None or loss_fn is None or outputs is None or output_grad is None:
            raise InputError(
                "target_surrogates needs update(..., params, value=, model_fn=, loss_fn=, "
                "outputs=, output_grad=); FiniteSum passes them if its task is a TargetTask"
            )
        if isinstance(eta, TargetSearch):
            if value is None:
                raise InputError(
                    "a TargetSearch needs update(..., value=): the loss at the outputs"
                )
            size, search = _searched(eta, state.search, value, loss_fn, outputs, output_grad)
        else:
            size, search = rate_at(eta, state.steps), state.search
        surrogate = _surrogate(model_fn, outputs, output_grad, size)
        end = _descend(optimizer, surrogate, params, updates, inner_steps)
        return trees.tree_sub(end, params), TargetState(state.steps + 1, search)

    return optax.GradientTransformationExtraArgs(init, cast("Any", update))


def _samples(outputs: PyTree) -> int:
    return jax.tree.leaves(outputs)[0].shape[0]


def _surrogate(
    model_fn: Callable[[PyTree], PyTree], outputs: PyTree, slope: PyTree, eta: Any
) -> Callable[[PyTree], Float[Array, ""]]:
    weight = 1 / (2 * eta * _samples(outputs))

    def surrogate(candidate: PyTree) -> Float[Array, ""]:
        move = trees.tree_sub(model_fn(candidate), outputs)
        return trees.tree_vdot(slope, move) + weight * trees.tree_norm(move, squared=True)

    return surrogate


def _searched(
    rule: TargetSearch,
    state: Any,
    value: Any,
    loss_fn: Callable[[PyTree], Any],
    outputs: PyTree,
    slope: PyTree,
) -> tuple[Array, Any]:
    """An eta at which the step in output space gains enough."""
    longest = rule.largest * _samples(outputs)
    step = jax.tree.map(lambda g: -longest * g, slope)
    _, state = rule.search.update(step, state, outputs, value=value, grad=slope, value_fn=loss_fn)
    # No trial gained anything: a step this short changes nothing either, but can be divided by.
    tiny = rule.shrink**rule.trials
    size = jnp.maximum(jnp.asarray(state.learning_rate), tiny)
    return rule.largest * size, state._replace(learning_rate=size)


def _descend(
    optimizer: optax.GradientTransformationExtraArgs,
    surrogate: Callable[[PyTree], Any],
    params: PyTree,
    gradient: PyTree,
    steps: int,
) -> PyTree:
    """Some optimizer steps on the surrogate, whose value and gradient at the start are known."""

    def step(params: PyTree, state: Any, value: Any, gradient: PyTree) -> Any:
        updates, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=surrogate
        )
        return optax.apply_updates(params, updates), state

    def advance(carry: Any, _: None) -> Any:
        params, state = carry
        value, gradient = jax.value_and_grad(surrogate)(params)
        return step(params, state, value, gradient), None

    zero = jnp.zeros((), jax.tree.leaves(params)[0].dtype)
    first = step(params, optimizer.init(params), zero, gradient)
    return jax.lax.scan(advance, first, None, length=steps - 1)[0][0]
