"""PROVEN gelu: error <= 0.994886 ulp
error:   0.994886 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py gelu
known by: 4,294,967,296 of 2^32 inputs tried on an x86-64 processor; the worst is x = -4.079493522644043
method:  remez-even-odd, remez, remez at 11+12+4
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


def gelu(x):
    return gelu_value(jnp.asarray(x, jnp.float32))


@jax.custom_jvp
def gelu_value(x):
    x = fixed(x.astype(jnp.float32))
    t0 = jnp.abs(x)
    t1 = np.float32(14.4375) < t0
    t2 = jnp.where(t1, np.float32(14.4375), t0)
    t3 = t2 < np.float32(4.0)
    t4 = fixed(t2 + np.float32(98304.0))
    t5 = fixed(t4 - np.float32(98304.0))
    t6 = jnp.where(t3, np.float32(0.4375), np.float32(0.5))
    t7 = jnp.where(t3, np.float32(0.671875), np.float32(0.125))
    t8 = fixed(fixed(t5 * t6) + t7)
    t9 = jnp.where(t3, np.float32(0.6875), np.float32(1.90625))
    t10 = fixed(fixed(t5 * t8) + t9)
    t11 = fixed(t2 - np.float32(1.625))
    t12 = fixed(t11 * t11)
    t13 = fixed(fixed(np.float32(4.6443656032124636e-08) * t12) + np.float32(1.037735160025477e-06))
    t14 = fixed(fixed(t13 * t12) + np.float32(-3.13191267196089e-05))
    t15 = fixed(fixed(t14 * t12) + np.float32(-0.0021602557972073555))
    t16 = fixed(fixed(t15 * t12) + np.float32(-0.0072913090698421))
    t17 = fixed(fixed(t16 * t12) + np.float32(0.020379401743412018))
    t18 = fixed(fixed(np.float32(-3.266346304542367e-09) * t12) + np.float32(-2.9800401080137817e-07))
    t19 = fixed(fixed(t18 * t12) + np.float32(-8.740769175119567e-08))
    t20 = fixed(fixed(t19 * t12) + np.float32(0.0003107834199909121))
    t21 = fixed(fixed(t20 * t12) + np.float32(0.012728726491332054))
    t22 = fixed(fixed(t21 * t12) + np.float32(-0.04813458025455475))
    t23 = fixed(fixed(t22 * t11) + t17)
    t24 = fixed(t2 - np.float32(8.125))
    t25 = fixed(fixed(np.float32(-6.719486620766768e-14) * t24) + np.float32(1.7526061981895658e-12))
    t26 = fixed(fixed(t25 * t24) + np.float32(-2.1577521019944257e-11))
    t27 = fixed(fixed(t26 * t24) + np.float32(2.1648512149585741e-10))
    t28 = fixed(fixed(t27 * t24) + np.float32(-2.4379713803313052e-09))
    t29 = fixed(fixed(t28 * t24) + np.float32(2.874705451461068e-08))
    t30 = fixed(fixed(t29 * t24) + np.float32(-3.298109447769093e-07))
    t31 = fixed(fixed(t30 * t24) + np.float32(3.761753077924368e-06))
    t32 = fixed(fixed(t31 * t24) + np.float32(-4.362122854217887e-05))
    t33 = fixed(fixed(t32 * t24) + np.float32(0.0005262292106635869))
    t34 = fixed(fixed(t33 * t24) + np.float32(-0.006960945203900337))
    t35 = fixed(fixed(t34 * t24) + np.float32(-0.005397132132202387))
    t36 = fixed(fixed(t35 * t24) + np.float32(0.10662232339382172))
    t37 = jnp.where(t3, t23, t36)
    t38 = fixed(t2 - t5)
    t39 = fixed(fixed(t2 * t6) + t8)
    t40 = fixed(fixed(t38 * t39) + t37)
    t41 = fixed(t10 + t40)
    t42 = fixed(fixed(t41 * np.float32(1.4426950216293335)) + np.float32(12582912.0))
    t43 = fixed(t42 - np.float32(12582912.0))
    t44 = fixed(fixed(t43 * np.float32(-0.693145751953125)) + t10)
    t45 = fixed(fixed(t43 * np.float32(-1.428606765330187e-06)) + t40)
    t46 = fixed(t44 + t45)
    t47 = fixed(t46 * t46)
    t48 = fixed(fixed(np.float32(0.0013938527554273605) * t46) + np.float32(-0.008363138884305954))
    t49 = fixed(fixed(t48 * t46) + np.float32(0.041666429489851))
    t50 = fixed(fixed(t49 * t46) + np.float32(-0.16666577756404877))
    t51 = fixed(fixed(t50 * t46) + np.float32(0.5))
    t52 = fixed(t47 * t51)
    t53 = fixed(t45 - t52)
    t54 = lax.bitcast_convert_type(t0, np.int32)
    t55 = lax.convert_element_type(t54, np.float32)
    t56 = fixed(fixed(t55 * np.float32(6.617444900424222e-24)) + np.float32(9.860761315262648e-32))
    t57 = t54 < np.int32(8388608)
    t58 = fixed(t2 * np.float32(4.722366482869645e+21))
    t59 = jnp.where(t57, t56, t58)
    t60 = fixed(np.float32(1.0) - t44)
    t61 = fixed(t60 - t53)
    t62 = fixed(t60 - t61)
    t63 = fixed(t62 - t53)
    t64 = lax.bitcast_convert_type(t59, np.int32)
    t65 = t64 & np.int32(-4096)
    t66 = lax.bitcast_convert_type(t65, np.float32)
    t67 = lax.bitcast_convert_type(t61, np.int32)
    t68 = t67 & np.int32(-4096)
    t69 = lax.bitcast_convert_type(t68, np.float32)
    t70 = fixed(t61 - t69)
    t71 = fixed(t59 * t63)
    t72 = fixed(fixed(t66 * t70) + t71)
    t73 = fixed(t59 - t66)
    t74 = fixed(fixed(t73 * t61) + t72)
    t75 = fixed(fixed(t66 * t69) + t74)
    t76 = lax.bitcast_convert_type(t75, np.int32)
    t77 = t76 - np.int32(603979776)
    t78 = lax.bitcast_convert_type(t42, np.int32)
    t79 = t78 << (np.int32(23) & np.int32(31))
    t80 = t77 - t79
    t81 = t80 < np.int32(8388608)
    t82 = t80 + np.int32(1249902592)
    t83 = lax.bitcast_convert_type(t82, np.float32)
    t84 = fixed(t83 + np.float32(8388608.0))
    t85 = lax.bitcast_convert_type(t84, np.int32)
    t86 = t85 - np.int32(1258291200)
    t87 = jnp.where(t81, t86, t80)
    t88 = lax.bitcast_convert_type(x, np.int32)
    t89 = t88 & np.int32(-2147483648)
    t90 = t87 + t89
    t91 = lax.bitcast_convert_type(t90, np.float32)
    t92 = np.float32(7.450580596923828e-09) < x
    t93 = lax.bitcast_convert_type(t87, np.float32)
    t94 = fixed(x - t93)
    t95 = jnp.where(t92, t94, t91)
    t96 = x == x
    t97 = jnp.where(t96, t95, x)
    return t97.astype(jnp.float32)


@gelu_value.defjvp
def gelu_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = gelu_value(x)
    return y, gelu_slope(x, y) * dx


def gelu_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray(((lax.erfc(((-x) * jnp.sqrt((1.0 / 2.0)))) / 2.0) + ((jnp.clip(x, (-16.0), 16.0) * jnp.exp(((-(jnp.clip(x, (-16.0), 16.0) ** 2)) / 2.0))) / jnp.sqrt((2.0 * np.pi)))), jnp.float32).astype(jnp.float32)
