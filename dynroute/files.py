"""Files that are written whole or not at all."""

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

__all__ = ["FULL", "check_file_place", "check_not_file", "flush", "is_leftover", "writing_file"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The numbers of the errors of a disk, a quota or a file that may not grow."""


def check_not_file(name: str, folder: Path) -> None:
    """Raises an error if a folder cannot be made, since there is a file of its name or in its place above."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise FileExistsError(f"`{name}` must be a folder, or a new name, got {folder}, and {existing} is a file.")


def check_file_place(name: str, path: Path) -> None:
    """Raises an error unless a file can be where a path is: in an existing directory, and not itself one."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"`{name}` must be in an existing directory, got {path}.")
    if path.is_dir():
        raise IsADirectoryError(f"`{name}` must be a file, got the directory {path}; name a file in it.")


@contextlib.contextmanager
def writing_file(path: Path) -> Iterator[Path]:
    """Gives a temporary file to write to, which replaces the real one once it is on the disk.

    After a failure only the old file is there; the error of a full disk names it. A process that is killed also leaves
    its temporary file.

    Args:
        path: The file. The name of the temporary one has the same end, since the end tells some formats.
    """
    part = path.with_name(f".part-{secrets.token_hex(4)}-{path.name}")
    try:
        part.touch()
        mode = part.stat().st_mode
        part.unlink()
        yield part
        if part.stat().st_mode != mode:  # safetensors lets the owner alone read its files, whatever the umask
            part.chmod(mode)
        flush(part)
        part.replace(path)
    except Exception as error:
        for number in FULL:  # the system names no file where it refuses to write, and safetensors has only its text
            name = getattr(error, "filename", None)  # a path, a descriptor or None
            inner = isinstance(name, str | bytes | os.PathLike) and os.fsdecode(name) != str(part)
            if not inner and (getattr(error, "errno", None) == number or f"(os error {number})" in str(error)):
                raise OSError(number, os.strerror(number), str(path)) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def is_leftover(path: Path, name: str) -> bool:
    """Whether a file is a temporary one of the file `name`.

    Args:
        path: The file.
        name: The name of the whole file.
    """
    return re.fullmatch(rf"\.part-[0-9a-f]+-{re.escape(name)}", path.name) is not None


def flush(path: Path) -> None:
    """Flushes a file or the entries of a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
