"""The one training loop, and the small architectures the rooms share."""

from nearly.core.lazy import attach

__getattr__, __all__ = attach(
    __name__,
    {
        "Stream": "nearly.training.steps:Stream",
        "Trained": "nearly.training.loop:Trained",
        "architectures": "nearly.training.architectures",
        "fit": "nearly.training.loop:fit",
    },
)
