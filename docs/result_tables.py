"""Directives that show stored results: summaries of sweeps and rows of benchmarks that learn."""

import abc
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective as Directive

from dynroute_metaworld.runs.intervals import wilson_interval
from dynroute_metaworld.runs.summary import worst_tasks

RESULTS = Path(__file__).parent / "results"

MEASURED = Path(__file__).parent.parent / "benchmarks" / "results"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, the first row as its header."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: auto", ""]
    return lines + [f"   {'  -' if i else '* -'} {cell}" for row in rows for i, cell in enumerate(row)]


class Stored(Directive, abc.ABC):
    """Shows lines that a subclass makes of stored results; a page is made anew when they change."""

    path: Path

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(self.path))
        return self.parse_text_to_nodes("\n".join(self.lines(json.loads(self.path.read_text()))))

    @abc.abstractmethod
    def lines(self, stored: Any) -> list[str]:
        """Returns lines of reStructuredText."""


class Named(Stored, abc.ABC):
    """Shows a file of docs/results; the argument is its stem."""

    required_arguments = 1

    @property
    def path(self) -> Path:
        return RESULTS / f"{self.arguments[0]}.json"


class Sweep(Named):
    """Shows the summary of a sweep: a row for each network, and how it was made; the argument is the file's stem.

    With ``:minutes:`` it tells how long each run took, which means something where they had the machine to themselves.
    """

    option_spec: ClassVar[dict[str, Any]] = {"minutes": directives.flag}

    def lines(self, stored: Mapping[str, Any]) -> list[str]:
        rows = [row for row in stored["rows"] if row["seeds"]]
        lines = [*table(self.cells(rows)), "", *self.provenance(stored, rows)]
        if "minutes" in self.options:
            minutes: dict[str, list[str]] = {}
            for run in stored["runs"].values():
                minutes.setdefault(run["method"], []).append(f"{run['minutes']:.1f}")
            each = "; ".join(f"{method} {', '.join(taken)}" for method, taken in minutes.items())
            lines += ["", f"Minutes of the runs, seed by seed: {each}."]
        return lines

    def cells(self, rows: list[dict[str, Any]]) -> list[list[str]]:
        header = ["network", "seeds", "mean success", "95 % interval", "IQM", "95 % interval", "weakest task"]
        header += ["modules used"]
        return [header, *map(self._row, sorted(rows, key=lambda row: -row["mean"]))]

    def _row(self, row: Mapping[str, Any]) -> list[str]:
        used = row["modules_used"]
        return [
            label(row),
            str(len(row["seeds"])),
            f"{row['mean']:.3f}",
            span(row["mean_interval"]),
            f"{row['iqm']:.3f}",
            span(row["iqm_interval"]),
            worst_tasks(row),
            f"{sum(used.values()) / len(used):.1f}" if used else "no routes",
        ]

    def provenance(self, stored: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[str]:
        """Commands, commits, versions and machines, as the runs noted them."""
        runs = [run for run in stored["runs"].values() if run["success"] is not None]
        sessions = [session for run in runs for session in run["sessions"]]
        commits = sorted({commit(session["commit"]) for session in sessions})
        commands = list(dict.fromkeys(session["command"] for session in sessions))
        episodes = sorted({run["episodes"] for run in runs})
        machines = sorted({machine(session["machine"]) for session in sessions})
        versions = {f"{name} {number}" for session in sessions for name, number in session["versions"].items()}
        length = " or ".join(map(str, episodes)) + " episode" + "s" * (episodes != [1])
        lines = folded(commands)
        if missing := {label(row): row["missing"] for row in stored["rows"] if row["missing"]}:
            seeds_missing = ", ".join(f"{name} ({', '.join(map(str, seeds))})" for name, seeds in missing.items())
            lines += [f"Not run yet, seeds in brackets: {seeds_missing}.", ""]
        return [
            *lines,
            f"{len(runs)} runs, {length} of each task at the end of each, "
            f"commit {', '.join(commits)}, {'; '.join(machines)}; {', '.join(sorted(versions))}.",
        ]


class SweepTasks(Named):
    """Shows the success of each task in a sweep, its interval, and after a slash the modules that its routes used."""

    networks = 4
    """The largest number of networks in a table; more make several tables."""

    def lines(self, stored: Mapping[str, Any]) -> list[str]:
        rows = sorted((row for row in stored["rows"] if row["seeds"]), key=lambda row: -row["mean"])
        size = math.ceil(len(rows) / math.ceil(len(rows) / self.networks))
        lines = []
        for group in (rows[start : start + size] for start in range(0, len(rows), size)):
            pairs = [(row, runs_of(stored, row)) for row in group]
            body = [[task, *(self._task(row, runs, task) for row, runs in pairs)] for task in rows[0]["success"]]
            lines += [*table([["task", *map(label, group)], *body]), ""]
        explained = []
        if any(row["modules_used"] for row in rows):
            explained.append("Success / modules on the routes of a task, the output among them; means over seeds.")
        if any(len(row["seeds"]) > 1 for row in rows):
            explained.append(OF_SEEDS)
        if any(len(row["seeds"]) == 1 for row in rows):
            explained.append(OF_EPISODES)
        return [*lines, " ".join(explained)]

    @staticmethod
    def _task(row: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], task: str) -> str:
        used = row["modules_used"]
        cell = f"{row['success'][task]:.2f}{task_interval(runs, task)}"
        return cell + (f" / {used[task]:.1f}".replace(" ", "\N{NO-BREAK SPACE}") if used else "")


OF_SEEDS = "In brackets, the lowest and the highest seed, unless both are the mean."
"""The note under a table of tasks with several seeds."""

OF_EPISODES = "With one seed the brackets have Wilson's 95 % interval over its episodes."
"""The note under a table of tasks with single seeds."""


def runs_of(stored: Mapping[str, Any], row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The runs of a row of a sweep."""
    names = ("benchmark", "method", "variant")
    alike = [run for run in stored["runs"].values() if all(run[name] == row[name] for name in names)]
    return [run for run in alike if run["seed"] in row["seeds"]]


def task_interval(runs: Sequence[Mapping[str, Any]], task: str) -> str:
    """The interval of the success of a task, in brackets; nothing where all seeds have the same."""
    rates = [run["success"][task] for run in runs]
    if len(runs) == 1:
        episodes = runs[0]["episodes"]
        ends = wilson_interval(round(rates[0] * episodes), episodes)
    else:
        ends = min(rates), max(rates)
    low, high = (f"{end:.2f}" for end in ends)
    return "" if low == high else f" ({low} to {high})"


class Gain(Named):
    """Shows what `benchmarks.gain` stored: how the success of each task changed; the argument is the file's stem."""

    def lines(self, stored: Mapping[str, Any]) -> list[str]:
        header = ["network", "task", "episodes", "before", "after", "of each seed", "lost", "gained", "p"]
        return table([header, *map(self._row, stored["rows"])])

    @staticmethod
    def _row(row: Mapping[str, Any]) -> list[str]:
        before, after = row["before"], row["after"]
        return [
            label({"variant": "", **row}),  # earlier files have no variants
            row["task"],
            str(row["episodes"]),
            f"{sum(before) / len(before):.3f}",
            f"{sum(after) / len(after):.3f}",
            ", ".join(f"{new - old:+.2f}" for old, new in zip(before, after, strict=True)),
            str(row["lost"]),
            str(row["gained"]),
            f"{row['p']:.3f}",
        ]


class Extractions(Named):
    """Shows what `benchmarks.extraction` stored: policies of one task beside the whole network and an MLP.

    The argument is the file's stem. A row of the table is a mean over the runs.
    """

    policies = ("whole", "extracted", "perceptron")

    def lines(self, stored: Mapping[str, Any]) -> list[str]:
        header = ["task", "router left", "nodes", "parameters", "KB of the file", "ms, module", "ms, file", "success"]
        tasks: dict[str, list[Mapping[str, Any]]] = {}
        for row in stored["rows"]:
            tasks.setdefault(row["task"], []).append(row)
        lines = table([header, *map(self._row, tasks.values())])
        commands = [run["session"]["command"] for run in stored["runs"].values()]
        commands += [session["command"] for session in stored["sessions"]]
        return [*lines, "", *provenance(commands, stored)]

    def _row(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        before, after = (fmean(row["nodes"][i] for row in rows) for i in (0, 1))
        left = {{"nothing": "none", "weights": "of one path", "routes": "chooses"}[row["reads"]] for row in rows}

        def cell(key: str, form: str, scale: float = 1) -> str:
            return " / ".join(format(scale * fmean(row[name][key] for row in rows), form) for name in self.policies)

        return [
            rows[0]["task"],
            ", ".join(sorted(left)),
            f"{before:g} / {after:.1f}",
            cell("parameters", ",.0f"),
            cell("bytes", ",.0f", 1e-3),
            cell("ms module", ".2f"),
            cell("ms file", ".2f"),
            cell("success", ".2f"),
        ]


class Rows(Named, abc.ABC):
    """Shows rows that a benchmark stored, as means over what the table does not tell apart.

    The argument is the file's stem. A subclass names the columns that tell the rows of the table apart, and makes the
    other cells of those rows.
    """

    groups: tuple[str, ...]

    def lines(self, stored: Mapping[str, Any]) -> list[str]:
        self.settings = stored["settings"]
        groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for row in stored["rows"]:
            groups.setdefault(tuple(row[name] for name in self.groups), []).append(row)
        cells = [[str("none" if part is None else part) for part in key] for key in groups]
        rows = [[*first, *self.cells(group)] for first, group in zip(cells, groups.values(), strict=True)]
        seeds = ", ".join(map(str, sorted({row["seed"] for row in stored["rows"]})))
        commands = [session["command"] for session in stored["sessions"]]
        return [*self.tables([self.header(), *rows]), "", f"Seeds: {seeds}.", "", *provenance(commands, stored)]

    def tables(self, rows: Sequence[Sequence[str]]) -> list[str]:
        """The lines of the table, or of several where one would be too wide."""
        return table(rows)

    @abc.abstractmethod
    def header(self) -> list[str]:
        """The first row of the table."""

    @abc.abstractmethod
    def cells(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """The cells behind the names of a group, from its rows."""


class Transfer(Rows):
    """Shows how new tasks are learned (`benchmarks.transfer`)."""

    groups = ("method", "way")

    def header(self) -> list[str]:
        return ["network", "what learns", *map(str, self.settings["shown"]), "old tasks"]

    def cells(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        shown = ([row for row in rows if row["shown"] == count] for count in self.settings["shown"])
        success = [mean_and_range(group, "success") for group in shown]
        changed = [row for row in rows if row["old after"] is not None]
        before, after = (mean(row[f"old {when}"] for row in changed) for when in ("before", "after"))
        return [*success, f"{before} to {after}" if changed else "as before, or never learned"]


class Arriving(Rows):
    """Shows what nets know after the last group of tasks arrived (`benchmarks.arriving`)."""

    groups = ("kept", "arm")

    def header(self) -> list[str]:
        return ["kept", "net", "modules", "parameters", "of them learn", "first tasks", "new tasks", "all", "forgotten"]

    def cells(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        last = [row for row in rows if row["groups"] == max(row["groups"] for row in rows)]
        first = [row for row in rows if row["groups"] == 1]
        sizes = [f"{last[0][name]:,}" for name in ("modules", "parameters", "learning")]
        rates = [mean_and_range(last, name) for name in ("new", "all", "forgotten")]
        return [*sizes, mean_and_range(first, "all"), *rates]


class Budgets(Rows):
    """Shows what budgets cost in success (`benchmarks.budgets`)."""

    groups = ("target", "limit")

    def header(self) -> list[str]:
        return ["budget", "limit in inference", "expected in training", "modules run", "ms", "success"]

    def cells(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        return [mean_and_range(rows, name) for name in ("expected", "modules", "ms", "success")]


class Conflict(Rows):
    """Shows the errors of networks at conflicts between tasks (`benchmarks.conflict`)."""

    groups = ("network", "parameters")

    def header(self) -> list[str]:
        return ["network", "parameters", *(f"conflict {conflict:g}" for conflict in self.settings["conflicts"])]

    def cells(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        groups = ([row for row in rows if row["conflict"] == conflict] for conflict in self.settings["conflicts"])
        return [mean_and_range(group, "error", digits=4) for group in groups]


class Inside(Rows):
    """Shows what routes do inside SAC, and how far tasks agree on gradients (`benchmarks.inside`)."""

    groups = ("network", "steps")

    def tables(self, rows: Sequence[Sequence[str]]) -> list[str]:
        rows = [[row[0].replace(",", ", "), *row[1:]] for row in rows]
        routed = [row for row in rows if row[2]]
        weights, paths, gradients = (
            [row[:6] for row in routed],
            [row[:2] + row[6:-6] for row in routed],
            [row[:2] + row[-6:] for row in rows],
        )
        return [*table(weights), "", *table(paths), "", *table(gradients)]

    def header(self) -> list[str]:
        ages = [f"path {age:,} steps old" for age in self.settings["ages"]]
        routes = ["entropy of weights", "of a critic", "modules", "unsuitable sources", "path drawn again", *ages]
        pairs = ["cosine of two tasks, actor", "critic", "opposed pairs of tasks, actor", "critic"]
        return ["network", "steps", *routes, *pairs, "cosine of two batches of a task, actor", "critic"]

    def cells(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        ages = [f"agreement {age}" for age in self.settings["ages"]]
        names = ["entropy", "critic entropy", "modules", "unsuitable 0", "drawn again", *ages]
        names += [f"{part} all {name}" for name in ("cosine", "opposed", "itself") for part in ("actor", "critic")]
        return [mean_and_range(rows, name) if name in rows[0] else "" for name in names]


class Plasticity(Rows):
    """Shows how much of their capacity critics use (`benchmarks.plasticity`)."""

    groups = ("network", "steps")

    def header(self) -> list[str]:
        measured = ["dormant units", "rank of the features", "of", "experts, heads or modules with flow in each critic"]
        return ["network", "steps", *measured]

    def cells(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        loads = [load for row in rows for load in row["loads"]]
        used = ", ".join(str(sum(share > 0.01 for share in load)) for load in loads)
        return [
            mean_and_range(rows, "dormant"),
            mean_and_range(rows, "rank", digits=0),
            str(rows[0]["features"]),
            f"{used} of {len(loads[0])}" if loads and len(loads[0]) > 1 else "",
        ]


class Denormals(Rows):
    """Shows how denormal moments slow updates (`benchmarks.denormals`)."""

    groups = ("network",)

    def header(self) -> list[str]:
        return ["network", "steps", "denormal moments", "ms with them", "ms without", "ratio"]

    def cells(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        whole = [mean_and_range(rows, name, digits=0) for name in ("steps", "with", "without")]
        return [whole[0], mean_and_range(rows, "denormal"), *whole[1:], mean_and_range(rows, "ratio")]


def mean_and_range(rows: Sequence[Mapping[str, Any]], name: str, digits: int = 2) -> str:
    """The mean over the seeds, with the least and the largest mean of one of them."""
    seeds: dict[int, list[float]] = {}
    for row in rows:
        seeds.setdefault(row["seed"], []).append(row[name])
    means = [fmean(values) for values in seeds.values()]
    if not means:
        return ""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(means), fmean(means), max(means)))
    return f"{middle} ({low} to {high})" if len(means) > 1 else middle


def mean(values: Iterable[float]) -> str:
    """The mean of values, for a cell."""
    values = list(values)
    return f"{sum(values) / len(values):.2f}" if values else ""


def provenance(commands: Sequence[str], stored: Mapping[str, Any]) -> list[str]:
    """Lines on how figures came about: commands, commits, machines and versions."""
    sessions = stored["sessions"]
    commits = sorted({commit(session["commit"]) for session in sessions})
    machines = sorted({machine(session["machine"]) for session in sessions})
    versions = sorted({f"{name} {number}" for session in sessions for name, number in session["versions"].items()})
    load = ", ".join(f"{session['load']:.1f}" for session in sessions if "load" in session)
    return [
        *folded(list(dict.fromkeys(commands))),
        f"Commit {', '.join(commits)}, {'; '.join(machines)}{f', load {load} at the start' if load else ''}; "
        f"{', '.join(versions)}.",
    ]


def folded(commands: Sequence[str]) -> list[str]:
    """The lines of a block of commands, which a click opens."""
    return [
        ".. dropdown:: Commands",
        "",
        "   .. code-block:: console",
        "",
        *(f"      $ {line}" for line in commands),
        "",
    ]


def span(interval: Sequence[float] | None) -> str:
    """An interval, which one seed does not have."""
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "one seed"


def commit(noted: str | None) -> str:
    """A commit, short, and whether there were changes."""
    name, _, changes = (noted or "").partition(" ")
    return f"{name[:12]} {changes}".strip() or "a release"


def label(row: Mapping[str, Any]) -> str:
    """The name of a row."""
    return row["method"] + (f", {row['variant']}" if row["variant"] else "")


def machine(noted: Mapping[str, Any]) -> str:
    """The hardware of a session, in words."""
    cores, threads = (f"{noted[name]} {name.removesuffix('s' * (noted[name] == 1))}" for name in ("cores", "threads"))
    return f"{cores} of {noted['processor']}, {threads} a run, {noted['gpu'] or 'no GPU'}"


def setup(app: Sphinx) -> None:
    """Registers the above with Sphinx, which calls this function."""
    app.add_directive("sweep", Sweep)
    app.add_directive("sweep-tasks", SweepTasks)
    app.add_directive("gain", Gain)
    app.add_directive("extractions", Extractions)
    app.add_directive("transfer", Transfer)
    app.add_directive("arriving", Arriving)
    app.add_directive("budgets", Budgets)
    app.add_directive("conflict", Conflict)
    app.add_directive("inside", Inside)
    app.add_directive("plasticity", Plasticity)
    app.add_directive("denormals", Denormals)
