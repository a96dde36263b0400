"""Pictures of a run."""

from pathlib import Path

from ..runs.run import Run
from .data import read_run

__all__ = ["draw_curves"]


def draw_curves(run: Run) -> Path | None:
    """Draws success, returns and modules used over steps, a line for each task, to ``curves.png`` in the run.

    It needs matplotlib (the extra `report`), and no display. Without matplotlib, or without curves, it returns None.
    """
    try:
        from .canvas import save
        from .figures import learning
    except ImportError:
        return None
    return next(iter(save(run.folder, {"curves": learning(read_run(run.folder))})), None)
