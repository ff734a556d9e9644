"""PROVEN expm1: error <= 0.944863 ulp
error:   0.944863 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py expm1
known by: 4,294,967,296 of 2^32 inputs tried on an x86-64 processor; the worst is x = 0.4035520553588867
method:  remez at 5
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


def expm1(x):
    return expm1_value(jnp.asarray(x, jnp.float32))


@jax.custom_jvp
def expm1_value(x):
    x = fixed(x.astype(jnp.float32))
    t0 = x < np.float32(-18.0)
    t1 = jnp.where(t0, np.float32(-18.0), x)
    t2 = fixed(fixed(t1 * np.float32(1.4426950216293335)) + np.float32(-0.0849609375))
    t3 = fixed(t2 + np.float32(12582912.0))
    t4 = fixed(np.float32(12582912.0) - t3)
    t5 = fixed(fixed(t4 * np.float32(0.693145751953125)) + t1)
    t6 = fixed(t4 * np.float32(1.428606765330187e-06))
    t7 = fixed(t5 + t6)
    t8 = fixed(t7 * t7)
    t9 = fixed(fixed(np.float32(0.00020833927555941045) * t7) + np.float32(0.001391809550113976))
    t10 = fixed(fixed(t9 * t7) + np.float32(0.008332313038408756))
    t11 = fixed(fixed(t10 * t7) + np.float32(0.041666582226753235))
    t12 = fixed(fixed(t11 * t7) + np.float32(0.1666666865348816))
    t13 = fixed(fixed(t12 * t7) + np.float32(0.5))
    t14 = fixed(fixed(t8 * t13) + t6)
    t15 = lax.bitcast_convert_type(t3, np.int32)
    t16 = t15 << (np.int32(23) & np.int32(31))
    t17 = np.int32(1056964608) + t16
    t18 = lax.bitcast_convert_type(t17, np.float32)
    t19 = fixed(t18 - np.float32(0.5))
    t20 = fixed(t18 * t5)
    t21 = fixed(t19 + t20)
    t22 = fixed(t18 - t19)
    t23 = fixed(t22 - np.float32(0.5))
    t24 = fixed(t19 - t21)
    t25 = fixed(t24 + t20)
    t26 = fixed(t25 + t23)
    t27 = fixed(fixed(t18 * t14) + t26)
    t28 = fixed(t21 + t27)
    t29 = fixed(t28 * np.float32(2.0))
    t30 = x < np.float32(88.72283935546875)
    t31 = fixed(x * np.float32(1.7014118346046923e+38))
    t32 = jnp.abs(x)
    t33 = t32 < np.float32(2.9802322387695312e-08)
    t34 = jnp.where(t30, t29, t31)
    t35 = jnp.where(t33, x, t34)
    return t35.astype(jnp.float32)


@expm1_value.defjvp
def expm1_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = expm1_value(x)
    return y, expm1_slope(x, y) * dx


def expm1_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray(jnp.exp(x), jnp.float32).astype(jnp.float32)
