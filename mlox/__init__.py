"""Multilevel optimization in JAX: a graph of problems, one compiled step."""

from mlox._context import Context as Context
from mlox._context import Neighbour as Neighbour
from mlox._engine import Engine as Engine
from mlox._log import Logger as Logger
from mlox._log import json_logger as json_logger
from mlox._log import stdout_logger as stdout_logger
from mlox._log import tensorboard_logger as tensorboard_logger
from mlox._problem import Problem as Problem
from mlox._trail import RunError as RunError
from mlox._trail import RunInterrupted as RunInterrupted
from mlox.methods import SAMA as SAMA
from mlox.methods import Answer as Answer
from mlox.methods import FiniteDifference as FiniteDifference
from mlox.methods import Implicit as Implicit
from mlox.methods import Method as Method
from mlox.methods import Unrolled as Unrolled
from mlox.methods import attach as attach
from mlox.solvers import CG as CG
from mlox.solvers import GMRES as GMRES
from mlox.solvers import BiCGStab as BiCGStab
from mlox.solvers import Dense as Dense
from mlox.solvers import Identity as Identity
from mlox.solvers import Neumann as Neumann
from mlox.solvers import Solver as Solver
from mlox.solvers import System as System
from mlox.solvers import linear_solve as linear_solve
