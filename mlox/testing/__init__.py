"""Laws of methods and solvers, for values of your own: one call each.

Import it as `import mlox.testing`, e.g. in a test. Each call returns nothing, or raises
an AssertionError that names the law, the figures, and the likely cause.
"""

from mlox.testing.method import check_method as check_method
from mlox.testing.solver import check_solver as check_solver
