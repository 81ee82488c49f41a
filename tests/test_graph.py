"""Edges, best-response paths, schedule and plan: names and integers only."""

import itertools
import re

import hypothesis
import hypothesis.strategies as st
import pytest

from mlox._graph.build import build_graph
from mlox._graph.dependencies import Plan
from mlox.solvers import System

BILEVEL = ("tc", {"t": ["c"]}, {"c": ["t"]})
SKIP_EDGE = ("tpc", {"t": ["p", "c"], "p": ["c"]}, {"c": ["p", "t"], "p": ["t"]})
READER = ("tpc", {"t": ["c"]}, {"c": ["p"], "p": ["t"]})
DIAMOND = (
    "tpqc",
    {"t": ["p", "q"], "p": ["c"], "q": ["c"]},
    {"c": ["p", "q"], "p": ["t"], "q": ["t"]},
)


def graph_of(names, u2l, l2u, steps=()):
    given = dict(steps)
    return build_graph(list(names), u2l, l2u, {n: given.get(n, 1) for n in names})


def chain(*steps):
    """A chain a < b < c ..., from the lowest to the highest, with these steps."""
    names = "abcdef"[: len(steps)]
    pairs = list(itertools.pairwise(names))
    return graph_of(
        names,
        {upper: [lower] for lower, upper in pairs},
        {lower: [upper] for lower, upper in pairs},
        zip(names, steps, strict=True),
    )


def plan_of(names, u2l, l2u, unrolled="", coupling=None):
    coupling = set(names) - set(unrolled) if coupling is None else coupling
    graph = graph_of(names, u2l, l2u)
    return Plan(graph, frozenset(unrolled), frozenset(coupling))


class TestRefusals:
    def test_cycle_of_l2u_edges_is_named_in_their_direction(self):
        message = "l2u has a cycle: a -> b -> c -> a. .* drop one of these l2u edges"
        with pytest.raises(ValueError, match=message):
            graph_of("abc", {}, {"a": ["b"], "b": ["c"], "c": ["a"]})

    @pytest.mark.parametrize("kind", ["u2l", "l2u"])
    def test_edge_from_a_problem_to_itself(self, kind):
        message = f"{kind} edge 'a' -> 'a' leads from a problem to itself. Drop it"
        with pytest.raises(ValueError, match=message):
            graph_of("ab", **{"u2l": {}, "l2u": {}, kind: {"a": ["a"]}})

    @pytest.mark.parametrize("kind", ["u2l", "l2u"])
    @pytest.mark.parametrize("edge", [("a", "nope"), ("nope", "a")])
    def test_unknown_name(self, kind, edge):
        edges = {"u2l": {}, "l2u": {}, kind: {edge[0]: [edge[1]]}}
        message = (
            f"{kind} edge {edge[0]!r} -> {edge[1]!r} names an unknown problem 'nope'; "
            "the engine's problems are ['a', 'b']. Correct the name, or add"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            graph_of("ab", **edges)

    @pytest.mark.parametrize("kind", ["u2l", "l2u"])
    def test_edge_given_twice(self, kind):
        edges = {"u2l": {}, "l2u": {}, kind: {"a": ["b", "b"]}}
        message = f"{kind} edge 'a' -> 'b' is given twice. Drop one"
        with pytest.raises(ValueError, match=message):
            graph_of("ab", **edges)

    @pytest.mark.parametrize("kind", ["u2l", "l2u"])
    def test_string_in_place_of_a_list(self, kind):
        edges = {"u2l": {}, "l2u": {}, kind: {"lower": "upper"}}
        message = f"Write {kind}={{'lower': ['upper']}}."
        with pytest.raises(ValueError, match=re.escape(message)):
            graph_of(["lower", "upper"], **edges)

    def test_two_problems_of_one_name(self):
        with pytest.raises(
            ValueError, match=r"share the name 'a'.* Rename one of them"
        ):
            graph_of("aba", {}, {})

    def test_no_problems(self):
        with pytest.raises(ValueError, match="no problems; expected at least one"):
            graph_of("", {}, {})

    @pytest.mark.parametrize(
        ("u2l", "l2u"),
        [
            ({"t": ["c"]}, {}),
            ({"t": ["c"]}, {"c": ["p"]}),
            ({"c": ["t"]}, {"c": ["t"]}),
        ],
    )
    def test_u2l_edge_without_a_way_back(self, u2l, l2u):
        ((upper, (lower,)),) = u2l.items()
        message = (
            f"u2l edge {upper!r} -> {lower!r} has no way back: no chain of l2u edges "
            f"leads from {lower!r} to {upper!r}, so {upper!r} would never see the "
            f"answer of {lower!r}. Add l2u={{{lower!r}: [{upper!r}]}}"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            graph_of("tpc", u2l, l2u)

    def test_periods_that_do_not_divide(self):
        message = (
            "unroll_steps do not divide: 's' steps every 2 ticks (unroll_steps=2 of "
            "'a') and 't' every 3 (unroll_steps=3 of 'b'). Each period must be a "
            "multiple of the shorter ones: change one of the two."
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            graph_of("stab", {}, {"a": ["s"], "b": ["t"]}, {"a": 2, "b": 3})

    def test_periods_that_do_not_divide_name_the_slowest_lowers(self):
        message = "'t' steps every 4 ticks (unroll_steps=2 of 's') and 'u' every 6"
        with pytest.raises(ValueError, match=re.escape(message)):
            graph_of(
                "astub",
                {},
                {"a": ["s", "t"], "s": ["t"], "b": ["u"]},
                {"a": 2, "s": 2, "b": 6},
            )


class TestSchedule:
    @pytest.mark.parametrize(
        ("steps", "expected"),
        [
            ((1,), (1,)),
            ((5,), (1,)),
            ((5, 1), (5, 1)),
            ((1, 1, 1), (1, 1, 1)),
            ((2, 3, 1), (6, 3, 1)),
            ((2, 3, 7), (6, 3, 1)),
            ((4, 1, 3, 1), (12, 3, 3, 1)),
        ],
    )
    def test_steps_per_cycle_of_a_chain(self, steps, expected):
        assert tuple(chain(*steps).steps_per_cycle.values()) == expected

    def test_lowers_of_2_and_6_both_make_6_steps(self):
        l2u = {"a": ["t"], "b": ["t"]}
        graph = graph_of("tab", {}, l2u, {"a": 2, "b": 6})
        assert graph.period == {"t": 6, "a": 1, "b": 1}
        assert graph.steps_per_cycle == {"t": 1, "a": 6, "b": 6}

    def test_uppers_of_different_periods(self):
        l2u = {"a": ["s"], "b": ["t"]}
        graph = graph_of("stab", {}, l2u, {"a": 2, "b": 6})
        assert graph.steps_per_cycle == {"s": 3, "t": 1, "a": 6, "b": 6}
        assert graph.layers == (("a", "b"), ("s",), ("t",))
        assert graph.layer_period == (1, 2, 6)

    def test_layers_of_one_period_go_by_depth(self):
        graph = chain(1, 1, 1)
        assert graph.layers == (("a",), ("b",), ("c",))
        assert graph.layer_period == (1, 1, 1)
        assert graph.order == ("a", "b", "c")
        assert graph.layer_of == {"a": 0, "b": 1, "c": 2}

    def test_layers_go_by_period_before_depth(self):
        l2u = {"a": ["b"], "b": ["c"], "d": ["e"]}
        graph = graph_of("abcde", {}, l2u, {"d": 6})
        assert graph.layers == (("a", "d"), ("b",), ("c",), ("e",))
        assert graph.layer_period == (1, 1, 1, 6)

    def test_depth_counts_the_longest_chain(self):
        graph = graph_of(*SKIP_EDGE)
        assert graph.depth == {"t": 2, "p": 1, "c": 0}
        assert graph.below == {"t": {"p", "c"}, "p": {"c"}, "c": set()}


NAMES = ("n0", "n1", "n2", "n3", "n4")


@st.composite
def programs(draw):
    """Draw l2u edges without a cycle, in any order of names, and unroll_steps."""
    names = draw(st.permutations(NAMES))[: draw(st.integers(1, len(NAMES)))]
    l2u = {
        lower: uppers
        for i, lower in enumerate(names)
        if (uppers := [u for u in names[i + 1 :] if draw(st.booleans())])
    }
    steps = {name: draw(st.sampled_from([1, 2, 3, 4, 6])) for name in names}
    return draw(st.permutations(names)), l2u, steps


def simulate(names, l2u, steps, until):
    """Go from tick to tick, and note at which ticks each problem steps."""
    lowers = {n: [c for c in names if n in l2u.get(c, ())] for n in names}
    bottom_up = []
    while len(bottom_up) < len(names):
        bottom_up += [
            n
            for n in names
            if n not in bottom_up and all(c in bottom_up for c in lowers[n])
        ]
    since = {n: dict.fromkeys(lowers[n], 0) for n in names}
    ticks = {n: [] for n in names}
    tick = 0
    while not until(tick, ticks):
        tick += 1
        for n in bottom_up:
            if all(since[n][c] >= steps[c] for c in lowers[n]):
                ticks[n].append(tick)
                since[n] = dict.fromkeys(lowers[n], 0)
                for upper in l2u.get(n, ()):
                    since[upper][n] += 1
    return ticks


@hypothesis.settings(max_examples=200)
@hypothesis.given(programs())
def test_schedule_agrees_with_a_simulation(program):
    names, l2u, steps = program
    found = simulate(names, l2u, steps, lambda _, ticks: all(ticks.values()))
    first = sorted({ticks[0] for ticks in found.values()})
    if any(long % short for short, long in itertools.pairwise(first)):
        with pytest.raises(ValueError, match="unroll_steps do not divide"):
            build_graph(names, {}, l2u, steps)
        return
    graph = build_graph(names, {}, l2u, steps)
    cycle = max(graph.period.values())
    found = simulate(names, l2u, steps, lambda tick, _: tick == 2 * cycle)
    for name in names:
        period = graph.period[name]
        assert found[name] == list(range(period, 2 * cycle + 1, period))
        assert graph.steps_per_cycle[name] == sum(t <= cycle for t in found[name])
    _check_layers(graph, l2u)


def _check_layers(graph, l2u):
    assert sorted(graph.order) == sorted(graph.names)
    for i, layer in enumerate(graph.layers):
        periods = {graph.period[name] for name in layer}
        assert periods == {graph.layer_period[i]}
        assert all(graph.layer_of[name] == i for name in layer)
    for shorter, longer in itertools.pairwise(graph.layer_period):
        assert longer % shorter == 0
    for lower, uppers in l2u.items():
        assert all(graph.layer_of[lower] < graph.layer_of[u] for u in uppers)


def ladder(rungs):
    """Diamonds on top of each other: x0 < a0, b0 < x1 < a1, b1 < x2 ..."""
    names, l2u = ["x0"], {}
    for i in range(rungs):
        names += [f"a{i}", f"b{i}", f"x{i + 1}"]
        l2u |= {f"x{i}": [f"a{i}", f"b{i}"]}
        l2u |= {f"a{i}": [f"x{i + 1}"], f"b{i}": [f"x{i + 1}"]}
    return names, {f"x{rungs}": ["x0"]}, l2u


class TestPaths:
    def test_bilevel(self):
        assert graph_of(*BILEVEL).paths == {"t": [("t", "c", "t")], "c": []}

    def test_skip_edge(self):
        paths = graph_of(*SKIP_EDGE).paths
        assert sorted(paths["t"]) == [
            ("t", "c", "t"),
            ("t", "p", "c", "t"),
            ("t", "p", "t"),
        ]
        assert paths["p"] == [("p", "c", "p")]
        assert paths["c"] == []

    def test_diamond(self):
        paths = graph_of("tpqc", {"t": ["c"]}, DIAMOND[2]).paths
        assert sorted(paths["t"]) == [("t", "p", "c", "t"), ("t", "q", "c", "t")]

    @pytest.mark.parametrize("rungs", [1, 2, 5])
    def test_ladder_has_two_to_the_number_of_rungs(self, rungs):
        paths = graph_of(*ladder(rungs)).paths[f"x{rungs}"]
        assert len(set(paths)) == len(paths) == 2**rungs
        assert all(path[0] == path[-1] == f"x{rungs}" for path in paths)
        assert all(path[-2] == "x0" for path in paths)


class TestPlan:
    def test_movers_are_closed_over_reads(self):
        plan = plan_of(*READER)
        assert plan.movers == {"t": {"p", "c"}, "p": set(), "c": set()}
        assert plan.responsive == {"p", "c"}
        assert plan.totals == {"t"}
        assert plan.towers == {"t"}

    def test_a_reader_is_a_block_after_what_it_reads(self):
        blocks = plan_of(*READER).responses["t"].blocks
        assert [block.names for block in blocks] == [("c",), ("p",)]
        assert {block.system for block in blocks} == {System.DEFINITE}

    def test_problems_outside_do_not_move(self):
        l2u = {"c": ["p", "t"], "p": ["t"], "d": ["t"]}
        plan = plan_of("tpcd", {"p": ["c"], "t": ["p"]}, l2u)
        assert plan.movers == {"t": {"p", "c"}, "p": {"c"}, "c": set(), "d": set()}

    def test_a_coupled_lower_is_the_top_of_a_tower(self):
        (block,) = plan_of(*SKIP_EDGE).responses["t"].blocks
        assert block.names == ("p", "c")
        assert block.tops == ("p",)
        assert block.system is System.SYMMETRIC

    def test_siblings_that_share_a_lower_play_a_game(self):
        (block,) = plan_of(*DIAMOND).responses["t"].blocks
        assert sorted(block.names) == ["c", "p", "q"]
        assert set(block.tops) == {"p", "q"}
        assert block.system is System.GENERAL

    def test_direct_coupling_takes_problems_one_by_one(self):
        plan = plan_of(*DIAMOND, coupling=set())
        blocks = plan.responses["t"].blocks
        assert sorted(block.names for block in blocks) == [("p",), ("q",)]
        assert {block.system for block in blocks} == {System.DEFINITE}
        assert plan.totals == plan.towers == set()

    def test_unrolled_answers_of_an_implicit_problem_respond_in_its_window(self):
        names, l2u = "tpc", {"c": ["p"], "p": ["t"]}
        plan = plan_of(names, {"t": ["p"], "p": ["c"]}, l2u, unrolled="c")
        response = plan.responses["t"]
        assert response.implicit == ("p",)
        assert response.unrolled == ()
        assert response.replayed == ("p",)
        assert plan.replayed == {"p"}
        assert plan.responses["p"].unrolled == ("c",)
        assert plan.towers == {"t"}
        assert plan.totals == {"t", "p"}

    def test_a_ladder_has_as_many_blocks_as_problems(self):
        plan = plan_of(*ladder(6))
        top = plan.responses["x6"]
        assert len(plan.movers["x6"]) == 18
        assert len(top.blocks) == 18

    def test_plans_compare_by_value(self):
        assert plan_of(*DIAMOND) == plan_of(*DIAMOND)
        assert hash(plan_of(*DIAMOND)) == hash(plan_of(*DIAMOND))
        assert plan_of(*DIAMOND) != plan_of(*DIAMOND, unrolled="c")
