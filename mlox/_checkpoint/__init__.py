"""Checkpoints on disk, in the format of Orbax."""
