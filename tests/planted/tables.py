"""All planted faults, and all healthy programs."""

from . import (
    choices,
    edge_faults,
    healthy,
    healthy_loops,
    loop_faults,
    loss_faults,
    networks,
    solver_faults,
)
from .case import Case

FAULTS: list[Case] = [
    *solver_faults.CASES,
    *edge_faults.CASES,
    *loss_faults.CASES,
    *loop_faults.CASES,
    *choices.FAULTS,
    *networks.FAULTS,
]
HEALTHY: list[Case] = [
    *healthy.CASES,
    *healthy_loops.CASES,
    *choices.HEALTHY,
    *networks.HEALTHY,
]
