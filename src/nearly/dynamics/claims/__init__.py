"""What the papers of this room promise, rerun: one file per family of methods."""

from nearly.dynamics.claims import backward as backward
from nearly.dynamics.claims import context as context
from nearly.dynamics.claims import equivariant as equivariant
from nearly.dynamics.claims import feynman_kac as feynman_kac
from nearly.dynamics.claims import fractional as fractional
from nearly.dynamics.claims import fractional_inference as fractional_inference
from nearly.dynamics.claims import langevin as langevin
from nearly.dynamics.claims import neural as neural
from nearly.dynamics.claims import orbits as orbits
from nearly.dynamics.claims import oscillatory as oscillatory
from nearly.dynamics.claims import regularized as regularized
from nearly.dynamics.claims import reversible as reversible
from nearly.dynamics.claims import stiff as stiff
from nearly.dynamics.claims import stochastic as stochastic
from nearly.dynamics.claims import unsupervised as unsupervised
