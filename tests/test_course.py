"""The notebooks of the course: paired with their texts, and executed in order."""

import pathlib

import jupytext
import pytest

COURSE = pathlib.Path(__file__).parents[1] / "docs" / "course"
TEXTS = sorted(COURSE.glob("*.py"))


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_course_has_pairs():
    notebooks = sorted(path.stem for path in COURSE.glob("*.ipynb"))
    assert len(TEXTS) == 6
    assert [path.stem for path in TEXTS] == notebooks


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_notebook_equals_its_text(text):
    notebook = jupytext.read(text.with_suffix(".ipynb"))
    assert cells(notebook) == cells(jupytext.read(text, fmt="py:percent")), (
        "run `jupytext --sync`, see CONTRIBUTING"
    )


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_notebook_is_executed_in_order_without_complaints(text):
    file = text.with_suffix(".ipynb")
    code = [c for c in jupytext.read(file).cells if c.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert file.stat().st_size < 250_000
