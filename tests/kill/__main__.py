"""Kill runs at 100 random moments, in about six minutes: python -m tests.kill.

Exits with status 1 if a run that was killed and resumed differs from one in one go.
"""

import argparse
import pathlib
import sys
import tempfile
import time

from . import job
from .chains import MOMENTS, Chain, chains


def count(kind: str | None, made: list[Chain]) -> list[object]:
    """Count runs, kills, what the kills met, and kills of runs that differ."""
    of = [chain for chain in made if kind in (None, chain.kind)]
    kills = [kill for chain in of for kill in chain.kills]
    differ = sum(len(chain.kills) for chain in of if chain.differences)
    return [kind or "all", len(of), len(kills), *map(kills.count, MOMENTS), differ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    options = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        made = chains(
            pathlib.Path(folder), options.kills, options.seed, options.workers
        )
    print("| job | runs | kills |", " | ".join(MOMENTS), "| kills that differ |")
    print("|---" * (len(MOMENTS) + 4) + "|")
    for kind in [*job.KINDS, None]:
        print("|", " | ".join(map(str, count(kind, made))), "|")
    for number, chain in enumerate(made):
        if chain.differences:
            print(f"chain {number} ({chain.kind}, {chain.kills}): {chain.differences}")
    print(f"\nseed {options.seed}, {time.perf_counter() - begin:.0f} s")
    return int(any(chain.differences for chain in made))


if __name__ == "__main__":
    sys.exit(main())
