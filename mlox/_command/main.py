"""Read the arguments of `python -m mlox`, and run a command."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence

from mlox._checkpoint.folder import DamagedError
from mlox._command import checkpoints, info, selftest

WIDTH = 100
EXAMPLES = """\
examples:
  python -m mlox info
  python -m mlox selftest
  python -m mlox checkpoints runs/fit
  python -m mlox checkpoints runs/fit/checkpoints/cycle_500
  python -m mlox checkpoints runs/fit runs/other
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit status.

    Returns:
        0 if all is well, 1 if a law of `selftest` fails, 2 if an argument is wrong.
    """
    options = make_parser().parse_args(arguments)
    try:
        status = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, RuntimeError, DamagedError, checkpoints.PathError) as error:
        for line in textwrap.wrap(f"mlox {options.command}: {error}", WIDTH):
            print(line, file=sys.stderr)
        return 2
    return status


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m mlox",
        description="Look at an installation of mlox, and at what its runs have saved.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (info, selftest, checkpoints):
        module.add_to(commands)
    return parser
