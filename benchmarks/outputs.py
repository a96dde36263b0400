"""Output paths of benchmarks, created before measurements that may take hours."""

import argparse
from pathlib import Path


def folder(text: str) -> Path:
    """A folder to write to, for argparse."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} must be a folder, or one that can be made: {error}") from error
    return path


def file(text: str) -> Path:
    """A file to write to, whose folder is made."""
    if (path := Path(text)).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} must be a file, and is a folder")
    folder(str(path.parent))
    return path
