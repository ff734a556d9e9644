"""PROVEN acos: error <= 0.962125 ulp
error:   0.962125 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py acos
known by: 4,294,967,296 of 2^32 inputs tried on an x86-64 processor; the worst is x = 0.9997180700302124
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


def acos(x):
    return acos_value(jnp.asarray(x, jnp.float32))


@jax.custom_jvp
def acos_value(x):
    x = fixed(x.astype(jnp.float32))
    t0 = jnp.abs(x)
    t1 = np.float32(0.5) < t0
    t2 = x < np.float32(0.0)
    t3 = fixed(np.float32(1.0) - t0)
    t4 = fixed(t3 * np.float32(2.0))
    t5 = fixed(jnp.sqrt(t4))
    t6 = lax.bitcast_convert_type(x, np.int32)
    t7 = t6 & np.int32(-2147483648)
    t8 = lax.bitcast_convert_type(t5, np.int32)
    t9 = t8 + t7
    t10 = lax.bitcast_convert_type(t9, np.float32)
    t11 = -x
    t12 = jnp.where(t1, t10, t11)
    t13 = fixed(t10 * np.float32(0.5))
    t14 = jnp.where(t1, t13, t11)
    t15 = fixed(t14 * t14)
    t16 = fixed(t12 * t15)
    t17 = fixed(fixed(np.float32(0.03310408815741539) * t15) + np.float32(0.01756904646754265))
    t18 = fixed(fixed(t17 * t15) + np.float32(0.030990708619356155))
    t19 = fixed(fixed(t18 * t15) + np.float32(0.04461211338639259))
    t20 = fixed(fixed(t19 * t15) + np.float32(0.0750003382563591))
    t21 = fixed(fixed(t20 * t15) + np.float32(0.1666666716337204))
    t22 = fixed(t16 * t21)
    t23 = jnp.where(t2, np.float32(-1.34375), np.float32(1.34375))
    t24 = lax.bitcast_convert_type(t10, np.int32)
    t25 = t24 & np.int32(-4096)
    t26 = lax.bitcast_convert_type(t25, np.float32)
    t27 = fixed(t26 * t26)
    t28 = fixed(t4 - t27)
    t29 = fixed(t10 - t26)
    t30 = fixed(t10 + t26)
    t31 = fixed(t29 * t30)
    t32 = fixed(t28 - t31)
    t33 = fixed(t10 * np.float32(0.84375))
    t34 = fixed(t23 - t33)
    t35 = fixed(fixed(t32 * t34) + t22)
    t36 = jnp.where(t1, t35, t22)
    t37 = jnp.where(t2, np.float32(3.1415927410125732), np.float32(0.0))
    t38 = jnp.where(t1, t37, np.float32(1.5707963705062866))
    t39 = jnp.where(t2, np.float32(-8.742277657347586e-08), np.float32(0.0))
    t40 = jnp.where(t1, t39, np.float32(-4.371138828673793e-08))
    t41 = fixed(t36 + t40)
    t42 = fixed(t38 + t12)
    t43 = fixed(t38 - t42)
    t44 = fixed(t43 + t12)
    t45 = fixed(t44 + t41)
    t46 = fixed(t42 + t45)
    return t46.astype(jnp.float32)


@acos_value.defjvp
def acos_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = acos_value(x)
    return y, acos_slope(x, y) * dx


def acos_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray((-lax.rsqrt(((1.0 - x) * (1.0 + x)))), jnp.float32).astype(jnp.float32)
