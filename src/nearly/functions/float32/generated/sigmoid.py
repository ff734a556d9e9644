"""PROVEN sigmoid: error <= 0.923615 ulp
error:   0.923615 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py sigmoid
known by: every one of 4,294,967,296 inputs tried on an x86-64 processor; the worst is x = -17.701696395874023
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


def sigmoid(x):
    return sigmoid_value(jnp.asarray(x, jnp.float32))


@jax.custom_jvp
def sigmoid_value(x):
    x = fixed(x.astype(jnp.float32))
    t0 = jnp.abs(x)
    t1 = np.float32(105.0) < t0
    t2 = jnp.where(t1, np.float32(105.0), t0)
    t3 = fixed(fixed(t2 * np.float32(1.4426950216293335)) + np.float32(12582912.0))
    t4 = fixed(np.float32(12582912.0) - t3)
    t5 = fixed(fixed(t4 * np.float32(0.693145751953125)) + t2)
    t6 = fixed(t4 * np.float32(1.428606765330187e-06))
    t7 = fixed(t5 + t6)
    t8 = lax.bitcast_convert_type(t3, np.int32)
    t9 = t8 << (np.int32(23) & np.int32(31))
    t10 = np.int32(1065353216) - t9
    t11 = t10 < np.int32(0)
    t12 = jnp.where(t11, np.int32(0), t10)
    t13 = lax.bitcast_convert_type(t12, np.float32)
    t14 = fixed(fixed(np.float32(0.0013932771980762482) * t7) + np.float32(0.008369197137653828))
    t15 = fixed(fixed(t14 * t7) + np.float32(0.041666485369205475))
    t16 = fixed(fixed(t15 * t7) + np.float32(0.16666504740715027))
    t17 = fixed(fixed(t16 * t7) + np.float32(0.5))
    t18 = fixed(fixed(t17 * t7) + np.float32(1.0877333700420877e-08))
    t19 = fixed(fixed(t7 * t18) + t6)
    t20 = fixed(np.float32(1.0) + t13)
    t21 = fixed(t5 + t19)
    t22 = fixed(t20 + t21)
    t23 = lax.bitcast_convert_type(t22, np.int32)
    t24 = t23 & np.int32(-4096)
    t25 = lax.bitcast_convert_type(t24, np.float32)
    t26 = fixed(np.float32(1.0) - t25)
    t27 = fixed(t26 + t13)
    t28 = fixed(t27 + t5)
    t29 = fixed(t28 + t19)
    t30 = fixed(np.float32(1.0) / t25)
    t31 = lax.bitcast_convert_type(t30, np.int32)
    t32 = t31 & np.int32(-4096)
    t33 = lax.bitcast_convert_type(t32, np.float32)
    t34 = fixed(t33 * t25)
    t35 = fixed(np.float32(1.0) - t34)
    t36 = fixed(t33 * t29)
    t37 = fixed(t35 - t36)
    t38 = fixed(fixed(t37 * t37) + t37)
    t39 = fixed(fixed(t33 * t38) + t33)
    t40 = lax.bitcast_convert_type(t39, np.int32)
    t41 = t40 - t9
    t42 = t41 + np.int32(1249902592)
    t43 = lax.bitcast_convert_type(t42, np.float32)
    t44 = fixed(t43 + np.float32(8388608.0))
    t45 = lax.bitcast_convert_type(t44, np.int32)
    t46 = t45 - np.int32(1258291200)
    t47 = t41 < np.int32(8388608)
    t48 = jnp.where(t47, t46, t41)
    t49 = fixed(t39 * t13)
    t50 = fixed(np.float32(1.0) - t49)
    t51 = x < np.float32(0.0)
    t52 = lax.bitcast_convert_type(t48, np.float32)
    t53 = jnp.where(t51, t52, t50)
    return t53.astype(jnp.float32)


@sigmoid_value.defjvp
def sigmoid_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = sigmoid_value(x)
    return y, sigmoid_slope(x, y) * dx


def sigmoid_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray((y * (1.0 - y)), jnp.float32).astype(jnp.float32)
