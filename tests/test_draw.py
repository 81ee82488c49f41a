"""Pictures of graphs: every box and every edge once, and nothing on top of another."""

import dataclasses
import html.parser
import itertools
import pathlib
import random
import re
import xml.etree.ElementTree as ET
from typing import NamedTuple

import jax.numpy as jnp
import pytest

import mlox
from mlox._draw.picture import draw_graph

from .small import pair, problem

DOCS = pathlib.Path(__file__).parents[1] / "docs"
SVG = "{http://www.w3.org/2000/svg}"
NUMBER = r"-?\d+(?:\.\d+)?"
SHAPES = {
    "single": ("a", {}, {}),
    "alone": ("abc", {}, {}),
    "bilevel": ("ab", {"a": "b"}, {"b": "a"}),
    "two lowers": ("abc", {"a": "bc"}, {"b": "a", "c": "a"}),
    "skip edge": ("tpc", {"t": "pc", "p": "c"}, {"c": "pt", "p": "t"}),
    "reader": ("tpc", {"t": "c"}, {"c": "p", "p": "t"}),
    "diamond": (
        "tpqc",
        {"t": "pq", "p": "c", "q": "c"},
        {"c": "pq", "p": "t", "q": "t"},
    ),
    "game": ("abc", {"a": "c", "b": "c"}, {"c": "ab"}),
    "twelve": ("abcdefghijkl", {"a": "bcdefghijkl"}, dict.fromkeys("bcdefghijkl", "a")),
}


class Rectangle(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other, space=0.0):
        aside = other.right + space <= self.left or self.right + space <= other.left
        above = other.bottom + space <= self.top or self.bottom + space <= other.top
        return not (aside or above)


class Picture(NamedTuple):
    root: ET.Element
    boxes: dict[str, Rectangle]
    edges: dict[tuple[str, str, str], list[tuple[float, float]]]


def read(svg):
    """Read a picture: its boxes, and its edges as points along them."""
    root = ET.fromstring(svg)
    boxes, edges = {}, {}
    for group in root.iter(f"{SVG}g"):
        if name := group.get("data-problem"):
            assert name not in boxes
            rect = group.find(f"{SVG}rect")
            x, y, w, h = (float(rect.get(k)) for k in ("x", "y", "width", "height"))
            boxes[name] = Rectangle(x, y, x + w, y + h)
        if name := group.get("data-edge"):
            key = re.fullmatch(r"(\w+): (\w+) → (\w+)", name).groups()
            assert key not in edges
            edges[key] = trace(group.find(f"{SVG}path").get("d"))
    return Picture(root, boxes, edges)


def trace(path):
    """Sample a path of lines and cubics."""
    points = []
    for command, text in re.findall(r"([MLC])([^MLC]+)", path):
        x = [float(number) for number in re.findall(NUMBER, text)]
        new = list(zip(x[::2], x[1::2], strict=True))
        if command == "M":
            points += new
            continue
        corners = [points[-1], *new]
        corners = corners if command == "C" else [corners[0], *corners, corners[-1]]
        for t in (i / 24 for i in range(1, 25)):
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
            points.append(
                tuple(
                    sum(w * c[axis] for w, c in zip(weights, corners, strict=True))
                    for axis in (0, 1)
                )
            )
    return points


def edges_of(u2l, l2u):
    named = {"u2l": u2l, "l2u": l2u}
    return {(k, a, b) for k, es in named.items() for a, bs in es.items() for b in bs}


def check_picture(svg, names, edges):
    picture = read(svg)
    assert set(picture.boxes) == set(names)
    assert set(picture.edges) == edges
    width, height = (float(picture.root.get(k)) for k in ("width", "height"))
    card = Rectangle(-20.0, -20.0, width - 20.0, height - 20.0)
    for box in picture.boxes.values():
        inside = Rectangle(card.left, card.top, box.left, box.top)
        assert inside.right > inside.left
        assert inside.bottom > inside.top
        assert box.right < card.right
        assert box.bottom < card.bottom
    for one, other in itertools.combinations(picture.boxes.values(), 2):
        assert not one.meets(other, space=10.0)
    for (kind, start, end), points in picture.edges.items():
        lower, upper = (start, end) if kind == "l2u" else (end, start)
        low, high = picture.boxes[lower], picture.boxes[upper]
        assert high.bottom < low.top
        (x, y), (x_end, y_end) = points[0], points[-1]
        assert low.left < x < low.right
        assert high.left < x_end < high.right
        assert abs(y - low.top) < 8
        assert abs(y_end - high.bottom) < 8
        for name in set(picture.boxes) - {lower, upper}:
            assert not any(
                Rectangle(x, y, x, y).meets(picture.boxes[name], space=2.0)
                for x, y in points
            )
    return picture


@pytest.mark.parametrize("shape", SHAPES)
def test_picture_has_every_box_and_edge_once_and_apart(shape):
    names = SHAPES[shape][0]
    u2l, l2u = ({a: list(b) for a, b in es.items()} for es in SHAPES[shape][1:])
    engine = mlox.Engine([problem(name) for name in names], u2l, l2u)
    picture = check_picture(engine.draw(), names, edges_of(u2l, l2u))
    texts = [text.text for text in picture.root.iter(f"{SVG}text")]
    assert set(names) <= set(texts)


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 22))]
)
def test_pictures_of_random_graphs_are_legible(seed):
    draw = random.Random(seed)
    count = draw.randint(2, 31)
    names = [f"problem{i}" for i in range(count)]
    density = draw.choice([0.5, 1.0, 2.0, 3.0]) / count
    pairs = [p for p in itertools.combinations(names, 2) if draw.random() < density]
    u2l = [pair for pair in pairs if draw.random() < 0.8]
    l2u = [pair[::-1] for pair in pairs]
    depth = dict.fromkeys(names, 0)
    for upper, lower in reversed(pairs):
        depth[upper] = max(depth[upper], depth[lower] + 1)
    texts = {name: [name, "1 step per cycle"] for name in names}
    svg = draw_graph(texts, depth, u2l, l2u)
    expected = {("u2l", *edge) for edge in u2l} | {("l2u", *edge) for edge in l2u}
    picture = check_picture(svg, names, expected)
    assert float(picture.root.get("width")) < 6000
    assert svg == draw_graph(texts, depth, u2l, l2u)


def test_boxes_say_steps_tasks_and_method():
    method = mlox.Implicit(mlox.CG(iterations=7))
    svg = pair({"method": method, "tasks": 3}).draw()
    rows = [text.text for text in read(svg).root.iter(f"{SVG}text")]
    assert rows[:2] == ["penalty", "1 step per cycle"]
    assert rows[2:5] == [
        "fit",
        "2 steps per cycle, 3 tasks",
        "Implicit(CG(iterations=7))",
    ]
    assert rows[5:7] == ["u2l", "l2u"]
    assert rows[7] == "l2u: the upper reads the lower's answer"


def test_u2l_edges_are_dashed_and_end_below():
    picture = read(pair().draw())
    paths = {
        group.get("data-edge"): group.find(f"{SVG}path").get("stroke-dasharray")
        for group in picture.root.iter(f"{SVG}g")
        if group.get("data-edge")
    }
    assert paths == {"u2l: penalty → fit": "5 4", "l2u: fit → penalty": None}


def test_picture_has_a_title_and_a_description():
    root = read(pair().draw()).root
    assert root.get("role") == "img"
    assert root.find(f"{SVG}title").text == "Graph of 2 problems"
    described = root.find(f"{SVG}desc").text
    assert "fit, 2 steps per cycle, Implicit(); " in described
    assert described.endswith("u2l: penalty → fit; l2u: fit → penalty.")


@dataclasses.dataclass(frozen=True)
class Marked(mlox.Implicit):
    note: str = '<&">\x00' * 20


def test_what_users_named_is_escaped_and_cut():
    names = ["größe", "重み", "x" * 120]
    u2l = {"größe": ["重み"], "重み": ["x" * 120]}
    l2u = {"重み": ["größe"], "x" * 120: ["重み"]}
    problems = [problem(name, method=Marked()) for name in names]
    engine = mlox.Engine(problems, u2l, l2u)
    picture = check_picture(engine.draw(), names, edges_of(u2l, l2u))
    texts = [text.text for text in picture.root.iter(f"{SVG}text")]
    assert "x" * 120 in texts
    assert any(text.startswith("Marked(note=") and text.endswith("…") for text in texts)


def test_picture_is_written(tmp_path):
    engine = pair()
    for file in (tmp_path / "graph.svg", str(tmp_path / "other.SVG")):
        assert engine.draw(file) == engine.draw()
    assert (tmp_path / "graph.svg").read_text(encoding="utf-8") == engine.draw()
    assert len(list(tmp_path.iterdir())) == 2


def test_picture_needs_no_arrays_that_exist():
    engine = pair()
    deleted = jnp.ones(2)
    deleted.delete()
    changed = [p.replace(params=deleted) for p in engine.problems]
    l2u = {"fit": ["penalty"]}
    assert mlox.Engine(changed, {"penalty": ["fit"]}, l2u).draw() == engine.draw()


def test_the_picture_of_the_docs_is_that_of_their_program():
    page = DOCS.joinpath("index.md").read_text(encoding="utf-8")
    program = re.search(r"```python\n(.*?)state, _ = ", page, re.DOTALL)[1]
    names = {}
    exec(program, names)
    kept = DOCS.joinpath("graph.svg").read_text(encoding="utf-8")
    assert names["engine"].draw() == kept, "run engine.draw('docs/graph.svg') again"


class Tags(html.parser.HTMLParser):
    """Check that tags are closed in order, and keep the texts of cells."""

    def __init__(self):
        super().__init__()
        self.open, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_a_notebook_shows_the_picture_and_a_table():
    engine = pair()
    text = engine._repr_html_()
    assert engine.draw() in text
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.cells[:3] == ["penalty", "steps", "once per cycle, every 2 ticks"]
    assert "fit (symmetric, positive definite at a minimum) by the method of fit" in (
        tags.cells
    )
