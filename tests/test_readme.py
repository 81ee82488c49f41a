"""The README's code runs as it stands, in a process of its own."""

import pathlib
import re
import subprocess
import sys

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_every_code_block_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", block],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_the_two_commands_are_there():
    text = README.read_text()
    assert 'pip install -e ".[examples]" && python examples/data_cleaning.py' in text
    assert 'pip install -e ".[test]" && pytest' in text
