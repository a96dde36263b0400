"""The sub-commands that look at runs: ``dynroute analyze``, ``dynroute report`` and ``dynroute render``."""

import argparse
import sys
from pathlib import Path
from typing import Any

from .export import analyze
from .film import render
from .page import write_report

__all__ = ["add_parsers"]


def add_parsers(commands: Any) -> None:
    """Adds the sub-commands.

    Args:
        commands: What ``ArgumentParser.add_subparsers`` returned.
    """
    kind: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    analyzing = commands.add_parser(
        "analyze",
        help="write data and figures of runs: curves, success, routes",
        description="Writes curves, success, modules used, routes, their similarity and t-SNE as CSV, npz and\n"
        "figures. Runs that differ in their seeds alone are taken together, with intervals.",
        **kind,
    )
    _add_common(analyzing, "a directory for all files (analysis/ in the run, or here)")
    analyzing.set_defaults(command=_analyze)

    reporting = commands.add_parser(
        "report",
        help="write a page about runs, with curves and a route explorer",
        description="Writes one HTML file that needs no network: success, curves, routes beside the scene, provenance.",
        **kind,
    )
    _add_common(reporting, "the file (report.html in the run, or here)")
    reporting.add_argument("--no-frames", action="store_true", help="leave out pictures of the scene")
    reporting.set_defaults(command=_report)

    rendering = commands.add_parser(
        "render",
        help="film the policy of a run with its live route graph",
        description="Films the policy of a run's last checkpoint in a task. MUJOCO_GL=egl or osmesa says what draws\n"
        "where there is no display; without it both are tried.",
        **kind,
    )
    rendering.add_argument("run", type=Path, help="the directory of a run")
    rendering.add_argument("--task", required=True, help="one of its tasks: door-open")
    rendering.add_argument("--output", type=Path, help="a file .gif or .mp4 (TASK.gif in the run)")
    rendering.add_argument("--episodes", type=int, default=1, help="how many (1)")
    rendering.add_argument("--seed", type=int, help="decides the goals (those of an evaluation)")
    rendering.add_argument("--size", type=int, default=320, help="pixels of the scene (320)")
    rendering.add_argument("--device", default="auto", help="where the networks are (auto)")
    rendering.set_defaults(command=_render)


def _add_common(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directories of runs")
    parser.add_argument("--output", type=Path, help=output)
    parser.add_argument("--episodes", type=int, default=2, help="episodes of each task that routes are from (2)")
    parser.add_argument("--device", default="auto", help="where the networks are (auto)")


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _analyze(options: argparse.Namespace) -> None:
    print(analyze(options.runs, options.output, episodes=options.episodes, device=options.device, tell=_tell))


def _report(options: argparse.Namespace) -> None:
    frames = not options.no_frames
    chosen: dict[str, Any] = {"episodes": options.episodes, "frames": frames, "device": options.device}
    print(write_report(options.runs, options.output, tell=_tell, **chosen))


def _render(options: argparse.Namespace) -> None:
    chosen = {name: getattr(options, name) for name in ("episodes", "seed", "size", "device")}
    print(render(options.run, options.task, options.output, tell=_tell, **chosen))
