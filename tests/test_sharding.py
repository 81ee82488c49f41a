"""Many devices: the tests of `on_eight_devices.py`, in a process that has eight."""

import os
import pathlib
import subprocess
import sys

import pytest

from .conftest import UNCACHED

FILE = pathlib.Path(__file__).with_name("on_eight_devices.py")


@pytest.mark.slow
def test_tests_on_eight_devices_pass():
    """JAX can be told how many devices there are only before it starts."""
    flags = [
        os.environ["XLA_FLAGS"],
        "--xla_force_host_platform_device_count=8",
        # On a busy machine a device may wait for the others longer than 40 seconds.
        "--xla_cpu_collective_call_terminate_timeout_seconds=300",
    ]
    command = f"-m pytest -n0 -p no:cacheprovider {FILE} -m".split()
    done = subprocess.run(
        [sys.executable, *command, ""],
        cwd=FILE.parents[1],
        env={**os.environ, **UNCACHED, "XLA_FLAGS": " ".join(flags)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
