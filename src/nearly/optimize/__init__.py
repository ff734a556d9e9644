"""Optimizers in optax's protocol, minimisers in optimistix's: every oracle call is on the bill.

This module is the room's catalogue, readable without importing the room.
"""

from nearly.core.catalogue import Method, Problem
from nearly.core.lazy import attach


def _smooth(target: str, **settings: object) -> Problem:
    return Problem(f"nearly.optimize.problems.smooth:{target}", settings)


def _sum(target: str) -> Problem:
    return Problem(f"nearly.optimize.problems.sums:{target}")


PROBLEMS: dict[str, Problem] = {
    "softmax-digits": _sum("softmax_digits"),
    "mlp-digits": _sum("mlp_digits"),
    "autoencoder-digits": _sum("autoencoder_digits"),
    "interpolating-least-squares": _sum("interpolating_least_squares"),
    "modular-addition": Problem("nearly.optimize.problems.modular:modular_addition"),
    "strong-growth-counterexample": _sum("strong_growth_counterexample"),
    "imitation-control": Problem("nearly.optimize.problems.imitation:imitation_control"),
    "deep-hedging": Problem("nearly.optimize.problems.hedging:deep_hedging"),
    "logreg-breast-cancer": _smooth("logistic_regression"),
    "logsumexp": _smooth("log_sum_exp"),
    "cubic-chain": _smooth("cubic_chain"),
    "rosenbrock-100": _smooth("classic", function="rosenbrock-100"),
    "chebyshev-chain": _smooth("classic", function="chebyshev-chain"),
    "classic-minimum": _smooth("classic"),
}


def _ours(name: str, paper: str | None, *, default: bool = True) -> Method:
    return Method(f"nearly.optimize.minimisers:{name}", "minimisers", paper, "ours", default)


def _peer(target: str, *, default: bool = True) -> Method:
    return Method(f"nearly.optimize.{target}", "minimisers", None, "peer", default)


def _optimizer(name: str, paper: str | None = None, *, default: bool = True) -> Method:
    source = "ours" if paper else "peer"
    return Method(f"nearly.optimize.optimizers:{name}", "optax", paper, source, default)


METHODS: dict[str, Method] = {
    "adan": _optimizer("adan", "adan"),
    "adahessian": _optimizer("adahessian", "adahessian"),
    "adagrad-norm": _optimizer("adagrad_norm", "adagrad-norm-sgd", default=False),
    "orthogonal-adam": _optimizer("orthogonal_adam", "grokking-numerical-stability", default=False),
    "shampoo": _optimizer("shampoo", "distributed-shampoo", default=False),
    "mfac": _optimizer("mfac", "m-fac", default=False),
    "momentum-polyak": _optimizer("momentum_polyak", "polyak-momentum"),
    "moving-average-polyak": _optimizer("moving_average_polyak", "polyak-momentum", default=False),
    "kfac": _optimizer("kfac", "kfac-deep-hedging", default=False),
    "kfac-empirical": _optimizer("kfac_empirical", "kfac-deep-hedging", default=False),
    "mkor": _optimizer("mkor", "mkor", default=False),
    "fosi-adam": _optimizer("fosi_adam", "fosi", default=False),
    "fosi-heavy-ball": _optimizer("fosi_heavy_ball", "fosi", default=False),
    "model-building-sgd": _optimizer("model_building_sgd", "sgd-model-building", default=False),
    "interpolation-sgd": _optimizer(
        "interpolation_sgd", "accelerated-sgd-interpolation", default=False
    ),
    "linear-decay-adam": _optimizer("linear_decay_adam", "learning-rate-refinement", default=False),
    "linear-decay-sgd": _optimizer("linear_decay_sgd", "learning-rate-refinement", default=False),
    "refined-adam": _optimizer("refined_adam", "learning-rate-refinement", default=False),
    "refined-sgd": _optimizer("refined_sgd", "learning-rate-refinement", default=False),
    "triple-momentum": _optimizer("triple_momentum", default=False),
    "optax-armijo-sgd": _optimizer("armijo_sgd", default=False),
    "optax-cosine-adam": _optimizer("cosine_adam", default=False),
    "target-surrogates": _optimizer("target_surrogates", "target-surrogates", default=False),
    "optex-adam": _optimizer("optex_adam", "optex", default=False),
    "optax-sgd": _optimizer("sgd", default=False),
    "optax-heavy-ball": _optimizer("heavy_ball"),
    "optax-adam": _optimizer("adam"),
    "optax-nadam": _optimizer("nadam", default=False),
    "optax-lion": _optimizer("lion", default=False),
    "optax-adan": _optimizer("optax_adan", default=False),
    "optax-muon": _optimizer("muon"),
    "optax-sophia": _optimizer("sophia", default=False),
    "optax-momo": _optimizer("momo", default=False),
    "optax-polyak-sgd": _optimizer("polyak_sgd", default=False),
    "gradient-normalized-newton": _ours(
        "gradient_normalized_newton", "gradient-normalized-smoothness"
    ),
    "gradient-normalized-gauss-newton": _ours(
        "gradient_normalized_gauss_newton", "gradient-normalized-smoothness", default=False
    ),
    "lazy-cubic-newton": _ours("lazy_cubic_newton", "lazy-hessians"),
    "lazy-regularized-newton": _ours("lazy_regularized_newton", "lazy-hessians", default=False),
    "universal-newton": _ours("universal_newton", "damped-newton"),
    "super-universal-newton": _ours("super_universal_newton", None, default=False),
    "cubic-newton": _ours("cubic_newton", None, default=False),
    "armijo-newton": _ours("armijo_newton", None),
    "optimistix-bfgs": _peer("minimisers:bfgs"),
    "optimistix-lbfgs": _peer("minimisers:lbfgs", default=False),
    "optimistix-nonlinear-cg": _peer("minimisers:nonlinear_cg", default=False),
    "scipy-bfgs": _peer("peers:scipy_bfgs"),
    "scipy-lbfgs": _peer("peers:scipy_lbfgs"),
    "scipy-trust-exact": _peer("peers:scipy_trust_exact"),
    "scipy-trust-ncg": _peer("peers:scipy_trust_ncg", default=False),
}

__getattr__, __all__ = attach(
    __name__,
    {
        "FiniteSum": "nearly.optimize.problems.finite_sum:FiniteSum",
        "WithRate": "nearly.optimize.problems.finite_sum:WithRate",
        "adagrad_norm": "nearly.optimize.adaptive:adagrad_norm",
        "adahessian": "nearly.optimize.adaptive:adahessian",
        "adan": "nearly.optimize.adaptive:adan",
        "fosi": "nearly.optimize.subspace:fosi",
        "fosi_adam": "nearly.optimize.subspace:fosi_adam",
        "fosi_heavy_ball": "nearly.optimize.subspace:fosi_heavy_ball",
        "interpolation_sgd": "nearly.optimize.accelerate:interpolation_sgd",
        "semi_stochastic_acceleration": "nearly.optimize.accelerate:semi_stochastic_acceleration",
        "model_building_sgd": "nearly.optimize.model_building:model_building_sgd",
        "independent_model_building": "nearly.optimize.model_building:independent_model_building",
        "record_norms": "nearly.optimize.schedules:record_norms",
        "refine": "nearly.optimize.schedules:refine",
        "bound_minimising": "nearly.optimize.schedules:bound_minimising",
        "kfac": "nearly.optimize.kronecker.kfac:kfac",
        "mkor": "nearly.optimize.kronecker.mkor:mkor",
        "target_surrogates": "nearly.optimize.target_space:target_surrogates",
        "TargetSearch": "nearly.optimize.target_space:TargetSearch",
        "optex": "nearly.optimize.parallel_iterations:optex",
        "momentum_polyak": "nearly.optimize.adaptive:momentum_polyak",
        "moving_average_polyak": "nearly.optimize.adaptive:moving_average_polyak",
        "orthogonal_gradient": "nearly.optimize.adaptive:orthogonal_gradient",
        "scale_by_shampoo": "nearly.optimize.kronecker:scale_by_shampoo",
        "shampoo": "nearly.optimize.kronecker:shampoo",
        "stablemax_cross_entropy": "nearly.optimize.adaptive:stablemax_cross_entropy",
        "AcceleratedCubicNewton": "nearly.optimize.newton:AcceleratedCubicNewton",
        "GradientNormalizedNewton": "nearly.optimize.newton:GradientNormalizedNewton",
        "LazyCubicNewton": "nearly.optimize.newton:LazyCubicNewton",
        "LazyRegularizedNewton": "nearly.optimize.newton:LazyRegularizedNewton",
        "RootNewton": "nearly.optimize.newton:RootNewton",
        "Smooth": "nearly.optimize.problems.smooth:Smooth",
        "SumOfSquares": "nearly.optimize.problems.smooth:SumOfSquares",
        "UniversalNewton": "nearly.optimize.newton:UniversalNewton",
    },
)
