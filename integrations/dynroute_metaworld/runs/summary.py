"""The summary of a sweep: a row for each method, benchmark and variant, over its seeds."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dynroute.files import writing_file
from dynroute_sb3 import DamagedError

from .configuration import MOVABLE
from .result import EvaluationResult, format_table
from .run import Run
from .seeds import over_seeds

__all__ = [
    "FORMAT",
    "ROW",
    "SUMMARY",
    "read_run",
    "read_sweep",
    "summarize",
    "summary_rows",
    "summary_table",
    "worst_tasks",
]

FORMAT = "dynroute sweep 1"
"""The format of ``sweep.json``, which names the runs of a sweep."""

SUMMARY = "dynroute sweep summary 1"
"""The format of ``summary.json``."""

ROW = ("benchmark", "method", "variant")
"""The fields of ``sweep.json`` that the runs of a row have in common; they differ in their seeds."""


def read_sweep(folder: Path) -> dict[str, Any]:
    """Reads ``sweep.json``: the token of the sweep, and its runs by name."""
    path = folder / "sweep.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a sweep: it has no sweep.json.")
    try:
        noted = dict(json.loads(path.read_text()))
        if noted["format"] != FORMAT:
            raise ValueError(f"its format is {noted['format']!r} and not {FORMAT!r}")
        return {"token": str(noted["token"]), "runs": dict(noted["runs"])}
    except (ValueError, LookupError, TypeError) as error:
        raise DamagedError(f"{path} is not the file of a sweep, or is damaged: {error!r}.") from error


def summarize(folder: str | Path) -> dict[str, Any]:
    """Summarizes a sweep as plain data, and writes it to ``summary.json`` in its folder.

    A row has the finished runs of a benchmark, a method and a variant. If some of them went on with other steps or
    episodes, these are added to the variant, and each setting has a row. Its intervals are the 95 % intervals over
    seeds of :func:`~dynroute_metaworld.bootstrap_interval`; with one seed they are None. The minutes of a run are for
    all its sessions together; they are None if one was killed. A run with a damaged file is not finished, and has the
    name of the file under ``damaged``.

    Args:
        folder: The folder of the sweep.
    """
    folder = Path(folder)
    runs = {name: {**noted, **read_run(folder / name)} for name, noted in read_sweep(folder)["runs"].items()}
    summary = {"format": SUMMARY, "rows": summary_rows(runs.values()), "runs": runs}
    with writing_file(folder / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return summary


def summary_rows(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a summary."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[tuple(run[axis] for axis in ROW)].append(run)
    return [
        {**dict(zip(ROW, key, strict=True)), "variant": variant, **_row(alike)}
        for key, group in groups.items()
        for variant, alike in _by_settings(group).items()
    ]


def _by_settings(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The runs of a variant, apart by the settings in which they differ, which are added to its name."""
    noted = [run["settings"] for run in runs if run.get("settings")]  # a run that has not started has none
    differ = [name for name in (noted[0] if noted else ()) if len({settings[name] for settings in noted}) > 1]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        own = [f"{name}={run['settings'][name]}" for name in differ if run.get("settings")]
        groups[",".join(filter(None, [run["variant"], *own]))].append(run)
    return groups


def read_run(folder: Path) -> dict[str, Any]:
    """The sessions, minutes and success of a run, as a summary has them; its success is None until it is finished."""
    figures: dict[str, Any] = {"sessions": [], "success": None, "modules_used": None, "minutes": None}
    if not (folder / "config.json").exists():
        return figures
    try:
        run = Run.open(folder)
    except DamagedError:
        return {**figures, "damaged": "config.json"}
    settings = {name: value for name, value in run.configuration.result_options.items() if name in MOVABLE}
    figures |= {"sessions": run.sessions, "minutes": run.minutes, "settings": settings}
    if (run.evaluations / "final.json").exists():
        try:
            result = EvaluationResult.load(run.evaluations / "final.json")
        except DamagedError:
            return {**figures, "damaged": "evaluations/final.json"}
        figures["success"] = dict(zip(result.tasks, result.success_rates.tolist(), strict=True))
        figures["episodes"] = result.episodes
        if result.modules_used is not None:
            figures["modules_used"] = dict(zip(result.tasks, result.modules_used.mean(axis=1).tolist(), strict=True))
    return figures


def _row(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of runs that differ only in their seeds."""
    done = sorted((run for run in runs if run["success"] is not None), key=lambda run: run["seed"])
    seeds = [run["seed"] for run in done]
    row: dict[str, Any] = {"seeds": seeds, "missing": sorted({run["seed"] for run in runs} - set(seeds))}
    if not done:
        return row
    tasks = list(done[0]["success"])
    scores = np.array([[run["success"][task] for task in tasks] for run in done])
    means = scores.mean(axis=0)
    row |= {
        **over_seeds(scores),
        "worst_task": tasks[int(means.argmin())],
        "success": dict(zip(tasks, means.tolist(), strict=True)),
        "modules_used": None,
    }
    used = [run["modules_used"] for run in done]
    if None not in used:
        row["modules_used"] = {task: float(np.mean([counts[task] for counts in used])) for task in tasks}
    minutes = [run["minutes"] for run in done if run["minutes"] is not None]
    row["minutes"] = float(np.mean(minutes)) if minutes else None
    return row


def summary_table(summary: dict[str, Any]) -> str:
    """The summary of :func:`summarize` as a table."""
    rows = [["benchmark", "method", "variant", "seeds", "success", "IQM", "95 % interval", "worst task"]]
    rows[0] += ["modules used", "minutes"]
    for row in summary["rows"]:
        count = len(row["seeds"])
        cells = [row["benchmark"], row["method"], row["variant"] or "-", f"{count} of {count + len(row['missing'])}"]
        rows.append(cells + (_cells(row) if count else ["-"] * 6))
    lines = [format_table(rows, str.ljust)]
    counts = [len(row["seeds"]) for row in summary["rows"]]
    if max(counts, default=0) > 1:
        lines.append("The interval is for the IQM over tasks and seeds, by a bootstrap stratified by task.")
    if 1 in counts:
        lines.append("One seed does not show how much seeds differ: it has no interval.")
    lines += [
        f"{name}: {run['damaged']} is damaged, and the run is left out."
        for name, run in summary.get("runs", {}).items()
        if "damaged" in run
    ]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    interval, used = row["iqm_interval"], row["modules_used"]
    return [
        f"{row['mean']:.3f}",
        f"{row['iqm']:.3f}",
        f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "one seed",
        worst_tasks(row),
        f"{np.mean(list(used.values())):.2f}" if used else "-",
        f"{row['minutes']:.1f}" if row["minutes"] is not None else "-",
    ]


def worst_tasks(row: dict[str, Any]) -> str:
    """The worst task of a row, how many more are as bad, and its success."""
    worst = row["worst_task"]
    rates = {task: f"{rate:.2f}" for task, rate in row["success"].items()}
    more = [*rates.values()].count(rates[worst]) - 1
    return f"{worst} and {more} more {rates[worst]}" if more else f"{worst} {rates[worst]}"
