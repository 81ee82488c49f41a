"""All tables of bad inputs."""

from . import batches, checkpoints, engines, losses, modules, problems, runs, values
from .case import Case

TABLES = (problems, engines, values, losses, batches, runs, checkpoints, modules)
CASES: list[Case] = [case for table in TABLES for case in table.cases()]
