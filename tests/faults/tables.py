"""All tables of faults."""

from . import checkpoints, machine, runs
from .fault import Fault

TABLES = (runs, machine, checkpoints)
FAULTS: list[Fault] = [fault for table in TABLES for fault in table.faults()]
