"""Pictures of a run."""

from pathlib import Path
from typing import Any

from .metrics import read_metrics
from .run import Run

__all__ = ["draw_curves"]


def draw_curves(run: Run, path: Path | None = None) -> Path | None:
    """Draws success, returns and modules used over steps, a line for each task, to ``curves.png`` in the run.

    It needs matplotlib, the extra `report`, and no display; without matplotlib nothing is drawn, and None returned.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    lines = read_metrics(run.metrics) if run.metrics.exists() else []
    tasks = run.configuration.tasks
    panels = [
        ("success", "success of the newest episodes, along sampled routes"),
        ("evaluation", "success in evaluations, along the best routes"),
        ("return", "return of the newest episodes"),
        ("modules_used", "modules used"),
        ("ent_coef", "coefficient of entropy"),
    ]
    found = [panel for panel in panels if any(f"{panel[0]}/{task}" in line for line in lines for task in tasks)]
    if not found:
        return None
    figure = Figure(figsize=(9, 2.4 * len(found)), layout="constrained")
    axes: Any = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, title) in zip(axes, found, strict=True):
        for number, task in enumerate(tasks):
            points = [(line["step"] or 0, line[key]) for line in lines if (key := f"{name}/{task}") in line]
            style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":", "-.")[number // 10 % 4]}
            axis.plot([step / len(tasks) for step, _ in points], [value for _, value in points], label=task, **style)
        axis.set_title(title, loc="left", fontsize="medium")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small", ncols=1 if len(tasks) <= 10 else 3, loc="upper left", bbox_to_anchor=(1, 1))
    axes[-1].set_xlabel("steps of each task")
    path = path or run.folder / "curves.png"
    figure.savefig(path, dpi=110)
    return path
