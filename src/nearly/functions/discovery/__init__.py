"""Finding programs: the best constants of a structure, and the structures themselves."""

from nearly.core.lazy import attach

__getattr__, __all__ = attach(
    __name__,
    {
        "Fitted": "nearly.functions.discovery.minimax:Fitted",
        "Tape": "nearly.functions.discovery.tape:Tape",
        "minimax": "nearly.functions.discovery.minimax:minimax",
    },
)
