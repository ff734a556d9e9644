"""Taylor mode: derivatives of any order of ordinary JAX code, in one pass.

`jet` pushes a truncated power series through a function and returns that of its result, at a cost
of O(K^2) evaluations for order K where K nested `jax.jvp` take 2^K. It interprets the function's
jaxpr: whatever JAX can trace and differentiate once can be expanded, jitted functions, loops,
branches, custom derivative rules, solves, factorisations, sorting and equinox modules included.
The result is ordinary JAX code, to be jitted, mapped and differentiated.
"""

from nearly.derivatives.taylor.expansion import directional_derivatives, jet, taylor

__all__ = ["directional_derivatives", "jet", "taylor"]
