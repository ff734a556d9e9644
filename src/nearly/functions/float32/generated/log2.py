"""PROVEN log2: error <= 0.872848 ulp
error:   0.872848 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py log2
known by: 4,294,967,296 of 2^32 inputs tried on an x86-64 processor; the worst is x = 1.3368830680847168
method:  remez-estrin at 9
"""


import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


# XLA rearranges sums, products, quotients and roots; behind a barrier each is computed as written.
fixed = lax.optimization_barrier


# A number XLA does not know, so that it keeps the operation: as wide as x, else it inverts a
# divisor once for all elements.
def opaque(value, x):
    return fixed(jnp.where(x == x, value, value))


def log2(x):
    return log2_value(jnp.asarray(x, jnp.float32))


@jax.custom_jvp
def log2_value(x):
    x = fixed(x.astype(jnp.float32))
    t0 = lax.bitcast_convert_type(x, np.int32)
    t1 = lax.convert_element_type(t0, np.float32)
    t2 = lax.bitcast_convert_type(t1, np.int32)
    t3 = t2 - np.int32(1249902592)
    t4 = t0 < np.int32(8388608)
    t5 = jnp.where(t4, t3, t0)
    t6 = t5 - np.int32(1059760811)
    t7 = t6 >> (np.int32(23) & np.int32(31))
    t8 = lax.convert_element_type(t7, np.float32)
    t9 = t7 << (np.int32(23) & np.int32(31))
    t10 = t5 - t9
    t11 = lax.bitcast_convert_type(t10, np.float32)
    t12 = fixed(t11 - np.float32(1.0))
    t13 = fixed(t12 * np.float32(1.5))
    t14 = fixed(t8 + t13)
    t15 = fixed(t8 - t14)
    t16 = fixed(t15 + t13)
    t17 = fixed(fixed(np.float32(0.028652429580688477) * t12) + np.float32(-0.05730495601892471))
    t18 = fixed(fixed(np.float32(-0.36066585779190063) * t12) + np.float32(0.48089614510536194))
    t19 = fixed(fixed(np.float32(-0.24079762399196625) * t12) + np.float32(0.2887074053287506))
    t20 = fixed(fixed(np.float32(-0.17406891286373138) * t12) + np.float32(0.2018313705921173))
    t21 = fixed(fixed(np.float32(-0.19265730679035187) * t12) + np.float32(0.20270316302776337))
    t22 = fixed(t12 * t12)
    t23 = fixed(fixed(t18 * t22) + t17)
    t24 = fixed(fixed(t20 * t22) + t19)
    t25 = fixed(t22 * t22)
    t26 = fixed(fixed(t24 * t25) + t23)
    t27 = fixed(t25 * t25)
    t28 = fixed(fixed(t21 * t27) + t26)
    t29 = fixed(fixed(t12 * t28) + t16)
    t30 = fixed(t12 * np.float32(-0.75))
    t31 = fixed(fixed(t30 * t12) + t29)
    t32 = fixed(t14 + t31)
    t33 = t0 + np.int32(2147483647)
    t34 = t33 < np.int32(-8388609)
    t35 = t0 < np.int32(1)
    t36 = jnp.where(t35, np.float32(float("-inf")), x)
    t37 = t0 - np.int32(1)
    t38 = t37 < np.int32(-1)
    t39 = jnp.where(t38, np.float32(float("nan")), t36)
    t40 = jnp.where(t34, t32, t39)
    return t40.astype(jnp.float32)


@log2_value.defjvp
def log2_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = log2_value(x)
    return y, log2_slope(x, y) * dx


def log2_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray((1.0 / (x * jnp.log(2.0))), jnp.float32).astype(jnp.float32)
