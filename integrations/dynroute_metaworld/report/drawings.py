"""Draws the routes of a policy as SVG text: the mean route of each task, and moments of an episode with frames."""

import base64
import io
from html import escape
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynroute.inspect import draw, draw_grid

from .routes import Routes, RouteStep

__all__ = ["data_uri", "draw_moments", "draw_routes"]

SHOWN = 3
"""The number of moments of a task that are drawn side by side."""

WIDTH = 560
"""The width of each of them."""


def draw_routes(routes: Routes) -> str:
    """Draws the mean route of each task."""
    assert routes.topology is not None
    summary = routes.summary()
    return draw_grid(
        routes.topology,
        summary.weights,
        used=summary.used,
        titles=routes.tasks,
        title="Mean route of each task",
        columns=2 if routes.topology.num_nodes <= 10 else 1,  # a long graph needs the width
    )


def draw_moments(routes: Routes) -> str:
    """Draws the routes at some moments of an episode of each task, below the frames if there are any."""
    assert routes.topology is not None
    parts, bottom = [], 0
    for task, name in enumerate(routes.tasks):
        of_task = [moment for moment in routes.moments if moment.task == task]
        chosen = [of_task[i] for i in sorted({round(i) for i in np.linspace(0, len(of_task) - 1, SHOWN)})]
        height = 0
        for column, moment in enumerate(chosen):
            top, inside = 24, [f'<text x="8" y="17">{escape(name)}, step {moment.step}</text>']
            if moment.frame is not None:
                tall, wide = moment.frame.shape[:2]
                place = f'x="{(WIDTH - wide) // 2}" y="{top}" width="{wide}" height="{tall}"'
                inside.append(f'<image {place} href="{data_uri(moment.frame)}"/>')
                top += tall
            graph, graph_height = _graph(routes, moment, top)
            height = max(height, top + graph_height + 12)
            parts.append(f'<g transform="translate({column * WIDTH} {bottom})">{"".join(inside)}{graph}</g>')
        bottom += height
    total = SHOWN * WIDTH
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {bottom}" width="{total}" height="{bottom}" '
        'role="img" font-family="sans-serif" font-size="13"><title>Routes at moments of an episode of each task</title>'
        f'<rect width="{total}" height="{bottom}" fill="#ffffff"/>{"".join(parts)}</svg>'
    )


def data_uri(frame: NDArray[np.uint8]) -> str:
    """A frame as a JPEG picture in a data URI."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _graph(routes: Routes, moment: RouteStep, top: int) -> tuple[str, int]:
    """The picture of a route scaled to fit its column, and its height."""
    assert routes.topology is not None
    assert moment.route is not None
    used = int(routes.topology.used(moment.route.path).sum())
    picture = draw(routes.topology, moment.route, title=f"{used} of {routes.topology.num_nodes} nodes run")
    _, _, own_width, own_height = map(float, ElementTree.fromstring(picture).attrib["viewBox"].split())
    height = round(min(1.0, WIDTH / own_width) * own_height)
    box = f'<svg y="{top}" viewBox="0 0 {own_width:.0f} {own_height:.0f}" width="{WIDTH}" height="{height}"'
    return f"{box}>{picture}</svg>", height
