"""Derivatives of anything: Taylor mode on ordinary JAX code, estimators of differential operators,
implicit rules, gradients through discrete choices.

This module is the room's catalogue, readable without importing the room.
"""

from nearly.core.catalogue import Method, Problem
from nearly.core.lazy import attach

_OPERATOR_CASES = (
    "laplacian_mlp",
    "allen_cahn_twobody",
    "biharmonic",
    "kdv_highorder",
    "gridfield_sdf",
)

PROBLEMS: dict[str, Problem] = {
    **{
        case: Problem("nearly.derivatives.problems.operators:DerivativeOperator", {"case": case})
        for case in _OPERATOR_CASES
    },
    **{
        case: Problem("nearly.derivatives.problems.sensitivity:Sensitivity", {"case": case})
        for case in ("ridge", "lasso", "simplex-qp", "sphere-packing")
    },
    **{
        case: Problem("nearly.derivatives.problems.estimators:GradientEstimator", {"case": case})
        for case in ("quadratic", "polynomial_programming", "tiny_vae")
    },
    "taylor_modes": Problem("nearly.derivatives.problems.taylor_modes:TaylorModes"),
    "two_bit_mlp": Problem("nearly.derivatives.problems.estimators:QuantisedGradient"),
}


def _operator(target: str, source: str = "ours", *, default: bool = False) -> Method:
    paper = "stde" if source == "ours" else None
    module = "nearly.derivatives." + target
    return Method(module, "differential-operators", paper, source, default)


def _sensitivity(name: str, source: str = "peer", *, default: bool = True) -> Method:
    paper = "implicit-differentiation" if source == "ours" else None
    target = f"nearly.derivatives.sensitivity_methods:{name}"
    return Method(target, "sensitivities", paper, source, default)


def _choices(name: str, paper: str | None = None) -> Method:
    target, source = f"nearly.derivatives.expectations:{name}", "ours" if paper else "peer"
    return Method(target, "gradient-estimators", paper, source, default=name != "exact")


def _quantised(name: str, paper: str | None = None) -> Method:
    target, source = f"nearly.derivatives.fogzo:{name}", "ours" if paper else "peer"
    return Method(target, "quantised-gradients", paper, source, default=True)


def _taylor(target: str, paper: str | None = None) -> Method:
    source = "ours" if paper else "peer"
    return Method("nearly.derivatives." + target, "taylor-modes", paper, source, default=True)


METHODS: dict[str, Method] = {
    "taylor-mode": _taylor("taylor:directional_derivatives", "higher-order-ad"),
    "jax-jet": _taylor("taylor_peers:jax_jet"),
    "nested-jvp": _taylor("taylor_peers:nested_jvp"),
    "reinmax": _choices("reinmax", "reinmax"),
    "straight-through": _choices("straight_through"),
    "gumbel-straight-through": _choices("gumbel_straight_through"),
    "gumbel-rao": _choices("gumbel_rao"),
    "reinforce-leave-one-out": _choices("reinforce_leave_one_out"),
    "exact-expectation": _choices("exact"),
    "fogzo": _quantised("few_weights", "fogzo"),
    "quantised-straight-through": _quantised("straight_through"),
    "spsa": _quantised("spsa"),
    "implicit": _sensitivity("implicit", "ours"),
    "unrolled": _sensitivity("unrolled"),
    "unrolled-checkpointed": _sensitivity("unrolled_checkpointed", default=False),
    "one-step": _sensitivity("one_step"),
    "lax-custom-root": _sensitivity("lax_custom_root"),
    "optimistix-implicit": _sensitivity("optimistix_implicit"),
    "jaxopt-fixed-point": _sensitivity("jaxopt_fixed_point"),
    "stde-sparse": _operator("stde:sparse", default=True),
    "stde-dense": _operator("stde:dense", default=True),
    "stde-gaussian": _operator("stde:gaussian", default=True),
    "taylor-exact": _operator("stde:taylor_exact", default=True),
    "local-fit": Method(
        "nearly.derivatives.fitted_operators:fitted_operator",
        "differential-operators",
        "hybrid-field-derivatives",
    ),
    "hessian-trace": _operator("operator_peers:hessian_trace", "peer", default=True),
    "jvp-of-grad": _operator("operator_peers:jvp_of_grad", "peer", default=True),
    "folx": _operator("operator_peers:forward_laplacian", "peer", default=True),
    "sdgd": _operator("operator_peers:sdgd", "peer", default=True),
    "hutchinson": _operator("operator_peers:hutchinson", "peer", default=True),
}

__getattr__, __all__ = attach(
    __name__,
    {
        "custom_fixed_point": "nearly.derivatives.implicit:custom_fixed_point",
        "custom_root": "nearly.derivatives.implicit:custom_root",
        "directional_derivatives": "nearly.derivatives.taylor:directional_derivatives",
        "expectations": "nearly.derivatives.expectations",
        "fogzo": "nearly.derivatives.fogzo",
        "implicit_fixed_point": "nearly.derivatives.implicit:implicit_fixed_point",
        "implicit_root": "nearly.derivatives.implicit:implicit_root",
        "invert": "nearly.derivatives.inverse:invert",
        "jet": "nearly.derivatives.taylor:jet",
        "reinmax": "nearly.derivatives.straight_through:reinmax",
    },
)
