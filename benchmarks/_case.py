"""A bad input as a value: what is tried, and what comes of it."""

from __future__ import annotations

import contextlib
import io
import pathlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

LONGEST = 420

# What differs from run to run, and from one version of JAX to another.
SAME = {
    r" at 0x[0-9a-f]+": "",
    r"\b[0-9a-f]{32}\b": "HASH",
    r"'\w*Tracer'": "'Tracer'",
    r"OUT_OF_RANGE: .*": "OUT_OF_RANGE: ...",
}
NOTHING = "nothing"


class Case(NamedTuple):
    """Something that a user might get wrong.

    Attributes:
        area: What it is passed to.
        tried: What is passed, in words.
        do: Does it, with an empty folder to write into.
    """

    area: str
    tried: str
    do: Callable[[pathlib.Path], object]


class Outcome(NamedTuple):
    """What came of a case.

    Attributes:
        kind: The type of the error or warning, or "nothing".
        message: What it says, in one line, the same on every machine.
    """

    kind: str
    message: str


def of_area(
    area: str, tried: Iterable[tuple[str, Callable[[pathlib.Path], object]]]
) -> list[Case]:
    return [Case(area, what, do) for what, do in tried]


def outcome(case: Case) -> Outcome:
    """Do what a case says, and catch whatever comes of it."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = pathlib.Path(name)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                case.do(folder)
        except BaseException as error:
            return Outcome(type(error).__name__, told(error, folder))
    return Outcome(NOTHING, "")


def told(error: BaseException, folder: pathlib.Path) -> str:
    """Return message and notes of an error in one line, without what differs."""
    # JAX notes at every error that it leaves out its own frames.
    notes = [n for n in vars(error).get("__notes__", ()) if not n.startswith("---")]
    text = " ".join("; ".join([str(error), *notes]).split())
    text = text.replace(str(folder), "FOLDER")
    for different, same in SAME.items():
        text = re.sub(different, same, text)
    return text if len(text) <= LONGEST else text[:LONGEST].rstrip() + " …"
