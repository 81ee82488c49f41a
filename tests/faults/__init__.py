"""Faults: what goes wrong in a run or beside it, a table for each area."""
