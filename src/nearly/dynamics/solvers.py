"""Solvers as the catalogue lists them."""

from __future__ import annotations

import diffrax as dfx

tsit5 = dfx.Tsit5()
dopri8 = dfx.Dopri8()
kvaerno3 = dfx.Kvaerno3()
kvaerno5 = dfx.Kvaerno5()
kencarp4 = dfx.KenCarp4()
