"""Statistics and pictures of routes.

:func:`by_task` averages values of samples by task, such as from :meth:`dynroute.Topology.used`,
:meth:`dynroute.Topology.depth` and the functions here.
"""

from .drawing import draw, draw_grid, draw_load
from .statistics import Summary, by_task, entropy, flow, live_path, metrics, similarity, summarize

__all__ = [
    "Summary",
    "by_task",
    "draw",
    "draw_grid",
    "draw_load",
    "entropy",
    "flow",
    "live_path",
    "metrics",
    "similarity",
    "summarize",
]
