"""A line of text in a notebook that can be written again."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def in_notebook() -> bool:
    """Return whether a notebook shows what this process displays.

    The rule is that of `tqdm.autonotebook`: there is a kernel, and its frontend is
    neither Spyder nor a Qt console, which cannot write a line again.
    """
    kernel, shell = (sys.modules.get(x) for x in ("ipykernel.zmqshell", "IPython"))
    if kernel is None or shell is None:
        return False
    if any(name == "QT_API" or name.startswith("SPYDER") for name in os.environ):
        return False
    return isinstance(shell.get_ipython(), kernel.ZMQInteractiveShell)


class NotebookLine(io.TextIOBase):
    """A terminal of one line, as a text file: what is written replaces the line.

    It is one output of the cell, which is displayed again under its own identity. A
    stream would store every state of the line in the notebook, one after the other.
    """

    encoding = "utf-8"

    def __init__(self) -> None:
        from IPython.display import display

        self._handle: Any = display({"text/plain": ""}, raw=True, display_id=True)

    def isatty(self) -> bool:
        """Return True: a line can be written again."""
        return True

    def write(self, text: str) -> int:
        """Replace the line, unless the text only clears it."""
        if line := text.strip():
            self._handle.update({"text/plain": line}, raw=True)
        return len(text)
