"""The type checker that jaxtyping's import hook applies to the whole package in tests."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as everywhere
