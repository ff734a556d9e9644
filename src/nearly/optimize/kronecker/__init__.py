"""Preconditioners that are Kronecker products: a small matrix for each axis of an array."""

from nearly.optimize.kronecker.kfac import kfac as kfac
from nearly.optimize.kronecker.kfac import scale_by_kfac as scale_by_kfac
from nearly.optimize.kronecker.mkor import mkor as mkor
from nearly.optimize.kronecker.mkor import released_update as released_update
from nearly.optimize.kronecker.mkor import scale_by_mkor as scale_by_mkor
from nearly.optimize.kronecker.mkor import until_stalled as until_stalled
from nearly.optimize.kronecker.shampoo import scale_by_shampoo as scale_by_shampoo
from nearly.optimize.kronecker.shampoo import shampoo as shampoo
