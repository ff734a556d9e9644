"""The families of equations whose solution maps are learned: one function each.

    data = families.burgers(viscosity=0.1).pairs(jax.random.key(0), 512, resolution=128)

Every sample depends on the key and its own number alone, and is the same function at any
resolution up to the family's `reference`, where it is solved for, in float64.
"""

from __future__ import annotations

from nearly.operators.elliptic import (
    AntiderivativeFamily,
    DarcyFamily,
    HelmholtzFamily,
    PoissonFamily,
)
from nearly.operators.evolution import (
    BurgersFamily,
    HeatFamily,
    KortewegDeVriesFamily,
    KuramotoSivashinskyFamily,
    NavierStokesFamily,
    Range,
)
from nearly.operators.family import Evolution, Family

__all__ = [
    "Evolution",
    "Family",
    "antiderivative",
    "burgers",
    "darcy",
    "heat",
    "helmholtz",
    "korteweg_de_vries",
    "kuramoto_sivashinsky",
    "navier_stokes_2d",
    "poisson",
]


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
    # With less than 3/4 of a point to a unit of length the solver is unstable.
    resolutions = tuple(int(points * length) // 2 * 2 for points in (0.75, 1.0, 1.25, 1.5))
    return KuramotoSivashinskyFamily(
        length=length, dt=dt, reference=reference, resolutions=resolutions
    )


def korteweg_de_vries(
    length: float = 32.0, *, dt: float = 0.5, frames: int = 4, reference: int = 256
) -> KortewegDeVriesFamily:
    """u_t + 6 u u_x + u_xxx = 0 on a periodic interval, from smooth random waves."""
    return KortewegDeVriesFamily(length=length, dt=dt, frames=frames, reference=reference)


def heat(
    diffusivity: Range = 0.01,
    *,
    dims: int = 1,
    dt: float = 0.1,
    frames: int = 5,
    reference: int = 128,
) -> HeatFamily:
    """u_t = diffusivity Laplacian(u) on the periodic unit box, exactly: a linear map.

    `diffusivity`: a number, or a range from which each sample draws its own (log-uniform).
    """
    return HeatFamily(diffusivity=diffusivity, dims=dims, dt=dt, frames=frames, reference=reference)


def navier_stokes_2d(
    viscosity: Range = 1e-3,
    *,
    dt: float = 1.0,
    frames: int = 5,
    warm_up: float = 0.0,
    reference: int = 64,
) -> NavierStokesFamily:
    """Vorticity of a forced flow on the periodic unit square, as in `fno`.

    w(0) ~ N(0, 2 · 7^3 (-Laplacian + 49)^-2.5), which is what the published code draws (its text
    has 7^(3/2) for the factor), forcing 0.1 (sin 2 pi (x + y) + cos 2 pi (x + y)).

    **Arguments:** `viscosity`: a number, or a range from which each sample draws its own
    (log-uniform). `warm_up`: time before the first state.
    """
    return NavierStokesFamily(
        viscosity=viscosity, dt=dt, frames=frames, warm_up=warm_up, reference=reference
    )


def darcy(*, high: float = 12.0, low: float = 3.0, reference: int = 64) -> DarcyFamily:
    """Flow through a porous medium of two materials: a -> u, the benchmark of `fno`.

    -div(a grad u) = 1 on the unit square, u = 0 around it; a is `high` where a draw of
    N(0, (-Laplacian + 9)^-2) with Neumann conditions is positive, `low` elsewhere. Cells of a
    coarser grid take the material at their centre.
    """
    return DarcyFamily(high=high, low=low, reference=reference)


def helmholtz(
    wave_number: float = 8.0, *, contrast: float = 0.1, reference: int = 64
) -> HelmholtzFamily:
    """Standing waves in a random medium: q -> u, not linear.

    Laplacian(u) + k^2 (1 + q) u = f on the unit square, u = 0 around it, f a smooth source in one
    place, q a smooth field of standard deviation `contrast`. Near a resonance (k^2 an eigenvalue
    of minus the Laplacian, 8 pi^2 say) solutions vary wildly, and the solver may fail.
    """
    return HelmholtzFamily(wave_number=wave_number, contrast=contrast, reference=reference)


def poisson(*, reference: int = 64) -> PoissonFamily:
    """-Laplacian(u) = f on the unit square, u = 0 around it, for smooth random f: a linear map."""
    return PoissonFamily(reference=reference)


def antiderivative(scale: float = 0.2, *, reference: int = 256) -> AntiderivativeFamily:
    """s' = u, s(0) = 0: the first example of `deeponet`, a linear map.

    u is a Gaussian process with covariance exp(-d^2 / (2 scale^2)).
    """
    return AntiderivativeFamily(scale=scale, reference=reference)
