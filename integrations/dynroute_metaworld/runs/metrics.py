"""Files with a JSON object in each line. The metrics of a run are such a file, which only grows."""

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
    """Writes the logs of an algorithm to a file: a line for each call, with the steps of all tasks together."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a")

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Appends a line and flushes it, so that a killed process loses at most this line."""
        numbers = {name: _plain(value) for name, value in sorted(key_values.items()) if isinstance(value, (int, float))}
        self.file.write(json.dumps({"step": step, **numbers}, allow_nan=False) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


class TensorBoardFolder(KVWriter):
    """Writes the same logs for TensorBoard; they replace what the run logged there after the steps it goes on from."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.writer = SummaryWriter(str(folder), purge_step=steps + 1)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Writes the numbers of one call."""
        for name, value in sorted(key_values.items()):
            if isinstance(value, (int, float)) and "tensorboard" not in key_excluded.get(name, ()):
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Closes the files."""
        self.writer.close()


def read_metrics(path: str | Path) -> list[dict[str, float | None]]:
    """The lines of a file of metrics; None where a number was not finite.

    An incomplete last line, of a process that was killed or is still writing, is left out. Any other damaged line
    raises an error that names it.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w") as file:
        ...     print('{"step": 20, "return": 1.5}', file=file, flush=True)
        ...     read_metrics(file.name)
        [{'step': 20, 'return': 1.5}]
    """
    return [line.value for line in _whole_lines(Path(path)) if line.value is not None]


def forget_after(path: Path, step: int) -> None:
    """Removes the lines after a step; a run that goes on from there writes them again."""
    if path.exists():
        size = sum(len(line.text) for line in _whole_lines(path) if line.value and line.value["step"] <= step)
        os.truncate(path, size)


class Line(NamedTuple):
    """A line of a file of JSON objects."""

    number: int
    """The line number, from 1 on."""

    text: bytes
    """The line, with its line break."""

    value: dict[str, Any] | None
    """The object; None if the line is damaged."""

    @property
    def is_cut(self) -> bool:
        """Whether the line is incomplete, since its process was killed or is still writing."""
        return not self.text.endswith(b"\n")


def read_lines(path: Path) -> Iterator[Line]:
    """Reads a file of JSON objects, one line at a time; a missing file has no lines."""
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
        if line.value is None or type(line.value.get("step")) is not int:
            raise ValueError(f"{path} is damaged in line {line.number}: {line.text[:60]!r}.")
        yield line


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
