"""Files that benchmarks write, whose folders are made before measurements that may take hours."""

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynroute.files import writing_file

RESULTS = Path(__file__).parent / "results"
"""The folder of the results that the documentation shows."""


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


def anonymous(command: str) -> str:
    """A command of a run, with the folder of the run in ``runs/`` in place of its path on a machine."""
    return re.sub(r"(--run[ =])\S*/", r"\1runs/", command)


def parse(parser: argparse.ArgumentParser, name: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the options of a program whose results the documentation shows.

    Args:
        parser: The parser, to which `--output` is added.
        name: The default file, in :data:`RESULTS`. It is written only if all other options have their defaults.
        arguments: The command line; that of the process if None.
    """
    stored = RESULTS / name
    parser.add_argument("--output", type=file, default=stored, help=f"the JSON file (benchmarks/results/{name})")
    options = parser.parse_args(arguments)
    changed = [f"--{option.replace('_', '-')}" for option in _changed(parser, options)]
    if changed and options.output.resolve() == stored.resolve():
        parser.error(
            f"{stored} must hold what default options measure, which the documentation shows; "
            f"got {' and '.join(changed)}: name another file by `--output`"
        )
    return options


def new_file(start: str, parser: argparse.ArgumentParser, options: argparse.Namespace, *left_out: str) -> Path:
    """A file in :data:`RESULTS` that is not there yet, named by the options that differ from their defaults.

    Args:
        start: The start of its name.
        parser: The parser.
        options: What it parsed.
        left_out: Options that are not in the name.
    """
    changed = {name: value for name, value in _changed(parser, options).items() if name not in left_out}
    parts = [start, *(name if value is True else f"{name}-{value}" for name, value in changed.items())]
    stem = re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower())
    path, number = RESULTS / f"{stem}.json", 1
    while path.exists():
        number += 1
        path = RESULTS / f"{stem}-{number}.json"
    return path


def _changed(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, Any]:
    """The options that differ from their defaults, without the file that is written."""
    named = {name: value for name, value in vars(options).items() if name != "output"}
    return {name: value for name, value in named.items() if value != parser.get_default(name)}


def session(program: str) -> dict[str, Any]:
    """The command, the commit, the versions, the machine and its load, for a program that begins to measure.

    Args:
        program: The module that measures.
    """
    from dynroute_metaworld.runs.provenance import commit, machine, versions  # benchmarks.gpu needs torch alone

    return {
        "command": shlex.join(["python", "-m", program, *sys.argv[1:]]),
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "load": os.getloadavg()[0],
    }


def write(path: Path, stored: dict[str, Any], *, allow_nan: bool = True) -> None:
    """Writes results as JSON, whole or not at all."""
    with writing_file(path) as part:
        part.write_text(json.dumps(stored, indent=1, allow_nan=allow_nan) + "\n")
