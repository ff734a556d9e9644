"""Curvature of models: layer capture, Kronecker factors, inverse-Hessian products, influence,
spectra, certified Lipschitz bounds.

This module is the room's catalogue, readable without importing the room.
"""

from nearly.core.catalogue import Method, Problem
from nearly.core.lazy import attach

_INVERSE = "nearly.curvature.problems.inverse"


def _influence(
    name: str, paper: str | None = None, *, source: str = "ours", default: bool = True
) -> Method:
    return Method(f"nearly.curvature.inverses:{name}", "influence", paper, source, default)


def _inverse(
    name: str, paper: str | None = None, *, source: str = "ours", default: bool = True
) -> Method:
    return Method(f"nearly.curvature.inverses:{name}", "curvature", paper, source, default)


PROBLEMS: dict[str, Problem] = {
    **{
        f"{kind}-{model}": Problem(f"{_INVERSE}:{factory}", {"model": model})
        for kind, factory in (("curvature", "CurvatureSolve"), ("influence", "Influence"))
        for model in ("tanh", "diabetes", "digits")
    },
    **{
        f"lipschitz-{activation}": Problem(
            "nearly.curvature.problems.lipschitz:random_network", {"activation": activation}
        )
        for activation in ("relu", "tanh", "gelu")
    },
    "hessian-spectrum": Problem("nearly.curvature.problems.spectrum:softmax_regression"),
}


def _bounder(target: str, paper: str | None = None, *, default: bool = True) -> Method:
    source = "ours" if paper else "peer"
    return Method(f"nearly.curvature.{target}", "lipschitz-bounds", paper, source, default)


METHODS: dict[str, Method] = {
    # approximate inverses of damped curvature
    "inverse-ekfac": _inverse("ekfac", "ekfac-influence"),
    "inverse-kfac": _inverse("kfac", "ekfac-influence"),
    "inverse-diagonal": _inverse("diagonal"),
    "inverse-mfac": _inverse("mfac", "m-fac"),
    "inverse-cg": _inverse("conjugate_gradients"),
    "inverse-lissa": _inverse("lissa", default=False),
    "inverse-identity": _inverse("identity", default=False),
    # influence by them
    "influence-ekfac": _influence("influence_ekfac", "ekfac-influence"),
    "influence-ekfac-rank-32": _influence(
        "influence_ekfac_low_rank", "ekfac-influence", default=False
    ),
    "influence-kfac": _influence("influence_kfac", "ekfac-influence"),
    "influence-diagonal": _influence("influence_diagonal"),
    "influence-identity": _influence("influence_identity"),
    "influence-mfac": _influence("influence_mfac", "m-fac", default=False),
    "influence-cg": _influence("influence_conjugate_gradients"),
    "influence-lissa": _influence("influence_lissa", default=False),
    # upper bounds of a local Lipschitz constant
    "lipschitz-linear": _bounder("problems.lipschitz:linear_propagation", "local-lipschitz"),
    "lipschitz-branching": _bounder("problems.lipschitz:branch_and_bound", "local-lipschitz"),
    "lipschitz-recurjac": _bounder("problems.lipschitz:recurjac"),
    "lipschitz-interval": _bounder("problems.lipschitz:interval_propagation"),
    "lipschitz-norm-product": _bounder("problems.lipschitz:norm_product"),
    # the spectrum of an operator
    "lanczos-quadrature": Method(
        "nearly.curvature.problems.spectrum:stochastic_lanczos",
        "spectra",
        "batch-hessian-learning-rates",
        default=True,
    ),
    "lanczos-quadrature-single-probe": Method(
        "nearly.curvature.problems.spectrum:single_probe_lanczos", "spectra", default=True
    ),
}

__getattr__, __all__ = attach(__name__, {})
