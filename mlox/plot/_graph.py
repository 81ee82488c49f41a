"""Draw the graph of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlox._draw.edges import ARROW, Edge, place_labels
from mlox._draw.layout import Box
from mlox._draw.picture import (
    DASHES,
    LINE,
    MEANINGS,
    NAME_SIZE,
    PADDING,
    SIZE,
    box_size,
    cut,
)
from mlox._draw.scene import make_scene
from mlox._engine.draw import box_lines
from mlox._engine.engine import Engine
from mlox._utils.fields import check, instance_of
from mlox.plot._axes import COLORS, take_axes

ENGINE = instance_of(Engine, "a mlox.Engine")
KIND_COLORS = {"l2u": COLORS[0], "u2l": COLORS[1], "reads": COLORS[3]}
MARGIN = 12.0
INCH = 80.0  # units of the layout in an inch of a new figure
KEY = 34.0  # the length of an arrow in the legend


def graph(engine: Engine, *, ax: Any = None) -> Any:
    """Draw the graph of an engine: uppers above lowers, as `engine.draw()` places them.

    Solid l2u edges lead up, dashed u2l edges down, dotted ones from what is read as a
    constant to the problem that reads it. The picture keeps its proportions, texts
    included, in axes of any size.

    Args:
        engine: The engine.
        ax: The matplotlib axes; None makes a new figure.

    Returns:
        The matplotlib axes, without frame and ticks.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If an argument is of the wrong kind.

    Example:
        >>> import jax.numpy as jnp, mlox, optax
        >>> parts = {"params": jnp.zeros(()), "tx": optax.sgd(0.1)}
        >>> top = mlox.Problem.create(
        ...     name="top", loss_fn=lambda p, batch, ctx: ctx.low.params**2, **parts)
        >>> low = mlox.Problem.create(
        ...     name="low", loss_fn=lambda p, batch, ctx: (p - ctx.top.params)**2,
        ...     **parts)
        >>> engine = mlox.Engine([top, low], {"top": ["low"]}, {"low": ["top"]})
        >>> ax = mlox.plot.graph(engine)
        >>> [patch.get_gid() for patch in ax.patches if patch.get_gid()]
        ['top', 'low', 'u2l: top → low', 'l2u: low → top']
    """
    check("plot.graph: engine", engine, ENGINE)
    plan = engine.cycle.plan
    texts = {p.name: box_lines(plan, p) for p in engine.problems}
    sizes = {name: box_size(lines) for name, lines in texts.items()}
    edges = plan.graph.u2l, plan.graph.l2u, plan.graph.plain
    layout, drawn = make_scene(plan.graph.depth, sizes, *edges)
    legend = [kind for kind in MEANINGS if any(e.arrow.kind == kind for e in drawn)]
    width = max([layout.width, *(KEY + 8 + 6.6 * len(MEANINGS[k]) for k in legend)])
    height = layout.height + (PADDING + LINE * len(legend) if legend else 0.0)
    aside = (width - layout.width) / 2
    size = ((width + 2 * MARGIN) / INCH, (height + 2 * MARGIN) / INCH)
    ax = take_axes("graph", ax, size)
    for name, lines in texts.items():
        _draw_box(ax, name, lines, layout.boxes[name])
    for edge in drawn:
        _draw_edge(ax, edge)
    labels = place_labels(drawn, -aside, layout.width + aside)
    for edge, (x, y) in zip(drawn, labels, strict=False):
        kind = edge.arrow.kind
        _write(ax, kind, x, y, 10.0, KIND_COLORS[kind])
    for i, kind in enumerate(legend):
        _draw_meaning(ax, kind, -aside, layout.height + PADDING + LINE * (i + 0.7))
    ax.set_aspect("equal")
    ax.set_xlim(-aside - MARGIN, layout.width + aside + MARGIN)
    ax.set_ylim(height + MARGIN, -MARGIN)  # y points down
    ax.axis("off")
    return ax


def _text_color() -> Any:
    from matplotlib import rcParams

    return rcParams["text.color"]


def _write(
    ax: Any,
    text: str,
    x: float,
    y: float,
    size: float,
    color: Any,
    *,
    bold: bool = False,
    centred: bool = True,
) -> None:
    """Write a text in the units of the layout, so that it grows with the boxes."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    font = FontProperties(weight="bold" if bold else "normal")
    path = TextPath((0, 0), text.replace("$", r"\$"), size=0.92 * size, prop=font)
    bounds = path.get_extents()
    left = (bounds.x0 + bounds.x1) / 2 if centred else 0.0
    place = Affine2D().translate(-left, -0.33 * size).scale(1, -1).translate(x, y)
    patch = PathPatch(place.transform_path(path), linewidth=0, facecolor=color)
    patch.set_label(f"text: {text}")
    ax.add_patch(patch)


def _draw_box(ax: Any, name: str, lines: Sequence[str], box: Box) -> None:
    from matplotlib.patches import FancyBboxPatch

    color = _text_color()
    rectangle = FancyBboxPatch(
        (box.x - box.width / 2, box.y - box.height / 2),
        box.width,
        box.height,
        boxstyle="round,pad=0,rounding_size=6",
        facecolor=("gray", 0.1),
        edgecolor="gray",
        gid=name,
    )
    ax.add_patch(rectangle)
    for i, line in enumerate(lines):
        y = box.y + LINE * (i - (len(lines) - 1) / 2)
        size = SIZE if i else NAME_SIZE
        _write(ax, cut(line) if i else line, box.x, y, size, color, bold=not i)


def _draw_edge(ax: Any, edge: Edge) -> None:
    """Draw the curves of an edge, and its arrow."""
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path

    kind, up = edge.arrow
    first, last = edge.curves[0], edge.curves[-1]
    points = [(first.x0, first.y0 if not up else first.y0 + ARROW)]
    codes = [Path.MOVETO]
    for c in edge.curves:
        points += [(c.x0, c.y0), (c.x0, c.middle), (c.x1, c.middle), (c.x1, c.y1)]
        codes += [Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    points.append((last.x1, last.y1 if up else last.y1 - ARROW))
    codes.append(Path.LINETO)
    color = KIND_COLORS[kind]
    dashes = (0, tuple(map(float, DASHES[kind].split()))) if kind in DASHES else "-"
    line = PathPatch(
        Path(points, codes),
        fill=False,
        edgecolor=color,
        linewidth=1.5,
        linestyle=dashes,
        gid=edge.name,
    )
    ax.add_patch(line)
    x, base, tip = (
        (last.x1, last.y1, last.y1 - ARROW)
        if up
        else (first.x0, first.y0, first.y0 + ARROW)
    )
    corners = [(x, tip), (x - 4, base), (x + 4, base)]
    ax.add_patch(Polygon(corners, facecolor=color, linewidth=0))


def _draw_meaning(ax: Any, kind: str, x: float, y: float) -> None:
    """Draw a line of the legend."""
    from matplotlib.patches import Polygon

    color = KIND_COLORS[kind]
    dashes = (0, tuple(map(float, DASHES[kind].split()))) if kind in DASHES else "-"
    ax.plot([x, x + KEY - ARROW], [y, y], color=color, linewidth=1.5, linestyle=dashes)
    corners = [(x + KEY, y), (x + KEY - ARROW, y - 4), (x + KEY - ARROW, y + 4)]
    ax.add_patch(Polygon(corners, facecolor=color, linewidth=0))
    _write(ax, MEANINGS[kind], x + KEY + 8, y, 11.0, _text_color(), centred=False)
