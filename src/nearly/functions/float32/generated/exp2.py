"""PROVEN exp2: error <= 0.846368 ulp
error:   0.846368 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py exp2
known by: 4,294,967,296 of 2^32 inputs tried on an x86-64 processor; the worst is x = -0.4997723698616028
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


def exp2(x):
    return exp2_value(jnp.asarray(x, jnp.float32))


@jax.custom_jvp
def exp2_value(x):
    x = fixed(x.astype(jnp.float32))
    t0 = x < np.float32(-151.0)
    t1 = jnp.where(t0, np.float32(-151.0), x)
    t2 = fixed(t1 + np.float32(12582912.0))
    t3 = fixed(np.float32(12582912.0) - t2)
    t4 = fixed(t1 + t3)
    t5 = fixed(fixed(np.float32(0.00015453045489266515) * t4) + np.float32(0.0013387900544330478))
    t6 = fixed(fixed(t5 * t4) + np.float32(0.009618084877729416))
    t7 = fixed(fixed(t6 * t4) + np.float32(0.055503662675619125))
    t8 = fixed(fixed(t7 * t4) + np.float32(0.24022650718688965))
    t9 = fixed(fixed(t8 * t4) + np.float32(0.1931471824645996))
    t10 = fixed(t4 * np.float32(0.5))
    t11 = fixed(fixed(t4 * t9) + t10)
    t12 = fixed(np.float32(1.0) + t11)
    t13 = lax.bitcast_convert_type(t12, np.int32)
    t14 = lax.bitcast_convert_type(t2, np.int32)
    t15 = t14 << (np.int32(23) & np.int32(31))
    t16 = t13 + t15
    t17 = fixed(x * np.float32(1.7014118346046923e+38))
    t18 = x < np.float32(128.0)
    t19 = lax.bitcast_convert_type(t17, np.int32)
    t20 = jnp.where(t18, t16, t19)
    t21 = x < np.float32(-126.0)
    t22 = t20 + np.int32(1249902592)
    t23 = lax.bitcast_convert_type(t22, np.float32)
    t24 = fixed(t23 + np.float32(8388608.0))
    t25 = lax.bitcast_convert_type(t24, np.int32)
    t26 = t25 - np.int32(1258291200)
    t27 = jnp.where(t21, t26, t20)
    t28 = lax.bitcast_convert_type(t27, np.float32)
    return t28.astype(jnp.float32)


@exp2_value.defjvp
def exp2_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = exp2_value(x)
    return y, exp2_slope(x, y) * dx


def exp2_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray((y * jnp.log(2.0)), jnp.float32).astype(jnp.float32)
