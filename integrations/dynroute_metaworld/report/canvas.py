"""What figures are made of, by matplotlib, which the extra `report` brings."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # unlike pyplot, it needs no display
from numpy.typing import NDArray

from .evidence import SHARES, unit_of

__all__ = ["INK", "heat_map", "legend", "metric_panels", "save", "scale", "scatter", "style"]

INK = "#146e3c"
"""The colour of what is not told apart by colours."""

BESIDE = 12
"""The largest number of names beside a panel."""

COLUMN = 2.1
"""How wide a column of names below it is, in inches."""


def save(folder: Path, figures: Mapping[str, Figure | None]) -> list[Path]:
    """Writes figures by their names, but for those that there are not."""
    written = []
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(path := folder / f"{name}.png", dpi=110)
            written.append(path)
    return written


def metric_panels(metrics: Sequence[str], height: float = 2.4) -> tuple[Figure, Any]:
    """A panel for each metric; those over the same are aligned, and the last of them tells what that is."""
    figure = Figure(figsize=(9, height * len(metrics)), layout="constrained")
    units = [unit_of(metric) for metric in metrics]
    axes = figure.subplots(len(metrics), 1, sharex=len({*units}) == 1, squeeze=False)[:, 0]
    for axis, unit, below in zip(axes, units, [*units[1:], None], strict=True):
        if unit != below:
            axis.set_xlabel(unit)
    return figure, axes


def style(number: int) -> dict[str, Any]:
    """The colour and the stroke of the line of a number."""
    strokes = ("-", "--", ":", "-.", (0, (7, 2, 1, 2, 1, 2)))  # equal curves do not hide each other
    return {"color": f"C{number % 10}", "linestyle": strokes[(number + number // 10) % 5]}


def scale(axis: Any, metric: str) -> None:
    """Gives shares the whole scale, and others one on which noise does not look like a change."""
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
    """Names what panels show, beside them all; where that is much, below them, and the figure grows by it."""
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
    """Draws figures between 0 and 1 of each two tasks, written out where there is room for that."""
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


def scatter(
    axis: Any, tasks: Sequence[str], points: NDArray[np.float64], among: Sequence[str], size: float = 400.0
) -> None:
    """Draws routes on a plane, a colour and a sign for each task, the larger the more often it was taken.

    Args:
        axis: Where it is drawn.
        tasks: The tasks.
        points: The routes, as :func:`~dynroute_metaworld.report.watching.embed` places them.
        among: All tasks of the figure, among which colours and signs are shared out.
        size: That of a route that a task always takes.
    """
    numbers = points[:, 0].astype(int)
    sizes = 12 + size * points[:, 3] / np.bincount(numbers, points[:, 3])[numbers]
    for i, task in enumerate(tasks):
        mine, place = numbers == i, among.index(task)
        look = {"color": f"C{place % 10}", "marker": "osv^D"[place // 10 % 5], "edgecolors": "white", "linewidths": 0.5}
        axis.scatter(points[mine, 1], points[mine, 2], s=sizes[mine], label=task, alpha=0.7, **look)
    axis.set(xticks=[], yticks=[])
