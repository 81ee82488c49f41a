"""The environments in which the sides of a comparison run, each made on first use.

An environment is a folder with a virtual environment, and beside it a file with what
was installed there: it is made anew where that has changed. pip's own settings hold,
such as an index of builds of PyTorch for processors alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import tomllib
import venv
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).with_name(".environments")
HERE = "jax"
"""The environment of mlox itself: the interpreter that runs the program, if it can."""

Installs = tuple[tuple[str, ...], ...]


def requirements() -> tuple[str, ...]:
    """Return what mlox needs; it itself is imported from this checkout."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    return tuple(tomllib.loads(text)["project"]["dependencies"])


TORCH = ("numpy", "torch>=2.6,<2.14")  # TorchOpt 0.7.3 does not know later ones.
ENVIRONMENTS: Mapping[str, Installs] = {
    HERE: (requirements(),),
    "jaxopt": ((*requirements(), "jaxopt==0.8.5"),),
    "optimistix": ((*requirements(), "optimistix"),),
    # Betty's requirements name older Pythons; it runs without them.
    "betty": (TORCH, ("--no-deps", "--ignore-requires-python", "betty-ml==0.2.1")),
    "torchopt": ((*TORCH, "torchopt==0.7.3"),),
    "higher": ((*TORCH, "higher==0.2.1"),),
}
"""What is installed in an environment: the arguments of each call of `pip install`."""


def can_run_here() -> bool:
    """Return whether this interpreter has all that mlox needs."""
    names = [re.split(r"\W*[<>=]", text)[0] for text in requirements()]
    try:
        return all(importlib.metadata.version(name) for name in names)
    except importlib.metadata.PackageNotFoundError:
        return False


def python_of(name: str, folder: Path, installs: Installs) -> Path:
    """Return the interpreter of an environment, made if it is not there.

    Raises:
        RuntimeError: If it cannot be installed; the message ends with pip's last line.
    """
    place, stamp = folder / name, folder / f"{name}.json"
    python = place / "bin" / "python"
    made = {
        "python": platform.python_version(),
        "installs": [list(i) for i in installs],
    }
    if python.exists() and stamp.exists() and json.loads(stamp.read_text()) == made:
        return python
    stamp.unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    print(f"Installing the environment {name!r} in {place}", flush=True)
    venv.create(place, with_pip=True)
    for arguments in installs:
        command = [python, "-m", "pip", "install", "-q", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            *_, last = done.stderr.strip().splitlines() or ["pip has failed"]
            raise RuntimeError(f"cannot be installed: {last}")
    stamp.write_text(json.dumps(made))
    return python


def variables() -> dict[str, str]:
    """Return the environment variables of a side: one thread, and no accelerator."""
    threads = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB")
    return {
        **os.environ,
        **{f"{name}_NUM_THREADS": "1" for name in threads},
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(ROOT)]),
        "PYTHONUNBUFFERED": "1",
    }
