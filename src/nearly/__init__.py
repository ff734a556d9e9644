"""nearly: approximation with an honest price tag.

Hand it something expensive and a tolerance; it gives the cheapest stand-in, what it costs, and
how wrong it is. Names load on first use, so importing the library costs nothing.
"""

from nearly.core.lazy import attach

__version__ = "0.1.0"

__getattr__, __all__ = attach(
    __name__,
    {
        "Frontier": "nearly.core.frontier:Frontier",
        "Host": "nearly.core.problem:Host",
        "Problem": "nearly.core.problem:Problem",
        "Run": "nearly.core.run:Run",
        "Tuned": "nearly.core.problem:Tuned",
        "compare": "nearly.core.compare:compare",
        "counted": "nearly.core.tally:counted",
        "errors": "nearly.errors",
        "curvature": "nearly.curvature",
        "datasets": "nearly.datasets",
        "derivatives": "nearly.derivatives",
        "dynamics": "nearly.dynamics",
        "linear": "nearly.linear",
        "operators": "nearly.operators",
        "optimize": "nearly.optimize",
        "pde": "nearly.pde",
        "training": "nearly.training",
        "functions": "nearly.functions",
        "problem": "nearly.core.catalogue:problem",
        "tally": "nearly.core.tally:tally",
        "within": "nearly.core.compare:within",
    },
)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
