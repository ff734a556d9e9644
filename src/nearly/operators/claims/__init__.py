"""What the papers of this room promise, rerun: one file per family of methods."""

from nearly.operators.claims import online as online
