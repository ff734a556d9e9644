"""Solvers as the catalogue lists them."""

from __future__ import annotations

from typing import Any

import diffrax as dfx
import optimistix as optx

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


class PatientChord(dfx.VeryChord):
    """diffrax's iteration for implicit stages, which here goes on for as long as it converges.

    In diffrax 0.7.2 it has diverged, and so the step is halved, where two iterations were not
    enough or their changes are rounding errors: KenCarp4 then does not end, Kvaerno5 takes four to
    ten times the steps. A change of less than `kappa` tolerances is the last here, and only changes
    that more than double diverge.
    """

    def terminate(
        self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any
    ) -> tuple[Any, Any]:
        stop, result = super().terminate(fn, y, args, options, state, tags)
        small = (state.step >= 2) & (state.diffsize < self.kappa)
        fine = small | (state.diffsize <= 2 * state.diffsize_prev)
        early = fine & (result == optx.RESULTS.nonlinear_divergence)
        return stop | small, optx.RESULTS.where(early, optx.RESULTS.successful, result)


_patient = dfx.with_stepsize_controller_tols(PatientChord)()
kvaerno5_patient = dfx.Kvaerno5(root_finder=_patient)
kencarp4_patient = dfx.KenCarp4(root_finder=_patient)
