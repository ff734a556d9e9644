"""PROVEN exp: error <= 0.931183 ulp
error:   0.931183 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py exp
known by: every one of 4,294,967,296 inputs tried on an x86-64 processor; the worst is x = 27.41403579711914
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
    t7 = fixed(fixed(np.float32(0.0013932771980762482) * t6) + np.float32(0.008369197137653828))
    t8 = fixed(fixed(t7 * t6) + np.float32(0.041666485369205475))
    t9 = fixed(fixed(t8 * t6) + np.float32(0.16666504740715027))
    t10 = fixed(fixed(t9 * t6) + np.float32(0.5))
    t11 = fixed(fixed(t10 * t6) + np.float32(1.0877333700420877e-08))
    t12 = fixed(fixed(t6 * t11) + t5)
    t13 = fixed(t4 + t12)
    t14 = fixed(np.float32(1.0) + t13)
    t15 = lax.bitcast_convert_type(t14, np.int32)
    t16 = lax.bitcast_convert_type(t2, np.int32)
    t17 = t16 << (np.int32(23) & np.int32(31))
    t18 = t15 + t17
    t19 = t18 < np.int32(8388608)
    t20 = t18 + np.int32(1249902592)
    t21 = lax.bitcast_convert_type(t20, np.float32)
    t22 = fixed(t21 + np.float32(8388608.0))
    t23 = lax.bitcast_convert_type(t22, np.int32)
    t24 = t23 - np.int32(1258291200)
    t25 = jnp.where(t19, t24, t18)
    t26 = lax.bitcast_convert_type(t25, np.float32)
    t27 = x < np.float32(88.72283935546875)
    t28 = fixed(x * np.float32(1.7014118346046923e+38))
    t29 = jnp.where(t27, t26, t28)
    return t29.astype(jnp.float32)


@exp_value.defjvp
def exp_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = exp_value(x)
    return y, exp_slope(x, y) * dx


def exp_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray(y, jnp.float32).astype(jnp.float32)
