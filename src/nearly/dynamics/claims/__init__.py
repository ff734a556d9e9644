"""What the papers of this room promise, rerun: one file per family of methods."""

from nearly.dynamics.claims import stiff as stiff
