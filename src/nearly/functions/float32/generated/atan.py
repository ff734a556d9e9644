"""PROVEN atan: error <= 0.807746 ulp
error:   0.807746 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py atan
known by: 4,294,967,296 of 2^32 inputs tried on an x86-64 processor; the worst is x = 0.4997715353965759
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


def atan(x):
    return atan_value(jnp.asarray(x, jnp.float32))


@jax.custom_jvp
def atan_value(x):
    x = fixed(x.astype(jnp.float32))
    t0 = jnp.abs(x)
    t1 = np.float32(281474976710656.0) < t0
    t2 = jnp.where(t1, np.float32(281474976710656.0), t0)
    t3 = t2 < np.float32(0.5)
    t4 = np.float32(2.0) < t2
    t5 = fixed(t2 + np.float32(1.0))
    t6 = fixed(t2 - np.float32(1.0))
    t7 = jnp.where(t4, np.float32(-1.0), t6)
    t8 = jnp.where(t3, t2, t7)
    t9 = jnp.where(t4, t2, t5)
    t10 = jnp.where(t3, np.float32(1.0), t9)
    t11 = fixed(t5 - np.float32(1.0))
    t12 = fixed(t2 - t11)
    t13 = jnp.where(t4, np.float32(0.0), t12)
    t14 = jnp.where(t3, np.float32(0.0), t13)
    t15 = fixed(np.float32(1.0) / t10)
    t16 = fixed(t8 * t15)
    t17 = lax.bitcast_convert_type(t16, np.int32)
    t18 = t17 & np.int32(-4096)
    t19 = lax.bitcast_convert_type(t18, np.float32)
    t20 = lax.bitcast_convert_type(t10, np.int32)
    t21 = t20 & np.int32(-4096)
    t22 = lax.bitcast_convert_type(t21, np.float32)
    t23 = fixed(t10 - t22)
    t24 = fixed(t23 + t14)
    t25 = fixed(t19 * t22)
    t26 = fixed(t8 - t25)
    t27 = fixed(t19 * t24)
    t28 = fixed(t26 - t27)
    t29 = jnp.where(t4, np.float32(1.5707963705062866), np.float32(0.7853981852531433))
    t30 = jnp.where(t3, np.float32(0.0), t29)
    t31 = jnp.where(t4, np.float32(-4.371138828673793e-08), np.float32(-2.1855694143368964e-08))
    t32 = jnp.where(t3, np.float32(0.0), t31)
    t33 = fixed(t16 * t16)
    t34 = fixed(fixed(np.float32(-0.0509013794362545) * t33) + np.float32(0.10130523145198822))
    t35 = fixed(fixed(t34 * t33) + np.float32(-0.14167554676532745))
    t36 = fixed(fixed(t35 * t33) + np.float32(0.19993402063846588))
    t37 = fixed(fixed(t36 * t33) + np.float32(-0.33333197236061096))
    t38 = fixed(fixed(t37 * t33) + np.float32(-4.553447841004754e-09))
    t39 = fixed(fixed(t28 * t15) + t32)
    t40 = fixed(fixed(t16 * t38) + t39)
    t41 = fixed(t30 + t19)
    t42 = fixed(t30 - t41)
    t43 = fixed(t42 + t19)
    t44 = fixed(t43 + t40)
    t45 = fixed(t41 + t44)
    t46 = lax.bitcast_convert_type(x, np.int32)
    t47 = t46 & np.int32(-2147483648)
    t48 = lax.bitcast_convert_type(t45, np.int32)
    t49 = t48 + t47
    t50 = lax.bitcast_convert_type(t49, np.float32)
    t51 = t0 < np.float32(0.0001220703125)
    t52 = jnp.where(t51, x, t50)
    return t52.astype(jnp.float32)


@atan_value.defjvp
def atan_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = atan_value(x)
    return y, atan_slope(x, y) * dx


def atan_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray((1.0 / (1.0 + (x * x))), jnp.float32).astype(jnp.float32)
