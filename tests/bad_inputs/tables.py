"""All tables of bad inputs."""

from . import (
    batches,
    checkpoints,
    checks,
    dead_edges,
    engines,
    losses,
    modules,
    problems,
    runs,
    values,
)
from .case import Case

TABLES = (
    problems,
    engines,
    values,
    losses,
    dead_edges,
    batches,
    runs,
    checkpoints,
    modules,
    checks,
)
CASES: list[Case] = [case for table in TABLES for case in table.cases()]
