"""Constants by CMA-ES, as the paper (`autonumerics-zero`) fits them: for fidelity and comparison.

Population 128, initial step 0.1, no improvement in the last half of the generations (100 at least)
ends a fit, 10,000 generations at most; the loss is the largest error on a fixed grid. A program
with a single constant is not fitted at all: a trap of the published code, kept here because a
comparison with that method has to be with that method. Its error in float64 limits it to about
1e-13. The `cma` package stands in for EvoJAX.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, no_type_check

import numba
import numpy as np

from nearly.functions.discovery.double_double import worst
from nearly.functions.discovery.kernels import Samples, evaluate, residual
from nearly.functions.discovery.mutation import Rates, start
from nearly.functions.discovery.random_numbers import draw
from nearly.functions.discovery.selection import (
    COPY,
    NOTHING,
    Proposal,
    Rule,
    State,
    admit,
    propose,
)

POPULATION = 128
STEP = 0.1
GENERATIONS = 10_000
PATIENCE = 100  # generations at least before a fit may end
FEWEST = 2  # constants; with fewer the paper does not fit


def run_covariance_round(
    state: State, rule: Rule, samples: Samples, rates: Rates, stream: np.ndarray, children: int
) -> None:
    """Breed, fit by CMA-ES and admit so many children; as `trial.run_round`, from Python."""
    for _ in range(children):
        proposal = propose(state, rule, rates, stream)
        proposal = proposal._replace(digest=np.uint64(proposal.digest))  # Python made it an int
        error, constants = fitted(proposal, samples, rates, stream)
        admit(state, rule, proposal, error, constants, np.zeros_like(constants))


def fitted(
    proposal: Proposal, samples: Samples, rates: Rates, stream: np.ndarray
) -> tuple[float, np.ndarray]:
    """The error and the constants of a proposal: trained from new starts of the old signs."""
    constants = proposal.constants
    if proposal.kind == NOTHING:
        return math.inf, constants
    if proposal.kind != COPY:
        begin = np.array([math.copysign(start(rates, stream), c) for c in constants])
        constants = begin if constants.size < FEWEST else train(proposal, begin, samples, stream)
    low = np.zeros_like(constants)
    structure = (proposal.operations, proposal.left, proposal.right)
    return worst(*structure, constants, low, samples), constants


def train(
    proposal: Proposal, begin: np.ndarray, samples: Samples, stream: np.ndarray
) -> np.ndarray:
    """The best constants that CMA-ES meets.

    **Arguments:**

    - `begin`: (m,) the first mean.
    - `stream`: seeds the package's own generator.

    Cost: 128 evaluations of the program on the grid a generation, 200 generations at least: a
    tenth of a second to seconds.
    """
    import cma

    structure = (proposal.operations, proposal.left, proposal.right)
    options: dict[str, Any] = {
        "popsize": POPULATION,
        "seed": int(draw(stream) % np.uint64(2**31 - 1)) + 1,
        "verbose": -9,
        "maxiter": GENERATIONS,
        "tolfun": 0,
        "tolfunhist": 0,
        "tolx": 0,
        "tolstagnation": 10 * GENERATIONS,
        "CMA_active": False,
    }
    best, improved, generation = begin, 0, 0
    least = float(losses_of(*structure, begin[np.newaxis], samples)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of flat losses: programs that ignore their constants
        strategy = cma.CMAEvolutionStrategy(begin.tolist(), STEP, options)
        while generation < GENERATIONS and not strategy.stop():
            points = strategy.ask()
            losses = losses_of(*structure, np.array(points), samples).tolist()
            strategy.tell(points, losses)
            generation += 1
            at = int(np.argmin(losses))
            if losses[at] < least:
                least, best, improved = losses[at], np.array(points[at]), generation
            if generation >= PATIENCE and improved < generation / 2:
                break
    return best


@numba.njit(cache=True, nogil=True)
@no_type_check
def losses_of(operations, left, right, points, samples):
    """The largest error on the grid for each row of constants; huge where it is infinite.

    `cma` cannot rank infinities.
    """
    count, m = points.shape
    values = np.empty((m + 1 + operations.size, samples.points.size))
    out = np.empty(samples.points.size)
    losses = np.empty(count)
    for i in range(count):
        evaluate(operations, left, right, points[i], samples.points, values)
        losses[i] = min(residual(values[m + operations.size], samples, out), 1e300)
    return losses
