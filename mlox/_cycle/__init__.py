"""When each problem steps: one cycle of a graph as one traced function."""
