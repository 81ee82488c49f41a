"""A process that builds sides of a comparison and advances them, on orders."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _environments

SCRIPT = Path(__file__).with_name("_side.py")


class Worker:
    """A process of `_side.py`, which is ended with the block that it is opened for.

    Args:
        python: The interpreter.
        core: The core on which it stays.
        variables: Environment variables beside the usual ones.
    """

    def __init__(
        self, python: Path, core: int, variables: Mapping[str, str] = {}
    ) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - see __exit__
        self.process = subprocess.Popen(
            [python, SCRIPT, str(core)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**_environments.variables(), **variables},
        )
        self.answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *reason: object) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            file.close()

    def order(self, verb: str, seconds: float, **given: Any) -> dict[str, Any]:
        """Let the process carry out an order, and return its answer.

        Raises:
            RuntimeError: If the order fails, or the process dies.
            TimeoutError: If there is no answer in time; the process is ended.
        """
        try:
            self.process.stdin.write(json.dumps({verb: given}) + "\n")
            self.process.stdin.flush()
            line = self.answers.get(timeout=seconds)
        except BrokenPipeError:
            line = ""
        except queue.Empty:
            self.process.kill()
            raise TimeoutError(f"no answer to {verb!r} in {seconds:g} s") from None
        if not line:
            raise RuntimeError(self._last_words(verb))
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put("")

    def _last_words(self, verb: str) -> str:
        """Say how the process has ended, and what it wrote last."""
        code = self.process.wait()
        self.errors.seek(0)
        *_, last = self.errors.read().strip().splitlines() or [""]
        how = f"got {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        text = f"its process {how} at {verb!r}"
        return f"{text} ({last[:200]})" if last else text
