"""PROVEN log1p: error <= 0.916551 ulp
error:   0.916551 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py log1p
known by: 4,294,967,296 of 2^32 inputs tried on an x86-64 processor; the worst is x = 0.47770270705223083
method:  remez-estrin at 9
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


def log1p(x):
    return log1p_value(jnp.asarray(x, jnp.float32))


@jax.custom_jvp
def log1p_value(x):
    x = fixed(x.astype(jnp.float32))
    t0 = lax.bitcast_convert_type(x, np.int32)
    t1 = t0 >> (np.int32(31) & np.int32(31))
    t2 = t1 + np.int32(1061158913)
    t3 = fixed(x + np.float32(1.0))
    t4 = lax.bitcast_convert_type(t3, np.int32)
    t5 = t4 - t2
    t6 = t5 >> (np.int32(23) & np.int32(31))
    t7 = t6 << (np.int32(23) & np.int32(31))
    t8 = np.int32(1082130432) - t7
    t9 = lax.bitcast_convert_type(t8, np.float32)
    t10 = fixed(x * np.float32(0.25))
    t11 = fixed(fixed(t9 * np.float32(0.25)) + np.float32(-1.0))
    t12 = fixed(fixed(t10 * t9) + t11)
    t13 = lax.convert_element_type(t6, np.float32)
    t14 = fixed(t13 * np.float32(0.693145751953125))
    t15 = fixed(t14 + t12)
    t16 = fixed(t14 - t15)
    t17 = fixed(t16 + t12)
    t18 = fixed(fixed(t13 * np.float32(1.428606765330187e-06)) + t17)
    t19 = fixed(fixed(np.float32(6.329130108895242e-09) * t12) + np.float32(-4.063954062161201e-09))
    t20 = fixed(fixed(np.float32(-0.2500026524066925) * t12) + np.float32(0.3333349823951721))
    t21 = fixed(fixed(np.float32(-0.166408970952034) * t12) + np.float32(0.19989651441574097))
    t22 = fixed(fixed(np.float32(-0.13219402730464935) * t12) + np.float32(0.14479675889015198))
    t23 = fixed(fixed(np.float32(-0.045843541622161865) * t12) + np.float32(0.10583086311817169))
    t24 = fixed(t12 * t12)
    t25 = fixed(fixed(t20 * t24) + t19)
    t26 = fixed(fixed(t22 * t24) + t21)
    t27 = fixed(t24 * t24)
    t28 = fixed(fixed(t26 * t27) + t25)
    t29 = fixed(t27 * t27)
    t30 = fixed(fixed(t23 * t29) + t28)
    t31 = fixed(fixed(t12 * t30) + t18)
    t32 = fixed(t12 * np.float32(-0.5))
    t33 = fixed(fixed(t32 * t12) + t31)
    t34 = fixed(t15 + t33)
    t35 = t0 & np.int32(-2147483648)
    t36 = t0 - t35
    t37 = t36 + np.int32(1291845632)
    t38 = t37 < np.int32(-864026624)
    t39 = jnp.where(t38, t34, x)
    t40 = x == np.float32(-1.0)
    t41 = jnp.where(t40, np.float32(float("-inf")), np.float32(float("nan")))
    t42 = x <= np.float32(-1.0)
    t43 = jnp.where(t42, t41, t39)
    return t43.astype(jnp.float32)


@log1p_value.defjvp
def log1p_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = log1p_value(x)
    return y, log1p_slope(x, y) * dx


def log1p_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray((1.0 / (1.0 + x)), jnp.float32).astype(jnp.float32)
