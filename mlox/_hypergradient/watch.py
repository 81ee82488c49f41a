"""Watch at which reads a cotangent arrives, while a step is traced."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Generator, Iterable
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from mlox._utils.types import PyTree

# A derivative flows through a read if, when the cost is differentiated, the cotangent
# that arrives there is no symbolic zero: JAX does not even call the transpose of an
# operation whose result has none. So the identity below, put on what a loss reads,
# learns from the trace itself what would take the jaxpr of every cost (8 to 27 % of a
# trace). It lowers to nothing.
#
# What was seen is in the set that `watch_reads` yields, and nowhere else: the equations
# hold names only, and say nothing once the watch has ended.

Read = tuple[str, str]


class _Watch(NamedTuple):
    wanted: frozenset[Read]
    carried: set[Read]


_WATCH: contextvars.ContextVar[_Watch | None] = contextvars.ContextVar(
    "mlox_watch", default=None
)


@contextlib.contextmanager
def watch_reads(wanted: Iterable[Read]) -> Generator[set[Read]]:
    """Collect the reads (reader, read) at which a cotangent arrives in this context."""
    watch = _Watch(frozenset(wanted), set())
    token = _WATCH.set(watch)
    try:
        yield watch.carried
    finally:
        _WATCH.reset(token)


@contextlib.contextmanager
def unwatched() -> Generator[None]:
    """Watch no reads in this context."""
    token = _WATCH.set(None)
    try:
        yield
    finally:
        _WATCH.reset(token)


def is_watching() -> bool:
    """Return whether some wanted read has carried nothing so far."""
    watch = _WATCH.get()
    return watch is not None and not watch.wanted <= watch.carried


def watched(reader: str, read: str, params: PyTree) -> PyTree:
    """Return parameters as a loss reads them: the same values, watched if wanted."""
    watch, names = _WATCH.get(), (reader, read)
    if watch is None or names not in watch.wanted or names in watch.carried:
        return params
    return jax.tree.map(lambda x: _watched.bind(x, read=names), params)


_watched = Primitive("watched")


@_watched.def_impl
@_watched.def_abstract_eval
def _identity(x: Any, *, read: Read) -> Any:
    del read
    return x


def _jvp(primals: Any, tangents: Any, *, read: Read) -> tuple[Any, Any]:
    (x,), (dx,) = primals, tangents
    # The value itself, unwatched: reverse mode would store a second copy of it.
    return x, dx if isinstance(dx, ad.Zero) else _watched.bind(dx, read=read)


def _transpose(cotangent: Any, x: Any, *, read: Read) -> list[Any]:
    del x
    watch = _WATCH.get()
    if watch is not None and not isinstance(cotangent, ad.Zero):
        watch.carried.add(read)
    return [cotangent]


ad.primitive_jvps[_watched] = _jvp
ad.primitive_transposes[_watched] = _transpose
batching.defvectorized(_watched)
mlir.register_lowering(_watched, lambda ctx, x, *, read: [x])
