"""Small real data from inside pip packages, and generators from a key."""

from nearly.core.lazy import attach

__getattr__, __all__ = attach(
    __name__,
    {
        "Dataset": "nearly.datasets.real:Dataset",
        "breast_cancer": "nearly.datasets.real:breast_cancer",
        "diabetes": "nearly.datasets.real:diabetes",
        "digits": "nearly.datasets.real:digits",
        "digits_images": "nearly.datasets.real:digits_images",
        "gaussian_random_field": "nearly.datasets.random_fields:gaussian_random_field",
    },
)
