"""The command line of a program, and its table."""

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def parser(description: str, seeds: int = 3) -> argparse.ArgumentParser:
    """Return a parser of --seeds, of --large, and of --out, the picture."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--seeds", type=int, default=seeds)
    found.add_argument("--large", action="store_true", help="a larger size")
    picture = pathlib.Path(sys.argv[0]).with_suffix(".png").name
    found.add_argument("--out", default=picture, help="the picture")
    return found


def parsed(options: argparse.ArgumentParser, **large: Any) -> argparse.Namespace:
    """Return the arguments; with --large, other defaults for some of them."""
    args = options.parse_args()
    if args.large:
        options.set_defaults(**large)
    return options.parse_args()


def print_table(
    columns: Sequence[str], runs: Sequence[Mapping[str, Any]], width: int = 22
) -> None:
    """Print the mean and standard deviation over runs of {row: one number a column}."""
    print(f"\n{columns[0]:{width}}" + "".join(f"{name:18}" for name in columns[1:]))
    for name in runs[0]:
        found = np.array([np.array(run[name], float) for run in runs])
        found = found.reshape(len(runs), -1)  # one number needs no brackets
        cells = zip(found.mean(axis=0), found.std(axis=0), strict=True)
        line = "".join(f"{m:.3f} ± {s:.3f}     " for m, s in cells)
        print(f"{name:{width}}{line}".rstrip())
