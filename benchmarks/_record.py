"""What is written with the figures of every program: the machine, versions, the day."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("results")
PACKAGES = ("mlox", "jax", "jaxlib", "flax", "optax", "numpy")


def about(command: str) -> dict[str, Any]:
    """Return the command, the day, the machine and the versions of the libraries."""
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
    }


def machine() -> dict[str, Any]:
    """Return what the machine is, without its name."""
    return {
        "processor": _line("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe(found: Mapping[str, Any]) -> str:
    """Return a sentence of where and when results were found."""
    machine = found["machine"]
    versions = ", ".join(f"{name} {text}" for name, text in found["versions"].items())
    return (
        f"`{found['command']}`, {found['date']}, on {machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory'] / 2**30:.0f} GiB, "
        f"{machine['system']}; {versions}."
    )


def write(name: str, found: Mapping[str, Any], folder: Path = FOLDER) -> Path:
    """Write results to a file of their name, with four digits of each number."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(_rounded(found), indent=1) + "\n", "utf-8")
    return path


def read(name: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """Return results by their name, None if there are none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def _rounded(found: Any) -> Any:
    """Keep four digits of each float; what is not finite is null."""
    if isinstance(found, Mapping):
        return {key: _rounded(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_rounded(value) for value in found]
    if isinstance(found, float):
        return float(f"{found:.4g}") if abs(found) < float("inf") else None
    return found


def _line(path: str, name: str) -> str | None:
    text = Path(path).read_text() if Path(path).exists() else ""
    match = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return match and match[1].strip()
