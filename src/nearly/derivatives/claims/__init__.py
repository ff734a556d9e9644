"""What the papers of this room promise, rerun: one file per family of methods."""

from nearly.derivatives.claims import discrete as discrete
from nearly.derivatives.claims import implicit as implicit
from nearly.derivatives.claims import local_fit as local_fit
from nearly.derivatives.claims import quantised as quantised
from nearly.derivatives.claims import smooth_flow as smooth_flow
from nearly.derivatives.claims import stde as stde
from nearly.derivatives.claims import taylor as taylor
