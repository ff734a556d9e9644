"""What the papers of this room promise, rerun: one file per family of methods."""

from nearly.operators.claims import conditioning as conditioning
from nearly.operators.claims import constraint as constraint
from nearly.operators.claims import deeponet as deeponet
from nearly.operators.claims import fno as fno
from nearly.operators.claims import latent_spectral as latent_spectral
from nearly.operators.claims import multigrid as multigrid
from nearly.operators.claims import online as online
from nearly.operators.claims import poseidon as poseidon
from nearly.operators.claims import refiner as refiner
from nearly.operators.claims import spacetime as spacetime
from nearly.operators.claims import stagger as stagger
