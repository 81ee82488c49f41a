"""What is chosen while a step is traced, for `engine.explain`."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Generator

Choices = dict[str, list[str]]

_CHOICES: contextvars.ContextVar[Choices | None] = contextvars.ContextVar(
    "mlox_choices", default=None
)


@contextlib.contextmanager
def record_choices() -> Generator[Choices]:
    """Collect what is chosen for each problem in this context, in words."""
    choices: Choices = {}
    token = _CHOICES.set(choices)
    try:
        yield choices
    finally:
        _CHOICES.reset(token)


def note_choice(name: str, text: str) -> None:
    """Record what was chosen for a problem, inside `record_choices` alone."""
    choices = _CHOICES.get()
    if choices is not None and text not in choices.setdefault(name, []):
        choices[name].append(text)
