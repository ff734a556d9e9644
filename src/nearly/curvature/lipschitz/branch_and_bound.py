"""Branch and bound on hidden units: tightens a Lipschitz bound for as long as one likes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.core.progress import Progress, silent
from nearly.curvature.lipschitz.backward import jacobian_bounds
from nearly.curvature.lipschitz.bounds import Norm
from nearly.curvature.lipschitz.chain import Chain
from nearly.curvature.lipschitz.forward import Interval, pre_activation_and_input_bounds

ATTAINED = 1e-9  # relative: the bound is what a point attains, up to rounding
SETTLED = 1e-12  # relative to the bound: what units then add to it is rounding


class Branches(NamedTuple):
    """The cases that are still open, each a part of the box with intervals of its hidden units.

    `boxes` (branches, inputs) and `clips`, (branches, n_k) for each hidden layer, enclose what a
    case assumes; `bounds` (branches,) the Lipschitz bound within; `attained` the norm at its
    centre; `scores` what each unit adds to the bound; `middles` where to split each. Plain arrays:
    save them, and pass them to `refine` again to go on.
    """

    boxes: Interval
    clips: tuple[Interval, ...]
    bounds: np.ndarray
    attained: np.ndarray
    scores: tuple[np.ndarray, ...]
    middles: tuple[np.ndarray, ...]

    @property
    def bound(self) -> float:
        """The bound over the whole box."""
        return float(np.max(self.bounds))

    @property
    def attained_bound(self) -> float:
        """The largest norm met at a point: how far the bound could at most still fall."""
        return float(np.max(self.attained))


class BranchAndBound(eqx.Module):
    """Bounds by cases: which side of a kink a hidden unit is on, the worst case split again.

    **Arguments:**

    - `branches`: the most cases bounded. `seconds`: after which no further batch is begun.
    - `batch`: how many cases are split at once; they are bounded in one compiled call.
    - `progress`: told the number of cases bounded.

    In the inf-norm only. Each batch costs 2 `batch` linear propagations; memory grows with the
    open cases, (number of hidden units) each. Paper: `local-lipschitz`, with its branching on
    pre-activations. Unlike there, what a split unit is assumed to satisfy also shrinks the box,
    through the unit's linear bounds; so cases that no input belongs to are found out.
    """

    branches: int = 256
    seconds: float = 60.0
    batch: int = 16
    progress: Progress = silent

    def __check_init__(self) -> None:
        if self.branches < 1 or self.batch < 1 or not self.seconds > 0:
            raise InputError(
                f"branches {self.branches}, batch {self.batch} and seconds {self.seconds} must be "
                "positive"
            )

    def __call__(self, chain: Chain, box: Interval, norm: Norm) -> float:
        if norm != "inf":
            raise InputError(
                f"branch and bound knows the norm 'inf', not {norm!r}: pass norm='inf'"
            )
        return refine(start(chain, box, self), chain, self).bound


def start(chain: Chain, box: Interval, settings: BranchAndBound) -> Branches:
    """One branch: the whole box, with nothing assumed."""
    with jax.enable_x64(chain.weights[0].dtype == jnp.float64):
        boxes = Interval(*(np.array(end)[None] for end in box))
        whole = tuple(
            Interval(np.full((1, n), -np.inf), np.full((1, n), np.inf)) for n in chain.widths
        )
        return _bounded(chain, boxes, whole, 2 * settings.batch)


def refine(found: Branches, chain: Chain, settings: BranchAndBound) -> Branches:
    """Split the worst branches, again and again, within the settings' limits.

    Raises nothing when a limit is met: the branches so far are sound. Ends early when the bound is
    attained at a point.
    """
    began, done = time.monotonic(), len(found.bounds)
    with jax.enable_x64(chain.weights[0].dtype == jnp.float64):
        while done < settings.branches and time.monotonic() - began < settings.seconds:
            if found.bound <= found.attained_bound * (1 + ATTAINED):
                break
            worst = np.argsort(-found.bounds)[: settings.batch]
            children = _bounded(chain, *_split(found, worst), 2 * settings.batch)
            found = _joined(found, worst, children)
            done += len(children.bounds)
            settings.progress(min(done, settings.branches), settings.branches, f"{found.bound:.6g}")
    return found


def _split(found: Branches, chosen: np.ndarray) -> tuple[Interval, tuple[Interval, ...]]:
    """The two sides of each chosen branch's unit that adds most to its bound.

    Where no unit adds anything the pattern of the units is settled, and the bound is loose only if
    no input has that pattern: then the box is halved, along its longest side.
    """
    twice = np.repeat(chosen, 2)
    boxes = Interval(found.boxes.lower[twice], found.boxes.upper[twice])
    clips = tuple(Interval(clip.lower[twice], clip.upper[twice]) for clip in found.clips)
    for position, branch in enumerate(chosen):
        sizes = [float(np.max(layer[branch], initial=0.0)) for layer in found.scores]
        layer = int(np.argmax(sizes)) if sizes else 0
        if sizes and sizes[layer] > SETTLED * found.bounds[branch]:
            unit = int(np.argmax(found.scores[layer][branch]))
            halves, middle = clips[layer], found.middles[layer][branch, unit]
        else:
            halves, low, high = boxes, found.boxes.lower[branch], found.boxes.upper[branch]
            unit = int(np.argmax(high - low))
            middle = (low[unit] + high[unit]) / 2
        halves.upper[2 * position, unit] = middle
        halves.lower[2 * position + 1, unit] = middle
    return boxes, clips


def _joined(found: Branches, chosen: np.ndarray, children: Branches) -> Branches:
    """The branches with the chosen ones replaced by their children; a child is never worse."""
    parents = np.repeat(found.bounds[chosen], 2)
    children = children._replace(bounds=np.minimum(children.bounds, parents))
    best = found.attained_bound  # survives the branch in which it was met
    keep = np.delete(np.arange(len(found.bounds)), chosen)
    kept = jax.tree.map(lambda leaf: leaf[keep], found)
    joined = jax.tree.map(lambda a, b: np.concatenate([a, b]), kept, children)
    return joined._replace(attained=np.maximum(joined.attained, best))


def _bounded(chain: Chain, boxes: Interval, clips: tuple[Interval, ...], batch: int) -> Branches:
    """Branches with their bounds, computed as one batch of a fixed size (one compilation)."""
    count = len(boxes.lower)
    rows = np.minimum(np.arange(batch), count - 1)
    padded = jax.tree.map(
        lambda leaf: jnp.asarray(leaf[rows], chain.weights[0].dtype), (boxes, clips)
    )
    computed = jax.tree.map(lambda leaf: np.array(leaf[:count]), _bounds(chain, *padded))
    shrunk, *rest = computed
    return Branches(shrunk, clips, *rest)


Computed = tuple[Interval, Array, Array, tuple[Array, ...], tuple[Array, ...]]


@eqx.filter_jit
def _bounds(chain: Chain, boxes: Interval, clips: tuple[Interval, ...]) -> Computed:
    def one(box: Interval, clip: tuple[Interval, ...]) -> Computed:
        found, box = pre_activation_and_input_bounds(chain, box, clips=clip)
        found = found[:-1]
        void = jnp.any(jnp.concatenate([b.lower > b.upper for b in (box, *found)]))
        bounds = jacobian_bounds(chain, found)
        row = jnp.argmax(bounds.row_sums)
        scores = tuple(layer[row] for layer in bounds.scores)
        middles = tuple(
            _middle(activation.breaks, b) for activation, b in zip(chain.activations, found)
        )
        jacobian = jax.jacrev(chain)((box.lower + box.upper) / 2)
        attained = jnp.max(jnp.sum(jnp.abs(jacobian), axis=1))
        bound = jnp.where(void, -jnp.inf, bounds.row_sums[row])
        return box, bound, jnp.where(void, 0, attained), scores, middles

    return jax.vmap(one)(boxes, clips)


def _middle(breaks: Sequence[float], bounds: Interval) -> Float[Array, " n"]:
    """Where to split: at a break inside the interval, or else in its middle."""
    lower, upper = bounds
    middle = (lower + upper) / 2
    for point in breaks:
        middle = jnp.where((lower < point) & (point < upper), point, middle)
    return middle
