"""What the papers of this room promise, rerun: one file per family of methods."""

from nearly.optimize.claims import adaptive as adaptive
from nearly.optimize.claims import factors as factors
from nearly.optimize.claims import grokking as grokking
from nearly.optimize.claims import interpolation as interpolation
from nearly.optimize.claims import model_building as model_building
from nearly.optimize.claims import newton as newton
from nearly.optimize.claims import preconditioned as preconditioned
from nearly.optimize.claims import schedules as schedules
from nearly.optimize.claims import step_sizes as step_sizes
from nearly.optimize.claims import subspace as subspace
from nearly.optimize.claims import surrogates as surrogates
from nearly.optimize.claims import width as width
