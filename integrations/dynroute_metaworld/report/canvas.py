"""Parts of figures, and the graph of a film, by matplotlib, which the extra `report` installs."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure  # unlike pyplot, it needs no display
from matplotlib.patches import Circle
from numpy.typing import NDArray
from PIL import Image

from dynroute import Route, Topology
from dynroute.files import writing_file

from .data import SHARES, unit_of

__all__ = [
    "INK",
    "draw_graph",
    "heat_map",
    "legend",
    "mark",
    "metric_panels",
    "plot",
    "save",
    "scale",
    "scatter",
    "style",
]

INK = "#146e3c"
"""The colour of figures that need only one."""

UNUSED = "#7d8590"
"""The colour of nodes that do not run."""

BESIDE = 12
"""The largest number of names in a legend beside the panels."""

STEP, RADIUS, LETTER, DPI = 96, 16, 14, 100
"""The largest distance between nodes of a graph, their radius and the size of their numbers, in pixels; and DPI."""

COLUMN = 2.1
"""The width of a column of names in a legend below the panels, in inches."""


def save(folder: Path, figures: Mapping[str, Figure | None]) -> list[Path]:
    """Writes figures to files of their names; figures that are None are left out."""
    written = []
    for name, figure in figures.items():
        if figure is not None:
            with writing_file(path := folder / f"{name}.png") as part:
                figure.savefig(part, dpi=110)
            written.append(path)
    return written


def metric_panels(metrics: Sequence[str]) -> tuple[Figure, Any]:
    """Makes a panel for each metric; only the last of the panels with the same unit names it."""
    figure = Figure(figsize=(9, 2.4 * len(metrics)), layout="constrained")
    units = [unit_of(metric) for metric in metrics]
    axes = figure.subplots(len(metrics), 1, sharex=len({*units}) == 1, squeeze=False)[:, 0]
    for axis, unit, below in zip(axes, units, [*units[1:], None], strict=True):
        if unit != below:
            axis.set_xlabel(unit)
    return figure, axes


def style(number: int) -> dict[str, Any]:
    """The colour and the stroke of a numbered line."""
    strokes = ("-", "--", ":", "-.", (0, (7, 2, 1, 2, 1, 2)))  # so that equal curves do not hide each other
    return {"color": f"C{number % 10}", "linestyle": strokes[(number + number // 10) % 5]}


def plot(axis: Any, steps: NDArray[np.float64], values: NDArray[np.float64], number: int, label: str) -> None:
    """Draws a numbered curve; a curve of one point is a mark."""
    marker = mark(number)["marker"] if len(steps) == 1 else ""
    axis.plot(steps, values, label=label, marker=marker, **style(number))


def scale(axis: Any, metric: str) -> None:
    """Scales the axis of a share from 0 to 1, and of other metrics wide enough to keep noise small."""
    axis.grid(alpha=0.3)
    if metric in SHARES:
        axis.set_ylim(-0.02, 1.02)
        return
    axis.ticklabel_format(axis="y", useOffset=False)
    low, high = axis.get_ylim()
    room = 0.02 * max(abs(low), abs(high), 1e-6)
    if high - low < room:
        axis.set_ylim((low + high - room) / 2, (low + high + room) / 2)


def legend(figure: Figure, axes: Iterable[Any]) -> Any:
    """Adds one legend beside all panels; a long legend is below them, in a taller figure."""
    named: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    if len(named) <= BESIDE:
        return figure.legend(named.values(), named, fontsize="small", loc="outside right upper")
    width, height = figure.get_size_inches()
    columns = max(1, int(width / COLUMN))
    figure.set_size_inches(width, height + 0.2 * -(-len(named) // columns))
    return figure.legend(named.values(), named, fontsize="small", loc="outside lower left", ncols=columns)


def heat_map(axis: Any, shared: NDArray[np.float64], tasks: Sequence[str]) -> Any:
    """Draws numbers between 0 and 1 for each two tasks, with their values if there are few tasks."""
    image = axis.imshow(shared, cmap="Greens", vmin=0, vmax=1)
    ticks = range(len(tasks))
    axis.set_xticks(ticks, tasks, rotation=60, ha="right", fontsize="small")
    axis.set_yticks(ticks, tasks, fontsize="small")
    if len(tasks) <= 12:
        for i, row in enumerate(shared):
            for j, value in enumerate(row):
                ink = "white" if value > 0.6 else "black"
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize="x-small", color=ink)
    return image


def mark(number: int) -> dict[str, str]:
    """The colour and the marker of numbered points: neither repeats among ten, and never both among a hundred."""
    return {"color": f"C{number % 10}", "marker": "osv^DPX<>*"[(number + number // 10) % 10]}


def scatter(
    axis: Any, tasks: Sequence[str], points: NDArray[np.float64], among: Sequence[str], size: float = 400.0
) -> None:
    """Draws routes on a plane, with a colour and a marker for each task; frequent routes are larger, and lie below."""
    numbers = points[:, 0].astype(int)
    sizes = 12 + size * points[:, 3] / np.bincount(numbers, points[:, 3])[numbers]
    falling = np.argsort(-sizes, kind="stable")
    for i, task in enumerate(tasks):
        of_task, place = falling[numbers[falling] == i], among.index(task)
        look = {**mark(place), "edgecolors": "white", "linewidths": 0.5}
        look["zorder"] = 2 - sizes[of_task].max(initial=0) / (12 + size)
        axis.scatter(points[of_task, 1], points[of_task, 2], s=sizes[of_task], label=task, alpha=0.7, **look)
    axis.set(xticks=[], yticks=[])


def draw_graph(topology: Topology, route: Route, width: int) -> Image.Image:
    """Draws the route of one sample: nodes that run are filled, and edges are darker with larger weights.

    Args:
        topology: The graph.
        route: The route of the sample.
        width: The largest width of the picture, in pixels; its largest height is three quarters of it.
    """
    column = [0] * topology.num_nodes
    for node in topology.destinations:
        column[node] = 1 + max(column[source] for source in topology.parents[node])
    rows = [(column.count(at) - 1) / 2 - column[:node].count(at) for node, at in enumerate(column)]
    nodes = np.stack([column, rows], axis=1)
    ends = np.array([(source, node) for node in topology.destinations for source in topology.parents[node]])
    start, end = nodes[ends].transpose(1, 0, 2)
    middle = (start + end) / 2 + (end - start - 1)[:, :1] * (0, 0.4)  # above the nodes between
    t = np.linspace(0, 1, 25)[:, None, None]
    curves = ((1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end).swapaxes(0, 1)
    low = np.array([-0.5, nodes[:, 1].min() - 0.5])
    extent = np.array([column[-1] + 0.5, max(curves[..., 1].max(), nodes[:, 1].max()) + 0.5]) - low
    step = np.minimum((width / extent[0], 0.75 * width / extent[1]), STEP)  # pixels between columns, and between rows
    nodes, curves = (nodes - low) * step, (curves - low) * step
    radius = min(0.42 * step.min(), RADIUS)
    letter = min(2.8 * radius / max(2, len(str(len(nodes) - 1))), LETTER)  # all digits fit into the circle
    thin = radius / RADIUS
    size = extent * step
    figure = Figure(figsize=size / DPI, dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(0, size[1]))
    axis.set_axis_off()
    path, weights = (topology.to_edges(part.detach()).numpy() for part in (route.path, route.weights))
    used = topology.used(route.path).numpy()
    read = path & used[ends[:, 1]]
    axis.add_collection(LineCollection(curves[~path], colors="#dfe3e8", linewidths=thin))
    axis.add_collection(LineCollection(curves[path & ~read], colors=UNUSED, linewidths=thin, linestyles="--"))
    colors = [(INK, 0.15 + 0.85 * weight**0.5) for weight in weights[read]]
    axis.add_collection(LineCollection(curves[read], colors=colors, linewidths=thin * (1 + 3 * weights[read])))
    for node, (x, y) in enumerate(nodes.tolist()):
        edge, fill, ink = (INK, INK, "white") if used[node] else (UNUSED, "white", UNUSED)
        axis.add_patch(Circle((x, y), radius, facecolor=fill, edgecolor=edge, linewidth=thin, zorder=2))
        axis.text(x, y, str(node), color=ink, ha="center", va="center_baseline", fontsize=letter * 72 / DPI)
    figure.savefig(file := io.BytesIO(), format="png")
    return Image.open(file).convert("RGB")
