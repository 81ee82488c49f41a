"""Rewritings of graphs: functions from problems and edges to problems and edges."""

from mlox.rewritings._graph import Graph as Graph
from mlox.rewritings._penalty import penalty as penalty
