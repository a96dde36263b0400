"""A directive that shows learning curves of runs, as a table and as a figure."""

import dataclasses
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any, ClassVar

import matplotlib
import numpy as np
from cycler import cycler
from docutils import nodes
from docutils.parsers.rst import directives
from gallery_page import side_by_side
from matplotlib.figure import Figure
from result_tables import Named, provenance, table
from sphinx.application import Sphinx

from dynroute_metaworld.report.canvas import style
from dynroute_metaworld.runs.seeds import over_seeds

COLUMNS = 8
"""The largest number of steps that a table shows unless they are named."""

INK = "#010203"
"""The colour of text and axes in a drawing, in place of that of the page, light or dark."""

COLORS = (INK, "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
"""The colours of the methods: those of Okabe and Ito, which colour-blind people tell apart."""

METHODS = ("mt-sac", "mh-sac", "d2r", "sm", "paco", "care")
"""The methods that have the same colour and stroke in every figure. Others have the next that are free."""


@dataclasses.dataclass
class Curve:
    """The success of a run over its steps, and the settings that tell it from other runs.

    Attributes:
        by_task: The success of each task in place of the means, by the names of the attributes above, then by steps;
            None where a task had no episode. Curves that were stored first have none.
        multiply_adds: Those of a critic for a sample.
        hours: The hours of learning by steps, as far as they are known.
        ended: The hours when the run ended, or those of its last figure.
    """

    method: str
    seed: int
    settings: dict[str, Any]
    success: dict[float, float]
    evaluated: dict[float, float]
    by_task: dict[str, dict[float, list[float | None]]]
    multiply_adds: float
    hours: dict[float, float]
    ended: float

    @property
    def group(self) -> tuple[str, str]:
        """The method and the settings, which the seeds of a curve share."""
        return self.method, written(self.settings)


def read_curves(stored: Mapping[str, Any], by_folder: bool = False) -> tuple[list[Curve], list[str]]:
    """The curves, sorted by method, settings and seed, and notes on settings that they leave out.

    Args:
        stored: The file of `benchmarks.curves`.
        by_folder: Whether the folders of the runs name the methods, without their benchmark and seed.
    """
    first = flat(stored["first"])
    curves = []
    for row in stored["rows"]:
        own = flat({**stored["first"], **row["options"]})
        method, seed = own.pop("method"), own.pop("seed")
        settings = {name: value for name, value in own.items() if value != first.get(name)}
        if by_folder:
            method = row["run"].partition("-")[2].removesuffix(f"-seed{seed}")
        if method in ("mt-sac", "mh-sac"):  # a run keeps options without an effect, too
            settings = {name: value for name, value in settings.items() if not name.startswith("route")}
        rates = ({int(step): rate for step, rate in row.get(name, {}).items()} for name in WHAT)
        by_task = {
            name: {int(step): each for step, each in of_steps.items()} for name, of_steps in row["by_task"].items()
        }
        hours = {int(step): minutes / 60 for step, minutes in row.get("minutes_at", {}).items()}
        ended = max([(row.get("minutes") or 0) / 60, *hours.values()])
        curves.append(Curve(method, seed, settings, *rates, by_task, row["multiply_adds"], hours, ended))
    common = leave_out_common(curves)
    notes = [f"Every {method} has {written(settings)}." for method, settings in common.items() if settings]
    usual = {name: first[name] for name in names(curves) if name in first}
    notes += leave_out_companions(curves)
    notes += [f"Unless stated otherwise: {written(usual)}."] if usual else []
    methods, groups = list(common), list(dict.fromkeys(curve.group for curve in curves))
    curves.sort(key=lambda curve: (methods.index(curve.method), groups.index(curve.group), curve.seed))
    return curves, notes


def choose_runs(stored: Mapping[str, Any], runs: Sequence[str]) -> dict[str, Any]:
    """Leaves out all runs but some from the file of `benchmarks.curves`.

    Raises:
        ValueError: A run is not stored.
    """
    if unknown := sorted(set(runs) - {row["run"] for row in stored["rows"]}):
        raise ValueError(f"`runs` must be stored, got {', '.join(unknown)}.")
    kept = {name: [entry for entry in stored[name] if entry["run"] in runs] for name in ("rows", "sessions")}
    return {**stored, **kept}


def flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options whose dictionaries are options of their own, such as `network.width`."""
    parts: dict[str, Any] = {}
    for name, value in options.items():
        parts |= {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    return parts


def names(curves: Sequence[Curve]) -> list[str]:
    """The names of the settings in which the curves differ."""
    return list(dict.fromkeys(name for curve in curves for name in curve.settings))


def written(settings: Mapping[str, Any]) -> str:
    """Settings as inline code."""
    return ", ".join(f"``{name}={value}``" for name, value in settings.items())


def leave_out_common(curves: Sequence[Curve]) -> dict[str, dict[str, Any]]:
    """Removes the settings that all curves of a method share, and returns them."""
    common: dict[str, dict[str, Any]] = {}
    for curve in curves:
        shared = common.setdefault(curve.method, curve.settings)
        common[curve.method] = {name: value for name, value in shared.items() if curve.settings.get(name) == value}
    for curve in curves:
        curve.settings = {name: curve.settings[name] for name in curve.settings if name not in common[curve.method]}
    return common


def leave_out_companions(curves: Sequence[Curve]) -> list[str]:
    """Removes settings that several groups of curves have together, all but the first of them, and returns notes."""
    together: dict[tuple[str, ...], dict[str, Any]] = {}
    for name in names(curves):
        having = [curve for curve in curves if name in curve.settings]
        values, groups = {str(curve.settings[name]) for curve in having}, {curve.group for curve in having}
        if len(values) == 1 and len(groups) > 1:
            together.setdefault(tuple(map(str, map(id, having))), {})[name] = having[0].settings[name]
    notes = []
    for settings in together.values():
        (leader, value), *companions = settings.items()
        if companions:
            notes.append(f"With {written({leader: value})} comes {written(dict(companions))}.")
        for curve in curves:
            curve.settings = {name: kept for name, kept in curve.settings.items() if name not in dict(companions)}
    return notes


def over_hours(curves: Sequence[Curve], shown: str, columns: Sequence[float] | None = None) -> list[Curve]:
    """The curves whose time is known, over hours in place of steps.

    Args:
        curves: The curves.
        shown: The attribute of a curve that is wanted over hours.
        columns: The hours at which a curve has the newest figure by then; those of all its figures, if None.
    """
    points = [
        [(curve.hours[step], rate) for step, rate in sorted(getattr(curve, shown).items()) if step in curve.hours]
        for curve in curves
    ]
    columns = sorted({hour for known in points for hour, _ in known}) if columns is None else columns
    moved = []
    for curve, known in zip(curves, points, strict=True):
        newest = {at: [rate for hour, rate in known if hour <= at][-1:] for at in columns if at <= curve.ended}
        rates = {at: rate for at, found in newest.items() for rate in found}
        moved += [dataclasses.replace(curve, **{shown: rates})] if rates else []
    return moved


def hour_columns(longest: float) -> list[float]:
    """At most `COLUMNS` round numbers of hours, evenly spaced, up to the longest time."""
    unit = 10 ** math.floor(math.log10(longest / COLUMNS))
    apart = next(unit * times for times in (1, 2, 5, 10) if longest < (COLUMNS + 1) * unit * times)
    return [apart * place for place in range(1, COLUMNS + 1) if apart * place <= longest]


def columns(curves: Sequence[Mapping[float, float]]) -> list[float]:
    """At most `COLUMNS` steps, evenly spaced, the last one among them."""
    steps = sorted({step for curve in curves for step in curve})
    return steps[:: -math.ceil(len(steps) / COLUMNS)][::-1]


WHAT = {
    "success": "Success over {axis}: the mean over tasks of their newest {window} episodes.",
    "evaluated": "Success in evaluations over {axis}, along the best actions: the mean over tasks.",
}
"""The attributes of a curve that tables show."""

OVER_HOURS = (
    "The hours are those of all sessions of a run, with its evaluations. A cell has the newest figure by then; it is "
    "empty before the first one and after the end of the run."
)
"""The note under a table over hours."""

OVER_SEEDS = (
    "A row is the mean over its seeds, where all of them have a figure; in brackets, the 95 % interval of a bootstrap "
    "over seeds, which with two or three of them reaches from the lowest to the highest."
)
"""The note under a table with a row for each group of seeds."""

OF_TASKS = (
    "The IQM is over tasks and seeds, with the interval of :doc:`index`; a dash where the success of single tasks was "
    "not stored for every seed."
)
"""The note under a table with a column of IQMs."""

ARITHMETIC = (
    "Multiply-adds are those of a critic for a sample in training, counted by a program, without those of modules that "
    "no output depends on."
)
"""The note under a table with a column of multiply-adds."""


def curve_lines(
    stored: Mapping[str, Any],
    steps: Sequence[int] | None = None,
    shown: str = "success",
    by_folder: bool = False,
    seeds: bool = False,
    hours: Sequence[float] | None = None,
    arithmetic: bool = False,
) -> list[str]:
    """The table of the curves with its notes, as lines of reStructuredText.

    Args:
        stored: The file of `benchmarks.curves`.
        steps: The columns; some evenly spaced ones, if None.
        shown: The attribute of a curve that is shown, see `WHAT`.
        by_folder: Whether the folders of the runs name the methods.
        seeds: Whether a row is the mean over the seeds of a method and its settings, with an interval.
        hours: The columns of a table over hours, of the runs whose time is known; some evenly spaced ones, if empty.
        arithmetic: Whether there is a column of multiply-adds.
    """
    curves, notes = read_curves(stored, by_folder)
    if hours is None:
        curves = [curve for curve in curves if getattr(curve, shown)]
        places = steps or columns([getattr(curve, shown) for curve in curves])
        axis, header = "steps of each task", [f"{step:,}" for step in places]
    else:
        known = over_hours(curves, shown)
        if not known:
            raise ValueError("the table over hours needs a run that logged its minutes, got none")
        places = hours or hour_columns(max(curve.ended for curve in known))
        axis, header = "hours of learning", [f"{hour:g} h" for hour in places]
        curves = over_hours(curves, shown, places)
    settings = ["other settings"] if names(curves) else []
    groups = [*grouped(curves).values()] if seeds else [[curve] for curve in curves]
    iqms = [iqm_cell(group, shown, places[-1]) for group in groups] if seeds and hours is None else []
    # A column for a few of the rows would compare nothing.
    pooled = [f"IQM at {header[-1]}"] if iqms and 2 * sum(map(bool, iqms)) >= len(iqms) else []
    counted = ["multiply-adds"] if arithmetic else []
    rows = [["method", "seeds" if seeds else "seed", *settings, *counted, *header, *pooled]]
    for place, group in enumerate(groups):
        first = group[0]
        rates = [getattr(curve, shown) for curve in group]
        cells = [rate_cell([rate[at] for rate in rates if at in rate], len(group)) for at in places]
        which = len(group) if seeds else first.seed
        named = [first.method, str(which), *(written(first.settings) for _ in settings)]
        rows.append(
            [
                *named,
                *(f"{first.multiply_adds:,.0f}" for _ in counted),
                *cells,
                *(iqms[place] or "\N{EN DASH}" for _ in pooled),
            ]
        )
    explained = [WHAT[shown].format(window=stored["window"], axis=axis)]
    explained += [OVER_HOURS] if hours is not None else []
    explained += [OVER_SEEDS] if seeds else []
    explained += [OF_TASKS] if pooled else []
    explained += [ARITHMETIC] if counted else []
    return [*table(rows), "", " ".join([*explained, *notes])]


def grouped(curves: Sequence[Curve]) -> dict[tuple[str, str], list[Curve]]:
    """The curves by method and settings."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.group, []).append(curve)
    return groups


def rate_cell(rates: Sequence[float], seeds: int) -> str:
    """The mean of the success of some seeds with its interval; nothing if one of the seeds has no figure."""
    return "" if len(rates) < seeds else figure_cell(over_seeds(np.array(rates)[:, None]), "mean")


def iqm_cell(curves: Sequence[Curve], shown: str, step: float) -> str:
    """The IQM over seeds and tasks with its interval; nothing if a task or a seed has no figure of its own."""
    rates = [curve.by_task.get(shown, {}).get(step, [None]) for curve in curves]
    return "" if any(None in each for each in rates) else figure_cell(over_seeds(np.array(rates)), "iqm")


def figure_cell(figures: Mapping[str, Any], name: str) -> str:
    """A figure, with its interval in brackets if several seeds have one."""
    interval = figures[f"{name}_interval"]
    return f"{figures[name]:.2f}" + ("" if interval is None else " ({:.2f} to {:.2f})".format(*interval))


def draw_curves(stored: Mapping[str, Any], description: str, by_folder: bool = False, by_hours: bool = False) -> str:
    """Draws the mean over the seeds of each method, and single seeds as thin lines, as SVG text."""
    curves = read_curves(stored, by_folder)[0]
    groups = grouped(over_hours(curves, "success") if by_hours else curves)
    # Groups of one method need strokes of their own, and so do methods that no other figure has.
    known = len({method for method, _ in groups}) == len(groups) and all(method in METHODS for method, _ in groups)
    looks = {group: style(METHODS.index(group[0]) if known else place) for place, group in enumerate(groups)}
    inks = ("text.color", "xtick.color", "ytick.color", "axes.edgecolor", "axes.labelcolor")
    settings = {**dict.fromkeys(inks, INK), "axes.prop_cycle": cycler(color=COLORS), "svg.fonttype": "none"}
    # With a salt, the same data make the same drawing.
    with matplotlib.rc_context({**settings, "svg.hashsalt": description}):
        figure = Figure(figsize=(7.5, 3.6), layout="constrained")
        axis = figure.subplots()
        for (method, others), seeds in groups.items():
            look = looks[method, others]
            for curve in seeds if len(seeds) > 1 else ():
                axis.plot(*zip(*curve.success.items(), strict=True), **look, linewidth=0.6, alpha=0.7)
            shared = [step for step in seeds[0].success if all(step in curve.success for curve in seeds)]
            means = [fmean(curve.success[step] for curve in seeds) for step in shared]
            which = f"mean of {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0].seed}"
            name = ", ".join(filter(None, [method, others.replace("``", ""), which]))
            axis.plot(shared, means, **look, label=name, linewidth=2 if len(seeds) > 1 else 1)
        axis.set(
            xlabel="hours of learning" if by_hours else "steps of each task",
            ylabel="success",
            xlim=(0, None),
            ylim=(0, None),
        )
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_formatter("{x:g}" if by_hours else "{x:,.0f}")
        axis.grid(color="#808080", alpha=0.3)
        axis.legend(frameon=False, fontsize="small", loc="best")
        file = io.StringIO()
        undated = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=undated)
    drawing = file.getvalue()
    drawing = re.sub(r'<g id="\w+"', "<g", drawing[drawing.index("<svg") :])  # a page has several drawings
    drawing = re.sub(r"font-family: [^;]+", "font-family: inherit", drawing).replace(INK, "currentColor")
    return drawing.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)


class Curves(Named):
    """Shows what `benchmarks.curves` stored: how success rose in runs with other settings; the argument is the stem.

    ``:steps:`` names the columns of the table; ``:hours:`` has columns of hours in their place, which it may name, and
    shows the runs that logged their minutes. ``:arithmetic:`` adds a column of multiply-adds. ``:figure:`` describes a
    figure of all steps, drawn above the table.
    ``:caption:`` is a sentence for its caption. ``:runs:`` names the runs, where not all are shown.
    ``:evaluated:`` shows the evaluations in place of the episodes in which a run learned. With ``:by-folder:`` the
    folders of the runs name the methods. With ``:seeds:`` a row is the mean over the seeds of a method and its
    settings.
    """

    option_spec: ClassVar[dict[str, Any]] = {
        "steps": lambda text: [int(step) for step in text.split()],
        "hours": lambda text: [float(hour) for hour in (text or "").split()],
        "figure": directives.unchanged_required,
        "caption": directives.unchanged_required,
        "runs": str.split,
        "evaluated": directives.flag,
        "by-folder": directives.flag,
        "seeds": directives.flag,
        "arithmetic": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        shown = super().run()
        if "figure" not in self.options:
            return shown
        flags = ("by-folder" in self.options, "hours" in self.options)
        drawing = draw_curves(self.chosen(json.loads(self.path.read_text())), self.options["figure"], *flags)
        figure = nodes.figure("", nodes.raw("", side_by_side([drawing]), format="html"))
        caption = [self.options["caption"]] if "caption" in self.options else []
        caption += ["The runs of the table below. Thin lines are single seeds."]
        figure += nodes.caption("", " ".join(caption))
        return [figure, *shown]

    def chosen(self, stored: Mapping[str, Any]) -> Mapping[str, Any]:
        """Leaves out the runs that the option `runs` does not name."""
        return choose_runs(stored, self.options["runs"]) if "runs" in self.options else stored

    def lines(self, stored: Mapping[str, Any]) -> list[str]:
        stored = self.chosen(stored)
        evaluated = "evaluated" in self.options
        shown = "evaluated" if evaluated else "success"
        flags = ("by-folder" in self.options, "seeds" in self.options)
        lines = curve_lines(
            stored,
            self.options.get("steps"),
            shown,
            *flags,
            self.options.get("hours"),
            "arithmetic" in self.options,
        )
        commands = [session["command"] for session in stored["sessions"]]
        return lines if evaluated else [*lines, "", *provenance(commands, stored)]


def setup(app: Sphinx) -> None:
    """Registers the directive with Sphinx."""
    app.add_directive("curves", Curves)
