"""PROVEN exp: error <= 0.893046 ulp
error:   0.893046 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py exp
known by: 4,294,967,296 of 2^32 inputs tried on an x86-64 processor; the worst is x = 15.622396469116211
method:  remez-estrin at 5
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


def exp(x):
    return exp_value(jnp.asarray(x, jnp.float32))


@jax.custom_jvp
def exp_value(x):
    x = fixed(x.astype(jnp.float32))
    t0 = x < np.float32(-104.66522216796875)
    t1 = jnp.where(t0, np.float32(-104.66522216796875), x)
    t2 = fixed(fixed(t1 * np.float32(1.4426950216293335)) + np.float32(12582912.0))
    t3 = fixed(np.float32(12582912.0) - t2)
    t4 = fixed(fixed(t3 * np.float32(0.693145751953125)) + t1)
    t5 = fixed(t3 * np.float32(1.428606765330187e-06))
    t6 = fixed(t4 + t5)
    t7 = fixed(t6 * t6)
    t8 = fixed(fixed(np.float32(0.1666666716337204) * t6) + np.float32(0.5))
    t9 = fixed(fixed(np.float32(0.008333171717822552) * t6) + np.float32(0.04166651517152786))
    t10 = fixed(fixed(np.float32(0.00019977267947979271) * t6) + np.float32(0.0013930173590779305))
    t11 = fixed(fixed(t9 * t7) + t8)
    t12 = fixed(t7 * t7)
    t13 = fixed(fixed(t10 * t12) + t11)
    t14 = fixed(fixed(t7 * t13) + t5)
    t15 = fixed(t4 + t14)
    t16 = fixed(np.float32(1.0) + t15)
    t17 = lax.bitcast_convert_type(t16, np.int32)
    t18 = lax.bitcast_convert_type(t2, np.int32)
    t19 = t18 << (np.int32(23) & np.int32(31))
    t20 = t17 + t19
    t21 = fixed(x * np.float32(1.7014118346046923e+38))
    t22 = x < np.float32(88.72283935546875)
    t23 = lax.bitcast_convert_type(t21, np.int32)
    t24 = jnp.where(t22, t20, t23)
    t25 = x < np.float32(-87.33654022216797)
    t26 = t24 + np.int32(1249902592)
    t27 = lax.bitcast_convert_type(t26, np.float32)
    t28 = fixed(t27 + np.float32(8388608.0))
    t29 = lax.bitcast_convert_type(t28, np.int32)
    t30 = t29 - np.int32(1258291200)
    t31 = jnp.where(t25, t30, t24)
    t32 = lax.bitcast_convert_type(t31, np.float32)
    return t32.astype(jnp.float32)


@exp_value.defjvp
def exp_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = exp_value(x)
    return y, exp_slope(x, y) * dx


def exp_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray(y, jnp.float32).astype(jnp.float32)
