"""A fault as a value: what goes wrong, what mlox then does, and what is kept."""

from __future__ import annotations

import contextlib
import io
import logging
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from _case import told

import mlox


class Handled(NamedTuple):
    """What came of a fault.

    Attributes:
        does: What mlox does: the error, the warning, or in words.
        kept: What is left to go on with, as it was measured.
    """

    does: str
    kept: str


class Fault(NamedTuple):
    """Something that goes wrong by itself.

    Attributes:
        area: Where.
        what: What goes wrong, in words.
        do: Lets it happen, with an empty folder to write into.
    """

    area: str
    what: str
    do: Callable[[pathlib.Path], Handled]


def of_area(
    area: str, faults: Iterable[tuple[str, Callable[[pathlib.Path], Handled]]]
) -> list[Fault]:
    return [Fault(area, what, do) for what, do in faults]


def handled(fault: Fault) -> Handled:
    """Let a fault happen, in silence."""
    with tempfile.TemporaryDirectory() as name, _silence():
        folder = pathlib.Path(name)
        does, kept = fault.do(folder)
        return Handled(_plain(does, folder), _plain(kept, folder))


def ending(folder: pathlib.Path, run: Callable[[], Any]) -> Handled:
    """Say how a run ends, and which numbers it hands back."""
    with warnings.catch_warnings(record=True) as came:
        warnings.simplefilter("always")
        try:
            state, history = run()
        except (mlox.RunError, mlox.RunInterrupted) as error:
            does = f"{type(error).__name__}: {told(error, folder)}"
            kept = f"the state after cycle {error.cycle}, {_sound(error.state)}; "
            return Handled(does, kept + _history(error.history))
        except Exception as error:
            return Handled(f"{type(error).__name__}: {told(error, folder)}", "-")
    warned = [f"warns: {told(w.message, folder)}" for w in came]
    does = f"runs until cycle {history['cycle'][-1]}"
    if "run/nonfinite" in history:
        does += f", {int(history['run/nonfinite'].sum())} of them left out"
    return Handled(
        "; ".join([*warned, does]),
        f"the last state, {_sound(state)}; {_history(history)}",
    )


def _sound(state: Any) -> str:
    leaves = [x for p in state.values() for x in jax.tree.leaves(p.params)]
    finite = all(bool(np.isfinite(np.asarray(x)).all()) for x in leaves)
    return "finite" if finite else "not finite"


def _history(history: Any) -> str:
    cycles = [str(cycle) for cycle in history["cycle"].tolist()]
    return "metrics of cycles " + ", ".join(cycles) if cycles else "no metrics"


def _plain(text: str, folder: pathlib.Path) -> str:
    return " ".join(text.split()).replace(str(folder), "FOLDER")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep JAX and Orbax from reporting to the terminal what is provoked here."""
    with contextlib.redirect_stdout(io.StringIO()):
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
