"""The operators room against its peers: milliseconds of a training step, side by side.

    python benchmarks/operators.py [NAME...]

Ratios are medians of pairs that alternate between the two in one process, after compilation, with
the 95% interval of that median: a busy machine harms both alike. Both use the processor's cores
that this process may use; with one thread each: `taskset -c 0 python benchmarks/operators.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from alternating import Row, main, pairs
from scipy.optimize import least_squares

from nearly.operators.constraint import (
    HardConstraint,
    NonlinearDiffusion,
    at_edges,
    differentiated,
)
from nearly.operators.fno import fno
from nearly.operators.problems.sorption import Sorption
from nearly.operators.training import BatchLoss, as_map, optimizer, relative_l2_loss
from nearly.training import fit

SAMPLES = 128
PROJECTION = 128

# (grid, modes of each axis, width, batch, steps a measurement): the paper's settings in one and
# two dimensions, and those of a processor.
SETTINGS = (
    ((256,), (16,), 64, 20, 20),
    ((128,), (16,), 32, 32, 20),
    ((64, 64), (12, 12), 32, 20, 2),
    ((32, 32), (8, 8), 24, 16, 5),
)


def fourier_neural_operator() -> list[Row]:
    """Steps of Adam on relative L2 beside neuraloperator's FNO in torch, float32.

    The same layers: four of equal width and modes, a linear lift of values and coordinates, a
    projection through 128 channels, GELU; equal numbers of weights. Milliseconds of one step.
    """
    try:
        peer = _neuraloperator()
    except ImportError as error:
        return [{"peer": "neuraloperator", "not run": f"{error}; pip install 'nearly[torch]'"}]
    rows: list[Row] = []
    for setting in SETTINGS:
        theirs, weights = peer(*setting)
        for transform in ("auto", "fft"):
            ours, own = _ours(*setting, transform)
            if own != weights:
                raise AssertionError(f"{own} weights against {weights}: no equal terms")
            *_, steps = setting
            measured = pairs(ours, theirs, 11)
            rows.append(
                {
                    "grid": "x".join(map(str, setting[0])),
                    "modes": setting[1][0],
                    "width": setting[2],
                    "batch": setting[3],
                    "transform": transform,
                    "ours ms": measured.ours / steps,
                    "neuraloperator ms": measured.theirs / steps,
                    "steps/s, ours over theirs": 1 / measured.ratio,
                    "95%": f"{1 / measured.high:.2f} to {1 / measured.low:.2f}",
                }
            )
    return rows


def _ours(
    grid: tuple[int, ...],
    modes: tuple[int, ...],
    width: int,
    batch: int,
    steps: int,
    transform: Any,
) -> tuple[Callable[[], Any], int]:
    key = jax.random.key(0)
    model = fno(1, 1, key, modes=modes, width=width, projection=PROJECTION, transform=transform)
    inputs = jax.random.normal(key, (SAMPLES, 1, *grid))
    data = (inputs, jnp.tanh(inputs), jnp.zeros((SAMPLES, 0)))
    loss = BatchLoss(relative_l2_loss, as_map)
    descent = optimizer(1e-3, 1000, "cosine")

    def train() -> Any:
        trained = fit(
            loss, model, data, optimizer=descent, steps=steps, batch=batch, key=key, chunk=steps
        )
        return eqx.filter(trained.model, eqx.is_array)

    return train, sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)))


def _neuraloperator() -> Callable[..., tuple[Callable[[], Any], int]]:
    import torch
    from neuralop.models import FNO

    torch.set_num_threads(len(os.sched_getaffinity(0)))

    def peer(
        grid: tuple[int, ...], modes: tuple[int, ...], width: int, batch: int, steps: int
    ) -> tuple[Callable[[], Any], int]:
        # It counts both sides of every axis: 2 (m - 1) on the last, of which it keeps m.
        counted = (*(2 * m for m in modes[:-1]), 2 * (modes[-1] - 1))
        model = FNO(
            n_modes=counted,
            in_channels=1,
            out_channels=1,
            hidden_channels=width,
            lifting_channel_ratio=0,
            projection_channel_ratio=PROJECTION / width,
            use_channel_mlp=False,
        )
        inputs = torch.randn(SAMPLES, 1, *grid)
        outputs = torch.tanh(inputs)
        descent = torch.optim.Adam(model.parameters(), lr=1e-3)

        def train() -> None:
            for _ in range(steps):
                rows = torch.randint(0, SAMPLES, (batch,))
                truth = outputs[rows].flatten(1)
                descent.zero_grad()
                residual = model(inputs[rows]).flatten(1) - truth
                torch.mean(residual.norm(dim=1) / truth.norm(dim=1)).backward()
                descent.step()

        weights = sum(p.numel() * (2 if p.is_complex() else 1) for p in model.parameters())
        return train, weights

    return peer


def constraint_layer() -> list[Row]:
    """Least-squares weights of six nonlinear constraints beside SciPy's MINPACK, float64.

    Bases of 16 fields on 32 x 32 points. SciPy solves one problem after the other, with our
    compiled residuals and Jacobians and equal tolerances. Milliseconds of all six, and the mean
    squared residual of both.
    """
    with jax.enable_x64(True):
        problem = Sorption()
        fields = problem.fields(jax.random.key(0), 6)
        bases = jax.vmap(problem.network(problem.basis, jax.random.key(1)))(fields)
        initial = fields[:, 0, :, 0]
        layer = HardConstraint(NonlinearDiffusion())
        terms = jax.vmap(differentiated)(bases)
        given = terms, jax.vmap(at_edges)(terms), initial
        residuals = jax.jit(layer.residuals)
        jacobian = jax.jit(jax.jacfwd(layer.residuals))
        each = [jax.tree.map(lambda x, i=i: x[i], given) for i in range(len(initial))]

        def solved(problem: Any) -> np.ndarray:
            return least_squares(
                lambda w: np.asarray(residuals(w, problem)),
                np.zeros(bases.shape[1]),
                lambda w: np.asarray(jacobian(w, problem)),
                method="lm",
                xtol=layer.tolerance,
                ftol=layer.tolerance,
            ).x

        batch = eqx.filter_jit(lambda b, i: jax.vmap(layer)(b, i).weights[:, 0])
        ours, theirs = (
            lambda: batch(bases, initial),
            lambda: np.stack([solved(problem) for problem in each]),
        )
        square = jax.vmap(lambda w, g: jnp.mean(layer.residuals(w, g) ** 2))
        return [
            {
                **pairs(ours, theirs, 5).row,
                "our residual": float(square(ours(), given).mean()),
                "peer's": float(square(jnp.asarray(theirs()), given).mean()),
            }
        ]


BENCHMARKS: dict[str, Callable[[], list[Row]]] = {
    "constraint_layer": constraint_layer,
    "fourier_neural_operator": fourier_neural_operator,
}


if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
