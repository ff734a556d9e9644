from nearly import curvature as curvature
from nearly import datasets as datasets
from nearly import derivatives as derivatives
from nearly import dynamics as dynamics
from nearly import errors as errors
from nearly import functions as functions
from nearly import linear as linear
from nearly import operators as operators
from nearly import optimize as optimize
from nearly import pde as pde
from nearly import training as training
from nearly.core.catalogue import problem as problem
from nearly.core.compare import compare as compare
from nearly.core.compare import within as within
from nearly.core.frontier import Frontier as Frontier
from nearly.core.problem import Host as Host
from nearly.core.problem import Problem as Problem
from nearly.core.problem import Tuned as Tuned
from nearly.core.run import Run as Run
from nearly.core.tally import counted as counted
from nearly.core.tally import tally as tally

__version__: str
__all__: list[str]
