"""What the papers of this room promise, rerun: one file per family of methods."""

from nearly.curvature.claims import fisher as fisher
from nearly.curvature.claims import kronecker as kronecker
from nearly.curvature.claims import lipschitz as lipschitz
from nearly.curvature.claims import parameterization as parameterization
from nearly.curvature.claims import spectrum as spectrum
