"""Pictures of routes as SVG text; no plotting library is needed."""

from collections.abc import Sequence
from html import escape

import torch
from torch import Tensor

from .arguments import check_count, check_tensor
from .checks import refuse_where
from .route import Route
from .topology import Topology, check_topology

__all__ = ["draw", "draw_grid", "draw_load"]

_COLUMN, _ROW, _RADIUS, _MARGIN, _LINE, _LETTER = 64.0, 64.0, 13.0, 28.0, 10.0, 6.5
_TALL, _LEAST = 640.0, 30.0  # the height of a column before its rows get smaller, and the smallest rows
_CELL, _POINTS = 16.0, 120
_GREEN, _GREY, _INK = "#146e3c", "#7d8590", "#1f2328"


def draw(topology: Topology, route: Route | Tensor, *, used: Tensor | None = None, title: str | None = None) -> str:
    """Draws the route of one sample, or a mean of routes, as an SVG picture.

    The graph flows from left to right, in light grey. Edges of the route are darker the more they weigh. Modules that
    the route does not use are hollow, and the edges to them dashed.

    Args:
        topology: The graph.
        route: The route of one sample, or weights with shape ``[T, S]`` such as a mean over samples.
        used: The share of samples for which each node runs, with shape ``[num_nodes]``: the rarer, the paler. Default:
            1 for every node that the route reaches backwards from the output.
        title: The title above the picture, also its name for screen readers.

    Returns:
        The text of the SVG picture.

    Example:
        >>> net = ModuleRouting.mlp(5, 8, 3, 2)
        >>> y, route = net(torch.zeros(5), return_route=True)
        >>> draw(net.topology, route).startswith("<svg")
        True
    """
    check_topology(topology)
    name, lines, width, height = _picture(topology, route, used, title)
    return _svg(name, lines, width, height, role="img")


def draw_grid(
    topology: Topology,
    weights: Tensor,
    *,
    used: Tensor | None = None,
    titles: Sequence[str],
    title: str,
    columns: int = 3,
) -> str:
    """Draws several routes of one graph side by side, for instance the mean routes of tasks, as one SVG picture.

    Args:
        topology: The graph.
        weights: The weights of each picture, with shape ``[N, T, S]``.
        used: The share of samples for which each node runs, with shape ``[N, num_nodes]``, as in :func:`draw`.
        titles: The title of each picture.
        title: The title above all of them.
        columns: The number of pictures side by side.

    Returns:
        The text of the SVG picture.

    Example:
        >>> net = ModelRouting.mlp(5, 8, 3, 2)
        >>> route = net.route(torch.randn(2, 5))
        >>> picture = inspect.draw_grid(net.topology, route.weights, titles=["first", "second"], title="Two samples")
        >>> picture.count("<circle")
        8
    """
    check_topology(topology)
    check_tensor("weights", weights)
    check_count("columns", columns, at_least=1)
    title = str(title)
    if weights.dim() != 3 or len(weights) == 0 or len(weights) != len(titles):
        raise ValueError(
            f"`weights` must have shape (N, T, S) with one of {len(titles)} titles for each picture, "
            f"got {tuple(weights.shape)}; use draw() for one picture."
        )
    if used is not None and used.shape != (len(weights), topology.num_nodes):
        raise ValueError(
            f"`used` must have shape {(len(weights), topology.num_nodes)}, a share for each picture and node, "
            f"got {tuple(used.shape)}."
        )
    pictures = [_picture(topology, w, None if used is None else used[i], titles[i]) for i, w in enumerate(weights)]
    width, height = max(picture[2] for picture in pictures), pictures[0][3]  # one graph has one height
    columns, lines = min(columns, len(pictures)), [_heading(title)]
    for i, (name, picture, _, _) in enumerate(pictures):
        place = f"{i % columns * width:.0f} {_MARGIN + i // columns * height:.0f}"
        lines += [f'<g role="img" transform="translate({place})">', f"<title>{escape(name)}</title>", *picture, "</g>"]
    whole = _MARGIN + -(-len(pictures) // columns) * height
    return _svg(title, lines, max(columns * width, _room(title)), whole, role="group")


def draw_load(load: Tensor, *, title: str = "Load over time") -> str:
    """Draws the load of the nodes over time as one SVG picture, with a row for each node and time to the right.

    A cell is white for no load and darkest for the largest load of the picture. The name of a node without any load is
    hollow. More than 120 points in time are averaged to fewer columns.

    Args:
        load: The load of each node at each point in time, with shape ``[time, nodes]``, for instance the share of the
            samples for which it runs (:attr:`dynroute.Record.load_history`).
        title: The title above the picture.

    Returns:
        The text of the SVG picture.

    Example:
        >>> inspect.draw_load(torch.rand(50, 4)).count('class="load"')
        4
    """
    check_tensor("load", load)
    title = str(title)
    if load.dim() != 2 or 0 in load.shape:
        raise ValueError(
            f"`load` must have shape (time, nodes), a row for each point of time, got {tuple(load.shape)}; "
            "torch.stack(loads) makes it of single ones."
        )
    if load.is_complex():
        raise TypeError(f"`load` must hold real numbers, got {load.dtype}.")
    values = load.detach().to("cpu", torch.float64)
    refuse_where(
        values,
        lambda values: ~(values >= 0) | values.isinf(),
        lambda index: f"`load` must hold loads of at least 0, got {values[index].item():g} at {index}.",
    )
    spans = values.tensor_split(min(len(values), _POINTS))
    columns, largest = torch.stack([span.mean(dim=0) for span in spans]), float(values.max())
    steps, left = len(values), _MARGIN + 12.0
    cell, width = max(2.0, 360.0 / len(columns)), max(2.0, 360.0 / len(columns)) * len(columns)
    lines = [_heading(title)]
    for node in range(values.shape[1]):
        y, row = _MARGIN + 8.0 + node * _CELL, values[:, node]
        hint = f"node {node}: {row.mean():.3f} on average, from {row.min():.3f} to {row.max():.3f}"
        ink = _INK if row.any() else "none"
        outline = "" if row.any() else f' stroke="{_GREY}" stroke-width="0.7"'
        lines += [
            f'<g class="load"><title>{hint}</title>',
            f'<rect x="{left}" y="{y:.1f}" width="{width:.1f}" height="{_CELL - 2}" fill="#ffffff" stroke="#dfe3e8"/>',
            f'<text x="{left - 6}" y="{y + 11:.1f}" text-anchor="end" fill="{ink}"{outline}>{node}</text>',
        ]
        lines += [
            f'<rect x="{left + i * cell:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{_CELL - 2}" fill="{_GREEN}" '
            f'fill-opacity="{value / largest:.2f}"/>'
            for i, value in enumerate(columns[:, node].tolist())
            if value > 0
        ]
        lines.append("</g>")
    below = _MARGIN + 8.0 + values.shape[1] * _CELL
    scale = f"white: 0, darkest: {largest:.3g}; {steps} point{'s' if steps > 1 else ''} of time"
    lines.append(f'<text x="{left}" y="{below + 14:.1f}" fill="#3d444d">{scale}</text>')
    whole = max(left + width + _MARGIN, _room(title), left + _LETTER * len(scale) + _MARGIN)
    return _svg(title, lines, whole, below + _MARGIN, role="img")


def _picture(
    topology: Topology, route: Route | Tensor, used: Tensor | None, title: str | None
) -> tuple[str, list[str], float, float]:
    """The name of a picture, its SVG elements, its width and its height."""
    if not isinstance(route, Route):
        check_tensor("route", route)
    weights = (route.weights if isinstance(route, Route) else route).detach()
    path = route.path if isinstance(route, Route) else weights > 0
    refuse_where(
        weights,
        lambda weights: ~(weights >= 0) | weights.isinf(),
        lambda index: f"`route` must hold weights, got {weights[index].item():g} at {index}; did you pass the logits?",
    )
    chosen = {(source, node): weight for source, node, weight in topology.edges(path, weights)}
    if used is None:
        used = topology.used(path).float()
        node_hint = ""
    else:
        _check_used(used, topology)
        node_hint = "<title>node {} runs for {:.0%} of the samples</title>"
    shares = used.tolist()

    column = _columns(topology)
    places = _places(column)
    every = [(j, node) for node in topology.destinations for j in topology.parents[node]]
    above = max(_bend(column, edge) for edge in every) / 2
    runs = sum(share > 0 for share in shares)
    name = f"Route through {runs} of {topology.num_nodes} nodes" if title in (None, "") else str(title)
    width = max(2 * _MARGIN + max(x for x, _ in places), _room(name))
    height = 2 * _MARGIN + _LINE + above + max(y for _, y in places)

    # Edges that were not chosen lie below the others, and the heaviest on top.
    lines = [_edge(places, column, edge, "#dfe3e8", width=1.0) for edge in every if edge not in chosen]
    for (source, node), weight in sorted(chosen.items(), key=lambda item: item[1]):
        hint = f"{source} to {node}: {weight:.3f}"
        if shares[node] > 0:
            shade = 0.15 + 0.85 * min(weight, 1.0) ** 0.5  # the root shows the many light edges of a mean
            lines.append(
                _edge(places, column, (source, node), _GREEN, width=1.0 + 3.0 * weight, shade=shade, hint=hint)
            )
        else:
            lines.append(_edge(places, column, (source, node), _GREY, width=1.0, dashes="3 3", hint=hint))
    for node, (x, y) in enumerate(places):
        fill, ink, line = _colors(shares[node])
        lines.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}" fill="{fill}" stroke="{line}">'
            f"{node_hint.format(node, shares[node])}</circle>"
            f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" fill="{ink}">{node}</text>'
        )

    move = f'<g transform="translate({_MARGIN} {_MARGIN + _LINE + above:.1f})">'
    return name, [_heading(name), move, *lines, "</g>"], width, height


def _heading(name: str) -> str:
    return f'<text x="{_MARGIN - _RADIUS}" y="{_MARGIN * 0.75}" fill="#3d444d">{escape(name)}</text>'


def _room(name: str) -> float:
    """The width that a heading needs."""
    return 2 * (_MARGIN - _RADIUS) + _LETTER * len(name)


def _check_used(used: Tensor, topology: Topology) -> None:
    if used.shape != (topology.num_nodes,):
        raise ValueError(
            f"`used` must have shape ({topology.num_nodes},), a share for each node, got {tuple(used.shape)}; "
            "average over the samples first."
        )
    refuse_where(
        used,
        lambda used: ~((used >= 0) & (used <= 1)),
        lambda index: f"`used` must hold shares from 0 to 1, got {used[index].item():g} for node {index[0]}.",
    )


def _svg(name: str, lines: list[str], width: float, height: float, *, role: str) -> str:
    """A complete picture on a white background, which shrinks to the width of the page."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" style="max-width:100%;height:auto" role="{role}" font-family="sans-serif" '
            'font-size="12">',
            f"<title>{escape(name)}</title>",
            f'<rect width="{width:.0f}" height="{height:.0f}" rx="6" fill="#ffffff"/>',
            *lines,
            "</svg>",
        ]
    )


def _colors(share: float) -> tuple[str, str, str]:
    """The fill, text and line colors of a node: green if it always runs, paler the rarer it runs, hollow if never."""
    if share == 0:
        return "#ffffff", _GREY, _GREY
    parts = [round(255 + (int(_GREEN[i : i + 2], 16) - 255) * (0.25 + 0.75 * share)) for i in (1, 3, 5)]
    fill = "#" + "".join(f"{part:02x}" for part in parts)
    return fill, "#ffffff" if share > 0.7 else _INK, _GREEN  # text that is readable on the fill


def _columns(topology: Topology) -> list[int]:
    """The number of edges on the longest chain to each node."""
    column: list[int] = []
    for parents in topology.parents:
        column.append(1 + max((column[j] for j in parents), default=-1))
    return column


def _places(column: list[int]) -> list[tuple[float, float]]:
    """The centre of each node; the nodes of a column are spread evenly around the middle line, denser in tall ones."""
    tallest = max(column.count(c) for c in column)
    row = max(_LEAST, min(_ROW, _TALL / tallest))
    above = [column[:i].count(c) + (tallest - column.count(c)) / 2 for i, c in enumerate(column)]
    return [(c * _COLUMN, rows * row) for c, rows in zip(column, above, strict=True)]


def _bend(column: list[int], edge: tuple[int, int]) -> float:
    """The bend with which an edge passes over the nodes of the columns between."""
    skipped = column[edge[1]] - column[edge[0]] - 1
    return skipped * _COLUMN * 0.44 + (skipped > 0) * 16.0


def _edge(
    places: list[tuple[float, float]],
    column: list[int],
    edge: tuple[int, int],
    color: str,
    *,
    width: float,
    shade: float = 1.0,
    dashes: str = "",
    hint: str = "",
) -> str:
    """A curve from source to destination."""
    (x0, y0), (x1, y1) = places[edge[0]], places[edge[1]]
    curve = f"M{x0:.1f} {y0:.1f} Q{(x0 + x1) / 2:.1f} {(y0 + y1) / 2 - _bend(column, edge):.1f} {x1:.1f} {y1:.1f}"
    style = f'fill="none" stroke="{color}" stroke-opacity="{shade:.3f}" stroke-width="{width:.2f}"'
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="{curve}" {style}{dashed}' + (f"><title>{hint}</title></path>" if hint else "/>")
