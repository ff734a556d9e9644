"""PROVEN cbrt: error <= 0.653429 ulp
error:   0.653429 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py cbrt
known by: 4,294,967,296 of 2^32 inputs tried on an x86-64 processor; the worst is x = 2.962381387342736e-39
method:  remez at 4
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


def cbrt(x):
    return cbrt_value(jnp.asarray(x, jnp.float32))


@jax.custom_jvp
def cbrt_value(x):
    x = fixed(x.astype(jnp.float32))
    t0 = lax.bitcast_convert_type(x, np.int32)
    t1 = t0 & np.int32(-2147483648)
    t2 = t0 - t1
    t3 = t2 < np.int32(411041792)
    t4 = jnp.where(t3, np.float32(1.3552527156068805e-20), np.float32(2.0))
    t5 = jnp.where(t3, np.int32(1660944384), np.int32(-25165824))
    t6 = t2 + t5
    t7 = lax.bitcast_convert_type(t6, np.float32)
    t8 = lax.convert_element_type(t2, np.float32)
    t9 = fixed(t8 * np.float32(562949953421312.0))
    t10 = t2 < np.int32(8388608)
    t11 = jnp.where(t10, t9, t7)
    t12 = lax.bitcast_convert_type(t11, np.int32)
    t13 = lax.convert_element_type(t12, np.float32)
    t14 = fixed(fixed(t13 * np.float32(0.3333333432674408)) + np.float32(710038848.0))
    t15 = lax.convert_element_type(t14, np.int32)
    t16 = t15 & np.int32(-65536)
    t17 = lax.bitcast_convert_type(t16, np.float32)
    t18 = fixed(t17 * t17)
    t19 = fixed(t17 * t18)
    t20 = fixed(t11 - t19)
    t21 = fixed(t20 / t19)
    t22 = fixed(t17 * t21)
    t23 = fixed(fixed(np.float32(0.030915511772036552) * t21) + np.float32(-0.041822224855422974))
    t24 = fixed(fixed(t23 * t21) + np.float32(0.06172110512852669))
    t25 = fixed(fixed(t24 * t21) + np.float32(-0.11110733449459076))
    t26 = fixed(fixed(t25 * t21) + np.float32(0.3333333432674408))
    t27 = fixed(fixed(t22 * t26) + t17)
    t28 = fixed(t27 * t4)
    t29 = lax.bitcast_convert_type(t28, np.int32)
    t30 = t29 + t1
    t31 = lax.bitcast_convert_type(t30, np.float32)
    t32 = t2 + np.int32(2147483647)
    t33 = t32 < np.int32(-8388609)
    t34 = jnp.where(t33, t31, x)
    return t34.astype(jnp.float32)


@cbrt_value.defjvp
def cbrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = cbrt_value(x)
    return y, cbrt_slope(x, y) * dx


def cbrt_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray((1.0 / ((3.0 * y) * y)), jnp.float32).astype(jnp.float32)
