"""First-order optimizers in optax's protocol whose step adapts to what has been seen."""

from nearly.optimize.adaptive.adagrad_norm import adagrad_norm as adagrad_norm
from nearly.optimize.adaptive.adagrad_norm import scale_by_adagrad_norm as scale_by_adagrad_norm
from nearly.optimize.adaptive.adahessian import adahessian as adahessian
from nearly.optimize.adaptive.adahessian import hessian_diagonal as hessian_diagonal
from nearly.optimize.adaptive.adahessian import scale_by_adahessian as scale_by_adahessian
from nearly.optimize.adaptive.adan import adan as adan
from nearly.optimize.adaptive.adan import scale_by_adan as scale_by_adan
from nearly.optimize.adaptive.orthogonal import orthogonal_gradient as orthogonal_gradient
from nearly.optimize.adaptive.orthogonal import stablemax_cross_entropy as stablemax_cross_entropy
from nearly.optimize.adaptive.polyak import momentum_polyak as momentum_polyak
from nearly.optimize.adaptive.polyak import moving_average_polyak as moving_average_polyak
