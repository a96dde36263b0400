"""The progress display of a run: a bar, and the success of each task."""

import datetime
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["Display"]

BAR, LEAST = 15, 6
"""The width of a task's bar with its number, and the least width of the bar of a run."""


class Display:
    """A bar below the success of each task; without a terminal, a line from time to time.

    Args:
        total: The steps of all tasks together.
        tasks: The names of the tasks.
        console: Where it is shown; standard output if None.
    """

    def __init__(self, total: int, tasks: Sequence[str], console: Console | None = None) -> None:
        self.console = console or _Console()
        self.total, self.tasks = total, tasks
        self.bar = Progress(console=self.console)
        self.task = self.bar.add_task("training", total=total)
        self.successes: Mapping[str, float | None] = dict.fromkeys(tasks)
        self.live = Live(console=self.console, refresh_per_second=4, get_renderable=self._picture)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def advance(self, steps: int, doing: str = "training", total: int | None = None) -> None:
        """Moves the bar."""
        self.bar.update(self.task, completed=steps, description=doing, total=total or self.total)

    def show(self, steps: int, successes: Mapping[str, float | None]) -> None:
        """Shows the success of each task, None before its first episode has ended."""
        self.successes = successes
        if not self.console.is_terminal:
            measured = [value for value in successes.values() if value is not None]
            mean = f"{sum(measured) / len(measured):.0%}" if measured else "-"
            by_task = ", ".join(f"{name} {value:.0%}" for name, value in successes.items() if value)
            self.tell(
                f"{steps:>9,} of {self.total:,} steps of all tasks, success {mean}"
                + (f" ({by_task})" if by_task else "")
            )

    def tell(self, line: str) -> None:
        """Prints a line above the bar."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _picture(self) -> Group:
        table = Table.grid(padding=(0, 2))
        width, longest = self.console.width, max(map(len, self.successes), default=0)
        bar = _bar if longest + 1 + BAR <= width else _share
        rows = [f"{name:{longest}} {bar(value)}" for name, value in self.successes.items()]
        columns = max(1, (width + 2) // (max(map(len, rows), default=0) + 2))
        for start in range(0, len(rows), columns):
            table.add_row(*rows[start : start + columns])
        self.bar.columns = self._columns(width)
        return Group(table, self.bar)

    def _columns(self, width: int) -> tuple[ProgressColumn | str, ...]:
        """The columns that fit: the steps, then what is done, the time left, the time passed, and a bar."""
        (task,) = self.bar.tasks
        room = width - len(f"{task.description} {task.total:,} of {task.total:,} steps")
        doing = (TextColumn("{task.description}"),) if room >= 0 else ()
        needed = len(f" {int(task.time_remaining or 0) // 3600}:00:00 left")
        left = (TimeRemainingColumn(), "left") if room >= needed else ()
        room -= needed * bool(left)
        needed = len(f" {datetime.timedelta(seconds=int(task.elapsed or 0))}")
        elapsed = (TimeElapsedColumn(),) if room >= needed else ()
        room -= needed * bool(elapsed)
        bar = (BarColumn(min(40, room - 1)),) if room >= 1 + LEAST else ()
        counted = TextColumn("{task.completed:,} of {task.total:,} steps")
        return (*doing, *bar, counted, *elapsed, *left)


class _Console(Console):
    """A console that goes quiet when its pipe is closed, so that the run goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _bar(value: float | None) -> str:
    return f"{'━' * round(10 * (value or 0)):10} {_share(value)}"


def _share(value: float | None) -> str:
    return "   -" if value is None else f"{value:4.0%}"
