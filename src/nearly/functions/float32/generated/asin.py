"""PROVEN asin: error <= 0.694299 ulp
error:   0.694299 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py asin
known by: 4,294,967,296 of 2^32 inputs tried on an x86-64 processor; the worst is x = 0.526506245136261
method:  remez at 10
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


def asin(x):
    return asin_value(jnp.asarray(x, jnp.float32))


@jax.custom_jvp
def asin_value(x):
    x = fixed(x.astype(jnp.float32))
    t0 = jnp.abs(x)
    t1 = np.float32(0.5) < t0
    t2 = fixed(np.float32(1.0) - t0)
    t3 = fixed(t2 * np.float32(2.0))
    t4 = fixed(jnp.sqrt(t3))
    t5 = jnp.where(t1, t4, t0)
    t6 = fixed(t4 * np.float32(0.5))
    t7 = jnp.where(t1, t6, t0)
    t8 = fixed(t7 * t7)
    t9 = fixed(t5 * t8)
    t10 = fixed(fixed(np.float32(0.03310408815741539) * t8) + np.float32(0.01756904646754265))
    t11 = fixed(fixed(t10 * t8) + np.float32(0.030990708619356155))
    t12 = fixed(fixed(t11 * t8) + np.float32(0.04461211338639259))
    t13 = fixed(fixed(t12 * t8) + np.float32(0.0750003382563591))
    t14 = fixed(fixed(t13 * t8) + np.float32(0.1666666716337204))
    t15 = fixed(t9 * t14)
    t16 = lax.bitcast_convert_type(t4, np.int32)
    t17 = t16 & np.int32(-4096)
    t18 = lax.bitcast_convert_type(t17, np.float32)
    t19 = fixed(t18 * t18)
    t20 = fixed(t3 - t19)
    t21 = fixed(t4 - t18)
    t22 = fixed(t4 + t18)
    t23 = fixed(t21 * t22)
    t24 = fixed(t20 - t23)
    t25 = fixed(t4 * np.float32(0.84375))
    t26 = fixed(np.float32(1.34375) - t25)
    t27 = fixed(fixed(t24 * t26) + t15)
    t28 = fixed(np.float32(-4.371138828673793e-08) - t27)
    t29 = -t4
    t30 = fixed(np.float32(1.5707963705062866) + t29)
    t31 = fixed(np.float32(1.5707963705062866) - t30)
    t32 = fixed(t31 + t29)
    t33 = fixed(t32 + t28)
    t34 = fixed(t30 + t33)
    t35 = fixed(t0 + t15)
    t36 = jnp.where(t1, t34, t35)
    t37 = lax.bitcast_convert_type(x, np.int32)
    t38 = t37 & np.int32(-2147483648)
    t39 = lax.bitcast_convert_type(t36, np.int32)
    t40 = t39 + t38
    t41 = lax.bitcast_convert_type(t40, np.float32)
    t42 = t0 < np.float32(0.0001220703125)
    t43 = jnp.where(t42, x, t41)
    return t43.astype(jnp.float32)


@asin_value.defjvp
def asin_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = asin_value(x)
    return y, asin_slope(x, y) * dx


def asin_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray(lax.rsqrt(((1.0 - x) * (1.0 + x))), jnp.float32).astype(jnp.float32)
