"""Preconditioners that are Kronecker products: a small matrix for each axis of an array."""

from nearly.optimize.kronecker.shampoo import scale_by_shampoo as scale_by_shampoo
from nearly.optimize.kronecker.shampoo import shampoo as shampoo
