"""Solvers as the catalogue lists them."""

from __future__ import annotations

import diffrax as dfx

from nearly.dynamics.chord import PatientChord
from nearly.dynamics.deferred import deferred_bdf
from nearly.dynamics.wmethods import msrktase2 as _msrktase2
from nearly.dynamics.wmethods import msrktase3 as _msrktase3

msrktase2 = _msrktase2()
msrktase3 = _msrktase3()
deferred_bdf2 = deferred_bdf(2)
deferred_bdf3 = deferred_bdf(3)
deferred_bdf4 = deferred_bdf(4)
tsit5 = dfx.Tsit5()
dopri8 = dfx.Dopri8()
kvaerno3 = dfx.Kvaerno3()
kvaerno5 = dfx.Kvaerno5()
kencarp4 = dfx.KenCarp4()

_patient = dfx.with_stepsize_controller_tols(PatientChord)()
kvaerno5_patient = dfx.Kvaerno5(root_finder=_patient)
kencarp4_patient = dfx.KenCarp4(root_finder=_patient)
