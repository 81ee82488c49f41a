"""Conjugate gradients with a preconditioner."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from mlox._utils.tree import add_scaled, largest, vdot
from mlox._utils.types import Tree
from mlox.solvers._base import Info, MatVec
from mlox.solvers._iterate import Start, divide, iterate, report


@runtime_checkable
class Preconditioner(Protocol):
    """Find a map that is near the inverse of a matrix, up to a factor.

    For `mlox.CG(preconditioner=...)`, in which it must be hashable and compare by value
    (a frozen dataclass of plain numbers). `mlox.Nystrom` is one.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, mlox
        >>> @dataclasses.dataclass(frozen=True)
        ... class Jacobi:
        ...     def precondition(self, matvec, damping, b):
        ...         # The diagonal of a diagonal matrix, by one product.
        ...         diagonal = matvec(jax.tree.map(jnp.ones_like, b))
        ...         inverse = lambda r, d: r / (d + damping)
        ...         return lambda r: jax.tree.map(inverse, r, diagonal), 1
        >>> d = jnp.array([1.0, 10.0, 100.0])
        >>> solver = mlox.CG(tolerance=1e-6, preconditioner=Jacobi())
        >>> x, info = solver(lambda x: d * x, d)
        >>> print(x, info["iterations"])
        [1. 1. 1.] 2
    """

    def precondition(
        self, matvec: MatVec, damping: float, b: Tree, /
    ) -> tuple[MatVec | None, int]:
        """Return a map `r -> P^-1 r`, and the number of products that were made.

        Args:
            matvec: the map `x -> A x`.
            damping: what the system adds to the diagonal of `A`.
            b: a pytree like `x`. The map must not depend on its values, or the solver
                is not linear.

        Returns:
            A linear map, symmetric and positive definite, None for the identity; and
            the number of products that it took to find it.
        """
        ...


def solve_preconditioned(
    solver: Any, first: Start, inverse: MatVec, enough: jax.Array, used: int
) -> tuple[Tree, Info]:
    """Return the last iterate and its report.

    Args:
        solver: an `mlox.CG`.
        first: where it starts.
        inverse: the map `r -> P^-1 r`.
        enough: the `<r, r>` at which it stops.
        used: the number of products that it took to find the map.
    """
    r, rr = first.r, first.rr
    z = inverse(r)
    rz = vdot(r, z)
    active = (rr > enough) & jnp.isfinite(rr) & (rz > 0)
    state = iterate(
        lambda state: _step(first, inverse, enough, state),
        _State(first.zeros(), r, z, rz, rr, active, jnp.int32(first.used + used)),
        solver.iterations,
        (lambda state: state.active) if solver.tolerance else None,
        first.unroll,
    )
    return first.finish(state.x), report(state.rr, first.bb, state.used)


class _State(NamedTuple):
    """The iterate, its residual and direction, `rz` = <r, P^-1 r> and `rr` = <r, r>."""

    x: Tree
    r: Tree
    p: Tree
    rz: jax.Array
    rr: jax.Array
    active: jax.Array
    used: jax.Array


def _step(first: Start, inverse: MatVec, enough: jax.Array, state: _State) -> _State:
    """Make one iteration, or none if the state is final."""
    # As without a preconditioner, in the inner product <r, P^-1 r> but for the end,
    # which is at a small <r, r>:
    #
    #     alpha = <r, z> / <p, A p>      x' = x + alpha p      r' = r - alpha A p
    #     z' = P^-1 r'      beta = <r', z'> / <r, z>      p' = z' + beta p
    #
    # The iteration that finds no curvature, or a number that is not finite, is not
    # made, and is the last one.
    x, r, p, rz, rr, active, used = state
    Ap = first.product(p)
    alpha = divide(rz, vdot(p, Ap))
    x = add_scaled(x, alpha, p)
    r = add_scaled(r, -alpha, Ap)
    rr = vdot(r, r)
    z = inverse(r)
    rz_next = vdot(r, z)
    p = add_scaled(z, divide(rz_next, rz), p)
    finite = jnp.isfinite(rr) & jnp.isfinite(first.unit * largest(x))
    proceed = (rr > enough) & (rz_next > 0) & jnp.isfinite(largest(p))
    taken = _State(x, r, p, rz_next, rr, proceed, used)
    final = state._replace(active=jnp.zeros_like(active))
    sound = active & (alpha != 0) & finite
    state = jax.tree.map(lambda new, old: jnp.where(sound, new, old), taken, final)
    return state._replace(used=used + active.astype(used.dtype))
