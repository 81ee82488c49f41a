"""Bad inputs of `Engine`: its problems, its edges, its options."""

from __future__ import annotations

from typing import Any

import optax
from _case import Case, of_area
from _small import pair, problem

import mlox

A, B, C = (problem(name) for name in "abc")


def cases() -> list[Case]:
    return [*_problems(), *_edges(), *_options(), *_methods()]


def _problems() -> list[Case]:
    return of_area(
        "Engine: problems",
        [
            ("no problems", lambda _: mlox.Engine([])),
            ("one problem, not in a list", lambda _: mlox.Engine(A)),
            ("a dict of problems", lambda _: mlox.Engine({"a": A})),
            ("names for problems", lambda _: mlox.Engine(["a", "b"])),
            ("the same problem twice", lambda _: mlox.Engine([A, A])),
            ("a generator", lambda _: mlox.Engine(p for p in (A, B))),
        ],
    )


def _linked(u2l: Any = None, l2u: Any = None) -> mlox.Engine:
    return mlox.Engine([A, B, C], u2l=u2l, l2u=l2u)


def _edges() -> list[Case]:
    return of_area(
        "Engine: edges",
        [
            ("a string for a list", lambda _: _linked({"a": "b"})),
            ("an unknown upper", lambda _: _linked({"top": ["b"]})),
            ("an unknown lower", lambda _: _linked(l2u={"b": ["top"]})),
            ("a list of pairs", lambda _: _linked([("a", "b")])),
            ("a number as a name", lambda _: _linked({"a": [1]})),
            ("None for a list", lambda _: _linked({"a": None})),
            ("an edge twice", lambda _: _linked({"a": ["b", "b"]}, {"b": ["a"]})),
            (
                "an edge by name and by value",
                lambda _: _linked({"a": ["b"], A: [B]}, {"b": ["a"]}),
            ),
            (
                "neighbours of two and three tasks",
                lambda _: pair({"tasks": 2}, {"tasks": 3}),
            ),
            ("a u2l edge to itself", lambda _: _linked({"a": ["a"]})),
            ("an l2u edge to itself", lambda _: _linked(l2u={"a": ["a"]})),
            (
                "a cycle of l2u edges",
                lambda _: _linked(l2u={"a": ["b"], "b": ["c"], "c": ["a"]}),
            ),
            ("u2l without l2u", lambda _: _linked({"a": ["b"]})),
            ("u2l against l2u", lambda _: _linked({"a": ["b"]}, {"a": ["b"]})),
        ],
    )


def _options() -> list[Case]:
    return of_area(
        "Engine: options",
        [
            ("coupling='exact'", lambda _: pair(coupling="exact")),
            ("roll_back=1", lambda _: pair(roll_back=1)),
            ("unroll_loops='yes'", lambda _: pair(unroll_loops="yes")),
            ("unroll_steps that do not divide", lambda _: _clashing()),
            ("reset without an inner loop", lambda _: _reset_alone()),
        ],
    )


def _clashing() -> mlox.Engine:
    return mlox.Engine(
        [A, B, problem("c", unroll_steps=2), problem("d", unroll_steps=3)],
        l2u={"c": ["a"], "d": ["b"]},
    )


def _reset_alone() -> mlox.Engine:
    return mlox.Engine([problem("fit", reset=lambda params, ctx: params)])


def _methods() -> list[Case]:
    return of_area(
        "Engine: methods",
        [
            ("Adam, unrolled", lambda _: _unrolled(optax.adam(0.1))),
            ("CG for a tower", lambda _: _chain(mlox.Implicit(mlox.CG()))),
            ("tops with different methods", lambda _: _tops(mlox.Implicit(mlox.CG()))),
            ("CG for a Nash game", lambda _: _nash(mlox.Implicit(mlox.CG()))),
            (
                "an unrolled top beside an implicit one",
                lambda _: _tops(mlox.Unrolled()),
            ),
            ("last_steps across a round", lambda _: _cut(mlox.Unrolled(last_steps=3))),
        ],
    )


def _unrolled(tx: Any) -> mlox.Engine:
    return pair({"tx": tx, "method": mlox.Unrolled()})


def _chain(middle: Any) -> mlox.Engine:
    return mlox.Engine(
        [A, problem("b", method=middle), C],
        u2l={"a": ["b"], "b": ["c"]},
        l2u={"b": ["a"], "c": ["b"]},
    )


def _tops(first: Any) -> mlox.Engine:
    """Make two tops over one lower, both answering to one upper."""
    return mlox.Engine(
        [A, problem("b", method=first), C, problem("d")],
        u2l={"a": ["b", "c"], "b": ["d"], "c": ["d"]},
        l2u={"d": ["b", "c"], "b": ["a"], "c": ["a"]},
    )


def _nash(both: Any) -> mlox.Engine:
    return mlox.Engine(
        [A, problem("b", method=both), problem("c", method=both), problem("d")],
        u2l={"a": ["b", "c"], "b": ["d"], "c": ["d"]},
        l2u={"d": ["b", "c"], "b": ["a"], "c": ["a"]},
    )


def _cut(method: Any) -> mlox.Engine:
    lower = problem("c", method=method, unroll_steps=2)
    return mlox.Engine(
        [A, problem("b", unroll_steps=3), lower],
        u2l={"a": ["c"]},
        l2u={"b": ["a"], "c": ["b"]},
    )
