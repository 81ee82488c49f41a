"""A run in a notebook: its progress is one line of text."""

import sys
import types

import nbclient
import nbformat
import pytest

from mlox._logging.notebook import in_notebook

RUNS = """
import jax.numpy as jnp, mlox, optax, warnings
warnings.simplefilter("error")
problem = mlox.Problem.create(
    name="x",
    params=jnp.ones(()),
    tx=optax.sgd(0.01),
    loss_fn=lambda params, batch, ctx: (params - batch) ** 2,
)
engine = mlox.Engine([problem])
for loggers in ((), None):
    engine.run(engine.init(), {"x": [0.0]}, 300, log_every=150, loggers=loggers)
"""


def test_notebook_is_a_kernel_whose_frontend_can_write_a_line_again(monkeypatch):
    class Shell:
        pass

    kernel = types.SimpleNamespace(ZMQInteractiveShell=Shell)
    monkeypatch.delenv("QT_API", raising=False)
    for name in ("ipykernel.zmqshell", "IPython"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert not in_notebook()
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", kernel)
    for shell, expected in ((None, False), (Shell(), True)):
        interactive = types.SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", interactive)
        assert in_notebook() == expected
    monkeypatch.setenv("SPYDER_ARGS", "[]")
    assert not in_notebook()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the client, which has ports and loops
def test_executed_notebook_keeps_one_line_of_each_run():
    cell = nbformat.v4.new_code_cell(RUNS)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = cell.outputs
    assert {x.get("name") for x in outputs} == {None, "stdout"}
    bars = [x.data["text/plain"] for x in outputs if x.output_type == "display_data"]
    assert len(bars) == 2
    for bar in bars:
        assert bar.startswith("100%|██")
        assert "300/300" in bar
        assert "x/loss 0.00" in bar
        assert len(bar) <= 100
        assert "\n" not in bar
