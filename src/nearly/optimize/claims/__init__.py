"""What the papers of this room promise, rerun: one file per family of methods."""

from nearly.optimize.claims import newton as newton
