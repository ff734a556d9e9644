"""Solvers of stochastic equations as the catalogue lists them."""

from __future__ import annotations

import diffrax as dfx

from nearly.dynamics.cir import DIE, CIRStepSize, HOStS

euler_heun = dfx.EulerHeun()
ito_milstein = dfx.ItoMilstein()
spark = dfx.SPaRK()
shark = dfx.ShARK()
quicsort = dfx.QUICSORT(taylor_threshold=0.01)
hosts = HOStS()
die = DIE()
hosts_adaptive = {"solver": hosts, "stepsize_controller": CIRStepSize(1.0, 1e-12)}
die_adaptive = {"solver": die, "stepsize_controller": CIRStepSize(1.0, 1e-12)}
