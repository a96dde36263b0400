"""Pictures of routes that need no plotting library."""

from torch import Tensor

from .route import Route
from .topology import Topology

__all__ = ["draw"]

_COLUMN, _ROW, _RADIUS, _MARGIN = 64.0, 64.0, 13.0, 28.0


def draw(topology: Topology, route: Route | Tensor, *, title: str | None = None) -> str:
    """Draws the route of one sample, or a mean of routes, as an SVG picture.

    The graph flows from left to right, all of it in light grey; the edges of the route are darker the more they weigh;
    modules that the route does not use are hollow.

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
    chosen = {(source, node): weight for source, node, weight in topology.edges(path, weights)}
    used = topology.used(path).tolist()

    column = _columns(topology)
    places = _places(column)
    arc = max(abs(column[node] - column[j]) for node in topology.destinations for j in topology.parents[node])
    top = _MARGIN + (arc - 1) * _COLUMN * 0.22
    width = 2 * _MARGIN + max(x for x, _ in places)
    height = top + _MARGIN + max(y for _, y in places)

    every = [(j, node) for node in topology.destinations for j in topology.parents[node]]
    lines = [_edge(places, column, edge, "#d9dce1", 1.0) for edge in every if edge not in chosen]
    for (source, node), weight in sorted(chosen.items(), key=lambda item: item[1]):
        hint = f"{source} to {node}: {weight:.3f}"
        live = used[node]
        color = f"rgba(20, 110, 60, {0.25 + 0.75 * min(weight, 1.0):.3f})" if live else "#b9bec6"
        lines.append(_edge(places, column, (source, node), color, 1.0 + 3.0 * weight * live, hint))

    circles = []
    for node, (x, y) in enumerate(places):
        fill, ink, line = ("#146e3c", "#fff", "#146e3c") if used[node] else ("#fff", "#8a919c", "#8a919c")
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
            f'<g transform="translate({_MARGIN} {top:.1f})">',
            '<g fill="none">',
            *lines,
            "</g>",
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


def _edge(
    places: list[tuple[float, float]],
    column: list[int],
    edge: tuple[int, int],
    color: str,
    width: float,
    hint: str | None = None,
) -> str:
    """A curve from source to destination; edges that jump over columns bend over the nodes between."""
    (x0, y0), (x1, y1) = places[edge[0]], places[edge[1]]
    bend = (column[edge[1]] - column[edge[0]] - 1) * _COLUMN * 0.44
    curve = f"M{x0:.1f} {y0:.1f} Q{(x0 + x1) / 2:.1f} {(y0 + y1) / 2 - bend:.1f} {x1:.1f} {y1:.1f}"
    body = f"><title>{hint}</title></path>" if hint else "/>"
    return f'<path d="{curve}" stroke="{color}" stroke-width="{width:.2f}"{body}'


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
