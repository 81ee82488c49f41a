"""Multilevel optimization in JAX: a graph of problems, one compiled step."""

from mlox._check.check import check as check
from mlox._check.compare import compare as compare
from mlox._check.comparison import Comparison as Comparison
from mlox._check.finding import Cause as Cause
from mlox._check.finding import Finding as Finding
from mlox._check.report import Report as Report
from mlox._checkpoint.options import Checkpoint as Checkpoint
from mlox._checkpoint.restore import restore as restore
from mlox._data.combinators import on_epoch_end as on_epoch_end
from mlox._data.combinators import together as together
from mlox._data.shuffled import shuffled as shuffled
from mlox._engine.engine import Engine as Engine
from mlox._logging.base import Logger as Logger
from mlox._logging.console import stdout_logger as stdout_logger
from mlox._logging.csv import csv_logger as csv_logger
from mlox._logging.jsonl import json_logger as json_logger
from mlox._logging.tensorboard import tensorboard_logger as tensorboard_logger
from mlox._problem.context import Context as Context
from mlox._problem.context import Neighbour as Neighbour
from mlox._problem.loss_transforms import Accumulated as Accumulated
from mlox._problem.loss_transforms import MixedPrecision as MixedPrecision
from mlox._problem.problem import Problem as Problem
from mlox._run.early_stopping import EarlyStopping as EarlyStopping
from mlox._run.errors import RunError as RunError
from mlox._run.errors import RunInterrupted as RunInterrupted
from mlox._sharding.shard import shard as shard
from mlox._sharding.shard import shard_batches as shard_batches
from mlox.methods import SAMA as SAMA
from mlox.methods import Answer as Answer
from mlox.methods import Detached as Detached
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

__version__ = "0.1.0"
