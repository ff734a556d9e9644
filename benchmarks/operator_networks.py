"""Gradients of MgNO and of latent spectral models beside the same layers in torch, float32.

    python benchmarks/operator_networks.py [NAME...]

Ratios are medians of pairs that alternate between the two in one process, after compilation, with
the 95% interval of that median. Every side uses the processor's cores that this process may use;
with one thread each: `taskset -c 0 python benchmarks/operator_networks.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from alternating import Row, main, pairs

from nearly.operators.latent_spectral import latent_spectral_model
from nearly.operators.multigrid import mgno

PAIRS = 7

# (points along an axis, batch, settings): those of a processor, and a wider one.
MULTIGRID: tuple[tuple[int, int, dict[str, Any]], ...] = (
    (64, 8, {"width": 8, "layers": 4, "pre": (1, 1, 1, 1, 2)}),
    (32, 8, {"width": 24, "layers": 4, "pre": (1, 1, 1, 2)}),
)
SPECTRAL = (
    (32, 8, {"width": 16, "scales": 3, "patch": 4, "heads": 8, "projection": 64}),
    (64, 8, {"width": 16, "scales": 3, "patch": 4, "heads": 8, "projection": 64}),
)
DEFAULTS = {"tokens": 4, "basis": 12}

Gradient = tuple[Callable[[], Any], int]


def multigrid() -> list[Row]:
    """Milliseconds of the gradient of a mean square; one channel, equal numbers of weights."""
    try:
        from peers.torch_operators import MgNO
    except ImportError as error:
        return [{"peer": "torch", "not run": f"{error}; pip install 'nearly[torch]'"}]
    return [
        _row(size, batch, settings["width"], partial(mgno, **settings), partial(MgNO, **settings))
        for size, batch, settings in MULTIGRID
    ]


def latent_spectral() -> list[Row]:
    """The same of a latent spectral model; torch evaluates every term of its series."""
    try:
        from peers.torch_operators import LatentSpectralModel
    except ImportError as error:
        return [{"peer": "torch", "not run": f"{error}; pip install 'nearly[torch]'"}]
    rows: list[Row] = []
    for size, batch, chosen in SPECTRAL:
        settings: dict[str, int] = {**DEFAULTS, **chosen}
        ours, theirs = (
            partial(latent_spectral_model, **settings),
            partial(LatentSpectralModel, **settings),
        )
        rows.append(_row(size, batch, settings["width"], ours, theirs))
    return rows


def _row(
    size: int, batch: int, width: int, make: Callable[..., Any], peer: Callable[..., Any]
) -> Row:
    (ours, weights), (theirs, others) = _ours(make, size, batch), _torch(peer, size, batch)
    if weights != others:
        raise AssertionError(f"{weights} weights against {others}: no equal terms")
    setting = {"grid": f"{size}x{size}", "width": width, "batch": batch, "weights": weights}
    return {**setting, **pairs(ours, theirs, PAIRS).row}


def _ours(make: Callable[..., Any], size: int, batch: int) -> Gradient:
    model = make(1, 1, jax.random.key(0))
    fields = jax.random.normal(jax.random.key(1), (batch, 1, size, size))
    gradient = eqx.filter_jit(eqx.filter_grad(lambda m, x: jnp.mean(jax.vmap(m)(x) ** 2)))
    return lambda: jax.tree.leaves(gradient(model, fields)), _count(
        leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array))
    )


def _torch(make: Callable[..., Any], size: int, batch: int) -> Gradient:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model, fields = make(), torch.randn(batch, 1, size, size)

    def gradient() -> None:
        model.zero_grad()
        torch.mean(model(fields) ** 2).backward()

    return gradient, _count(weight.numel() for weight in model.parameters())


def _count(sizes: Iterable[int]) -> int:
    return sum(sizes)


BENCHMARKS: dict[str, Callable[[], list[Row]]] = {
    "latent_spectral": latent_spectral,
    "multigrid": multigrid,
}


if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
