"""Solutions of differential equations over time, in diffrax's protocol: every call of the vector
field is on the bill.

This module is the room's catalogue, readable without importing the room.
"""

from nearly.core.catalogue import Method, Problem
from nearly.core.lazy import attach


def _initial_value(target: str, **settings: object) -> Problem:
    return Problem(f"nearly.dynamics.problems.initial_value:{target}", settings)


_STANDARD = (
    "lotka-volterra",
    "henon-heiles",
    "pleiades",
    "rober",
    "hires",
    "orego",
    "pollu",
    "van-der-pol",
)

PROBLEMS: dict[str, Problem] = {
    **{case: _initial_value("standard", case=case) for case in _STANDARD},
    "prothero-robinson": _initial_value("prothero_robinson"),
    "airy": _initial_value("airy"),
}


def _ours(target: str, paper: str | None, *, default: bool = True) -> Method:
    return Method(f"nearly.dynamics.{target}", "ode-solvers", paper, "ours", default)


def _stochastic(case: str) -> Problem:
    return Problem("nearly.dynamics.problems.stochastic:stochastic", {"case": case})


def _cir(volatility: float) -> Problem:
    return Problem("nearly.dynamics.problems.stochastic:cir", {"volatility": volatility})


_STOCHASTIC: dict[str, Problem] = {
    "gbm": _stochastic("gbm"),
    "ornstein-uhlenbeck": _stochastic("ou"),
    "noncommutative": _stochastic("noncommutative"),
    "funnel-langevin": _stochastic("funnel-langevin"),
    "cir-medium": _cir(1.5),
    "cir-high": _cir(2.2),
    "fractional-ou": Problem("nearly.dynamics.problems.fractional_ou:fractional_ou"),
}
PROBLEMS.update(_STOCHASTIC)


def _peer(target: str, *, default: bool = True) -> Method:
    return Method(f"nearly.dynamics.{target}", "ode-solvers", None, "peer", default)


METHODS: dict[str, Method] = {
    "msrktase2": _ours("solvers:msrktase2", "msrktase"),
    "msrktase3": _ours("solvers:msrktase3", "msrktase"),
    "bdf2": _ours("solvers:deferred_bdf2", None, default=False),
    "deferred-bdf3": _ours("solvers:deferred_bdf3", "bdf2-deferred-correction", default=False),
    "deferred-bdf4": _ours("solvers:deferred_bdf4", "bdf2-deferred-correction"),
    "truncated-wkb": _ours("wkb:oscillator_solver", "truncated-wkb", default=False),
    "diffrax-tsit5": _peer("solvers:tsit5"),
    "diffrax-dopri8": _peer("solvers:dopri8", default=False),
    "diffrax-kvaerno3": _peer("solvers:kvaerno3", default=False),
    "diffrax-kvaerno5": _peer("solvers:kvaerno5"),
    "diffrax-kvaerno5-patient": _peer("solvers:kvaerno5_patient"),
    "diffrax-kencarp4": _peer("solvers:kencarp4", default=False),
    "diffrax-kencarp4-patient": _peer("solvers:kencarp4_patient"),
    "scipy-lsoda": _peer("peers:scipy_lsoda"),
    "scipy-bdf": _peer("peers:scipy_bdf", default=False),
    "scipy-radau": _peer("peers:scipy_radau"),
    "scipy-dop853": _peer("peers:scipy_dop853", default=False),
    "sundials-cvode": _peer("peers:cvode", default=False),
    "riccati": _peer("peers:riccati", default=False),
    "probdiffeq-ek1": _peer("peers:probdiffeq_ek1", default=False),
}


def _sde(name: str, paper: str | None = None, *, default: bool = False) -> Method:
    source = "ours" if paper else "peer"
    return Method(f"nearly.dynamics.sde_solvers:{name}", "sde-solvers", paper, source, default)


_TREE = "virtual-brownian-tree-integrals"

_SDE_SOLVERS: dict[str, Method] = {
    "diffrax-euler-heun": _sde("euler_heun", default=True),
    "diffrax-ito-milstein": _sde("ito_milstein", default=True),
    "diffrax-spark": _sde("spark", default=True),
    "diffrax-shark": _sde("shark"),
    "diffrax-quicsort": _sde("quicsort"),
    "hosts": _sde("hosts", _TREE),
    "hosts-adaptive": _sde("hosts_adaptive", _TREE),
    "drift-implicit-euler": _sde("die", _TREE),
    "drift-implicit-euler-adaptive": _sde("die_adaptive", _TREE),
}
METHODS.update(_SDE_SOLVERS)


def _exponents(case: str) -> Problem:
    return Problem("nearly.dynamics.problems.feynman_kac:feynman_kac", {"case": case})


PROBLEMS.update(
    {
        f"feynman-kac-{case}": _exponents(case)
        for case in ("lognormal", "exponent-bump", "exponent-dip", "exponent-wide")
    }
)


def _feynman_kac(target: str, source: str = "ours", *, default: bool = True) -> Method:
    paper = "variable-exponent-parabolic" if source == "ours" else None
    return Method(f"nearly.dynamics.{target}", "feynman-kac-solvers", paper, source, default)


_BACKWARD = "nearly.dynamics.problems.backward"

PROBLEMS.update(
    {
        "first-passage": Problem(f"{_BACKWARD}:first_passage"),
        "logistic-wave": Problem(f"{_BACKWARD}:logistic_wave"),
        "hamilton-jacobi": Problem(f"{_BACKWARD}:hamilton_jacobi"),
        **{
            f"xva-{case}": Problem(f"{_BACKWARD}:valuation_adjustments", {"case": case})
            for case in ("call", "forward", "margined", "basket")
        },
    }
)


def _backward(target: str, protocol: str, source: str = "ours", *, default: bool = True) -> Method:
    paper = "deep-xva" if source == "ours" else None
    return Method(f"nearly.dynamics.{target}", protocol, paper, source, default)


METHODS.update(
    {
        "deep-bsde": _backward("backward_methods:trained_value", "bsde-solvers"),
        "backward-regression": _backward(
            "backward_methods:backward_regression", "bsde-solvers", "peer"
        ),
        "deep-xva": _backward("xva:deep_xva", "xva-solvers"),
        "deep-xva-tilted": _backward("xva:tilted_deep_xva", "xva-solvers", default=False),
        "nested-monte-carlo": _backward(
            "exposure:nested_monte_carlo", "xva-solvers", "peer", default=False
        ),
        "least-squares-monte-carlo": _backward(
            "exposure:least_squares_monte_carlo", "xva-solvers", "peer"
        ),
    }
)

METHODS.update(
    {
        "crank-nicolson-logarithmic": _feynman_kac("feynman_kac:crank_nicolson"),
        "monte-carlo": _feynman_kac("feynman_kac:monte_carlo"),
        "plain-monte-carlo": _feynman_kac("feynman_kac:plain_monte_carlo", default=False),
        "quasi-monte-carlo": _feynman_kac("feynman_kac:quasi_monte_carlo"),
        "scipy-lsoda-lines": _feynman_kac("peers:scipy_lines", "peer"),
    }
)

PROBLEMS.update(
    {
        "lorenz-z4": Problem("nearly.dynamics.problems.time_average:lorenz_z4"),
        "moehlis-faisst-eckhardt": Problem("nearly.dynamics.problems.time_average:shear_flow"),
        "free-particle": Problem("nearly.dynamics.problems.mechanics:free_particle"),
        "gravity": Problem("nearly.dynamics.problems.mechanics:gravity"),
        "pendulum": Problem("nearly.dynamics.problems.mechanics:pendulum"),
    }
)


def _average_bound(name: str, *, default: bool) -> Method:
    target = f"nearly.dynamics.sum_of_squares:{name}"
    return Method(target, "time-average-bounds", "extremal-periodic-orbits", "ours", default)


METHODS.update(
    {
        "sum-of-squares": _average_bound("sum_of_squares", default=True),
        "sum-of-squares-one-block": _average_bound("one_block", default=False),
        "unsupervised-network": _ours(
            "unsupervised:unsupervised", "unsupervised-ivp", default=False
        ),
    }
)


def _neural_equation(target: str) -> Problem:
    return Problem(f"nearly.dynamics.problems.neural_equations:{target}")


def _trainer(name: str, paper: str | None = None, *, default: bool = False) -> Method:
    source = "ours" if paper else "peer"
    target = f"nearly.dynamics.trainers:{name}"
    return Method(target, "neural-equations", paper, source, default)


_GLOBAL, _LOCAL = "solver-heuristic-regularization", "locally-regularized-nde"

PROBLEMS.update(
    {
        "annuli": _neural_equation("annuli"),
        "digits-flow": _neural_equation("digits_flow"),
        "spiral-sde": _neural_equation("spiral"),
    }
)
METHODS.update(
    {
        "plain-neural-equation": _trainer("plain", default=True),
        "ernode": _trainer("ernode", _GLOBAL, default=True),
        "srnode": _trainer("srnode", _GLOBAL),
        "lrnde": _trainer("lrnde", _LOCAL, default=True),
        "lrnde-biased": _trainer("lrnde_biased", _LOCAL),
        "steer": _trainer("steer"),
        "taynode": _trainer("taynode"),
        "rnode": _trainer("rnode"),
    }
)

_CONTEXT, _SEGNO = "neural-context-flows", "segno"

PROBLEMS.update(
    {
        "lotka-volterra-environments": Problem(
            "nearly.dynamics.problems.environments:lotka_volterra_environments"
        ),
        "selkov-environments": Problem("nearly.dynamics.problems.environments:selkov_environments"),
        "charged-five-body": Problem(
            "nearly.dynamics.problems.bodies:body_motion", {"law": "charged"}
        ),
        "gravity-five-body": Problem(
            "nearly.dynamics.problems.bodies:body_motion", {"law": "gravity"}
        ),
    }
)


def _learned(
    target: str, protocol: str, paper: str | None = None, *, default: bool = True
) -> Method:
    source = "ours" if paper else "peer"
    return Method(f"nearly.dynamics.{target}", protocol, paper, source, default)


METHODS.update(
    {
        "context-flow": _learned(
            "context_training:ncf_t1", "environment-models", _CONTEXT, default=False
        ),
        "context-flow-proximal": _learned(
            "context_training:ncf_t2", "environment-models", _CONTEXT, default=False
        ),
        "context-conditioned": _learned("context_training:conditioned", "environment-models"),
        "one-for-all": _learned("context_peers:one_for_all", "environment-models"),
        "one-for-each": _learned("context_peers:one_for_each", "environment-models", default=False),
        "coda": _learned("context_peers:coda", "environment-models", default=False),
        "segno": _learned("motion_training:segno_model", "body-motion-models", _SEGNO),
        "egnn": _learned("motion_training:egnn_model", "body-motion-models"),
    }
)

__getattr__, __all__ = attach(
    __name__,
    {
        "PolynomialSystem": "nearly.dynamics.sum_of_squares:PolynomialSystem",
        "TimeAverageBound": "nearly.dynamics.problems.time_average:TimeAverageBound",
        "Unsupervised": "nearly.dynamics.unsupervised:Unsupervised",
        "bound_average": "nearly.dynamics.sum_of_squares:bound_average",
        "continue_orbit": "nearly.dynamics.continuation:continue_orbit",
        "extremal_orbits": "nearly.dynamics.orbits:extremal_orbits",
        "prove_bound": "nearly.dynamics.rational_proof:prove_bound",
        "shoot": "nearly.dynamics.orbits:shoot",
        "Banded": "nearly.dynamics.jacobians:Banded",
        "DeferredBDF2": "nearly.dynamics.deferred:DeferredBDF2",
        "PatientChord": "nearly.dynamics.chord:PatientChord",
        "Given": "nearly.dynamics.jacobians:Given",
        "Sparse": "nearly.dynamics.jacobians:Sparse",
        "deferred_bdf": "nearly.dynamics.deferred:deferred_bdf",
        "msrktase2": "nearly.dynamics.wmethods:msrktase2",
        "truncated_wkb": "nearly.dynamics.wkb:truncated_wkb",
        "msrktase3": "nearly.dynamics.wmethods:msrktase3",
        "InitialValueProblem": "nearly.dynamics.problems.initial_value:InitialValueProblem",
        "GridBrownianPath": "nearly.dynamics.brownian:GridBrownianPath",
        "markov_fractional": "nearly.dynamics.fractional:markov_fractional",
        "fractional_terms": "nearly.dynamics.fractional:fractional_terms",
        "FractionalSDE": "nearly.dynamics.fractional_inference:FractionalSDE",
        "evidence_bound": "nearly.dynamics.fractional_inference:evidence_bound",
        "NeuralODE": "nearly.dynamics.neural:NeuralODE",
        "NeuralCDE": "nearly.dynamics.neural:NeuralCDE",
        "NeuralSDE": "nearly.dynamics.neural:NeuralSDE",
        "hermite_path": "nearly.dynamics.data_paths:hermite_path",
        "linear_path": "nearly.dynamics.data_paths:linear_path",
        "log_path": "nearly.dynamics.data_paths:log_path",
        "HOStS": "nearly.dynamics.cir:HOStS",
        "DIE": "nearly.dynamics.cir:DIE",
        "CIRTerm": "nearly.dynamics.cir:CIRTerm",
        "CIRStepSize": "nearly.dynamics.cir:CIRStepSize",
        "ContextFlow": "nearly.dynamics.context:ContextFlow",
        "adapt": "nearly.dynamics.context_training:adapt",
        "context_flow": "nearly.dynamics.context:context_flow",
        "modulated": "nearly.dynamics.context:modulated",
        "Bodies": "nearly.dynamics.equivariant:Bodies",
        "egnn": "nearly.dynamics.equivariant:egnn",
        "segno": "nearly.dynamics.equivariant:segno",
        "ReversibleAdjoint": "nearly.dynamics.reversible:ReversibleAdjoint",
        "BackwardEquation": "nearly.dynamics.backward_paths:BackwardEquation",
        "BackwardProblem": "nearly.dynamics.problems.backward:BackwardProblem",
        "DeepBSDE": "nearly.dynamics.bsde:DeepBSDE",
        "DeepXVA": "nearly.dynamics.xva:DeepXVA",
        "Market": "nearly.dynamics.market:Market",
        "Obligor": "nearly.dynamics.market:Obligor",
        "PinballRegression": "nearly.dynamics.quantile:PinballRegression",
        "ValuationAdjustments": "nearly.dynamics.problems.backward:ValuationAdjustments",
        "FeynmanKac": "nearly.dynamics.problems.feynman_kac:FeynmanKac",
        "VariableExponents": "nearly.dynamics.feynman_kac:VariableExponents",
        "crank_nicolson": "nearly.dynamics.feynman_kac:crank_nicolson",
        "monte_carlo": "nearly.dynamics.feynman_kac:monte_carlo",
        "ErrorEstimate": "nearly.dynamics.regularize:ErrorEstimate",
        "Heuristics": "nearly.dynamics.regularize:Heuristics",
        "LambaEulerHeun": "nearly.dynamics.lamba:LambaEulerHeun",
        "StiffnessEstimate": "nearly.dynamics.regularize:StiffnessEstimate",
        "accumulated": "nearly.dynamics.regularize:accumulated",
        "local_penalty": "nearly.dynamics.regularize:local_penalty",
        "TrajectoryLearning": "nearly.dynamics.problems.trajectories:TrajectoryLearning",
        "StochasticProblem": "nearly.dynamics.problems.stochastic:StochasticProblem",
        "Oscillator": "nearly.dynamics.problems.oscillator:Oscillator",
    },
)
