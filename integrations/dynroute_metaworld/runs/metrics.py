"""The metrics of a run: one file that only grows, a JSON object in each line."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter
from torch.utils.tensorboard import SummaryWriter

__all__ = ["MetricsFile", "TensorBoardFolder", "forget_after", "read_metrics"]


class MetricsFile(KVWriter):
    """Writes what an algorithm logs to a file, a line for each time, with the steps of all tasks together.

    Args:
        path: The file, which is appended to.
    """

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
    """Writes the same for TensorBoard, in the place of what a run logged there after the steps it goes on from.

    Args:
        folder: Where event files are.
        steps: The steps that the run goes on from.
    """

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
    return [json.loads(line) for line in _whole_lines(Path(path))]


def forget_after(path: Path, step: int) -> None:
    """Removes the lines after a step, which a run that goes on from there will write again."""
    if path.exists():
        size = sum(len(line) for line in _whole_lines(path) if json.loads(line)["step"] <= step)
        with path.open("r+b") as file:
            file.truncate(size)


def _whole_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                json.loads(line)["step"]
            except (ValueError, TypeError, LookupError, RecursionError) as error:
                raise ValueError(f"{path} is damaged in line {number}: {line[:60]!r}.") from error
            yield line


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
