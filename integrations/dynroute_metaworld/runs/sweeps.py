"""A sweep: methods x benchmarks x seeds x variants, each an ordinary run, in one folder."""

import contextlib
import dataclasses
import itertools
import json
import re
import secrets
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from dynroute.arguments import check_count, check_number
from dynroute.files import is_leftover, writing_file
from dynroute_command.options import AXES

from ..envs.signals import handling
from .cluster import check_nodes, check_room, joined, run_all
from .configuration import Configuration, check_needs
from .learner import check_learner
from .methods import check_network, check_routes
from .presets import IMITATION_ALONE, preset, usual_benchmarks
from .run import Run, RunError
from .seeds import origin
from .summary import FORMAT, ROW, read_sweep
from .training import check_start

__all__ = ["sweep"]


def sweep(
    folder: str | Path,
    methods: Sequence[str],
    benchmarks: Sequence[str] | None = None,
    seeds: Sequence[int] = (1, 2, 3),
    *,
    options: Mapping[str, Any] | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    settings: str = "paper",
    imitate: bool = False,
    cores_per_run: int = 1,
    gpus_per_run: float = 0,
    address: str | None = None,
    finish: Callable[[Run], object] | None = None,
) -> dict[str, str]:
    """Runs every method on every benchmark with every seed, as many at a time as there are cores.

    Each is a :class:`~dynroute_metaworld.Run` in its own directory. A second call skips finished runs and goes on with
    the rest; it may add methods, benchmarks, seeds or variants.
    :func:`~dynroute_metaworld.runs.summary.summarize` gives the results.

    Args:
        folder: The folder of the sweep; all nodes of a cluster must see it.
        methods: The networks.
        benchmarks: Benchmarks, or tasks with commas between them; by default that of the preset, or MT10.
        seeds: The seeds.
        options: Other options of all runs, as :class:`~dynroute_metaworld.Configuration` takes them. By default, runs
            use as many threads as cores, and a GPU only if `gpus_per_run` is more than 0.
        vary: Further options, each with the values to try.
        settings: The preset.
        imitate: Whether runs only imitate, as ``dynroute imitate`` does.
        cores_per_run: The cores of a run.
        gpus_per_run: The GPUs of a run; with 0.5, two runs share one.
        address: The HOST:PORT of a cluster of Ray, of which this machine is a node; None uses this machine alone.
        finish: Called with each finished run, in its process; the command draws curves with it.

    Returns:
        The reasons of the runs that failed, by name; empty if all are finished.
    """
    folder = Path(folder).resolve()  # processes may have other working directories
    check_count("cores_per_run", cores_per_run, at_least=1)
    check_number("gpus_per_run", gpus_per_run, at_least=0)
    usual = {**(IMITATION_ALONE if imitate else {}), "threads": cores_per_run}
    if not gpus_per_run:
        usual["device"] = "cpu"
    if wrong := sorted(set(AXES) & set(vary or {})):
        raise ValueError(f"`vary` must name other options, got {wrong}, which have arguments of their own.")
    benchmarks = usual_benchmarks(settings) if benchmarks is None else benchmarks
    values = {"benchmark": benchmarks, "method": methods, **(vary or {}), "seed": seeds}
    free = set(usual) - {"device", *IMITATION_ALONE, *(options or {}), *values}  # a run goes on with its own threads
    usual = {name: value for name, value in usual.items() if name not in values}
    configurations, noted = _combine(settings, {**usual, **(options or {})}, values)
    new = [each for name, each in configurations.items() if not (folder / name / "config.json").exists()]
    for configuration in new:
        if configuration.warm_start is not None:
            check_start(configuration, Run.open(configuration.warm_start))
    if len(new) == len(configurations):  # else flags must stay as they are
        for check in (check_needs, check_routes):
            check([*configurations.values()], {*(options or {}), *values})
    for configuration in new:
        check_learner(configuration)
    resources = {"num_cpus": cores_per_run, "num_gpus": gpus_per_run}
    with handling(_interrupt, signal.SIGTERM), _locked(folder), _quiet(folder / "ray.txt") as tell:
        token = _note(folder, {})
        runs = {name: _open(folder / name, configuration, free) for name, configuration in configurations.items()}
        _check_rows(folder, {name: run.configuration for name, run in runs.items()}, noted)
        left = {name: run for name, run in runs.items() if run.done() is None}
        if len(left) < len(runs):
            tell(f"{len(runs) - len(left)} of {len(runs)} runs are finished already")
        if not left:
            _note(folder, noted)
            return {}
        with joined(address), handling(_interrupt, signal.SIGTERM):  # Ray set its own handler
            check_room(cores_per_run, gpus_per_run, tell)
            check_nodes(folder, token)
            _note(folder, noted)
            return run_all(left, token, resources, tell, finish)


def _combine(
    settings: str, options: Mapping[str, Any], values: Mapping[str, Sequence[Any]]
) -> tuple[dict[str, Configuration], dict[str, dict[str, Any]]]:
    """The configurations of all runs, and their notes for ``sweep.json``, by name; their networks are checked."""
    plurals = {"benchmark": "benchmarks", "method": "methods", "seed": "seeds"}
    for name, several in values.items():
        word = plurals.get(name, f"vary` of `{name}")
        if isinstance(several, str) or not len(several) or len({*map(repr, several)}) < len(several):
            raise ValueError(f"`{word}` must be a list of values, at least one and each once, got {several!r}.")
        if name in options:
            raise ValueError(f"`options` must not set `{name}`, which the sweep varies.")
    configurations: dict[str, Configuration] = {}
    noted: dict[str, dict[str, Any]] = {}
    for chosen in itertools.product(*values.values()):
        axes = dict(zip(values, chosen, strict=True))
        configuration = _started(preset(settings, {**options, **axes}).resolve())
        check_network(configuration)  # so that a typo costs nothing
        shown = {name: value for name, value in axes.items() if name not in AXES}
        if shown.get("metadata") is not None:
            shown["metadata"] = Path(shown["metadata"]).name  # wherever the file is
        variant = ",".join(f"{name}={value}" for name, value in shown.items())
        parts = (configuration.benchmark, configuration.method, variant, f"seed{configuration.seed}")
        name = re.sub(r"[^\w.,=+-]", "_", "-".join(part for part in parts if part))
        if name in configurations:
            raise ValueError(f"`vary` must give runs of different names, got two of {name}.")
        configurations[name] = configuration
        noted[name] = {**{axis: getattr(configuration, axis) for axis in AXES}, "variant": variant}
    return configurations, noted


def _interrupt(*_: Any) -> None:
    """Ends a sweep as Ctrl-C does."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Makes the folder of a sweep, and locks it for this process."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; --folder names another place.")
    strange = [] if (folder / "sweep.json").exists() or not folder.exists() else sorted(folder.iterdir())
    if not all(path.name in ("lock", "ray.txt") or is_leftover(path, "sweep.json") for path in strange):
        raise FileExistsError(f"{folder} holds other files, and no sweep; --folder names another place.")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / "lock").acquire(timeout=1):  # a killed sweep releases it
            yield
    except filelock.Timeout as error:
        raise RunError(f"{folder} is in use by another sweep, which must end first.") from error


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[Callable[[str], None]]:
    """Writes what Ray prints to a file; yields a function that prints to the screen."""
    screen = sys.stdout

    def tell(line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # a closed pipe does not end the sweep
            print(line, file=screen, flush=True)

    with path.open("a", buffering=1) as output, contextlib.redirect_stdout(output):
        yield tell


def _note(folder: Path, runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Adds runs to ``sweep.json``, and returns the token of the sweep."""
    path = folder / "sweep.json"
    noted: dict[str, Any] = read_sweep(folder) if path.exists() else {"token": secrets.token_hex(8), "runs": {}}
    noted["runs"].update(runs)
    with writing_file(path) as part:
        part.write_text(json.dumps({**noted, "format": FORMAT}, indent=1) + "\n")
    return str(noted["token"])


def _started(configuration: Configuration) -> Configuration:
    """A configuration with the path of its `warm_start` filled in."""
    if configuration.warm_start is None:
        return configuration
    try:
        named = configuration.warm_start.format(**{axis: getattr(configuration, axis) for axis in AXES})
    except (LookupError, ValueError) as error:
        fields = ", ".join(f"{{{axis}}}" for axis in AXES)
        raise ValueError(
            f"`warm_start` must be the directory of a run, where {fields} stand for the values of the new run, "
            f"got {configuration.warm_start!r}."
        ) from error
    return dataclasses.replace(configuration, warm_start=str(Path(named).resolve()))


def _check_rows(
    folder: Path, configurations: Mapping[str, Configuration], noted: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raises an error if a row of the summary would mix runs of different settings."""
    rows = {tuple(noted_run[axis] for axis in ROW): configurations[name] for name, noted_run in noted.items()}
    for name, noted_run in read_sweep(folder)["runs"].items():
        new = rows.get(tuple(noted_run[axis] for axis in ROW))
        if new is None or name in configurations or not (folder / name / "config.json").exists():
            continue
        other = Run.open(folder / name).configuration
        found, wanted = other.result_options, new.result_options
        differ = [f"{k}={found[k]!r}, got {wanted[k]!r}" for k in wanted if k in found and found[k] != wanted[k]]
        if origin(other) != origin(new):
            differ.append(f"warm_start={other.warm_start!r}, got {new.warm_start!r}")
        if differ:
            raise RunError(
                f"{folder} holds {name} with {'; '.join(differ)}: runs of other settings do not belong in one row of "
                "the summary; name another folder (--folder)."
            )


def _open(folder: Path, configuration: Configuration, free: Collection[str]) -> Run:
    """The run of a configuration; if its directory exists, all its options but those in `free` must agree."""
    if not (folder / "config.json").exists():
        return Run(folder, configuration)
    run = Run.open(folder)
    try:
        given = {name: value for name, value in dataclasses.asdict(configuration).items() if name not in free}
        run.agree(given, complete=True)
    except RunError as error:
        error.add_note("For a sweep, --folder names another directory.")
        raise
    return run
