"""The rules of all named functions."""

from __future__ import annotations

from collections.abc import Mapping

from nearly.functions.elementary.activation import ACTIVATION
from nearly.functions.elementary.circular import CIRCULAR
from nearly.functions.elementary.exponential import EXPONENTIAL
from nearly.functions.elementary.rule import Rule
from nearly.functions.elementary.special import SPECIAL

RULES: Mapping[str, Rule] = {**EXPONENTIAL, **CIRCULAR, **SPECIAL, **ACTIVATION}
