"""Directives that show the stored results of `benchmarks.language`, transformers on a text."""

import abc
import json
from collections.abc import Sequence
from typing import Any

import torch
from result_tables import MEASURED, Stored, table
from sphinx.application import Sphinx

from dynroute.inspect import draw_load

LANGUAGE = MEASURED / "language.json"

UNITS = {
    "turns": "equal time",
    "seconds": "equal seconds",
    "products": "equal multiply-adds",
    "step": "equal tokens",
}

VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "`": "´"})


class Language(Stored, abc.ABC):
    """Shows a part of the stored file."""

    path = LANGUAGE


class LanguageLosses(Language):
    """Shows the losses, the sizes and the times."""

    def lines(self, stored: dict[str, Any]) -> list[str]:
        summary = stored["summary"]
        header = ["feed-forward part", "parameters", "multiply-adds a token", "step to loop", *UNITS.values()]
        rows = []
        for row in summary["rows"]:
            losses = [number(row["loss"][unit]) for unit in UNITS]
            ratio = stored["steps"]["to loop"][row["name"]]
            rows.append([row["name"], f"{row['parameters']:,}", f"{row['products']:,.0f}", f"{ratio:.2f}", *losses])
        differences = [
            [row["name"], *(number(row["difference"][unit], sign=True) for unit in UNITS)]
            for row in summary["rows"]
            if row["difference"]
        ]
        return [
            *table([header, *rows]),
            "",
            f"Loss less that of {summary['base']}, seed by seed:",
            "",
            *table([["feed-forward part", *UNITS.values()], *differences]),
            "",
            *provenance(stored).splitlines(),
        ]


class LanguageRoutes(Language):
    """Shows how evenly experts are used, and what the character of a token tells of its expert."""

    def lines(self, stored: dict[str, Any]) -> list[str]:
        rows = [["feed-forward part", "block", "entropy of the load", "dead experts", "told by the character"]]
        for row in stored["summary"]["rows"]:
            routed = [run["routes"] for run in stored["runs"] if run["name"] == row["name"] and "routes" in run]
            for block, layers in enumerate(zip(*routed, strict=True), 1):
                entropy, dead, told = (
                    [layer[key] for layer in layers] for key in ("entropy", "dead", "told by the character")
                )
                cells = [span(entropy), ", ".join(map(str, dead)), span(told)]
                rows.append([row["name"], str(block), *cells])
        return table(rows)


class LanguageExperts(Language):
    """Shows which characters the experts of the first seed prefer; the argument names the feed-forward part."""

    required_arguments = 1
    final_argument_whitespace = True

    def lines(self, stored: dict[str, Any]) -> list[str]:
        layers = first_run(stored, self.arguments[0])["routes"]
        rows = [["expert", *(text for i in range(len(layers)) for text in (f"block {i + 1}", "load"))]]
        for expert in range(len(layers[0]["load"])):
            cells = [(shown(layer["favourites"][expert]), f"{layer['load'][expert]:.2f}") for layer in layers]
            rows.append([str(expert), *(cell for pair in cells for cell in pair)])
        return table(rows)


class LanguageDepth(Language):
    """Shows how many modules tokens run, by the kind of their character."""

    def lines(self, stored: dict[str, Any]) -> list[str]:
        runs = [run["routes"] for run in stored["runs"] if run["name"] == "depth"]
        blocks = list(zip(*runs, strict=True))
        rows = [["character", *(f"block {i + 1}" for i in range(len(blocks)))]]
        for kind in blocks[0][0]["modules run"]:
            rows.append([kind, *(span([layer["modules run"][kind] for layer in layers]) for layers in blocks)])
        rows.append(["all", *(span([layer["modules run by all"] for layer in layers]) for layers in blocks)])
        return table(rows)


def provenance(stored: dict[str, Any]) -> str:
    """Where the numbers come from, in words."""
    settings, ends, same = stored["settings"], stored["summary"]["ends"], stored["summary"]["loop to mixture"]
    seeds = max(len(row["seeds"]) for row in stored["summary"]["rows"])
    loads = [run["load at the start"] for run in stored["runs"]]
    waited = [run["wall seconds"] / run["curve"][-1]["seconds"] for run in stored["runs"]]
    learned, tested = settings["characters"]
    return f"""
Means of {seeds} seeds with intervals of 95 % (Student). Equal time is that of {ends["turns"]:,.0f} steps of the loop,
by the ratios of the column before, medians of at least {min(stored["steps"]["rounds"])} rounds in which a network and
the loop take turns. Equal seconds are {ends["seconds"]:.0f} of one thread of the processor, which other programs
lengthen: the load of the system was {min(loads):.0f} to {max(loads):.0f} on two cores, and a run took
{min(waited):.1f} to {max(waited):.1f} times as long by the clock. Equal multiply-adds are
{ends["products"] / 1e9:,.0f} billion, equal tokens {ends["step"]:,} steps of
{settings["batch"] * settings["length"]:,}. The text has {learned:,} characters to learn and {tested:,} to test on, the
docstrings of Python {settings["python"]}; torch {settings["torch"]}. The losses of the loop and of the mixture with a
loss differ by {same["most"]:.1e} at most after equal steps.
"""


def first_run(stored: dict[str, Any], name: str) -> dict[str, Any]:
    """The run of the first seed."""
    run: dict[str, Any] = next(run for run in stored["runs"] if run["name"] == name and run["seed"] == 0)
    return run


def load_picture(name: str, block: int) -> str:
    """The load of the experts over training, as an SVG picture."""
    history = torch.tensor(first_run(json.loads(LANGUAGE.read_text()), name)["history"])
    return draw_load(history[:, block - 1], title=f"{name}, block {block}")


def number(found: dict[str, Any], *, sign: bool = False) -> str:
    """A mean and its interval."""
    form = "{:+.3f}" if sign else "{:.3f}"
    ends = found["interval"]
    return form.format(found["mean"]) + (f" ({form.format(ends[0])} to {form.format(ends[1])})" if ends else "")


def span(values: Sequence[float]) -> str:
    """The range over the seeds."""
    return f"{min(values):.2f} to {max(values):.2f}"


def shown(characters: str) -> str:
    """Characters side by side, spaces and ends of lines made visible."""
    return f"``{' '.join(characters.translate(VISIBLE))}``" if characters else "none"


def setup(app: Sphinx) -> None:
    """Registers the above with Sphinx, which calls this function."""
    app.add_directive("language-losses", LanguageLosses)
    app.add_directive("language-routes", LanguageRoutes)
    app.add_directive("language-experts", LanguageExperts)
    app.add_directive("language-depth", LanguageDepth)
