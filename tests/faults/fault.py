"""A fault as a value: what goes wrong, what mlox must do, and what must be left."""

from __future__ import annotations

import contextlib
import io
import logging
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import mlox

from ..bad_inputs.case import message_of


class Outcome(NamedTuple):
    """What came of a fault.

    Attributes:
        action: What mlox action: the error, the warning, or in words.
        remains: What is left to go on with, as it was measured.
    """

    action: str
    remains: str


class Fault(NamedTuple):
    """Something that goes wrong by itself.

    Attributes:
        area: Where.
        what: What goes wrong, in words.
        provoke: Makes it happen, with an empty folder to write into.
        action: A regular expression for what mlox must do.
        remains: A regular expression for what must be left to go on with.
    """

    area: str
    what: str
    provoke: Callable[[pathlib.Path], Outcome]
    action: str
    remains: str


Row = tuple[str, Callable[[pathlib.Path], Outcome], str, str]


def table(area: str, rows: list[Row]) -> list[Fault]:
    return [Fault(area, *row) for row in rows]


def observe(fault: Fault) -> Outcome:
    """Provoke a fault, without output; return what came of it."""
    with tempfile.TemporaryDirectory() as name, _silence():
        folder = pathlib.Path(name)
        action, remains = fault.provoke(folder)
        return Outcome(_plain(action, folder), _plain(remains, folder))


def describe_end(folder: pathlib.Path, run: Callable[[], Any]) -> Outcome:
    """Run; return how it ends, and which numbers are left."""
    with warnings.catch_warnings(record=True) as came:
        warnings.simplefilter("always")
        try:
            state, history = run()
        except (mlox.RunError, mlox.RunInterrupted) as error:
            action = f"{type(error).__name__}: {message_of(error, folder)}"
            remains = f"the state after cycle {error.cycle}, {_sound(error.state)}; "
            return Outcome(action, remains + _history(error.history))
        except Exception as error:
            return Outcome(f"{type(error).__name__}: {message_of(error, folder)}", "-")
    warned = [f"warns: {message_of(w.message, folder)}" for w in came]
    action = f"runs until cycle {history['cycle'][-1]}"
    if "run/nonfinite" in history:
        action += f", {int(history['run/nonfinite'].sum())} of them left out"
    return Outcome(
        "; ".join([*warned, action]),
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
