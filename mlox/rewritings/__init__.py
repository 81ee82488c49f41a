"""Rewritings of graphs: functions from problems and edges to problems and edges."""

from mlox.rewritings._bome import bome as bome
from mlox.rewritings._estimators import ES as ES
from mlox.rewritings._estimators import NRES as NRES
from mlox.rewritings._estimators import PES as PES
from mlox.rewritings._evolve import evolve as evolve
from mlox.rewritings._graph import Graph as Graph
from mlox.rewritings._penalty import penalty as penalty
