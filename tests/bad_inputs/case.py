"""A bad input as a value: what is passed, how, and which error must come."""

from __future__ import annotations

import contextlib
import io
import pathlib
import re
import tempfile
import warnings
from collections.abc import Callable
from typing import NamedTuple

# What differs from run to run, and from one version of JAX to another.
SAME = {
    r" at 0x[0-9a-f]+": "",
    r"\b[0-9a-f]{32}\b": "HASH",
    r"'\w*Tracer'": "'Tracer'",
    r"OUT_OF_RANGE: .*": "OUT_OF_RANGE: ...",
}


class Case(NamedTuple):
    """An input that a user might get wrong.

    Attributes:
        area: What it is passed to.
        what: What is passed, in words.
        pass_it: Passes it; gets an empty folder to write into.
        error: The type of the error or the warning that must come.
        match: A regular expression that its message must match: names and values, and
            one word of the remedy, so that rewording costs nothing.
    """

    area: str
    what: str
    pass_it: Callable[[pathlib.Path], object]
    error: type[BaseException]
    match: str


Row = tuple[str, Callable[[pathlib.Path], object], type[BaseException], str]


def table(area: str, rows: list[Row]) -> list[Case]:
    return [Case(area, *row) for row in rows]


def observe(case: Case) -> tuple[type[BaseException] | None, str]:
    """Pass a bad input; return the type and the message of the error or warning."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = pathlib.Path(name)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                case.pass_it(folder)
        except BaseException as error:
            return type(error), message_of(error, folder)
    return None, ""


def message_of(error: BaseException, folder: pathlib.Path) -> str:
    """Return message and notes of an error in one line, without what differs."""
    # JAX notes at every error that it leaves out its own frames.
    notes = [n for n in vars(error).get("__notes__", ()) if not n.startswith("---")]
    text = " ".join("; ".join([str(error), *notes]).split())
    text = text.replace(str(folder), "FOLDER")
    for different, same in SAME.items():
        text = re.sub(different, same, text)
    return text
