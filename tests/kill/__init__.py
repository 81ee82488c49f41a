"""Runs that are killed, resumed, and compared with runs that were never stopped."""
