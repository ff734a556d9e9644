"""PROVEN erfc: error <= 0.94388 ulp
error:   0.94388 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py erfc
known by: 4,294,967,296 of 2^32 inputs tried on an x86-64 processor; the worst is x = 5.253714084625244
method:  remez at 11+12+4
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


def erfc(x):
    return erfc_value(jnp.asarray(x, jnp.float32))


@jax.custom_jvp
def erfc_value(x):
    x = fixed(x.astype(jnp.float32))
    t0 = jnp.abs(x)
    t1 = np.float32(10.125) < t0
    t2 = jnp.where(t1, np.float32(10.125), t0)
    t3 = t2 < np.float32(3.0)
    t4 = fixed(t2 + np.float32(98304.0))
    t5 = fixed(t4 - np.float32(98304.0))
    t6 = jnp.where(t3, np.float32(0.875), np.float32(1.0))
    t7 = jnp.where(t3, np.float32(0.953125), np.float32(0.171875))
    t8 = fixed(fixed(t5 * t6) + t7)
    t9 = jnp.where(t3, np.float32(0.0), np.float32(1.25))
    t10 = fixed(fixed(t5 * t8) + t9)
    t11 = fixed(t2 - np.float32(1.25))
    t12 = fixed(fixed(np.float32(-1.464887162683226e-07) * t11) + np.float32(1.314973474109138e-06))
    t13 = fixed(fixed(t12 * t11) + np.float32(-5.325449819792993e-06))
    t14 = fixed(fixed(t13 * t11) + np.float32(1.1164829629706219e-05))
    t15 = fixed(fixed(t14 * t11) + np.float32(1.0112378731719218e-05))
    t16 = fixed(fixed(t15 * t11) + np.float32(-0.00024711605510674417))
    t17 = fixed(fixed(t16 * t11) + np.float32(0.0016069752164185047))
    t18 = fixed(fixed(t17 * t11) + np.float32(-0.007791817653924227))
    t19 = fixed(fixed(t18 * t11) + np.float32(0.0326869860291481))
    t20 = fixed(fixed(t19 * t11) + np.float32(-0.004189859144389629))
    t21 = fixed(fixed(t20 * t11) + np.float32(-0.07290105521678925))
    t22 = fixed(fixed(t21 * t11) + np.float32(0.004059912636876106))
    t23 = fixed(t2 - np.float32(5.875))
    t24 = fixed(fixed(np.float32(-3.763397146000491e-12) * t23) + np.float32(6.674085589741807e-11))
    t25 = fixed(fixed(t24 * t23) + np.float32(-5.752242016043851e-10))
    t26 = fixed(fixed(t25 * t23) + np.float32(4.190769509193615e-09))
    t27 = fixed(fixed(t26 * t23) + np.float32(-3.408946724903217e-08))
    t28 = fixed(fixed(t27 * t23) + np.float32(2.867222974600736e-07))
    t29 = fixed(fixed(t28 * t23) + np.float32(-2.3578249965794384e-06))
    t30 = fixed(fixed(t29 * t23) + np.float32(1.9338342099217698e-05))
    t31 = fixed(fixed(t30 * t23) + np.float32(-0.00016133105964399874))
    t32 = fixed(fixed(t31 * t23) + np.float32(0.001401305664330721))
    t33 = fixed(fixed(t32 * t23) + np.float32(-0.013359656557440758))
    t34 = fixed(fixed(t33 * t23) + np.float32(-0.006270251702517271))
    t35 = fixed(fixed(t34 * t23) + np.float32(0.09730099886655807))
    t36 = jnp.where(t3, t22, t35)
    t37 = fixed(t2 - t5)
    t38 = fixed(fixed(t2 * t6) + t8)
    t39 = fixed(fixed(t37 * t38) + t36)
    t40 = fixed(t10 + t39)
    t41 = fixed(fixed(t40 * np.float32(1.4426950216293335)) + np.float32(12582912.0))
    t42 = fixed(t41 - np.float32(12582912.0))
    t43 = fixed(fixed(t42 * np.float32(-0.693145751953125)) + t10)
    t44 = fixed(fixed(t42 * np.float32(-1.428606765330187e-06)) + t39)
    t45 = fixed(t43 + t44)
    t46 = fixed(t45 * t45)
    t47 = fixed(fixed(np.float32(0.0013938527554273605) * t45) + np.float32(-0.008363138884305954))
    t48 = fixed(fixed(t47 * t45) + np.float32(0.041666429489851))
    t49 = fixed(fixed(t48 * t45) + np.float32(-0.16666577756404877))
    t50 = fixed(fixed(t49 * t45) + np.float32(0.5))
    t51 = fixed(t46 * t50)
    t52 = fixed(t44 - t51)
    t53 = fixed(np.float32(1.0) - t43)
    t54 = fixed(t53 - t52)
    t55 = lax.bitcast_convert_type(t54, np.int32)
    t56 = lax.bitcast_convert_type(t41, np.int32)
    t57 = t56 << (np.int32(23) & np.int32(31))
    t58 = t55 - t57
    t59 = t58 < np.int32(8388608)
    t60 = t58 + np.int32(1249902592)
    t61 = lax.bitcast_convert_type(t60, np.float32)
    t62 = fixed(t61 + np.float32(8388608.0))
    t63 = lax.bitcast_convert_type(t62, np.int32)
    t64 = t63 - np.int32(1258291200)
    t65 = jnp.where(t59, t64, t58)
    t66 = lax.bitcast_convert_type(t65, np.float32)
    t67 = x < np.float32(0.0)
    t68 = fixed(np.float32(2.0) - t66)
    t69 = jnp.where(t67, t68, t66)
    t70 = x == x
    t71 = jnp.where(t70, t69, x)
    return t71.astype(jnp.float32)


@erfc_value.defjvp
def erfc_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = erfc_value(x)
    return y, erfc_slope(x, y) * dx


def erfc_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray((((-2.0) / jnp.sqrt(np.pi)) * jnp.exp(((-x) * x))), jnp.float32).astype(jnp.float32)
