"""All tables of bad inputs."""

from . import (
    batches,
    checkpoints,
    checks,
    dead_edges,
    engines,
    hyperparams,
    losses,
    memories,
    modules,
    plots,
    problems,
    rewritings,
    runs,
    saves,
    values,
)
from .case import Case

TABLES = (
    problems,
    hyperparams,
    engines,
    values,
    losses,
    memories,
    rewritings,
    dead_edges,
    batches,
    runs,
    checkpoints,
    saves,
    modules,
    checks,
    plots,
)
CASES: list[Case] = [case for table in TABLES for case in table.cases()]
