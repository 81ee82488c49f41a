"""Pictures of runs, weights, comparisons and graphs, drawn by matplotlib.

Every function takes matplotlib axes as `ax`, or draws on those of a new figure, and
returns the axes. `import mlox` does not load matplotlib: a picture does.

Example:
    >>> import mlox
    >>> history = {"cycle": [10, 20, 30], "fit/loss": [0.7, 0.4, 0.3]}
    >>> ax = mlox.plot.history(history)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('cycle', 'fit/loss')
"""

from mlox.plot._comparison import comparison as comparison
from mlox.plot._graph import graph as graph
from mlox.plot._health import health as health
from mlox.plot._history import history as history
from mlox.plot._weights import weights as weights
