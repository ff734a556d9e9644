"""The families of equations whose solution maps are learned: one function each."""

from __future__ import annotations

from nearly.operators.evolution import BurgersFamily, KuramotoSivashinskyFamily, Range
from nearly.operators.family import Evolution, Family

__all__ = ["Evolution", "Family", "burgers", "kuramoto_sivashinsky"]


def burgers(
    viscosity: Range = 0.1, *, dt: float = 0.1, frames: int = 10, reference: int = 512
) -> BurgersFamily:
    """Burgers' equation on the periodic unit interval, the benchmark of `fno`.

    u_t + (u^2/2)_x = viscosity u_xx, u(0) ~ N(0, 625 (-Laplacian + 25)^-2), solved to
    t = frames · dt (a map) or by steps of dt (a stepper). The mean of u(0) is left out, as in the
    published data: it only moves the solution.

    **Arguments:** `viscosity`: a number, or a range from which each sample draws its own
    (log-uniform), its only parameter. `reference`: points of the reference solver.
    """
    low = viscosity[0] if isinstance(viscosity, tuple) else viscosity
    courant = 1.5 if low >= 0.05 else 1.0  # viscosity damps what large steps would excite
    return BurgersFamily(
        viscosity=viscosity, dt=dt, frames=frames, reference=reference, courant=courant
    )


def kuramoto_sivashinsky(
    length: float = 32.0, *, dt: float = 0.8, reference: int = 128
) -> KuramotoSivashinskyFamily:
    """The Kuramoto-Sivashinsky equation on a periodic interval: chaos from length 20 or so on.

    u_t + (u^2/2)_x + u_xx + u_xxxx = 0. Trajectories begin after 60 units of time, on its
    attractor.
    """
    return KuramotoSivashinskyFamily(length=length, dt=dt, reference=reference)
