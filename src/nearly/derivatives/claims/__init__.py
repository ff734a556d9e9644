"""What the papers of this room promise, rerun: one file per family of methods."""

from nearly.derivatives.claims import implicit as implicit
from nearly.derivatives.claims import stde as stde
from nearly.derivatives.claims import taylor as taylor
