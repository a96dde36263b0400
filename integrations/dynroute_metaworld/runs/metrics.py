"""Files of JSON objects, one in each line, and the metrics of a run, which are such a file that only grows."""

import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stable_baselines3.common.logger import KVWriter
from torch.utils.tensorboard import SummaryWriter

__all__ = ["Line", "MetricsFile", "TensorBoardFolder", "forget_after", "read_lines", "read_metrics"]


class MetricsFile(KVWriter):
    """Writes what an algorithm logs to a file, a line for each time, with the steps of all tasks together."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a")

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Appends a line, at once, so that a process that is killed loses at most the line it is writing."""
        numbers = {name: _plain(value) for name, value in sorted(key_values.items()) if isinstance(value, (int, float))}
        self.file.write(json.dumps({"step": step, **numbers}, allow_nan=False) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


class TensorBoardFolder(KVWriter):
    """Writes the same for TensorBoard, in the place of what a run logged there after the steps it goes on from."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.writer = SummaryWriter(str(folder), purge_step=steps + 1)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Writes the numbers of a time."""
        for name, value in sorted(key_values.items()):
            if isinstance(value, (int, float)) and "tensorboard" not in key_excluded.get(name, ()):
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self.writer.close()


def read_metrics(path: str | Path) -> list[dict[str, float | None]]:
    """The lines of a file of metrics; None where a number was not finite.

    A last line that was cut short, when a process was killed or is still writing, is left out; a damaged line elsewhere
    is an error that names it.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w") as file:
        ...     print('{"step": 20, "return": 1.5}', file=file, flush=True)
        ...     read_metrics(file.name)
        [{'step': 20, 'return': 1.5}]
    """
    return [line.value for line in _whole_lines(Path(path)) if line.value is not None]


def forget_after(path: Path, step: int) -> None:
    """Removes the lines after a step, which a run that goes on from there will write again."""
    if path.exists():
        size = sum(len(line.text) for line in _whole_lines(path) if line.value and line.value["step"] <= step)
        os.truncate(path, size)


class Line(NamedTuple):
    """A line of a file of JSON objects."""

    number: int
    """Its number, from 1 on."""

    text: bytes
    """The line, with its end."""

    value: dict[str, Any] | None
    """The object; None in a line that is damaged."""

    @property
    def is_cut(self) -> bool:
        """Whether the line has no end, since a process was killed or is still writing."""
        return not self.text.endswith(b"\n")


def read_lines(path: Path) -> Iterator[Line]:
    """Reads a file of JSON objects, one line at a time; there may be none."""
    with path.open("rb") if path.exists() else io.BytesIO() as file:
        for number, text in enumerate(file, start=1):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                value = None
            yield Line(number, text, value if isinstance(value, dict) else None)


def _whole_lines(path: Path) -> Iterator[Line]:
    for line in read_lines(path):
        if line.is_cut:
            return
        if line.value is None or "step" not in line.value:
            raise ValueError(f"{path} is damaged in line {line.number}: {line.text[:60]!r}.")
        yield line


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
