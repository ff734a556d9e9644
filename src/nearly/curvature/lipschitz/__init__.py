"""Certified local Lipschitz constants of networks by linear bound propagation."""

from nearly.core.lazy import attach

__getattr__, __all__ = attach(
    __name__,
    {
        "Activation": "nearly.curvature.lipschitz.activations:Activation",
        "BranchAndBound": "nearly.curvature.lipschitz.branch_and_bound:BranchAndBound",
        "Chain": "nearly.curvature.lipschitz.chain:Chain",
        "Interval": "nearly.curvature.lipschitz.forward:Interval",
        "IntervalPropagation": "nearly.curvature.lipschitz.bounds:IntervalPropagation",
        "LinearPropagation": "nearly.curvature.lipschitz.bounds:LinearPropagation",
        "NormProduct": "nearly.curvature.lipschitz.bounds:NormProduct",
        "RecurJac": "nearly.curvature.lipschitz.bounds:RecurJac",
        "activations": "nearly.curvature.lipschitz.activations",
        "chain_of": "nearly.curvature.lipschitz.chain:chain_of",
        "exact_lipschitz": "nearly.curvature.lipschitz.exact:exact_lipschitz",
        "jacobian_bounds": "nearly.curvature.lipschitz.backward:jacobian_bounds",
        "lipschitz_bound": "nearly.curvature.lipschitz.bounds:lipschitz_bound",
        "pre_activation_bounds": "nearly.curvature.lipschitz.forward:pre_activation_bounds",
        "sampled_lower_bound": "nearly.curvature.lipschitz.bounds:sampled_lower_bound",
    },
)
