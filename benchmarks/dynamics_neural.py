"""Neural differential equations and fractional inference: seconds of a training step beside peers.

    python benchmarks/dynamics_neural.py [NAME...]

Ratios are medians of pairs that alternate between the two in one process, after compilation.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from alternating import Row, main, pairs

from nearly.dynamics import neural
from nearly.dynamics.brownian import GridBrownianPath
from nearly.dynamics.claims.neural import TEST, controlled, curves, observed, recurrent
from nearly.dynamics.fractional import fractional_terms
from nearly.dynamics.fractional_inference import FractionalSDE, control_network, evidence_bound
from nearly.dynamics.reversible import ReversibleAdjoint

BATCH, STEPS, STATE, NOISES, WIDTH = 256, 64, 16, 4, 16


def compiled(loss: Callable[..., Any], model: Any, data: Any = None) -> Callable[[], Any]:
    """The gradient of a loss of the model and its data, by default a key."""
    gradient = eqx.filter_jit(eqx.filter_grad(loss))
    data = jax.random.key(0) if data is None else data
    return lambda: jax.tree.leaves(gradient(model, data))


def stochastic_training() -> list[Row]:
    """Gradient of a neural SDE's mean square: 256 paths, 64 steps of reversible Heun."""
    ours = _generator(ReversibleAdjoint())
    rows: list[Row] = [
        {"peer": "checkpoints", **pairs(ours, _generator(dfx.RecursiveCheckpointAdjoint()), 9).row}
    ]
    if not find_spec("torchsde"):
        return [*rows, {"peer": "torchsde", "ours ms": "not run: torchsde is not installed"}]
    return [*rows, {"peer": "torchsde reversible_heun", **pairs(ours, _torch_generator(), 9).row}]


def _generator(adjoint: Any) -> Callable[[], Any]:
    model = neural.neural_sde(
        1,
        jax.random.key(1),
        state=STATE,
        noises=NOISES,
        seeds=STATE,
        width=WIDTH,
        integration=neural.fixed(dfx.ReversibleHeun(), STEPS, adjoint=adjoint),
    )
    times = jnp.linspace(0, 1, STEPS + 1)

    def loss(model: Any, key: Any) -> Any:
        paths = jax.vmap(model, (None, 0))(times, jax.random.split(key, BATCH))
        return jnp.mean(paths**2)

    return compiled(loss, model)


def _torch_generator() -> Callable[[], Any]:
    """The same sizes by torchsde's own best: its reversible solver and adjoint."""
    import torch
    import torchsde

    torch.set_num_threads(1)

    class Equation(torch.nn.Module):
        noise_type, sde_type = "general", "stratonovich"

        def __init__(self) -> None:
            super().__init__()
            self.drift = self._net(STATE)
            self.diffusion = self._net(STATE * NOISES)

        @staticmethod
        def _net(outputs: int) -> Any:
            hidden = torch.nn.Linear(STATE + 1, WIDTH)
            return torch.nn.Sequential(
                hidden, torch.nn.SiLU(), torch.nn.Linear(WIDTH, outputs), torch.nn.Tanh()
            )

        def f_and_g(self, t: Any, y: Any) -> Any:
            inputs = torch.cat([y, t.expand(y.shape[0], 1)], dim=1)
            spread = self.diffusion(inputs).view(-1, STATE, NOISES)
            return self.drift(inputs), spread

    equation = Equation()
    initial = torch.nn.Sequential(
        torch.nn.Linear(STATE, WIDTH), torch.nn.SiLU(), torch.nn.Linear(WIDTH, STATE)
    )
    readout = torch.nn.Linear(STATE, 1)
    times = torch.linspace(0, 1, STEPS + 1)

    def step() -> Any:
        for part in (equation, initial, readout):
            part.zero_grad()
        states = torchsde.sdeint_adjoint(
            equation,
            initial(torch.randn(BATCH, STATE)),
            times,
            dt=1 / STEPS,
            method="reversible_heun",
            adjoint_method="adjoint_reversible_heun",
        )
        readout(states).square().mean().backward()
        return 0

    return step


def controlled_training() -> list[Row]:
    """Outputs for 512 irregular series, a neural CDE beside a gated recurrent unit of its size."""
    values, areas = curves(TEST, jax.random.key(0))
    data = observed(values, jax.random.key(1)), areas

    def loss(model: Any, data: Any) -> Any:
        series, areas = data
        return jnp.mean((jax.vmap(model)(series)[:, 0] - areas) ** 2)

    ours, peer = (compiled(loss, make(jax.random.key(2)), data) for make in (controlled, recurrent))
    return [{"peer": "gated recurrent unit", **pairs(ours, peer, 9).row}]


def fractional_bounds() -> list[Row]:
    """Gradient of an evidence bound by 32 paths up to time 1, fastest process of speed 100.

    Ours draws the processes exactly in 100 steps; diffrax's Euler-Heun needs 200 for stability.
    """
    model = FractionalSDE(
        lambda t, x, args: -x,
        lambda t, x, args: jnp.ones_like(x),
        control_network(1, 5, jax.random.key(0)),
        jnp.zeros(()),
        fastest=100.0,
    )

    def likelihood(end: Any) -> Any:
        return -jnp.sum(end**2) * 50

    def ours(model: FractionalSDE, key: Any) -> Any:
        def ends(nodes: Any) -> Any:
            return likelihood(nodes[-1])

        return -evidence_bound(model, ends, jnp.zeros(1), key, samples=32)

    def theirs(model: FractionalSDE, key: Any) -> Any:
        noise = model.noise()

        def one(key: Any) -> Any:
            path = GridBrownianPath(key, 0.0, 1.0, 200, (1,))
            terms = fractional_terms(
                model.drift,
                model.diffusion,
                noise,
                path,
                lambda t, state, args: model.control(t, *state, args),
            )
            start = (jnp.zeros(1), jnp.zeros((5, 1)), jnp.zeros(()))
            solution = dfx.diffeqsolve(terms, dfx.EulerHeun(), 0.0, 1.0, 1 / 200, start)
            assert solution.ys is not None
            x, _, divergence = solution.ys
            return likelihood(x[-1]) - divergence[-1]

        return -jnp.mean(jax.vmap(one)(jax.random.split(key, 32)))

    rival = compiled(theirs, model)
    return [{"peer": "fractional_terms, EulerHeun", **pairs(compiled(ours, model), rival, 9).row}]


BENCHMARKS = {
    "stochastic-training": stochastic_training,
    "controlled-training": controlled_training,
    "fractional-bounds": fractional_bounds,
}

if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
