"""PROVEN tanh: error <= 0.999999 ulp
error:   0.999999 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py tanh
known by: 4,294,967,296 of 2^32 inputs tried on an x86-64 processor; the worst is x = 8.664340019226074
method:  remez at 10+4
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


def tanh(x):
    return tanh_value(jnp.asarray(x, jnp.float32))


@jax.custom_jvp
def tanh_value(x):
    x = fixed(x.astype(jnp.float32))
    t0 = jnp.abs(x)
    t1 = fixed(x * x)
    t2 = fixed(x * t1)
    t3 = fixed(fixed(np.float32(0.0019554123282432556) * t1) + np.float32(-0.008003422990441322))
    t4 = fixed(fixed(t3 * t1) + np.float32(0.021653447300195694))
    t5 = fixed(fixed(t4 * t1) + np.float32(-0.053944893181324005))
    t6 = fixed(fixed(t5 * t1) + np.float32(0.13333265483379364))
    t7 = fixed(fixed(t6 * t1) + np.float32(-0.3333333432674408))
    t8 = fixed(fixed(t2 * t7) + x)
    t9 = np.float32(10.0) < t0
    t10 = jnp.where(t9, np.float32(10.0), t0)
    t11 = fixed(t10 + t10)
    t12 = fixed(fixed(t11 * np.float32(1.4426950216293335)) + np.float32(12582912.0))
    t13 = fixed(np.float32(12582912.0) - t12)
    t14 = fixed(fixed(t13 * np.float32(0.693145751953125)) + t11)
    t15 = fixed(t13 * np.float32(1.428606765330187e-06))
    t16 = fixed(t14 + t15)
    t17 = fixed(t16 * t16)
    t18 = fixed(fixed(np.float32(0.001393547747284174) * t16) + np.float32(0.008363108150660992))
    t19 = fixed(fixed(t18 * t16) + np.float32(0.041666459292173386))
    t20 = fixed(fixed(t19 * t16) + np.float32(0.16666577756404877))
    t21 = fixed(fixed(t20 * t16) + np.float32(0.5))
    t22 = fixed(fixed(t17 * t21) + t15)
    t23 = fixed(t14 + t22)
    t24 = lax.bitcast_convert_type(t12, np.int32)
    t25 = t24 << (np.int32(23) & np.int32(31))
    t26 = np.int32(1065353216) - t25
    t27 = lax.bitcast_convert_type(t26, np.float32)
    t28 = np.int32(1073741823) - t25
    t29 = lax.bitcast_convert_type(t28, np.float32)
    t30 = fixed(t27 + np.float32(1.0))
    t31 = fixed(t30 + t23)
    t32 = fixed(t31 - t29)
    t33 = fixed(t32 / t31)
    t34 = lax.bitcast_convert_type(x, np.int32)
    t35 = t34 & np.int32(-2147483648)
    t36 = lax.bitcast_convert_type(t33, np.int32)
    t37 = t36 + t35
    t38 = lax.bitcast_convert_type(t37, np.float32)
    t39 = t0 < np.float32(0.75)
    t40 = jnp.where(t39, t8, t38)
    t41 = t0 < np.float32(0.0001220703125)
    t42 = jnp.where(t41, x, t40)
    return t42.astype(jnp.float32)


@tanh_value.defjvp
def tanh_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = tanh_value(x)
    return y, tanh_slope(x, y) * dx


def tanh_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray(((1.0 - y) * (1.0 + y)), jnp.float32).astype(jnp.float32)
