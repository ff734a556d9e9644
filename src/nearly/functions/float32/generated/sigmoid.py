"""PROVEN sigmoid: error <= 0.902821 ulp
error:   0.902821 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py sigmoid
known by: 4,294,967,296 of 2^32 inputs tried on an x86-64 processor; the worst is x = -17.720434188842773
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


def sigmoid(x):
    return sigmoid_value(jnp.asarray(x, jnp.float32))


@jax.custom_jvp
def sigmoid_value(x):
    x = fixed(x.astype(jnp.float32))
    t0 = np.float32(18.0) < x
    t1 = jnp.where(t0, np.float32(18.0), x)
    t2 = t1 < np.float32(-105.0)
    t3 = jnp.where(t2, np.float32(-105.0), t1)
    t4 = fixed(fixed(t3 * np.float32(1.4426950216293335)) + np.float32(12582912.0))
    t5 = fixed(np.float32(12582912.0) - t4)
    t6 = fixed(fixed(t5 * np.float32(0.693145751953125)) + t3)
    t7 = fixed(t5 * np.float32(1.428606765330187e-06))
    t8 = fixed(t6 + t7)
    t9 = lax.bitcast_convert_type(t4, np.int32)
    t10 = t9 << (np.int32(23) & np.int32(31))
    t11 = np.int32(1065353216) + t10
    t12 = t11 < np.int32(0)
    t13 = jnp.where(t12, np.int32(0), t11)
    t14 = lax.bitcast_convert_type(t13, np.float32)
    t15 = fixed(t8 * t8)
    t16 = fixed(fixed(np.float32(0.001393547747284174) * t8) + np.float32(-0.008363108150660992))
    t17 = fixed(fixed(t16 * t8) + np.float32(0.041666459292173386))
    t18 = fixed(fixed(t17 * t8) + np.float32(-0.16666577756404877))
    t19 = fixed(fixed(t18 * t8) + np.float32(0.5))
    t20 = -t7
    t21 = fixed(fixed(t15 * t19) + t20)
    t22 = -t6
    t23 = fixed(fixed(t15 * np.float32(0.5)) + t22)
    t24 = fixed(np.float32(1.0) + t14)
    t25 = fixed(t24 + t23)
    t26 = lax.bitcast_convert_type(t25, np.int32)
    t27 = t26 & np.int32(-4096)
    t28 = lax.bitcast_convert_type(t27, np.float32)
    t29 = fixed(np.float32(1.0) / t28)
    t30 = lax.bitcast_convert_type(t29, np.int32)
    t31 = t30 & np.int32(-4096)
    t32 = lax.bitcast_convert_type(t31, np.float32)
    t33 = fixed(np.float32(1.0) - t28)
    t34 = fixed(t33 + t14)
    t35 = fixed(t34 - t6)
    t36 = fixed(t35 + t21)
    t37 = fixed(t32 * t28)
    t38 = fixed(np.float32(1.0) - t37)
    t39 = fixed(t32 * t36)
    t40 = fixed(t38 - t39)
    t41 = fixed(np.float32(1.0) + t40)
    t42 = fixed(t40 * t40)
    t43 = fixed(fixed(t42 * t41) + t40)
    t44 = fixed(fixed(t32 * t43) + t32)
    t45 = fixed(t44 * t14)
    t46 = np.int32(-1979711488) + t10
    t47 = lax.bitcast_convert_type(t46, np.float32)
    t48 = fixed(fixed(t44 * t47) + np.float32(8388608.0))
    t49 = lax.bitcast_convert_type(t48, np.int32)
    t50 = t49 - np.int32(1258291200)
    t51 = x < np.float32(-87.33654022216797)
    t52 = lax.bitcast_convert_type(t45, np.int32)
    t53 = jnp.where(t51, t50, t52)
    t54 = lax.bitcast_convert_type(t53, np.float32)
    return t54.astype(jnp.float32)


@sigmoid_value.defjvp
def sigmoid_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = sigmoid_value(x)
    return y, sigmoid_slope(x, y) * dx


def sigmoid_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray((y * (1.0 - y)), jnp.float32).astype(jnp.float32)
