"""PROVEN rsqrt: error <= 0.889442 ulp
error:   0.889442 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py rsqrt
known by: 4,294,967,296 of 2^32 inputs tried on an x86-64 processor; the worst is x = 1.1850750284228763e-38
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


def rsqrt(x):
    return rsqrt_value(jnp.asarray(x, jnp.float32))


@jax.custom_jvp
def rsqrt_value(x):
    x = fixed(x.astype(jnp.float32))
    t0 = lax.bitcast_convert_type(x, np.int32)
    t1 = lax.convert_element_type(t0, np.float32)
    t2 = lax.bitcast_convert_type(t1, np.int32)
    t3 = t2 - np.int32(1249902592)
    t4 = t0 < np.int32(8388608)
    t5 = jnp.where(t4, t3, t0)
    t6 = t5 - np.int32(1065353216)
    t7 = t6 & np.int32(-16777216)
    t8 = t5 - t7
    t9 = t8 >> (np.int32(1) & np.int32(31))
    t10 = np.int32(1597031579) - t9
    t11 = t10 & np.int32(-4096)
    t12 = lax.bitcast_convert_type(t11, np.float32)
    t13 = lax.bitcast_convert_type(t8, np.float32)
    t14 = fixed(t12 * t12)
    t15 = fixed(fixed(t13 * t14) + np.float32(-1.0))
    t16 = fixed(t12 * t15)
    t17 = fixed(fixed(np.float32(-0.326365202665329) * t15) + np.float32(0.2648012638092041))
    t18 = fixed(fixed(t17 * t15) + np.float32(-0.31285548210144043))
    t19 = fixed(fixed(t18 * t15) + np.float32(0.37499549984931946))
    t20 = fixed(fixed(t19 * t15) + np.float32(-0.5))
    t21 = fixed(fixed(t16 * t20) + t12)
    t22 = lax.bitcast_convert_type(t21, np.int32)
    t23 = t7 >> (np.int32(1) & np.int32(31))
    t24 = t22 - t23
    t25 = lax.bitcast_convert_type(t24, np.float32)
    t26 = t0 & np.int32(-2147483648)
    t27 = t0 - t26
    t28 = np.int32(2139095040) - t27
    t29 = t0 - np.int32(1)
    t30 = t29 < np.int32(-1)
    t31 = lax.bitcast_convert_type(t28, np.float32)
    t32 = jnp.where(t30, np.float32(float("nan")), t31)
    t33 = t0 + np.int32(2147483647)
    t34 = t33 < np.int32(-8388609)
    t35 = jnp.where(t34, t25, t32)
    return t35.astype(jnp.float32)


@rsqrt_value.defjvp
def rsqrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = rsqrt_value(x)
    return y, rsqrt_slope(x, y) * dx


def rsqrt_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray(((((-0.5) * y) * y) * y), jnp.float32).astype(jnp.float32)
