"""Runs the sub-commands of ``dynroute``, which :mod:`dynroute_command.parser` reads."""

import argparse
import contextlib
import dataclasses
import errno
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import dynroute_command
from dynroute.files import FULL, check_file_place
from dynroute_command.choices import split_benchmark, task_names
from dynroute_command.parser import given_options

from .bench import bench
from .envs.workers import WorkerError
from .report import analyze, render, write_report
from .report.curves import draw_curves
from .runs.configuration import MOVABLE
from .runs.evaluation import evaluate
from .runs.extraction import extract_task
from .runs.methods import methods_table
from .runs.presets import AFTER_IMITATION, IMITATION_ALONE, preset, preset_options, usual_benchmarks
from .runs.progress import Display
from .runs.provenance import versions
from .runs.recorder import evaluate_run
from .runs.result import EvaluationResult
from .runs.run import Run, RunError
from .runs.summary import summarize, summary_table
from .runs.sweeps import sweep
from .runs.training import load_model, train

__all__ = ["main", "run"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    return dynroute_command.run(sys.argv[1:] if arguments is None else arguments)


def run(options: argparse.Namespace) -> int:
    """Runs the chosen command; prints an error as a sentence."""
    try:
        return COMMANDS[options.command](options) or 0
    except KeyboardInterrupt:
        resume = "stopped at once; --resume goes on from the last checkpoint, and the same command where there is none"
        hints = {"train": resume, "imitate": resume, "sweep": "stopped; the same command goes on"}
        print(f"\ndynroute: {hints.get(options.command, 'stopped at once')}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError, RunError, WorkerError, ImportError) as error:
        message = str(error)
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            message = f"{error.filename}: {error.strerror.lower()}."
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            message = f"a path must have at most 4095 bytes, and each name in it 255, got {error.filename!s:.60}..."
        if isinstance(error, OSError) and error.errno in FULL:
            message = f"there is no space left for {error.filename or 'a file'}; free some, and start again."
        for line in (f"dynroute: {message}", *getattr(error, "__notes__", ())):
            print(line, file=sys.stderr)
        return 1


def _methods(options: argparse.Namespace) -> None:
    print(methods_table(len(task_names(split_benchmark(options.benchmark)))))


def _train(options: argparse.Namespace) -> int:
    given, alone = given_options(options), options.command == "imitate"
    defaults = dict(IMITATION_ALONE) if alone else {}
    if options.resume and options.run is not None and options.preset is None and (options.run / "config.json").exists():
        run = Run.open(options.run)
        run.agree(given)  # first: the preset would refuse another method for this network's keywords
        defaults = dataclasses.asdict(run.configuration)
    wanted = preset(options.preset or "paper", {**defaults, **given}).resolve()
    name = "-".join(wanted.tasks) if "," in wanted.benchmark else wanted.benchmark
    how = f"{wanted.method}-imitation" if alone else wanted.method
    folder = options.run or Path("runs") / f"{name}-{wanted.goals}-{how}-seed{wanted.seed}"
    exists = (folder / "config.json").exists()
    if options.resume and not exists:
        if not {"method", "benchmark"} & set(given) and options.preset is None:
            raise RunError(
                f"there is no run in {folder} to go on with; without --resume, `{options.command}` starts one of "
                f"{wanted.method} on {wanted.benchmark}."
            )
        cloning = f"{wanted.cloning_steps:,} updates of cloning"
        plan = f"{wanted.benchmark}, {f'{wanted.steps:,} steps of each task' if wanted.steps else cloning}"
        print(f"dynroute: there is no run in {folder}: a new one starts, {plan}", file=sys.stderr)
    if options.resume and exists:
        run = Run.open(folder)
        if alone and not run.configuration.cloning_steps:
            raise RunError(f"{folder} holds a run without imitation; `dynroute train` goes on with it.")
        # AFTER_IMITATION depends on options that need not be given again: the values of the run hold.
        usual = preset_options(options.preset or "paper", wanted.method)
        checked = [name for name in usual if name not in {*MOVABLE, *AFTER_IMITATION, *given}]
        run.agree(given)
        run.agree({name: getattr(wanted, name) for name in checked}, source=f"--preset {options.preset}")
    else:
        run = Run.create(folder, wanted, given)
    _tell_equal(run.configuration.goals, given)
    result = train(run, rebuild=options.rebuild)
    if result is None:
        return 130
    print(result)
    if (picture := draw_curves(run)) is not None:
        print(f"curves: {picture}")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    given = given_options(options)
    benchmarks = options.benchmarks or usual_benchmarks(options.preset)
    name = "-".join(benchmark.replace(",", "-") for benchmark in benchmarks)
    folder = options.folder or Path("sweeps") / f"{name}{'-imitation' * options.imitate}"
    failures: dict[str, str] = {}
    if not options.summary:
        _tell_equal(given.get("goals"), given)
        failures = sweep(
            folder,
            options.methods,
            benchmarks,
            options.seeds,
            options=given,
            vary=options.vary,
            settings=options.preset,
            imitate=options.imitate,
            cores_per_run=options.cores_per_run,
            gpus_per_run=options.gpus_per_run,
            address=options.address,
            finish=draw_curves,
        )
    summary = summarize(folder)
    print(summary_table(summary))
    for run, why in failures.items():
        print(f"dynroute: {run} failed: {why} (see {folder / run}.txt)", file=sys.stderr)
    return 1 if failures or any("damaged" in run for run in summary["runs"].values()) else 0


def _evaluate(options: argparse.Namespace) -> None:
    if options.output is not None:
        check_file_place("--output", options.output)
    names = ("goals", "horizon", "seed", "success", "workers")
    chosen = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    total = 100 if options.episodes is None else options.episodes
    result: EvaluationResult
    if options.run == "scripted":
        benchmark, episodes = options.benchmark or "MT10", min(1, total) if chosen.get("goals") == "fixed" else total
        with _watched(f"scripted policies on {benchmark}") as watch:
            result = evaluate("scripted", split_benchmark(benchmark), episodes=episodes, progress=watch, **chosen)
    else:
        run = Run.open(options.run)
        if options.benchmark is not None:
            raise ValueError("`--benchmark` is for scripted policies: a run is evaluated on its own tasks.")
        model = load_model(run, options.device)
        with _watched(str(run.folder)) as watch:
            result = evaluate_run(run, model, total, progress=watch, **chosen)
    if options.episodes is not None:
        _tell_equal(result.goals, {"episodes": total})
    print(result)
    if options.output is not None:
        result.save(options.output)


def _tell_equal(goals: str | None, given: Mapping[str, Any]) -> None:
    """Tells if more episodes of a task were asked for than fixed goals have."""
    asked = max(given.get(name, 1) for name in ("episodes", "evaluation_episodes", "final_episodes"))
    if goals == "fixed" and asked > 1:
        why = "goals are fixed and actions deterministic, so all episodes of a task are equal"
        _tell(f"dynroute: {why}: one is run, not {asked}")


def _extract(options: argparse.Namespace) -> None:
    run = Run.open(options.run)
    with Display(1, ()) as display:
        summary = extract_task(
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
    print(summary)


@contextlib.contextmanager
def _watched(what: str) -> Iterator[Callable[[int, int], None]]:
    """Tells of an evaluation, and shows a bar where there is a terminal, which the yielded function advances."""
    _tell(f"evaluating {what} ...")
    with Display(1, ()) as display:
        yield lambda done, total: display.advance(done, f"evaluating {what}", total)


def _bench(options: argparse.Namespace) -> None:
    bench(options.benchmark, options.methods, options.workers, options.seconds, options.device, options.output)


def _version(options: argparse.Namespace) -> None:
    for name, number in versions().items():
        print(f"{name:18} {number}")
    print(f"{'device':18} {torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'}")


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


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "methods": _methods,
    "train": _train,
    "imitate": _train,
    "sweep": _sweep,
    "evaluate": _evaluate,
    "extract": _extract,
    "analyze": _analyze,
    "report": _report,
    "render": _render,
    "bench": _bench,
    "version": _version,
}
