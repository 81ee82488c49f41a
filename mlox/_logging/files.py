"""Files of loggers: appended to, replaced at once, cleared of a torn last line."""

import contextlib
import os
import pathlib
from collections.abc import Generator

from mlox._utils.fields import PATH, check


def absolute_path(label: str, path: str | os.PathLike[str]) -> pathlib.Path:
    """Return a path that stays the same when the working folder changes."""
    check(label, path, PATH)
    return pathlib.Path(path).absolute()


def prepare_file(logger: str, path: str | os.PathLike[str]) -> pathlib.Path:
    """Create a file and its folder if they do not exist; raise if that fails."""
    file = absolute_path(f"{logger}: path", path)
    with annotate_os_error(logger, file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    return file


def replace_content(file: pathlib.Path, content: bytes) -> None:
    """Replace the content of a file at once, so that it is never half written."""
    new = file.with_name(file.name + ".new")
    new.write_bytes(content)
    new.replace(file)


def drop_torn_line(file: pathlib.Path, prefix: bytes) -> None:
    """Drop a last line that has a prefix but no end: its process was killed."""
    whole, end, torn = file.read_bytes().rpartition(b"\n")
    if torn and torn.startswith(prefix):
        replace_content(file, whole + end)


def error_of_row(logger: str, file: pathlib.Path, row: str) -> ValueError:
    """Return the error for a row of a file that is not of a log point."""
    return ValueError(
        f"{logger}: {str(file)!r} has the row {row[:80]!r}; expected a row that begins "
        "with a cycle. Correct the row, or move the file away."
    )


@contextlib.contextmanager
def annotate_os_error(logger: str, path: pathlib.Path) -> Generator[None]:
    """Add the name of a logger and its path to an error of the operating system."""
    try:
        yield
    except OSError as error:
        error.add_note(
            f"{logger} cannot write to {str(path)!r}; expected the path of a file "
            "with room for it, in a folder that exists or can be made."
        )
        raise
