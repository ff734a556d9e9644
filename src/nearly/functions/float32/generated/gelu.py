"""PROVEN gelu: error <= 1.04691 ulp
error:   1.04691 ulp
domain:  every float32
checked: jax 0.10.2 with fused multiply-adds; without
command: python scripts/float32.py gelu
known by: 4,294,967,296 of 2^32 inputs tried on an x86-64 processor; the worst is x = -4.397695541381836
method:  remez-even-odd, remez-even-odd, remez at 11+12+5
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
    t3 = t2 < np.float32(4.5)
    t4 = fixed(t2 + np.float32(98304.0))
    t5 = fixed(t4 - np.float32(98304.0))
    t6 = jnp.where(t3, np.float32(0.4375), np.float32(0.5))
    t7 = jnp.where(t3, np.float32(0.671875), np.float32(0.109375))
    t8 = fixed(fixed(t5 * t6) + t7)
    t9 = jnp.where(t3, np.float32(0.6875), np.float32(2.0625))
    t10 = fixed(fixed(t5 * t8) + t9)
    t11 = fixed(t2 - np.float32(1.75))
    t12 = fixed(t11 * t11)
    t13 = fixed(fixed(np.float32(4.101935147104996e-08) * t12) + np.float32(7.414079732370737e-07))
    t14 = fixed(fixed(t13 * t12) + np.float32(-3.100882895523682e-05))
    t15 = fixed(fixed(t14 * t12) + np.float32(-0.001973321195691824))
    t16 = fixed(fixed(t15 * t12) + np.float32(-0.002714616246521473))
    t17 = fixed(fixed(t16 * t12) + np.float32(0.014272996224462986))
    t18 = fixed(fixed(np.float32(-3.059200892607805e-09) * t12) + np.float32(-2.43582348957716e-07))
    t19 = fixed(fixed(t18 * t12) + np.float32(7.927189926704159e-07))
    t20 = fixed(fixed(t19 * t12) + np.float32(0.0002873751218430698))
    t21 = fixed(fixed(t20 * t12) + np.float32(0.011695931665599346))
    t22 = fixed(fixed(t21 * t12) + np.float32(-0.04937725141644478))
    t23 = fixed(fixed(t22 * t11) + t17)
    t24 = fixed(t2 - np.float32(8.5))
    t25 = fixed(t24 * t24)
    t26 = fixed(fixed(np.float32(-4.954173396932819e-14) * t25) + np.float32(-1.505998450945789e-11))
    t27 = fixed(fixed(t26 * t25) + np.float32(-1.8461959738758082e-09))
    t28 = fixed(fixed(t27 * t25) + np.float32(-2.627222954743047e-07))
    t29 = fixed(fixed(t28 * t25) + np.float32(-3.721621760632843e-05))
    t30 = fixed(fixed(t29 * t25) + np.float32(-0.00640384666621685))
    t31 = fixed(fixed(t30 * t25) + np.float32(0.0802089273929596))
    t32 = fixed(fixed(np.float32(1.2334941011313272e-12) * t25) + np.float32(1.576908742473293e-10))
    t33 = fixed(fixed(t32 * t25) + np.float32(2.2257616194565344e-08))
    t34 = fixed(fixed(t33 * t25) + np.float32(3.0988758226158097e-06))
    t35 = fixed(fixed(t34 * t25) + np.float32(0.00046575552551075816))
    t36 = fixed(fixed(t35 * t25) + np.float32(0.005220321007072926))
    t37 = fixed(fixed(t36 * t24) + t31)
    t38 = jnp.where(t3, t23, t37)
    t39 = fixed(t2 - t5)
    t40 = fixed(fixed(t2 * t6) + t8)
    t41 = fixed(fixed(t39 * t40) + t38)
    t42 = fixed(t10 + t41)
    t43 = fixed(fixed(t42 * np.float32(1.4426950216293335)) + np.float32(12582912.0))
    t44 = fixed(t43 - np.float32(12582912.0))
    t45 = fixed(fixed(t44 * np.float32(-0.693145751953125)) + t10)
    t46 = fixed(fixed(t44 * np.float32(-1.428606765330187e-06)) + t41)
    t47 = fixed(t45 + t46)
    t48 = fixed(t47 * t47)
    t49 = fixed(fixed(np.float32(-0.00019973749294877052) * t47) + np.float32(0.0013930206187069416))
    t50 = fixed(fixed(t49 * t47) + np.float32(-0.00833317544311285))
    t51 = fixed(fixed(t50 * t47) + np.float32(0.04166651517152786))
    t52 = fixed(fixed(t51 * t47) + np.float32(-0.1666666716337204))
    t53 = fixed(fixed(t52 * t47) + np.float32(0.5))
    t54 = fixed(t48 * t53)
    t55 = fixed(t46 - t54)
    t56 = lax.bitcast_convert_type(t0, np.int32)
    t57 = fixed(t2 * np.float32(4.722366482869645e+21))
    t58 = lax.convert_element_type(t56, np.float32)
    t59 = fixed(fixed(t58 * np.float32(6.617444900424222e-24)) + np.float32(9.860761315262648e-32))
    t60 = t56 < np.int32(8388608)
    t61 = jnp.where(t60, t59, t57)
    t62 = fixed(np.float32(1.0) - t45)
    t63 = lax.bitcast_convert_type(t61, np.int32)
    t64 = t63 & np.int32(-4096)
    t65 = lax.bitcast_convert_type(t64, np.float32)
    t66 = lax.bitcast_convert_type(t62, np.int32)
    t67 = t66 & np.int32(-4096)
    t68 = lax.bitcast_convert_type(t67, np.float32)
    t69 = fixed(t62 - t68)
    t70 = fixed(t69 - t55)
    t71 = fixed(t61 - t65)
    t72 = fixed(t61 * t70)
    t73 = fixed(fixed(t71 * t68) + t72)
    t74 = fixed(fixed(t65 * t68) + t73)
    t75 = lax.bitcast_convert_type(t74, np.int32)
    t76 = t75 - np.int32(603979776)
    t77 = lax.bitcast_convert_type(t43, np.int32)
    t78 = t77 << (np.int32(23) & np.int32(31))
    t79 = t76 - t78
    t80 = t79 < np.int32(8388608)
    t81 = t79 + np.int32(1249902592)
    t82 = lax.bitcast_convert_type(t81, np.float32)
    t83 = fixed(t82 + np.float32(8388608.0))
    t84 = lax.bitcast_convert_type(t83, np.int32)
    t85 = t84 - np.int32(1258291200)
    t86 = jnp.where(t80, t85, t79)
    t87 = lax.bitcast_convert_type(x, np.int32)
    t88 = t87 & np.int32(-2147483648)
    t89 = t86 + t88
    t90 = lax.bitcast_convert_type(t89, np.float32)
    t91 = np.float32(7.450580596923828e-09) < x
    t92 = lax.bitcast_convert_type(t86, np.float32)
    t93 = fixed(x - t92)
    t94 = jnp.where(t91, t93, t90)
    t95 = x == x
    t96 = jnp.where(t95, t94, x)
    return t96.astype(jnp.float32)


@gelu_value.defjvp
def gelu_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = gelu_value(x)
    return y, gelu_slope(x, y) * dx


def gelu_slope(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.asarray(((lax.erfc(((-x) * jnp.sqrt((1.0 / 2.0)))) / 2.0) + ((jnp.clip(x, (-16.0), 16.0) * jnp.exp(((-(jnp.clip(x, (-16.0), 16.0) ** 2)) / 2.0))) / jnp.sqrt((2.0 * np.pi)))), jnp.float32).astype(jnp.float32)
