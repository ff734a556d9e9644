"""The catalogued instances of the room's problems."""

from __future__ import annotations

from nearly.operators import families
from nearly.operators.problems.operator_map import OperatorMap, operator_map
from nearly.operators.problems.rollout import Rollout, rollout_problem


def burgers(
    viscosity: float = 0.1, resolution: int = 128, samples: int = 256, tests: int = 64
) -> OperatorMap:
    """Burgers' equation: the field at time 1 from the one at time 0."""
    family = families.burgers(viscosity)
    return operator_map("burgers", family, resolution=resolution, samples=samples, tests=tests)


def darcy(resolution: int = 32, samples: int = 256, tests: int = 32) -> OperatorMap:
    """Flow through a medium of two materials: the pressure from the material."""
    family = families.darcy()
    return operator_map("darcy", family, resolution=resolution, samples=samples, tests=tests)


def helmholtz(
    wave_number: float = 8.0, resolution: int = 32, samples: int = 256, tests: int = 32
) -> OperatorMap:
    """Standing waves in a random medium: the wave from the medium."""
    family = families.helmholtz(wave_number)
    return operator_map("helmholtz", family, resolution=resolution, samples=samples, tests=tests)


def antiderivative(
    scale: float = 0.2, resolution: int = 64, samples: int = 256, tests: int = 64
) -> OperatorMap:
    """The antiderivative of a random function: a linear map."""
    family = families.antiderivative(scale)
    return operator_map(
        "antiderivative", family, resolution=resolution, samples=samples, tests=tests
    )


def poisson(resolution: int = 32, samples: int = 256, tests: int = 32) -> OperatorMap:
    """Poisson's equation: the potential from the source, a linear map."""
    family = families.poisson()
    return operator_map("poisson", family, resolution=resolution, samples=samples, tests=tests)


def kuramoto_sivashinsky(
    length: float = 64.0, resolution: int = 64, samples: int = 64, tests: int = 16
) -> Rollout:
    """Kuramoto-Sivashinsky chaos, in steps of 0.8 up to time 40."""
    return rollout_problem(
        "ks",
        families.kuramoto_sivashinsky(length),
        resolution=resolution,
        samples=samples,
        train_frames=40,
        frames=50,
        tests=tests,
    )


def korteweg_de_vries(
    length: float = 32.0, resolution: int = 64, samples: int = 64, tests: int = 16
) -> Rollout:
    """Korteweg-de Vries waves, in steps of 0.5 up to time 10."""
    return rollout_problem(
        "kdv",
        families.korteweg_de_vries(length),
        resolution=resolution,
        samples=samples,
        train_frames=21,
        frames=20,
        tests=tests,
    )


def navier_stokes_2d(
    viscosity: float = 1e-3, resolution: int = 32, samples: int = 32, tests: int = 8
) -> Rollout:
    """Vorticity of a forced flow, in steps of 1 up to time 10."""
    return rollout_problem(
        "navier-stokes-2d",
        families.navier_stokes_2d(viscosity),
        resolution=resolution,
        samples=samples,
        train_frames=11,
        frames=10,
        tests=tests,
    )
