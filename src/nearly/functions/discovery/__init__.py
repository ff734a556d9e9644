"""Finding programs: the best constants of a structure, and the structures themselves.

A function that has its module's name is imported from there, as in
`from nearly.functions.discovery.minimax import minimax`.
"""

from nearly.core.lazy import attach

__getattr__, __all__ = attach(
    __name__,
    {
        "Fitted": "nearly.functions.discovery.minimax:Fitted",
        "Tape": "nearly.functions.discovery.tape:Tape",
    },
)
