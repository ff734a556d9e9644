"""Learning-rate schedules made from the gradient norms of a run (`learning-rate-refinement`).

With the norms G_1 .. G_T of a run, smoothed by a median filter, and weights w_t (G_t^-2 with the
Euclidean norm for SGD, G_t^-1 with the sum of absolute values for Adam), the schedule of the next
run is

    eta_t  =  c w_t (w_t+1 + ... + w_T)            scaled to a largest value of 1,

whose last iterate has the guarantee that is otherwise the average's. Equal norms give linear decay,
which is therefore the default where no run has been recorded: `optax.linear_schedule`. Where norms
fall, the rate rises first (warm-up) and falls steeply at the end.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from nearly.core.errors import InputError

LEAST = 1e-8  # norms below this share of the largest count as it: their weight must be finite


class Tabulated(eqx.Module):
    """A schedule by its values: `optax` calls it with the number of steps taken.

    **Arguments:** `values`, one for each step; the last one holds from then on. They are leaves of
    a pytree: another table of the same length is not compiled anew.
    """

    values: Float[Array | np.ndarray, " steps"]

    def __check_init__(self) -> None:
        if isinstance(self.values, np.ndarray) and not self.values.size:
            raise InputError("a schedule of 0 steps has no value: give at least one")

    def __call__(self, count: Any) -> Any:
        return jnp.asarray(self.values)[jnp.minimum(count, len(self.values) - 1)]


def tabulated(schedule: optax.Schedule, steps: int) -> Tabulated:
    """A schedule's first `steps` values as a table."""
    values = jax.vmap(lambda count: jnp.asarray(schedule(count), jnp.float32))(jnp.arange(steps))
    return Tabulated(values)


# ---- from a run's norms


def refine(
    norms: Float[Any, " run"],
    power: float = 2.0,
    smoothing: float = 0.1,
    steps: int | None = None,
) -> Tabulated:
    """The refined schedule, in units of its largest value: multiply it by a tuned learning rate.

    **Arguments:**

    - `norms` of the gradients of a finished run of the same batch size, in order: `record_norms`.
    - `power`, positive: weights are norms to minus this. 2 for SGD with Euclidean norms, 1 for Adam
      with sums of absolute values.
    - `smoothing` in [0, 1): the share of the run that the median filter looks at. Without it the
      schedule copies the noise of single batches.
    - `steps` of the next run, as many as norms by default; the shape is stretched to it.

    **Returns:** an optax schedule whose last value is 0.

    **Raises:** `InputError` for values out of range.

    **Cost:** on the host, O(T) plus the median filter's O(T log T).

    The filter sees the run's end mirrored and its first norm repeated before its start, as the
    authors' does. Norms of 0 count as 1e-8 of the largest, which the paper leaves undefined.
    """
    smooth = _smoothed(_checked(norms), smoothing)
    if not power > 0:
        raise InputError(f"power {power} must be positive: 2 for SGD, 1 for Adam")
    # Over the largest weight first, so that no power of a norm overflows.
    weights = (smooth.min() / smooth) ** power
    after = np.append(np.cumsum(weights[:0:-1])[::-1], 0.0)
    return _table(weights * after, steps, scale=True)


def last_iterate_bound(
    rates: Float[Array, " run"], norms: Float[Array, " run"], distance: Any
) -> Float[Array, ""]:
    """How far SGD's last iterate can lie above the minimum, for convex functions.

        D^2 / 2S_1 + sum_t q_t / 2S_1 + sum_k<T  eta_k (q_k + ... + q_T) / (2 S_k S_k+1)

    with `S_k = eta_k + ... + eta_T` and `q_t = eta_t^2 G_t^2`.

    **Arguments:** `rates`, positive, the last of which weights the last iterate; `norms` of the
    gradients; `distance`, D, from the start to a minimum.

    **Returns:** the bound on the expected excess. Differentiable. **Cost:** O(T).
    """
    squares = jnp.square(rates * norms)
    tail, spent = _from_each(rates), _from_each(squares)
    later = rates[:-1] * spent[:-1] / (tail[:-1] * tail[1:])
    return (distance**2 + spent[0]) / (2 * tail[0]) + jnp.sum(later) / 2


def bound_minimising(
    norms: Float[Any, " run"], distance: float, smoothing: float = 0.1, steps: int | None = None
) -> Tabulated:
    """The learning rates that minimise `last_iterate_bound` for a run's norms.

    The paper's other refinement: no closed form, but the better bound, and rates in their own
    units.

    **Arguments:** `norms`, `smoothing` and `steps` as `refine`'s; `distance` from the start to a
    minimum, positive. Rates are proportional to it.

    **Returns:** an optax schedule of rates for SGD.

    **Raises:** `InputError` for values out of range.

    **Cost:** on the host, O(T) for each of some hundred evaluations of L-BFGS-B in float64. The
    unknowns are logarithms of the rates where the authors bound the rates from below: the bound
    is a ratio of their products, and the search ends in fewer steps.
    """
    from scipy.optimize import minimize

    smooth = _smoothed(_checked(norms), smoothing)
    if not 0 < distance < math.inf:
        raise InputError(f"distance {distance} must be positive and finite")
    # In units where the norms are about 1 and so is the distance.
    unit = float(np.sqrt(np.mean(smooth**2)))
    with jax.enable_x64(True):
        relative = jnp.asarray(smooth / unit, "float64")

        @jax.jit
        def both(logs: Array) -> tuple[Array, Array]:
            return jax.value_and_grad(
                lambda u: jnp.log(last_iterate_bound(jnp.exp(u), relative, 1.0))
            )(logs)

        def evaluate(logs: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = both(jnp.asarray(logs, "float64"))
            return float(value), np.asarray(slope)

        start = np.log((1 - np.arange(smooth.size) / (smooth.size + 1)) / math.sqrt(smooth.size))
        options = {"maxiter": 20_000, "maxfun": 20_000, "maxcor": 20, "ftol": 1e-13, "gtol": 1e-9}
        found = minimize(evaluate, start, jac=True, method="L-BFGS-B", options=options)
    rates = np.exp(found.x) * distance / unit
    return _table(rates, steps, scale=False)


def _table(values: np.ndarray, steps: int | None, *, scale: bool) -> Tabulated:
    steps = values.size if steps is None else steps
    if steps < 1:
        raise InputError(f"steps {steps} must be at least 1")
    top = values.max() if scale and values.max() > 0 else 1.0
    places = np.linspace(0, values.size - 1, steps)
    stretched = np.interp(places, np.arange(values.size), values / top)
    return Tabulated(jnp.asarray(stretched, jnp.float32))


def _from_each(values: Array) -> Array:
    """Sums from each entry to the last."""
    return jnp.cumsum(values[::-1])[::-1]


def _checked(norms: Any) -> np.ndarray:
    given = np.asarray(norms, np.float64)
    if given.size < 2:
        raise InputError(f"{given.size} norms make no schedule: record a run of at least 2 steps")
    if not np.all(np.isfinite(given)) or given.min() < 0 or given.max() == 0:
        worst = int(np.argmin(np.where(np.isfinite(given), given, -1)))
        raise InputError(
            f"norm {worst} is {given[worst]}: all must be finite and not negative, some positive; "
            "refine from a run that did not diverge"
        )
    return np.maximum(given, LEAST * given.max())


def _smoothed(norms: np.ndarray, share: float) -> np.ndarray:
    from scipy.ndimage import median_filter

    if not 0 <= share < 1:
        raise InputError(f"smoothing {share} must lie in [0, 1): a share of the run, such as 0.1")
    width = 2 * (int(share * norms.size) // 2) + 1
    if width == 1:
        return norms
    mirrored = np.pad(norms, (0, width), mode="reflect")
    return median_filter(mirrored, size=width, mode="nearest")[:-width]


# ---- recording them


class NormsState(NamedTuple):
    """The number of steps, and a norm for each (0 for steps to come), in float32."""

    steps: Int[Array, ""]
    norms: Float[Array, " steps"]


def record_norms(steps: int, order: float = 2) -> optax.GradientTransformation:
    """Passes gradients on and keeps their norms in its state.

    **Arguments:** `steps`, how many are kept, the first ones; `order` of the norm over all
    parameters, 2 (for `refine` with SGD) or 1 (with Adam).

    **Raises:** `InputError` for values out of range. **Cost:** O(parameters) time, `steps` numbers.

    Put it first in `optax.chain`; the norms are those of what it is given.
    """
    if steps < 1:
        raise InputError(f"steps {steps} must be at least 1")
    if order not in (1, 2):
        raise InputError(f"order {order} must be 2 (for SGD) or 1 (for Adam)")

    def init(params: PyTree) -> NormsState:
        del params
        return NormsState(jnp.zeros((), jnp.int32), jnp.zeros(steps, jnp.float32))

    def update(updates: PyTree, state: NormsState, params: Any = None) -> tuple[PyTree, NormsState]:
        del params
        precise = [g.astype(jnp.promote_types(g.dtype, jnp.float32)) for g in _leaves(updates)]
        norm = optax.tree.norm(precise, ord=order).astype(jnp.float32)
        norms = state.norms.at[state.steps].set(norm, mode="drop")
        return updates, NormsState(state.steps + 1, norms)

    return optax.GradientTransformation(init, cast("Any", update))


def _leaves(tree: PyTree) -> list[Array]:
    return jax.tree.leaves(tree)
