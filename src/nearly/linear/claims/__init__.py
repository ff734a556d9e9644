"""What the papers of this room promise, rerun: one file per family of methods."""

from nearly.linear.claims import autotune as autotune
from nearly.linear.claims import graph as graph
from nearly.linear.claims import learned_direction as learned_direction
from nearly.linear.claims import matrix_functions as matrix_functions
from nearly.linear.claims import polynomial as polynomial
from nearly.linear.claims import sketch as sketch
from nearly.linear.claims import stochastic_approximation as stochastic_approximation
