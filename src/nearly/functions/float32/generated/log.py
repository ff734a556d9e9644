"""PROVEN log: error <= 0.857915 ulp
error:   0.857915 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py log
known by: 4,294,967,296 of 2^32 inputs tried on an x86-64 processor; the worst is x = 1.2790049314498901
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


def log(x):
    return log_value(jnp.asarray(x, jnp.float32))


@jax.custom_jvp
def log_value(x):
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
    t13 = fixed(t8 * np.float32(0.693145751953125))
    t14 = fixed(t13 + t12)
    t15 = fixed(t13 - t14)
    t16 = fixed(t15 + t12)
    t17 = fixed(fixed(t8 * np.float32(1.428606765330187e-06)) + t16)
    t18 = fixed(fixed(np.float32(-3.784278845841982e-08) * t12) + np.float32(3.9135250595734306e-09))
    t19 = fixed(fixed(np.float32(-0.24999427795410156) * t12) + np.float32(0.3333315849304199))
    t20 = fixed(fixed(np.float32(-0.16691412031650543) * t12) + np.float32(0.20012407004833221))
    t21 = fixed(fixed(np.float32(-0.120597705245018) * t12) + np.float32(0.13980965316295624))
    t22 = fixed(fixed(np.float32(-0.13373622298240662) * t12) + np.float32(0.1408626288175583))
    t23 = fixed(t12 * t12)
    t24 = fixed(fixed(t19 * t23) + t18)
    t25 = fixed(fixed(t21 * t23) + t20)
    t26 = fixed(t23 * t23)
    t27 = fixed(fixed(t25 * t26) + t24)
    t28 = fixed(t26 * t26)
    t29 = fixed(fixed(t22 * t28) + t27)
    t30 = fixed(fixed(t12 * t29) + t17)
    t31 = fixed(t12 * np.float32(-0.5))
    t32 = fixed(fixed(t31 * t12) + t30)
    t33 = fixed(t14 + t32)
    t34 = t0 + np.int32(2147483647)
    t35 = t34 < np.int32(-8388609)
    t36 = t0 < np.int32(1)
    t37 = jnp.where(t36, np.float32(float("-inf")), x)
    t38 = t0 - np.int32(1)
    t39 = t38 < np.int32(-1)
    t40 = jnp.where(t39, np.float32(float("nan")), t37)
    t41 = jnp.where(t35, t33, t40)
    return t41.astype(jnp.float32)


@log_value.defjvp
def log_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = log_value(x)
    return y, log_slope(x, y) * dx


def log_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray((1.0 / x), jnp.float32).astype(jnp.float32)
