"""`python -m mlox info`: versions, devices, precision."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import re
from typing import Any

import jax

import mlox
from mlox._check.table import BYTES_UNITS, show_unit

# Those of pyproject.toml, which a test compares.
LOWEST = {
    "flax": "0.12.7",
    "jax": "0.10",
    "jaxlib": "0.10",
    "numpy": "2.0",
    "optax": "0.2.8",
    "orbax-checkpoint": "0.12",
    "tensorboardX": "2.6.1",
    "tqdm": "4.66",
}
LOWEST_PYTHON = "3.11"
OPTIONAL = ("matplotlib",)
NONE = "not installed"


def add_to(commands: Any) -> None:
    """Add the command to a parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "info",
        help="show versions, devices and precision",
        description="Show versions, devices and precision, and warn of what mlox does "
        "not support. Paste it into a report of a problem.",
        epilog="example: python -m mlox info --json",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what is installed."""
    found = collect()
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for title in ("versions", "devices", "settings"):
        print(title)
        width = max(map(len, found[title]), default=0)
        for name, value in found[title].items():
            print(f"  {name:<{width}}  {value}")
    for text in found["warnings"]:
        print(f"warning: {text}")
    return 0


def collect() -> dict[str, Any]:
    """Return versions, devices, settings and warnings, as plain values."""
    versions = {
        "mlox": mlox.__version__,
        "Python": platform.python_version(),
        **{name: _version(name) for name in (*LOWEST, *OPTIONAL)},
    }
    config: Any = jax.config  # its fields are made when JAX is imported
    devices, warnings = _find_devices()
    return {
        "versions": versions,
        "devices": devices,
        "settings": {
            "backend": jax.default_backend() if devices else "none",
            "processes": jax.process_count() if devices else 0,
            "float64": "enabled" if config.jax_enable_x64 else "disabled",
            "matmul precision": config.jax_default_matmul_precision or "default",
            "compilation cache": config.jax_compilation_cache_dir or "none",
        },
        "warnings": [*find_unsupported(versions), *warnings],
    }


def _find_devices() -> tuple[dict[str, str], list[str]]:
    """Return the devices, or why JAX finds none."""
    try:
        return {str(device): _describe(device) for device in jax.devices()}, []
    except RuntimeError as error:  # a backend that cannot start
        return {}, [f"JAX finds no device: {error}"]


def find_unsupported(versions: dict[str, str]) -> list[str]:
    """Return a sentence for each version that is too old, or is missing.

    Example:
        >>> find_unsupported({"jax": "0.9.1"})
        ['jax is 0.9.1; mlox expects 0.10 or later: pip install -U "jax>=0.10".']
    """
    return [
        f"{name} is {versions[name]}; mlox expects {lowest} or later: "
        + (
            "install a newer Python."
            if name == "Python"
            else f'pip install -U "{name}>={lowest}".'
        )
        for name, lowest in {"Python": LOWEST_PYTHON, **LOWEST}.items()
        if name in versions
        and (versions[name] == NONE or _numbers(versions[name]) < _numbers(lowest))
    ]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return NONE


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, release[0].split("."))) if release else ()


def _describe(device: Any) -> str:
    try:
        memory: dict[str, Any] = device.memory_stats() or {}
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        memory = {}
    if "bytes_limit" not in memory:
        return device.device_kind
    used, limit = (
        show_unit(float(memory.get(key, 0)), BYTES_UNITS)
        for key in ("bytes_in_use", "bytes_limit")
    )
    return f"{device.device_kind}, {used} of {limit} in use"
