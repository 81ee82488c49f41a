"""Docstrings as griffe reads them: our `Example:` is its section `Examples:`."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Show the example of a docstring as code, not as a note."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section before it is parsed."""
        if obj.docstring:
            value = obj.docstring.value
            obj.docstring.value = re.sub(
                r"^( *)Example:$", r"\1Examples:", value, flags=re.MULTILINE
            )
