"""Bad inputs of `Engine`: its problems, its edges, its options."""

from __future__ import annotations

from typing import Any

import optax

import mlox

from ..small import alone_loss, pair, problem
from .case import Case, table

A, B, C = (problem(name) for name in "abc")


def cases() -> list[Case]:
    return [
        *_problems(),
        *_edges(),
        *_reads(),
        *_options(),
        *_methods(),
        *_pictures(),
    ]


def _problems() -> list[Case]:
    return table(
        "Engine: problems",
        [
            (
                "no problems",
                lambda _: mlox.Engine([]),
                ValueError,
                "at least one Problem",
            ),
            (
                "one problem, not in a list",
                lambda _: mlox.Engine(A),
                TypeError,
                r"problems is Problem\(.*; expected a list",
            ),
            (
                "a dict of problems",
                lambda _: mlox.Engine({"a": A}),
                TypeError,
                "problems is {'a': Problem.*; expected a list",
            ),
            (
                "names for problems",
                lambda _: mlox.Engine(["a", "b"]),
                TypeError,
                r"problems\[0\] is 'a';.*Problem.create",
            ),
            (
                "the same problem twice",
                lambda _: mlox.Engine([A, A]),
                ValueError,
                "share the name 'a'.*[Rr]ename",
            ),
            (
                "a generator",
                lambda _: mlox.Engine(p for p in (A, B)),
                TypeError,
                "problems is <generator.*; expected a list",
            ),
        ],
    )


def _linked(u2l: Any = None, l2u: Any = None) -> mlox.Engine:
    return mlox.Engine([A, B, C], u2l=u2l, l2u=l2u)


def _edges() -> list[Case]:
    return table(
        "Engine: edges",
        [
            (
                "a string for a list",
                lambda _: _linked({"a": "b"}),
                ValueError,
                r"u2l\['a'\] is the string 'b'.*\['b'\]",
            ),
            (
                "an unknown upper",
                lambda _: _linked({"top": ["b"]}),
                ValueError,
                "'top' -> 'b'.*unknown.*'a', 'b', 'c'",
            ),
            (
                "an unknown lower",
                lambda _: _linked(l2u={"b": ["top"]}),
                ValueError,
                "'b' -> 'top'.*unknown.*'a', 'b', 'c'",
            ),
            (
                "a list of pairs",
                lambda _: _linked([("a", "b")]),
                TypeError,
                "u2l is .*expected a dict",
            ),
            (
                "a number as a name",
                lambda _: _linked({"a": [1]}),
                TypeError,
                "u2l holds 1;.*name",
            ),
            (
                "None for a list",
                lambda _: _linked({"a": None}),
                TypeError,
                r"u2l\['a'\].*NoneType.*list",
            ),
            (
                "an edge twice",
                lambda _: _linked({"a": ["b", "b"]}, {"b": ["a"]}),
                ValueError,
                "'a' -> 'b'.*twice",
            ),
            (
                "an edge by name and by value",
                lambda _: _linked({"a": ["b"], A: [B]}, {"b": ["a"]}),
                ValueError,
                "u2l names 'a' twice",
            ),
            (
                "neighbours of two and three tasks",
                lambda _: pair({"tasks": 2}, {"tasks": 3}),
                ValueError,
                "'penalty' -> 'fit'.*tasks=3 and tasks=2",
            ),
            (
                "a u2l edge to itself",
                lambda _: _linked({"a": ["a"]}),
                ValueError,
                "u2l edge 'a' -> 'a'.*itself",
            ),
            (
                "an l2u edge to itself",
                lambda _: _linked(l2u={"a": ["a"]}),
                ValueError,
                "l2u edge 'a' -> 'a'.*itself",
            ),
            (
                "a cycle of l2u edges",
                lambda _: _linked(l2u={"a": ["b"], "b": ["c"], "c": ["a"]}),
                ValueError,
                "a -> b -> c -> a.*drop",
            ),
            (
                "u2l without l2u",
                lambda _: _linked({"a": ["b"]}),
                ValueError,
                r"'a' -> 'b'.*l2u={'b': \['a'\]}",
            ),
            (
                "u2l against l2u",
                lambda _: _linked({"a": ["b"]}, {"a": ["b"]}),
                ValueError,
                r"'a' -> 'b'.*l2u={'b': \['a'\]}",
            ),
        ],
    )


def _reading(reads: Any, **edges: Any) -> mlox.Engine:
    return mlox.Engine([A, B, C], reads=reads, **edges)


def _reads() -> list[Case]:
    return table(
        "Engine: reads",
        [
            (
                "an unknown problem",
                lambda _: _reading({"a": ["top"]}),
                ValueError,
                r"reads={'a': \['top'\]} names an unknown.*'a', 'b', 'c'",
            ),
            (
                "a problem that reads itself",
                lambda _: _reading({A: [A]}),
                ValueError,
                r"reads={'a': \['a'\]} leads.*to itself.*own params",
            ),
            (
                "a read twice",
                lambda _: _reading({"a": ["b", B]}),
                ValueError,
                r"reads={'a': \['b'\]} is given twice",
            ),
            (
                "a problem for a list",
                lambda _: _reading({"a": B}),
                TypeError,
                r"reads\['a'\] is a Problem.*list",
            ),
            (
                "a list of pairs",
                lambda _: _reading([("a", "b")]),
                TypeError,
                "reads is .*expected a dict",
            ),
            (
                "an upper that an edge reads already",
                lambda _: _reading({"b": ["a"]}, u2l={"a": ["b"]}, l2u={"b": ["a"]}),
                ValueError,
                r"reads={'b': \['a'\]}.*already.*u2l={'a': \['b'\]}.*Drop it",
            ),
            (
                "an answer that an edge reads already",
                lambda _: _reading({"a": ["b"]}, u2l={"a": ["b"]}, l2u={"b": ["a"]}),
                ValueError,
                r"reads={'a': \['b'\]}.*already.*l2u={'b': \['a'\]}.*Drop it",
            ),
            (
                "other numbers of tasks",
                lambda _: mlox.Engine(
                    [problem("a", tasks=2), problem("b", tasks=3)], reads={"a": ["b"]}
                ),
                ValueError,
                r"reads edge 'a' -> 'b'.*tasks=2 and tasks=3",
            ),
        ],
    )


def _options() -> list[Case]:
    return table(
        "Engine: options",
        [
            (
                "coupling='exact'",
                lambda _: pair(coupling="exact"),
                ValueError,
                "coupling is 'exact'.*'total'.*'direct'",
            ),
            (
                "telemetry=1",
                lambda _: pair(telemetry=1),
                TypeError,
                "telemetry is 1;.*True or False",
            ),
            (
                "metrics='first'",
                lambda _: pair(metrics="first"),
                ValueError,
                "metrics is 'first'.*'all', 'last' or 'none'",
            ),
            (
                "roll_back=1",
                lambda _: pair(roll_back=1),
                TypeError,
                "roll_back is 1;.*True or False",
            ),
            (
                "unroll_loops='yes'",
                lambda _: pair(unroll_loops="yes"),
                TypeError,
                "unroll_loops is 'yes';.*True, False or None",
            ),
            (
                "unroll_steps that do not divide",
                lambda _: _clashing(),
                ValueError,
                "unroll_steps.*'a'.*every 2.*'b' every 3.*multiple",
            ),
            (
                "GaussNewton of a loss that gives no parts",
                lambda _: pair({"method": mlox.GaussNewton()}),
                ValueError,
                r"'fit': GaussNewton\(\) needs the parts.*Composed\(outputs, loss\)",
            ),
            (
                "GaussNewton of a problem whose own lowers respond",
                lambda _: _middle(),
                ValueError,
                r"'b': GaussNewton\(\) is not defined.*respond \('c'\).*'direct'",
            ),
            (
                "reset without an inner loop",
                lambda _: _reset_alone(),
                ValueError,
                r"'fit'.*reset.*l2u={'fit': \[...\]}",
            ),
        ],
    )


def _clashing() -> mlox.Engine:
    return mlox.Engine(
        [A, B, problem("c", unroll_steps=2), problem("d", unroll_steps=3)],
        l2u={"c": ["a"], "d": ["b"]},
    )


def _middle() -> mlox.Engine:
    loss_fn = mlox.Composed(lambda params, batch, ctx: params, alone_loss)
    middle = problem("b", loss_fn=loss_fn, method=mlox.GaussNewton())
    return mlox.Engine(
        [A, middle, problem("c")],
        u2l={"a": ["b"], "b": ["c"]},
        l2u={"b": ["a"], "c": ["b"]},
    )


def _reset_alone() -> mlox.Engine:
    return mlox.Engine([problem("fit", reset=lambda params, ctx: params)])


def _methods() -> list[Case]:
    return table(
        "Engine: methods",
        [
            (
                "Adam, unrolled",
                lambda _: _unrolled(optax.adam(0.1)),
                UserWarning,
                "'fit'.*Unrolled.*eps_root",
            ),
            (
                "clipping by a norm, unrolled",
                lambda _: _unrolled(optax.clip_by_global_norm(1.0)),
                UserWarning,
                "'fit'.*Unrolled.*norm.*optax.clip",
            ),
            (
                "CG for a tower",
                lambda _: _chain(mlox.Implicit(mlox.CG())),
                ValueError,
                "'b'.*CG.*indefinite.*GMRES",
            ),
            (
                "tops with different methods",
                lambda _: _tops(mlox.Implicit(mlox.CG())),
                ValueError,
                "'c' and 'b'.*methods differ.*GMRES",
            ),
            (
                "CG for a Nash game",
                lambda _: _nash(mlox.Implicit(mlox.CG())),
                ValueError,
                "'c'.*CG.*not symmetric.*GMRES",
            ),
            (
                "an unrolled top beside an implicit one",
                lambda _: _tops(mlox.Unrolled()),
                ValueError,
                "'b' and 'c'.*'b' is unrolled.*'direct'",
            ),
            (
                "refine without a linear system",
                lambda _: _refined(mlox.Identity()),
                ValueError,
                "'b'.*refine=1.* to 'a'.*no linear system.*CG.*leave refine out",
            ),
            (
                "refine with direct coupling",
                lambda _: _refined(mlox.GMRES(), coupling="direct"),
                ValueError,
                "'b'.*refine=1.* to 'a'.*lowers fixed.*coupling='total'",
            ),
            (
                "refine of a projected answer",
                lambda _: _refined(mlox.GMRES(), project=lambda params: params),
                ValueError,
                "'b'.*refine=1.* to 'a'.*project=.*loss",
            ),
            (
                "refine of an answer with new samples in each step",
                lambda _: _refined(None, sample=lambda params, ctx: params, rng=0),
                UserWarning,
                "'b' samples another batch.*refine=1.*noise.*Leave refine out",
            ),
            (
                "last_steps across a round",
                lambda _: _cut(mlox.Unrolled(last_steps=3)),
                ValueError,
                r"'c': Unrolled\(last_steps=3\).*multiple of 2",
            ),
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


def _refined(solver: Any, coupling: Any = "total", **parts: Any) -> mlox.Engine:
    """Refine an answer that has a lower of its own."""
    return mlox.Engine(
        [A, problem("b", method=mlox.Implicit(solver, refine=1), **parts), C],
        u2l={"a": ["b"], "b": ["c"]},
        l2u={"b": ["a"], "c": ["b"]},
        coupling=coupling,
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


def _pictures() -> list[Case]:
    return table(
        "Engine.draw",
        [
            (
                "file=True",
                lambda _: pair().draw(True),
                TypeError,
                "file is True;.*path",
            ),
            (
                "a file that is no SVG",
                lambda folder: pair().draw(folder / "graph.png"),
                ValueError,
                r"'FOLDER/graph.png'; expected.*\.svg",
            ),
            (
                "a folder that does not exist",
                lambda folder: pair().draw(folder / "none" / "graph.svg"),
                FileNotFoundError,
                "no folder 'FOLDER/none'.*Create it",
            ),
        ],
    )
