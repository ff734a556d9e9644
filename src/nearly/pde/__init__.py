"""One partial differential equation: reference solvers, and networks that solve one equation.

This module is the room's catalogue, readable without importing the room.
"""

from nearly.core.catalogue import Method, Problem
from nearly.core.lazy import attach

PROBLEMS: dict[str, Problem] = {
    **{
        name: Problem("nearly.pde.problems.stationary:helmholtz", {"waves": waves})
        for name, waves in (("helmholtz-4-1", (4, 1)), ("helmholtz-10-10", (10, 10)))
    },
    "poisson-sin100": Problem("nearly.pde.problems.stationary:poisson"),
    "two-peaks": Problem("nearly.pde.problems.stationary:two_peaks"),
    "cubic": Problem("nearly.pde.problems.stationary:cubic"),
    "heat2d": Problem("nearly.pde.problems.evolution:heat2d"),
    "burgers-evolution": Problem("nearly.pde.problems.evolution:burgers"),
    "allen-cahn-evolution": Problem("nearly.pde.problems.evolution:allen_cahn"),
}


def _equation(
    target: str, paper: str | None = None, source: str = "ours", *, default: bool = True
) -> Method:
    return Method(f"nearly.pde.{target}", "equations", paper, source, default)


METHODS: dict[str, Method] = {
    "finite-differences": _equation("peers:finite_differences", source="peer"),
    "chebyshev-collocation": _equation("peers:chebyshev_collocation", source="peer"),
    "gaussian-collocation": _equation("peers:gaussian_collocation", source="peer"),
    "fourier-lines": _equation("peers:lines", source="peer"),
    "exponential-steps": _equation("peers:exponential_steps", source="peer"),
    "tanh-network": _equation("collocation:tanh_network", source="peer"),
    "fourier-network": _equation("collocation:fourier_network", source="peer", default=False),
    "balanced-network": _equation("collocation:balanced_network", source="peer", default=False),
    "hard-boundary-network": _equation("collocation:hard_boundary", source="peer", default=False),
    "gaussians": _equation("gaussian_features:gaussians", "physics-informed-gaussians"),
    "rotated-gaussians": _equation(
        "gaussian_features:rotated_gaussians", "physics-informed-gaussians", default=False
    ),
    "teng-heun": _equation("natural_gradient:teng_heun", "teng"),
    "teng-euler": _equation("natural_gradient:teng_euler", "teng", default=False),
    "variational-principle": _equation("natural_gradient:tdvp", source="peer", default=False),
    "optimised-steps": _equation("natural_gradient:optimised_steps", source="peer", default=False),
    "sobolev-descent": _equation("sobolev:sobolev_descent", "barron-nonlinear-pde"),
    "energy-bfgs": _equation("sobolev:quasi_newton", source="peer"),
}

# The kinds of equations a method can take: `stationary`, `evolution`, or only `variational` ones,
# which are stationary and come with a Lagrangian. A method without a line takes them all.
NEEDS: dict[str, tuple[str, ...]] = {
    "finite-differences": ("stationary",),
    "chebyshev-collocation": ("stationary",),
    "gaussian-collocation": ("stationary",),
    "hard-boundary-network": ("stationary", "evolution"),
    "fourier-lines": ("evolution",),
    "exponential-steps": ("evolution",),
    "gaussians": ("stationary",),
    "rotated-gaussians": ("stationary",),
    "teng-heun": ("evolution",),
    "teng-euler": ("evolution",),
    "variational-principle": ("evolution",),
    "optimised-steps": ("evolution",),
    "sobolev-descent": ("variational",),
    "energy-bfgs": ("variational",),
}

__getattr__, __all__ = attach(
    __name__,
    {
        "AllenCahn": "nearly.pde.semilinear:AllenCahn",
        "Balanced": "nearly.pde.loss_weights:Balanced",
        "BoundaryValueProblem": "nearly.pde.equations:BoundaryValueProblem",
        "Burgers": "nearly.pde.semilinear:Burgers",
        "Collocation": "nearly.pde.collocation:Collocation",
        "Cubic": "nearly.pde.problems.stationary:Cubic",
        "Equation": "nearly.pde.problems.equation:Equation",
        "Euler": "nearly.pde.natural_gradient:Euler",
        "FiniteElements": "nearly.pde.finite_elements:FiniteElements",
        "FourierNetwork": "nearly.pde.collocation:FourierNetwork",
        "GaussianMesh": "nearly.pde.gaussian_features:GaussianMesh",
        "HardBoundary": "nearly.pde.collocation:HardBoundary",
        "Heun": "nearly.pde.natural_gradient:Heun",
        "InitialValueProblem": "nearly.pde.equations:InitialValueProblem",
        "Jet": "nearly.pde.equations:Jet",
        "KolmogorovForcing": "nearly.pde.vorticity:KolmogorovForcing",
        "KortewegDeVries": "nearly.pde.semilinear:KortewegDeVries",
        "KuramotoSivashinsky": "nearly.pde.semilinear:KuramotoSivashinsky",
        "Manufactured": "nearly.pde.equations:Manufactured",
        "Marching": "nearly.pde.natural_gradient:Marching",
        "Mesh": "nearly.pde.finite_elements:Mesh",
        "NavierStokes2D": "nearly.pde.vorticity:NavierStokes2D",
        "RotatedMesh": "nearly.pde.gaussian_features:RotatedMesh",
        "Semilinear": "nearly.pde.semilinear:Semilinear",
        "Sobolev": "nearly.pde.sobolev:Sobolev",
        "SobolevDescent": "nearly.pde.sobolev:SobolevDescent",
        "TangentProjection": "nearly.pde.natural_gradient:TangentProjection",
        "TanhNetwork": "nearly.pde.collocation:TanhNetwork",
        "TdvpRungeKutta": "nearly.pde.natural_gradient:TdvpRungeKutta",
        "advection": "nearly.pde.propagators:advection",
        "crank_nicolson_heun": "nearly.pde.exponential:crank_nicolson_heun",
        "energy": "nearly.pde.sobolev:energy",
        "etdrk4": "nearly.pde.exponential:etdrk4",
        "heat": "nearly.pde.propagators:heat",
        "integrate": "nearly.pde.semilinear:integrate",
        "physics_informed_gaussians": "nearly.pde.gaussian_features:physics_informed_gaussians",
        "rectangle_mesh": "nearly.pde.finite_elements:rectangle_mesh",
        "relative_l2": "nearly.pde.metrics:relative_l2",
        "solve_darcy": "nearly.pde.darcy:solve_darcy",
        "solve_darcy_direct": "nearly.pde.darcy:solve_darcy_direct",
        "solve_diffusion": "nearly.pde.finite_elements:solve_diffusion",
        "solve_helmholtz": "nearly.pde.elliptic:solve_helmholtz",
        "wave": "nearly.pde.propagators:wave",
    },
)
