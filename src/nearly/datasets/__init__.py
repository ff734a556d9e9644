"""Small real data from inside pip packages, and generators from a key."""

from nearly.core.lazy import attach

__getattr__, __all__ = attach(__name__, {})
