"""Seals: the sizes and checksums of a run's files at a checkpoint, so that a resumed run has the same files."""

import contextlib
import dataclasses
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dynroute.files import flush
from dynroute_sb3 import DamagedError
from dynroute_sb3.checkpoint import checkpoints, read_notes
from dynroute_sb3.storage import digest

__all__ = ["Seal", "advising"]


@dataclass(frozen=True)
class Seal:
    """The configuration of a run, and the sizes and SHA-256 of its files.

    A file of lines (.jsonl) may grow: its seal covers the lines that it had.

    Args:
        configuration: The options, as read back from JSON.
        logged: The steps at which metrics were logged last.
        files: The sizes and digests by the names of the files in the folder of the run.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from dynroute_metaworld.runs.seals import Seal
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "metrics.jsonl").write_text("{}")
        >>> seal = Seal.of(folder, {}, 0, ["metrics.jsonl"])
        >>> _ = (folder / "metrics.jsonl").write_text("{}[]")
        >>> seal.missing(folder)
        []
        >>> (folder / "metrics.jsonl").unlink()
        >>> seal.missing(folder)
        ['metrics.jsonl']
    """

    configuration: Mapping[str, Any]
    logged: int
    files: Mapping[str, tuple[int, str]]

    @classmethod
    def of(cls, folder: Path, configuration: Mapping[str, Any], logged: int, names: Iterable[str]) -> Self:
        """Flushes files to the disk and seals them; empty and missing files are left out."""
        files = {}
        for name in names:
            if (folder / name).exists() and (folder / name).stat().st_size:
                flush(folder / name)
                files[name] = digest(folder / name)
        return cls(configuration, logged, files)

    @classmethod
    def read(cls, checkpoint: Path) -> Self:
        """The seal in the notes of a checkpoint."""
        notes: Any = read_notes(checkpoint)
        try:
            files = {str(name): (int(size), str(sha)) for name, (size, sha) in notes["files"].items()}
            return cls(dict(notes["configuration"]), int(notes["logged"]), files)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise DamagedError(
                f"{checkpoint / 'notes.json'} must have the options of the run, and the size and the SHA-256 of each "
                f"of its files, got {notes!r:.80}; take another checkpoint."
            ) from error

    def notes(self) -> dict[str, Any]:
        """The seal as the notes of a checkpoint store it."""
        return dataclasses.asdict(self)

    def check_configuration(self, path: Path, found: Mapping[str, Any], free: Collection[str]) -> None:
        """Raises an error that names the first option that changed; the options in `free` may change."""
        for name, value in self.configuration.items():
            if name not in free and name in found and found[name] != value:
                raise DamagedError(
                    f"{path} was altered: it has {name}={found[name]!r}, and its checkpoint was written with "
                    f"{value!r}; restore that value."
                )

    def missing(self, folder: Path, *, done_without: Collection[str] = ()) -> list[str]:
        """Returns the files that are missing; raises an error that names the first file that was altered or cut.

        Args:
            folder: The folder.
            done_without: Files that were missing before; new files of the same names are not checked.
        """
        missing = []
        for name, seal in self.files.items():
            path = folder / name
            wrong = _difference(path, *seal) if path.is_file() else None
            if wrong is not None and name not in done_without:
                raise DamagedError(f"{path} {wrong}; restore the file, or remove it and --resume goes on without it.")
            if wrong is not None or not path.is_file():
                missing.append(name)
        return missing

    def cut_back(self, path: Path, missing: Collection[str]) -> None:
        """Removes what was appended to a file since the seal: all of it, if the sealed file was missing."""
        size, _ = self.files.get(path.name, (0, ""))
        if path.exists():
            os.truncate(path, 0 if path.name in missing else size)


@contextlib.contextmanager
def advising(checkpoint: Path, without: str) -> Iterator[None]:
    """Adds to the error of a damaged checkpoint what to do.

    Args:
        checkpoint: The checkpoint.
        without: What happens after it was removed, where there is one before it.
    """
    try:
        yield
    except DamagedError as error:
        advice = "There is no other: put back the file, or start another run."
        if len(checkpoints(checkpoint.parent)) > 1:
            advice = f"Remove {checkpoint}, and {without}."
        raise DamagedError(f"{error} {advice}") from error


def _difference(path: Path, size: int, sha: str) -> str | None:
    """How a file differs from its seal."""
    grows, found = path.suffix == ".jsonl", path.stat().st_size
    if found < size or (found > size and not grows):
        return f"was altered or cut: it must have {'at least ' * grows}{size} bytes, got {found}"
    return None if digest(path, size)[1] == sha else "was altered: its SHA-256 is not the stored one"
