"""The parts of accelerator.py, one file each."""
