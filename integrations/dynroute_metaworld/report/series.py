"""Curves of a file of metrics, thinned while it is read, so that a file of any length fits."""

import json
import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["LIMIT", "Curve", "Metrics", "read_curves", "thin"]

LIMIT = 2000
"""The largest number of points of a curve."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """The points of a curve, by steps.

    Attributes:
        steps: Where they are.
        values: What they are; all are finite.
    """

    steps: Floats
    values: Floats


@dataclass(frozen=True, eq=False)
class Metrics:
    """What a file of metrics holds.

    Attributes:
        curves: By the names of the metrics.
        notes: What is wrong with the file, in sentences.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_curves(path: Path, names: Iterable[str], limit: int = LIMIT) -> Metrics:
    """Reads some metrics of a file, line by line.

    Lines that are damaged are left out and named, where :func:`~dynroute_metaworld.read_metrics` refuses the file: here
    the rest is still worth looking at.

    Args:
        path: The file, which need not be there.
        names: The metrics.
        limit: The largest number of points of a curve, see :func:`thin`.
    """
    if not path.exists():
        return Metrics(notes=(f"There is no {path.name}: nothing was logged.",))
    growing = {name: _Growing(limit) for name in names}
    lines, damaged, number, notes = 0, 0, 0, []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                told = json.loads(line)
                step = float(told["step"])
                known = [(growing[name], value) for name, value in told.items() if name in growing]
            except (ValueError, TypeError, KeyError, AttributeError):
                if not line.endswith(b"\n"):
                    notes.append(f"The last line of {path.name}, line {number}, is cut short and left out.")
                    continue
                damaged += 1
                if damaged <= 3:
                    notes.append(f"{path.name} is damaged in line {number}, which is left out.")
                continue
            lines += 1
            for curve, value in known:
                curve.add(step, value)
    if damaged > 3:
        notes.append(f"{damaged - 3} more damaged lines of {path.name} are left out.")
    if not lines:
        notes.append(f"{path.name} holds no whole line: nothing was logged.")
    notes += [
        f"{name} was not finite {'once' if curve.gaps == 1 else f'{curve.gaps} times'}; those points are left out."
        for name, curve in growing.items()
        if curve.gaps
    ]
    curves = {name: curve.curve() for name, curve in growing.items() if len(curve.steps)}
    return Metrics(curves, tuple(notes))


class _Growing:
    """A curve that is read; it is thinned whenever it holds several times the limit."""

    def __init__(self, limit: int) -> None:
        self.limit, self.gaps = limit, 0
        self.steps, self.values = array("d"), array("d")

    def add(self, step: float, value: object) -> None:
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            self.gaps += 1
            return
        self.steps.append(step)
        self.values.append(value)
        if len(self.steps) >= 8 * self.limit:
            steps, values = thin(np.array(self.steps), np.array(self.values), self.limit)
            self.steps, self.values = array("d", steps), array("d", values)

    def curve(self) -> Curve:
        return Curve(*thin(np.array(self.steps), np.array(self.values), self.limit))


def thin(steps: Floats, values: Floats, limit: int = LIMIT) -> tuple[Floats, Floats]:
    """Leaves out points of a curve that has more than `limit`, evenly over its steps.

    Of each of ``limit // 4`` equal spans of steps the first, the last, the lowest and the highest point stay, so that
    every point is one that was there, and neither ends nor extremes are lost.

    Args:
        steps: Where the points are.
        values: What they are.
        limit: The largest number of points, at least 4.

    Example:
        >>> import numpy as np
        >>> from dynroute_metaworld.report.series import thin
        >>> steps, values = thin(np.arange(1000.0), np.sin(np.arange(1000.0)), limit=100)
        >>> len(steps) <= 100, steps[0], steps[-1]
        (True, np.float64(0.0), np.float64(999.0))
    """
    if len(steps) <= limit:
        return steps, values
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    spans = limit // 4
    width = (steps[-1] - steps[0]) / spans or 1.0
    span = np.minimum(((steps - steps[0]) / width).astype(int), spans - 1)
    first = np.flatnonzero(np.append(True, span[1:] != span[:-1]))
    last = np.append(first[1:], len(steps)) - 1
    ranked = np.lexsort((values, span))  # within each span from the lowest to the highest
    kept = np.unique(np.concatenate([first, last, ranked[first], ranked[last]]))
    return steps[kept], values[kept]
