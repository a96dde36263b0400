"""Pictures of routes that need no plotting library."""

from torch import Tensor

from .checks import refuse_where
from .route import Route
from .topology import Topology

__all__ = ["draw"]

_COLUMN, _ROW, _RADIUS, _MARGIN, _LINE = 64.0, 64.0, 13.0, 28.0, 10.0
_GREEN, _GREY = "#146e3c", "#7d8590"


def draw(topology: Topology, route: Route | Tensor, *, title: str | None = None) -> str:
    """Draws the route of one sample, or a mean of routes, as an SVG picture.

    The graph flows from left to right, all of it in light grey; the edges of the route are darker the more they weigh;
    modules that the route does not use are hollow, and what they would read is dashed.

    Args:
        topology: The graph.
        route: The route of one sample, or weights with shape ``[T, S]`` such as a mean over samples.
        title: Names the picture for those who hear it and those who hover over it.

    Returns:
        The text of the SVG picture.

    Example:
        >>> net = ModuleRouting.mlp(5, 8, 3, 2)
        >>> y, route = net(torch.zeros(5), return_route=True)
        >>> draw(net.topology, route).startswith("<svg")
        True
    """
    weights = (route.weights if isinstance(route, Route) else route).detach()
    path = route.path if isinstance(route, Route) else weights > 0
    refuse_where(
        weights,
        lambda weights: ~(weights >= 0) | weights.isinf(),
        lambda index: f"`route` must hold weights, got {weights[index].item():g} at {index}; did you pass the logits?",
    )
    chosen = {(source, node): weight for source, node, weight in topology.edges(path, weights)}
    used = topology.used(path).tolist()

    column = _columns(topology)
    places = _places(column)
    every = [(j, node) for node in topology.destinations for j in topology.parents[node]]
    above = max(_bend(column, edge) for edge in every) / 2
    width = 2 * _MARGIN + max(x for x, _ in places)
    height = 2 * _MARGIN + _LINE + above + max(y for _, y in places)

    # The edges not chosen lie below the others, and the heaviest on top.
    lines = [_edge(places, column, edge, "#dfe3e8", width=1.0) for edge in every if edge not in chosen]
    for (source, node), weight in sorted(chosen.items(), key=lambda item: item[1]):
        hint = f"{source} to {node}: {weight:.3f}"
        if used[node]:
            shade = 0.45 + 0.55 * min(weight, 1.0)
            lines.append(
                _edge(places, column, (source, node), _GREEN, width=1.5 + 2.5 * weight, shade=shade, hint=hint)
            )
        else:
            lines.append(_edge(places, column, (source, node), _GREY, width=1.0, dashes="3 3", hint=hint))

    circles = []
    for node, (x, y) in enumerate(places):
        fill, ink, line = (_GREEN, "#ffffff", _GREEN) if used[node] else ("#ffffff", _GREY, _GREY)
        circles.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}" fill="{fill}" stroke="{line}"/>'
            f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" fill="{ink}">{node}</text>'
        )

    name = _escape(title or f"Route through {sum(used)} of {topology.num_nodes} nodes")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" role="img" font-family="sans-serif" font-size="12">',
            f"<title>{name}</title>",
            f'<rect width="{width:.0f}" height="{height:.0f}" rx="6" fill="#ffffff"/>',
            f'<text x="{_MARGIN - _RADIUS}" y="{_MARGIN * 0.75}" fill="#3d444d">{name}</text>',
            f'<g transform="translate({_MARGIN} {_MARGIN + _LINE + above:.1f})">',
            *lines,
            *circles,
            "</g>",
            "</svg>",
        ]
    )


def _columns(topology: Topology) -> list[int]:
    """How many edges the longest chain to each node has."""
    column: list[int] = []
    for parents in topology.parents:
        column.append(1 + max((column[j] for j in parents), default=-1))
    return column


def _places(column: list[int]) -> list[tuple[float, float]]:
    """The centre of each node, those of one column spread evenly around the middle line."""
    tallest = max(column.count(c) for c in column)
    rows = [column[:i].count(c) for i, c in enumerate(column)]
    return [(c * _COLUMN, (row + (tallest - column.count(c)) / 2) * _ROW) for c, row in zip(column, rows, strict=True)]


def _bend(column: list[int], edge: tuple[int, int]) -> float:
    """How far an edge bends, so that it passes over the nodes of the columns between."""
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


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
