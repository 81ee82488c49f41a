"""The host loop: dispatches, metrics, early stopping and resume."""
