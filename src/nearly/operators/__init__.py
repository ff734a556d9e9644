"""Solution operators: learned maps of a family of equations beside cheap classical solvers.

This module is the room's catalogue, readable without importing the room.
"""

from nearly.core.catalogue import Method, Problem
from nearly.core.lazy import attach


def _instance(name: str) -> Problem:
    return Problem(f"nearly.operators.problems.instances:{name}")


PROBLEMS: dict[str, Problem] = {
    "diffusion-sorption": Problem("nearly.operators.problems.sorption:Sorption"),
    "online-burgers": Problem("nearly.operators.problems.online:burgers_stream"),
    "online-heat": Problem("nearly.operators.problems.online:heat_plate"),
    "antiderivative": _instance("antiderivative"),
    "burgers": _instance("burgers"),
    "darcy": _instance("darcy"),
    "helmholtz": _instance("helmholtz"),
    "kdv": _instance("korteweg_de_vries"),
    "ks": _instance("kuramoto_sivashinsky"),
    "navier-stokes-2d": _instance("navier_stokes_2d"),
    "poisson": _instance("poisson"),
}

# What runs unasked only on grids of these dimensions: where it trains in seconds.
DIMENSIONS: dict[str, tuple[int, ...]] = {
    "lsm": (),
    "mgno": (2,),
    "pde-refiner": (1,),
    "scot-stepper": (2,),
}


def _map(
    target: str, paper: str | None = None, source: str = "ours", *, default: bool = True
) -> Method:
    return Method(f"nearly.operators.{target}", "solution-maps", paper, source, default)


def _stepper(
    target: str, paper: str | None = None, source: str = "ours", *, default: bool = True
) -> Method:
    return Method(f"nearly.operators.{target}", "solution-steppers", paper, source, default)


def _source(name: str, paper: str | None = None) -> Method:
    return Method(f"nearly.operators.online:{name}", "sample-sources", paper, default=True)


def _informed(name: str) -> Method:
    target = f"nearly.operators.problems.sorption:{name}"
    return Method(target, "physics-informed-maps", "pi-hc-moe", default=True)


COMMANDS = {"train-live": "nearly.operators.live_command:app"}

METHODS: dict[str, Method] = {
    # solution maps: builders (data, *, key) -> module(field)
    "coarse-solver": _map("baselines:coarse_solver", source="peer"),
    "deeponet": _map("deeponet:deeponet_map", "deeponet"),
    "fno": _map("fno:fno_map", "fno"),
    "lsm": _map("latent_spectral:lsm_map", "latent-spectral-models"),
    "mgno": _map("multigrid:mgno_map", "mgno"),
    "multionet": _map("deeponet:multionet_map", "dgno", default=False),
    "nearest-neighbour": _map("baselines:nearest_neighbour", source="peer"),
    "pca-ridge": _map("baselines:pca_ridge", source="peer"),
    "scot": _map("transfer:scot_map", "poseidon", default=False),
    "pod-deeponet": _map("deeponet:pod_deeponet_map", "deeponet", default=False),
    "spacetime-fno": _map("spacetime:spacetime_map", "spectral-refiner", default=False),
    "unet-map": _map("baselines:unet_map", source="peer"),
    # steppers: builders (data, *, key) -> module(state, parameters, *, key)
    "cape": _stepper("conditioning:cape", "cape", default=False),
    "coarse-stepper": _stepper("baselines:coarse_solver", source="peer"),
    "film-stepper": _stepper("conditioning:film_stepper", default=False),
    "fno-stepper": _stepper("fno:fno_stepper", "fno"),
    "neuralstagger": _stepper("stagger:neural_stagger", "neuralstagger", default=False),
    "pde-refiner": _stepper("refiner:pde_refiner", "pde-refiner"),
    "persistence": _stepper("baselines:persistence", source="peer"),
    "scot-stepper": _stepper("transfer:scot_stepper", "poseidon"),
    "unet-stepper": _stepper("baselines:unet_stepper", source="peer"),
    # where batches come from: (simulation, loss, *, batch, key) -> arguments of fit
    "stored-set": _source("stored_set"),
    "fresh-solves": _source("fresh_solves"),
    "fifo-stream": _source("fifo_stream", "online-surrogate-training"),
    "firo-stream": _source("firo_stream", "online-surrogate-training"),
    "reservoir-stream": _source("reservoir_stream", "online-surrogate-training"),
    # what learns without labels: network and loss of one sample
    "soft-constraint": _informed("soft_constraint"),
    "hard-constraint": _informed("one_constraint"),
    "expert-constraints": _informed("expert_constraints"),
}

__getattr__, __all__ = attach(
    __name__,
    {
        "DeepONet": "nearly.operators.deeponet:DeepONet",
        "FNO": "nearly.operators.fno:FNO",
        "Grid": "nearly.operators.data:Grid",
        "OperatorMap": "nearly.operators.problems.operator_map:OperatorMap",
        "Rollout": "nearly.operators.problems.rollout:Rollout",
        "Pairs": "nearly.operators.data:Pairs",
        "SpectralConvolution": "nearly.operators.spectral:SpectralConvolution",
        "Trajectories": "nearly.operators.data:Trajectories",
        "ScOT": "nearly.operators.transformer:ScOT",
        "families": "nearly.operators.families",
        "train": "nearly.operators.training:train",
    },
)
