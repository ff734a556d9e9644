"""Drop-in JAX functions, right on every float32: `from nearly.functions import float32`.

`float32.exp2(x)` takes what `jnp.exp2(x)` takes and gives float32; so do its siblings. Each is
at most 1 ULP off (`lgamma` and `digamma`: as their docstrings say), special values, overflow and
subnormal numbers included, which XLA flushes to zero on a CPU. The figure in each docstring was
found by trying every input, or as many as it says, on a processor with fused multiply-adds and as
on one without. They are pure JAX: safe under `jit`, `vmap` and `grad` to any
order, on any device.

- Integers, bool, float16 and bfloat16 are computed as float32. A float64 array is refused: its
  digits would be lost in silence. (With x64 off JAX itself has made it float32 before.)
- Values are those of the program, derivatives those of the mathematics.

The code in `generated/` is written by `scripts/float32.py` from `recipes.py`, not by hand. Each
file stands alone, with nothing but JAX to import: copy it where you need it.
"""

from pathlib import Path
from typing import Any

GENERATED = Path(__file__).parent / "generated"
NAMES = tuple(sorted(path.stem for path in GENERATED.glob("[a-z]*.py")))


def __dir__() -> list[str]:
    return [*globals(), *NAMES]


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nearly.functions.float32.drop_in import drop_in

    return globals().setdefault(name, drop_in(name))
