"""The errors a user may want to catch."""

from nearly.core.errors import (
    InputError,
    Interrupted,
    MissingDependency,
    NearlyError,
    NotProven,
    NotWithin,
    PrecisionError,
    StoreError,
    UnknownName,
)

__all__ = [
    "InputError",
    "Interrupted",
    "MissingDependency",
    "NearlyError",
    "NotProven",
    "NotWithin",
    "PrecisionError",
    "StoreError",
    "UnknownName",
]
