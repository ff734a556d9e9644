"""Newton-type minimisers in optimistix's protocol: one factorisation per Hessian."""

from nearly.optimize.newton.accelerated import AcceleratedCubicNewton as AcceleratedCubicNewton
from nearly.optimize.newton.damped import AffineInvariantCubicNewton as AffineInvariantCubicNewton
from nearly.optimize.newton.damped import ArmijoNewton as ArmijoNewton
from nearly.optimize.newton.damped import RootNewton as RootNewton
from nearly.optimize.newton.damped import UniversalNewton as UniversalNewton
from nearly.optimize.newton.lazy import LazyCubicNewton as LazyCubicNewton
from nearly.optimize.newton.lazy import LazyRegularizedNewton as LazyRegularizedNewton
from nearly.optimize.newton.regularised import GradientNormalizedNewton as GradientNormalizedNewton
from nearly.optimize.newton.regularised import SuperUniversalNewton as SuperUniversalNewton
