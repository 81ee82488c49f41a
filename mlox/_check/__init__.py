"""Checks of hypergradients on the user's own problem: measured, and said in words."""
