"""What the papers of this room promise, rerun: one file per family of methods."""

from nearly.pde.claims import gaussian_features as gaussian_features
from nearly.pde.claims import natural_gradient as natural_gradient
from nearly.pde.claims import sobolev as sobolev
