"""Many devices: the tests of `on_eight_devices.py`, in a process that has eight."""

import os
import pathlib
import subprocess
import sys

from .conftest import UNCACHED

FILE = pathlib.Path(__file__).with_name("on_eight_devices.py")


def test_on_eight_devices():
    """JAX can be told how many devices there are only before it starts."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", str(FILE)],
        cwd=FILE.parents[1],
        env={**os.environ, **UNCACHED, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
