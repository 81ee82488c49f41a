"""Loggers: the terminal, JSON lines, CSV tables and TensorBoard."""
