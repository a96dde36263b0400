"""The ``dynroute`` command."""

import argparse
import contextlib
import difflib
import errno
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from .arguments import add_options, given_options
from .bench import bench
from .envs.environment import GOALS
from .envs.tasks import split_benchmark, task_names
from .envs.workers import WorkerError
from .report.commands import add_parsers
from .report.curves import draw_curves
from .runs.configuration import MOVABLE
from .runs.evaluation import evaluate
from .runs.extraction import FORMATS, STATES, extract_task
from .runs.methods import methods_table
from .runs.presets import AFTER_IMITATION, IMITATION_ALONE, PRESETS, preset, preset_options
from .runs.progress import Display
from .runs.provenance import versions
from .runs.recorder import evaluate_run
from .runs.result import EvaluationResult
from .runs.run import Run, RunError
from .runs.summary import summarize, summary_table
from .runs.sweeps import AXES, read_variants, sweep
from .runs.training import load_model, train

__all__ = ["main"]

EXAMPLES = """
examples:
  dynroute methods                                                  what can be trained
  dynroute imitate --method d2r --benchmark MT10                    clone Meta-World's own policies, in minutes
  dynroute train --method d2r --benchmark MT10 --goals random       as in the D2R paper: 15 million steps
  dynroute train --preset quick --benchmark reach,window-close --goals fixed
  dynroute train --run runs/MT10-random-d2r-seed1 --resume          go on after a stop, a crash or a kill
  dynroute evaluate runs/MT10-random-d2r-seed1 --episodes 100
  dynroute train --method d2r --benchmark MT10 --demonstrations 20 --warm-start runs/MT10-random-d2r-imitation-seed1
  dynroute evaluate scripted --benchmark MT50                       what Meta-World's own policies reach
  dynroute extract runs/MT10-random-d2r-seed1 --task drawer-close   the plain policy of one task, in a small file
  dynroute report runs/MT10-random-d2r-seed1                        a page with curves and a route explorer
  dynroute sweep --imitate --methods d2r mt-sac --seeds 1 2 3       many runs, on all cores or on a cluster
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    """Runs the command that was chosen, and makes a sentence of what goes wrong."""
    try:
        status = options.command(options)
    except KeyboardInterrupt:
        hints = {
            _train: "stopped at once; --resume goes on from the last checkpoint",
            _sweep: "stopped; the same command goes on",
        }
        print(f"\ndynroute: {hints.get(options.command, 'stopped at once')}", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RunError, WorkerError, ImportError) as error:
        told = str(error)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            told = f"the names in a path must have at most 255 bytes, and all of it 4095, got {error.filename!s:.60}..."
        for line in (f"dynroute: {told}", *getattr(error, "__notes__", ())):
            print(line, file=sys.stderr)
        return 1
    return int(status or 0)


class _Parser(argparse.ArgumentParser):
    """A parser that knows which command was given, and names what was likely meant."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.set_defaults(parser=self)  # that of a command is set after that of all

    def error(self, message: str) -> NoReturn:
        wrong = [word for word in message.split() if word.startswith("--")]
        if "unrecognized" in message and wrong:
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            near = difflib.get_close_matches(wrong[0][2:], [flag[2:] for flag in flags], n=1)
            message += f"; did you mean --{near[0]}?" if near else ""
        super().error(message)


def _parser() -> argparse.ArgumentParser:
    kind: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = _Parser(
        prog="dynroute", description="Train and evaluate multi-task policies on Meta-World.", epilog=EXAMPLES, **kind
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    methods = commands.add_parser("methods", help="list the networks, with their parameters", **kind)
    methods.add_argument("--benchmark", default="MT10", help="for how many tasks parameters are counted (MT10)")
    methods.set_defaults(command=_methods)

    for name, usual, about, more in (
        (
            "train",
            {},
            "train a method on a benchmark",
            "Trains a method on a benchmark, with the settings of the D2R paper unless a flag says otherwise.\n"
            "Ctrl-C stops with a checkpoint; --resume goes on from the last one, exactly.",
        ),
        (
            "imitate",
            IMITATION_ALONE,
            "clone the scripted policies of a benchmark",
            "Clones Meta-World's scripted policies with a method, in minutes. What comes of it is a run like any\n"
            "other: it can be evaluated, and `train --warm-start RUN` goes on with SAC.",
        ),
    ):
        flags = "[--preset NAME] [--run FOLDER] [--resume] [flags, see below]"
        training = commands.add_parser(name, usage=f"dynroute {name} {flags}", help=about, description=more, **kind)
        training.add_argument("--preset", help=f"{', '.join(PRESETS)}: settings that flags change further (paper)")
        training.add_argument("--run", type=Path, help="the directory of the run (one in runs/, named by what is run)")
        training.add_argument("--resume", action="store_true", help="go on with the run if it is there")
        training.add_argument("--rebuild", action="store_true", help="collect demonstrations anew, not from the cache")
        add_options(training)
        training.set_defaults(command=_train, usual=usual)

    sweeping = commands.add_parser(
        "sweep",
        usage="dynroute sweep --methods NAME ... [--benchmarks NAME ...] [--seeds N ...] [flags, see below]",
        help="run methods x benchmarks x seeds, on this machine or on a cluster",
        description="Runs methods x benchmarks x seeds, as many at a time as there are cores, and tells what came of\n"
        "them. The same command goes on after a stop, a crash or a kill. Flags of `train` hold for every run.",
        **kind,
    )
    sweeping.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="networks")
    sweeping.add_argument("--benchmarks", nargs="+", default=["MT10"], metavar="NAME", help="benchmarks (MT10)")
    sweeping.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N", help="seeds (1 2 3)")
    sweeping.add_argument(
        "--vary", action="append", default=[], metavar="FLAG=VALUE,...", help="another axis: protect=rsg,none"
    )
    sweeping.add_argument("--imitate", action="store_true", help="runs as those of `imitate`, not of `train`")
    sweeping.add_argument("--preset", default="paper", help=f"{', '.join(PRESETS)} (paper)")
    sweeping.add_argument("--folder", type=Path, help="where runs are (in sweeps/, named by the benchmarks)")
    sweeping.add_argument("--cores-per-run", type=int, default=1, metavar="N", help="also its threads (1)")
    sweeping.add_argument(
        "--gpus-per-run",
        type=float,
        default=0,
        metavar="N",
        help="0.5 lets two runs share a GPU; without, on the CPU (0)",
    )
    sweeping.add_argument("--address", metavar="HOST:PORT", help="a cluster of Ray to join (this machine alone)")
    sweeping.add_argument("--summary", action="store_true", help="run nothing, and tell what came of it so far")
    add_options(sweeping, without=AXES)
    sweeping.set_defaults(command=_sweep)

    evaluating = commands.add_parser("evaluate", help="evaluate a run, or Meta-World's scripted policies", **kind)
    evaluating.add_argument("run", help='the directory of a run, or "scripted"')
    evaluating.add_argument("--benchmark", help="for scripted policies (MT10)")
    evaluating.add_argument("--episodes", type=int, help="episodes of each task (100)")
    evaluating.add_argument("--goals", help=f"{'|'.join(GOALS)} (those of the run)")
    evaluating.add_argument("--horizon", type=int, help="steps of an episode (those of the run)")
    evaluating.add_argument("--seed", type=int, help="decides the goals (ones that training did not draw)")
    evaluating.add_argument("--success", help="any or last: which steps of an episode count (any)")
    evaluating.add_argument("--workers", type=int, help="processes for the environments (those of the run)")
    evaluating.add_argument("--device", default="auto", help="where the networks are (auto)")
    evaluating.add_argument("--output", type=Path, help="a file for all figures, as JSON")
    evaluating.set_defaults(command=_evaluate)

    extracting = commands.add_parser(
        "extract",
        help="save the plain policy of one task of a run",
        description="Makes the policy of one task from what its routes use, from the state to the action in -1..1,\n"
        "saves it, and compares it with the whole network.\n\n"
        "formats:\n"
        "  torch   one safetensors file; dynroute.Program.load reads it, and nothing in it can run\n"
        "  export  a .pt2 file of torch.export: torch alone reads it, and only from those one trusts\n"
        "  onnx    an .onnx file; needs the packages onnx and onnxscript, and onnxruntime to be tried",
        **kind,
    )
    extracting.add_argument("run", type=Path, help="the directory of a run")
    extracting.add_argument("--task", required=True, help="one of its tasks: drawer-close")
    extracting.add_argument("--format", default="torch", help=f"{'|'.join(FORMATS)} (torch)")
    extracting.add_argument("--coverage", type=float, default=1.0, help="share of states whose routes stay whole (1)")
    extracting.add_argument("--states", default="policy", help=f"{'|'.join(STATES)}: where states come from (policy)")
    extracting.add_argument("--collect", type=int, default=10, help="episodes of states; a fifth is to check (10)")
    extracting.add_argument("--episodes", type=int, default=0, help="also evaluates both in so many episodes (0)")
    extracting.add_argument("--output", type=Path, help="the file (named by the task, in the run)")
    extracting.set_defaults(command=_extract)

    add_parsers(commands)

    benching = commands.add_parser("bench", help="measure this machine: how long would a run take?", **kind)
    benching.add_argument("--benchmark", default="MT10", help="the tasks (MT10)")
    benching.add_argument("--methods", nargs="+", default=["mt-sac", "sm", "d2r"], help="networks (mt-sac sm d2r)")
    benching.add_argument("--workers", type=int, default=2, help="processes for the environments (2)")
    benching.add_argument("--seconds", type=float, default=10, help="how long each is measured (10)")
    benching.add_argument("--device", default="auto", help="where the networks are (auto)")
    benching.add_argument("--output", type=Path, help="a file for all figures, as JSON; its folder is made")
    benching.set_defaults(command=_bench)

    version = commands.add_parser("version", help="versions of all that results depend on", **kind)
    version.set_defaults(command=_version)
    return parser


def _methods(options: argparse.Namespace) -> None:
    print(methods_table(len(task_names(split_benchmark(options.benchmark)))))


def _train(options: argparse.Namespace) -> int:
    given = given_options(options)
    wanted = preset(options.preset or "paper", {**options.usual, **given}).resolve()
    name = "-".join(wanted.tasks) if "," in wanted.benchmark else wanted.benchmark
    how = f"{wanted.method}-imitation" if options.usual else wanted.method
    folder = options.run or Path("runs") / f"{name}-{wanted.goals}-{how}-seed{wanted.seed}"
    there = (folder / "config.json").exists()
    if options.resume and not there:
        cloning = f"{wanted.cloning_steps:,} updates of cloning"
        told = f"{wanted.benchmark}, {f'{wanted.steps:,} steps of each task' if wanted.steps else cloning}"
        print(f"dynroute: no run is in {folder} to go on with: a new one starts, {told}", file=sys.stderr)
    if options.resume and there:
        run = Run.open(folder)
        if options.usual and not run.configuration.cloning_steps:
            raise RunError(f"{folder} holds a run without imitation; `dynroute train` goes on with it.")
        # What depends on other options that need not be given again is that of the run.
        usual = preset_options(options.preset or "paper", wanted.method)
        asked = set(usual) - {*MOVABLE, *AFTER_IMITATION}
        run.agree({**{name: getattr(wanted, name) for name in asked}, **given})
    else:
        run = Run.create(folder, wanted)
    result = train(run, rebuild=options.rebuild)
    if result is None:
        return 130
    print(result)
    if (picture := draw_curves(run)) is not None:
        print(f"curves: {picture}")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    given = given_options(options)
    name = "-".join(benchmark.replace(",", "-") for benchmark in options.benchmarks)
    folder = options.folder or Path("sweeps") / f"{name}{'-imitation' * options.imitate}"
    failures: dict[str, str] = {}
    if not options.summary:
        failures = sweep(
            folder,
            options.methods,
            options.benchmarks,
            options.seeds,
            options=given,
            vary=read_variants(options.vary),
            settings=options.preset,
            imitate=options.imitate,
            cores_per_run=options.cores_per_run,
            gpus_per_run=options.gpus_per_run,
            address=options.address,
            finish=draw_curves,
        )
    print(summary_table(summarize(folder)))
    for run, why in failures.items():
        print(f"dynroute: {run} failed: {why} (see {folder / run}.txt)", file=sys.stderr)
    return 1 if failures else 0


def _evaluate(options: argparse.Namespace) -> None:
    if options.output is not None and not options.output.parent.is_dir():
        raise FileNotFoundError(f"`--output` must be in a directory that is there, got {options.output}.")
    names = ("goals", "horizon", "seed", "success", "workers")
    chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    total = 100 if options.episodes is None else options.episodes
    result: EvaluationResult
    if options.run == "scripted":
        benchmark = options.benchmark or "MT10"
        with _watched("scripted policies") as watch:
            result = evaluate("scripted", split_benchmark(benchmark), episodes=total, progress=watch, **chosen)
    else:
        run = Run.open(options.run)
        if options.benchmark is not None:
            raise ValueError("`--benchmark` is for scripted policies: a run is evaluated on its own tasks.")
        model = load_model(run, options.device)
        with _watched(str(run.folder)) as watch:
            result = evaluate_run(run, model, total, progress=watch, **chosen)
    if options.episodes is not None and result.episodes < total:
        why = "goals are fixed and actions deterministic, so that all episodes of a task are equal"
        print(f"dynroute: {why}: one is run, not {total}", file=sys.stderr)
    print(result)
    if options.output is not None:
        result.save(options.output)


def _extract(options: argparse.Namespace) -> None:
    run = Run.open(options.run)
    with Display(1, ()) as display:
        told = extract_task(
            run,
            load_model(run, "cpu"),
            options.task,
            form=options.format,
            output=options.output,
            coverage=options.coverage,
            states=options.states,
            collected=options.collect,
            episodes=options.episodes,
            progress=lambda doing, done, total: display.advance(done, doing, total),
        )
    print(told)


@contextlib.contextmanager
def _watched(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for an evaluation."""
    with Display(1, ()) as display:
        yield lambda done, total: display.advance(done, f"evaluating {what}", total)


def _bench(options: argparse.Namespace) -> None:
    bench(options.benchmark, options.methods, options.workers, options.seconds, options.device, options.output)


def _version(options: argparse.Namespace) -> None:
    for name, number in versions().items():
        print(f"{name:18} {number}")
    print(f"{'device':18} {torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'}")
