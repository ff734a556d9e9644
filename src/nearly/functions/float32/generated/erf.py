"""PROVEN erf: error <= 0.937794 ulp
error:   0.937794 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py erf
known by: 4,294,967,296 of 2^32 inputs tried on an x86-64 processor; the worst is x = 0.9589135646820068
method:  remez at 6+12
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


def erf(x):
    return erf_value(jnp.asarray(x, jnp.float32))


@jax.custom_jvp
def erf_value(x):
    x = fixed(x.astype(jnp.float32))
    t0 = jnp.abs(x)
    t1 = np.float32(4.0) < t0
    t2 = jnp.where(t1, np.float32(4.0), t0)
    t3 = fixed(t2 - np.float32(1.0))
    t4 = fixed(fixed(np.float32(-8.8499069761383e-07) * t3) + np.float32(2.008743103942834e-05))
    t5 = fixed(fixed(t4 * t3) + np.float32(-0.0001885357778519392))
    t6 = fixed(fixed(t5 * t3) + np.float32(0.0009195528691634536))
    t7 = fixed(fixed(t6 * t3) + np.float32(-0.002235970227047801))
    t8 = fixed(fixed(t7 * t3) + np.float32(0.0010766326449811459))
    t9 = fixed(fixed(t8 * t3) + np.float32(0.006072838790714741))
    t10 = fixed(fixed(t9 * t3) + np.float32(-0.0015167201636359096))
    t11 = fixed(fixed(t10 * t3) + np.float32(-0.04768741503357887))
    t12 = fixed(fixed(t11 * t3) + np.float32(0.06058982387185097))
    t13 = fixed(fixed(t12 * t3) + np.float32(0.17805440723896027))
    t14 = fixed(fixed(t13 * t3) + np.float32(-0.5233194828033447))
    t15 = fixed(fixed(t14 * t3) + np.float32(0.3966096341609955))
    t16 = fixed(t15 * t15)
    t17 = fixed(np.float32(1.0) - t16)
    t18 = fixed(t0 * t0)
    t19 = fixed(t18 - np.float32(0.5))
    t20 = fixed(fixed(np.float32(7.973012543516234e-05) * t19) + np.float32(-0.0005656775319948792))
    t21 = fixed(fixed(t20 * t19) + np.float32(0.003479844657704234))
    t22 = fixed(fixed(t21 * t19) + np.float32(-0.01828327588737011))
    t23 = fixed(fixed(t22 * t19) + np.float32(0.07941002398729324))
    t24 = fixed(fixed(t23 * t19) + np.float32(-0.281072199344635))
    t25 = fixed(fixed(t24 * t19) + np.float32(-0.03453126177191734))
    t26 = lax.bitcast_convert_type(t0, np.int32)
    t27 = lax.convert_element_type(t26, np.float32)
    t28 = fixed(fixed(t27 * np.float32(2.350988701644575e-38)) + opaque(np.float32(0.0), x))
    t29 = t26 < np.int32(8388608)
    t30 = fixed(t0 * np.float32(16777216.0))
    t31 = jnp.where(t29, t28, t30)
    t32 = fixed(fixed(t31 * t25) + t31)
    t33 = fixed(t32 * np.float32(5.960464477539063e-08))
    t34 = lax.bitcast_convert_type(t33, np.int32)
    t35 = fixed(fixed(t32 * np.float32(4.253529586511731e+37)) + np.float32(8388608.0))
    t36 = t26 < np.int32(7434211)
    t37 = lax.bitcast_convert_type(t35, np.int32)
    t38 = t37 - np.int32(1258291200)
    t39 = jnp.where(t36, t38, t34)
    t40 = t0 < np.float32(1.0)
    t41 = lax.bitcast_convert_type(t17, np.int32)
    t42 = jnp.where(t40, t39, t41)
    t43 = lax.bitcast_convert_type(x, np.int32)
    t44 = t43 & np.int32(-2147483648)
    t45 = t42 + t44
    t46 = lax.bitcast_convert_type(t45, np.float32)
    return t46.astype(jnp.float32)


@erf_value.defjvp
def erf_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = erf_value(x)
    return y, erf_slope(x, y) * dx


def erf_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray(((2.0 / jnp.sqrt(np.pi)) * jnp.exp(((-x) * x))), jnp.float32).astype(jnp.float32)
