"""Everything beside everything: each peer in an environment of its own, then the rest.

    python benchmarks/all.py              # everything, and RESULTS.md: about an hour
    python benchmarks/all.py --quick      # what fits ten minutes, written elsewhere
    python benchmarks/all.py --only maml  # comparisons or programs with this word
    python benchmarks/all.py --report     # RESULTS.md from the files of results
    python benchmarks/all.py --check      # fails if RESULTS.md is not what they give

Needs Linux. Where this interpreter lacks what mlox requires, an environment is made for
mlox, too.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import _environments

HERE = Path(__file__).parent
QUICK = HERE / ".quick"
LISTS = (
    "logistic",
    "reweighting",
    "gradients",
    "maml",
    "implicit_maml",
    "implicit",
    "floors",
    "long_unrolls",
    "schedule",
    "attribution",
)
"""The modules of peers/ with COMPARISONS, in the order of the tables."""

PROGRAMS = ("growth", "attribution", "scaling", "accelerator")
"""The programs that measure something else than sides beside each other."""


def listed() -> tuple[list[tuple[str, Any]], int]:
    """Return all comparisons, each after its words, and how many lists have failed."""
    found, failed = [], 0
    for name in LISTS:
        try:
            some = importlib.import_module(f"peers.{name}").COMPARISONS
        except Exception as error:
            print(f"peers/{name}.py: {type(error).__name__}: {error}", flush=True)
            failed += 1
        else:
            found += [(f"{name} {c.group} {c.job}".lower(), c) for c in some]
    return found, failed


def interpreters(folder: Path) -> Callable[[str], Path]:
    """Return a function from the name of an environment to its interpreter.

    An installation is tried once; its error is raised again.
    """
    found: dict[str, Path | Exception] = {_environments.HERE: Path(sys.executable)}

    def python_of(name: str) -> Path:
        if name not in found:
            installs = _environments.ENVIRONMENTS[name]
            try:
                found[name] = _environments.python_of(name, folder, installs)
            except Exception as error:
                found[name] = error
        python = found[name]
        if isinstance(python, Exception):
            raise python
        return python

    return python_of


def side_by_side(options: argparse.Namespace) -> int:
    """Run the comparisons, and write each one when it is done; count what failed."""
    import _duel
    import _record
    import _side_by_side

    amounts = _duel.QUICK if options.quick else _duel.FULL
    python_of = interpreters(options.environments)
    every, failed = listed()
    about = _record.about(command(options))
    found = earlier(_record.read("side_by_side", options.results), about, options.only)
    order = [(one.group, one.job) for _, one in every]
    chosen = [
        one
        for words, one in every
        if options.only.lower() in words and (one.quick or not options.quick)
    ]
    for number, comparison in enumerate(chosen, 1):
        begun = time.monotonic()
        when = {key: about[key] for key in ("command", "date")}
        one = _duel.duel(comparison, python_of, amounts) | when
        found[one["group"], one["job"]] = one
        all_of_it = [found[key] for key in order if key in found]
        saved = {**about, "comparisons": all_of_it}
        _record.write("side_by_side", saved, options.results)
        place = f"[{number}/{len(chosen)}, {time.monotonic() - begun:.0f} s]"
        print(_side_by_side.line(place, one), flush=True)
        failed += sum(side["failed"] is not None for side in one["sides"])
    return failed


def earlier(
    old: Mapping[str, Any] | None, about: Mapping[str, Any], only: str
) -> dict[tuple[str, str], Any]:
    """Return the comparisons of earlier runs, which stay where a run leaves them out.

    Raises:
        SystemExit: If a part is run on another machine than the rest.
    """
    if old is None:
        return {}
    if old["machine"] == about["machine"]:
        return {(one["group"], one["job"]): one for one in old["comparisons"]}
    if only:
        raise SystemExit("the other results are of another machine: pass --results")
    return {}


def command(options: argparse.Namespace) -> str:
    """Return the command that was given, without the folders."""
    words = ["--quick"] if options.quick else []
    words += ["--only", options.only] if options.only else []
    return shlex.join(["python", "benchmarks/all.py", *words])


def programs(options: argparse.Namespace) -> int:
    """Run the other programs, each in a process of its own; count what failed."""
    failed = 0
    for name in PROGRAMS:
        path = HERE / f"{name}.py"
        if options.only not in name:
            continue
        words = ["--operations"] if name == "accelerator" and not has_gpu() else []
        print(shlex.join(["python", f"benchmarks/{name}.py", *words]), flush=True)
        run = [sys.executable, path, "--results", options.results, *words]
        failed += subprocess.run(run).returncode != 0
    return failed


def has_gpu() -> bool:
    """Return whether JAX finds an accelerator here."""
    code = "import jax; raise SystemExit(jax.default_backend() == 'cpu')"
    return (
        subprocess.run([sys.executable, "-c", code], capture_output=True).returncode
        == 0
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="what fits ten minutes")
    parser.add_argument("--only", default="", help="a word of what to run")
    parser.add_argument("--environments", type=Path, default=_environments.FOLDER)
    parser.add_argument("--results", type=Path, help="default: benchmarks/results")
    parser.add_argument("--report", action="store_true", help="write RESULTS.md alone")
    parser.add_argument("--check", action="store_true", help="is RESULTS.md current?")
    options = parser.parse_args()
    if not _environments.can_run_here():
        return elsewhere(options.environments)
    os.environ["PYTHONPATH"] = str(_environments.ROOT)  # of the other programs
    sys.path.append(os.environ["PYTHONPATH"])
    import _record
    import _report

    options.results = options.results or (QUICK if options.quick else _record.FOLDER)
    if options.check:
        return _report.check(options.results)
    begun, failed = time.monotonic(), 0
    try:
        if not options.report:
            failed += side_by_side(options)
            failed += 0 if options.quick else programs(options)
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept", flush=True)
        failed += 1
    page = _report.write(options.results)
    minutes = (time.monotonic() - begun) / 60
    print(f"{page}: {minutes:.1f} minutes, {failed} rows or programs failed")
    return int(failed > 0)


def elsewhere(folder: Path) -> int:
    """Run this program by an interpreter that has what mlox needs."""
    name = _environments.HERE
    python = _environments.python_of(name, folder, _environments.ENVIRONMENTS[name])
    return subprocess.run([python, *sys.argv]).returncode


if __name__ == "__main__":
    sys.exit(main())
