"""Linear solvers: values `solver(matvec, b, guess) -> (x, info)`, one file each."""

from mlox.solvers._base import Info as Info
from mlox.solvers._base import MatVec as MatVec
from mlox.solvers._base import Solver as Solver
from mlox.solvers._base import System as System
from mlox.solvers._base import serves as serves
from mlox.solvers._bicgstab import BiCGStab as BiCGStab
from mlox.solvers._cg import CG as CG
from mlox.solvers._dense import Dense as Dense
from mlox.solvers._gmres import GMRES as GMRES
from mlox.solvers._identity import Identity as Identity
from mlox.solvers._linear_solve import linear_solve as linear_solve
from mlox.solvers._minres import MINRES as MINRES
from mlox.solvers._neumann import Neumann as Neumann
from mlox.solvers._nystrom import Nystrom as Nystrom
from mlox.solvers._preconditioned import Preconditioner as Preconditioner
from mlox.solvers._products import Products as Products
from mlox.solvers._products import product_at as product_at
from mlox.solvers._products import takes_draws as takes_draws
from mlox.solvers._richardson import Richardson as Richardson
from mlox.solvers._series import sum_powers as sum_powers
