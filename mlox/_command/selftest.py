"""`python -m mlox selftest`: the laws on this installation."""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax

from mlox._check.table import format_table
from mlox._command.laws import list_laws


def add_to(commands: Any) -> None:
    """Add the command to a parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "selftest",
        help="check hypergradients and checkpoints on this installation",
        description="Check hypergradients against a closed form by a dense solve, and "
        "against central differences, in float64 and float32 on the default device; on "
        "the other devices, if there are any, also the step on all of them; and a "
        "checkpoint's round trip. Takes less than a minute, and exits with 1 if a law "
        "fails.",
        epilog="example: python -m mlox selftest",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print a table of all laws; return 1 if one fails."""
    del options
    began = time.perf_counter()
    rows: list[list[str]] = []
    reasons: list[str] = []
    for law in list_laws():
        try:
            error = law.measure()
        except Exception as failure:
            error = float("nan")
            first = (str(failure).splitlines() or [""])[0]
            reasons.append(f"{law.what}: {type(failure).__name__}: {first}"[:100])
        holds = error <= law.tolerance  # not if it is NaN
        verdict = "ok" if holds else "FAILED"
        shown = [f"{error:.1e}", f"{law.tolerance:.0e}", verdict]
        rows.append([law.what, law.precision, *shown])
    header = ["law", "precision", "error", "allowed", ""]
    print("\n".join(format_table(header, rows)))
    failed = sum(row[-1] != "ok" for row in rows)
    for reason in reasons:
        print(reason)
    print(
        f"{len(rows) - failed} of {len(rows)} laws hold on {jax.devices()[0]} "
        f"({jax.devices()[0].device_kind}), {time.perf_counter() - began:.0f} s"
    )
    if failed:
        print("Run `python -m mlox info`, and report both outputs.")
    return int(failed > 0)
