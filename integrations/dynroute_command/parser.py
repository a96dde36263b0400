"""The sub-commands of ``dynroute``, their flags and their help, without torch or an extra."""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import importlib.util
import json
import os
import sys
import textwrap
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import dynroute

from .choices import (
    BENCHMARKS,
    FORMATS,
    METHODS,
    PRESETS,
    STATES,
    SUCCESS,
    benchmark_name,
    check_choice,
    check_task,
    likely,
    split_benchmark,
)
from .options import (
    AXES,
    EVALUATION,
    GROUPS,
    IMITATION,
    IMITATION_ALONE,
    KEYWORDS,
    LENGTH,
    MACHINE,
    PATHS,
    PLACE,
    WHAT,
    Options,
    check_option,
    check_range,
    kinds_of,
)

__all__ = ["completion", "given_options", "parse", "read_variants"]

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

SHELLS = ("bash", "zsh", "fish")
"""The shells that :func:`completion` writes for."""

FIELDS = {option.name: option for option in dataclasses.fields(Options)}
METAVARS = {int: "N", float: "X", str: "NAME", Path: "PATH"}
NETWORKS = "where the networks are"
EXTRAS = {"metaworld": ("stable_baselines3", "metaworld"), "sweep": ("ray",), "report": ("matplotlib", "sklearn")}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses arguments; help, the version and errors of usage end the program.

    Raises:
        ValueError: An option does not take a value.
    """
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        is_folder = getattr(options, "summary", False) and not unknown[0].startswith("-")
        hint = f"; the folder of a sweep is --folder {unknown[0]}" if is_folder else ""
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    given = vars(options)
    if "command" not in given:
        parser.print_help(sys.stderr)
        parser.exit(2, "\ndynroute: error: a command is required, one of those above\n")
    if options.command == "sweep":
        _read_sweep(options)
    if options.command == "evaluate" and options.run == "scripted" and options.device != "auto":
        raise ValueError(f"`--device` is for networks, and scripts have none; got {options.device}.")
    if given.get("benchmark") is not None:
        options.benchmark = benchmark_name(split_benchmark(options.benchmark))
    if given.get("benchmarks") is not None:
        options.benchmarks = [benchmark_name(split_benchmark(benchmark)) for benchmark in options.benchmarks]
    if "task" in given:
        check_task(options.task)
    for name, value in given_options(options).items():
        if value is not None:
            check_option(FIELDS[name], value)
    cloned = [given.get("cloning_steps"), *given.get("vary", {}).get("cloning_steps", ())]
    if 0 in cloned and (options.command == "imitate" or given.get("imitate")):
        raise ValueError(
            "`cloning_steps` must be at least 1 for runs that only imitate, got 0; `dynroute train` learns without "
            "cloning."
        )
    if options.command == "sweep" and not (options.methods or options.summary):
        options.parser.error(
            "the following arguments are required: --methods, or --summary for the results so far, with --folder PATH"
        )
    return options


def _read_sweep(options: argparse.Namespace) -> None:
    """Reads the axes of a sweep, and refuses what no run of it uses."""
    options.vary = read_variants(options.vary)
    options.seeds = options.seeds or [1, 2, 3]
    given = {
        **{name: _flag(name) for name in vars(options)},
        **{name: f"--vary {_flag(name)[2:]}" for name in options.vary},
    }
    for name, flag in given.items():
        if options.imitate and name in FIELDS and FIELDS[name].metadata["sac"]:
            hint = f"; for cloning it is {_flag(cloning)}" if (cloning := f"cloning_{name}") in FIELDS else ""
            options.parser.error(f"{flag} is for runs of SAC only, not with --imitate{hint}")
    for name, values in {"seed": options.seeds, **options.vary}.items():
        for value in values:
            check_option(FIELDS[name], value)


def given_options(namespace: argparse.Namespace) -> dict[str, Any]:
    """The options of a run that were given; others keep their defaults."""
    given = {name: value for name, value in vars(namespace).items() if name in FIELDS}
    return {name: dict(value) if name in KEYWORDS else value for name, value in given.items()}


def completion(shell: str) -> str:
    """The script with which a shell completes the command."""
    try:
        import shtab
    except ImportError as error:
        raise ImportError("completion needs shtab; type: pip install 'dynroute[metaworld]'") from error
    parser = _parser()
    for command, action in [(each, action) for each in _commands(parser).values() for action in each._actions]:
        if action.dest in ("benchmark", "benchmarks", "task"):
            action.choices = [*(() if action.dest == "task" else BENCHMARKS), *BENCHMARKS["MT50"]]
        elif action.dest == "device":
            action.choices = ["auto", "cpu", "cuda"]
        elif action.dest == "gate":
            action.choices = [choice.replace("K", "2") for choice in action.choices or ()]
        elif action.dest in command.paths:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def read_variants(texts: Sequence[str]) -> dict[str, list[Any]]:
    """The values of options that are written like ``protect=rsg,none``.

    Example:
        >>> from dynroute_command.parser import read_variants
        >>> read_variants(["protect=rsg,none", "num_modules=8,none", "state-free=true,false"])
        {'protect': ['rsg', 'none'], 'num_modules': [8, None], 'state_free': [True, False]}
    """
    values: dict[str, list[Any]] = {}
    variable = [name for name in FIELDS if name not in (*AXES, *KEYWORDS)]
    for text in texts:
        name, equals, listed = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in variable:
            hint = "; methods, benchmarks and seeds have flags of their own."
            if name in KEYWORDS:
                hint = f"; {_flag(name)} is the same for all runs."
            elif name.removesuffix("s") not in AXES and name not in variable:
                hint = likely(name, variable, otherwise=hint)
            raise ValueError(
                f"`vary` must be an option of a run and its values, for instance protect=rsg,none, got {text!r}{hint}"
            )
        values[name] = values.get(name, []) + [_read_value(FIELDS[name], word.strip()) for word in listed.split(",")]
    return values


def _read_value(option: dataclasses.Field[Any], word: str) -> Any:
    kinds = kinds_of(option.type)
    if str in kinds:
        if option.metadata["none"] and word.lower() == "none":
            return None
        if option.name in PATHS and not word:
            raise ValueError(f"`{option.name}` must be a path, got ''.")
        return _text(word, option.name in PATHS)
    if bool in kinds:
        return {"true": True, "false": False}.get(word, word)
    (kind,) = set(kinds) - {types.NoneType}
    try:
        return _reader(kind, optional=types.NoneType in kinds)(word)
    except argparse.ArgumentTypeError:
        return word  # check_option tells what is wrong


def _key_value(text: str) -> tuple[str, Any]:
    """Reads NAME=VALUE; the value is JSON, a literal of Python, or else text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} must be name=value, for instance num_modules=8")
    with contextlib.suppress(ValueError):
        return name, json.loads(value)
    with contextlib.suppress(ValueError, SyntaxError, TypeError):  # only values that JSON can store
        return name, json.loads(json.dumps(ast.literal_eval(value)))
    return name, value


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)  # of names of methods and tasks


class _Parser(argparse.ArgumentParser):
    """A parser whose help has groups of options, and whose errors suggest the likely flag."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, "allow_abbrev": False, "add_help": False, **keywords})
        self.needs: dict[str, list[str]] = {}
        """The sub-commands that need each extra."""
        self.least: dict[str, float | None] = {}
        """The smallest values of arguments that are numbers."""
        self.paths: set[str] = set()
        """The arguments that are paths."""
        self.sections = {title: self.add_argument_group(title) for title in GROUPS}

    def add_help_group(self) -> Any:
        """Adds the last group of options."""
        group = self.add_argument_group("help")
        group.add_argument("-h", "--help", action="help", help="this text")
        return group

    def option(
        self,
        group: str,
        *flags: str,
        about: str,
        usual: object = None,
        optional: bool = False,
        least: float | None = None,
        **keywords: Any,
    ) -> None:
        """Adds an argument; its help names its choices and its default.

        An `optional` one takes the word "none", and a number must be at least `least`.
        """
        usual = keywords.get("default") if usual is None else usual
        if isinstance(usual, (list, tuple)):
            usual = " ".join(map(str, usual))
        elif isinstance(usual, bool):
            usual = "on" if usual else "off"
        default = "" if usual in (None, "", dict, argparse.SUPPRESS) else f" ({usual})"
        kind, choices = keywords.get("type", str), keywords.get("choices")
        is_path = kind is Path or flags[0].lstrip("-").replace("-", "_") in (*PATHS, "run")
        if keywords.get("action", "extend") == "extend" and kind in METAVARS:
            if choices or flags[0].startswith("--"):
                keywords.setdefault("metavar", METAVARS[kind])
            keywords["type"] = _reader(kind, optional=optional, is_path=is_path)
        text = f"{' | '.join(choices)}: {about}" if choices else about
        help_text = (text + default).replace("%", "%%")
        name = self.sections[group].add_argument(*flags, help=help_text, **keywords).dest
        self.least[name] = least
        if is_path:
            self.paths.add(name)

    def run_options(self, names: Collection[str], usual: Mapping[str, Any] | None = None, note: str = "") -> None:
        """Adds flags for some options of a run; a flag that is not given sets no value."""
        for name in names:
            option, about = FIELDS[name], FIELDS[name].metadata
            kind, *others = kinds_of(option.type)
            flag: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "about": about["about"]}
            flag["usual"] = note or (usual or {}).get(name, dict if kind is dict else option.default)
            if kind is bool:
                flag["action"] = argparse.BooleanOptionalAction
            elif kind is dict:
                flag |= {"nargs": "+", "action": "extend", "type": _key_value, "metavar": "NAME=VALUE"}
            else:
                optional = about["none"] or (bool(others) and option.default is not None)
                flag |= {"type": kind, "optional": optional, "choices": about["choices"] or None}
                if optional:
                    flag["about"] += f"; none {'restores the default' if option.default is None else 'turns it off'}"
            self.option(about["group"], _flag(name), **flag)

    def format_help(self) -> str:
        """The help; its end lists extras that are not installed."""
        lines = [
            f"  pip install 'dynroute[{extra}]'".ljust(40) + f"for {', '.join(commands)}"
            for extra, commands in self.needs.items()
            if not all(map(_is_installed, EXTRAS[extra]))
        ]
        missing = "\nnot installed here (this help, --version and the library work without):\n" if lines else ""
        return super().format_help() + missing + "".join(f"{line}\n" for line in lines)

    def error(self, message: str) -> NoReturn:
        words = message.partition(";")[0].split()  # a hint comes after it
        wrong = [word.partition("=")[0] for word in words if word.startswith("--")]
        if "unrecognized" in message and wrong:
            flag, own = wrong[0], [flag[2:] for flag in self._option_string_actions if flag.startswith("--")]
            users = [f"dynroute {name}" for name, other in _commands(_parser()).items() if other.has(flag)]
            near = difflib.get_close_matches(flag[2:], own, n=1, cutoff=0.85 if users else 0.6)
            message += f"; did you mean --{near[0]}?" if near else ""
            message += f"; {flag} is only for {' and '.join(users)}" if users and not near else ""
            cloning = f"--cloning-{flag[2:]}"
            message += f"; for cloning it is {cloning}" if self.has(cloning) and not near else ""
        super().error(message)

    def has(self, flag: str) -> bool:
        """Whether the parser has a flag."""
        return flag in self._option_string_actions

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            self.error(f"there is no command {value!r}{likely(value, action.choices, otherwise='')}")
        if action.choices is not None and action.dest not in FIELDS:  # fields are checked after parsing
            check_choice("method" if action.dest == "methods" else action.dest, value, tuple(action.choices))
        if (least := self.least.get(action.dest)) is not None:
            check_range(action.dest, value, least)


def _is_installed(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None  # a directory of that name is not a package


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _reader(kind: type, *, optional: bool, is_path: bool = False) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if optional and text.lower() == "none":
            return None
        try:
            return _whole(text) if kind is int else kind(_text(text, is_path))
        except (ValueError, OverflowError) as error:
            wanted = "a path" if is_path else "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} must be {wanted}") from error

    return read


def _text(text: str, is_path: bool) -> str:
    """A text as it is; in a path, a "~" in front is the directory of the user, as in the words of a shell."""
    if is_path and not text:
        raise ValueError("a path must not be empty.")
    return os.path.expanduser(text) if is_path else text


def _whole(text: str) -> int:
    """Reads a whole number, which may be written like 1e5."""
    digits = text.replace("_", "")
    if "e" not in digits.lower():
        return int(digits)
    if (number := float(digits)) != int(number):
        raise ValueError
    return int(number)


def _commands(parser: _Parser) -> dict[str, _Parser]:
    """The parsers of the sub-commands."""
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


def _parser() -> _Parser:
    parser = _Parser(
        prog="dynroute", description="Train and evaluate multi-task policies on Meta-World.", epilog=EXAMPLES
    )
    version = f"dynroute {dynroute.__version__}"
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")  # parse asks for one, after unknown flags
    parser.add_help_group().add_argument("--version", action="version", version=version, help="the version of dynroute")

    def command(name: str, about: str, *extras: str, **keywords: Any) -> _Parser:
        made: _Parser = commands.add_parser(name, help=about, **keywords)
        made.add_help_group()
        made.set_defaults(command=name, parser=made)  # overrides the main parser's
        for extra in extras:
            made.needs[extra] = [name]
            parser.needs.setdefault(extra, []).append(name)
        return made

    path: dict[str, Any] = {"type": Path}
    methods = command("methods", "list the networks, with their parameters", "metaworld")
    methods.option(WHAT, "--benchmark", default="MT10", about="the benchmark for which parameters are counted")

    for name, about, more in (
        (
            "train",
            "train a method on a benchmark",
            "Trains a method on a benchmark, with the settings of the D2R paper unless a flag says otherwise.\n"
            "Ctrl-C stops with a checkpoint; --resume goes on from the last one, exactly.",
        ),
        (
            "imitate",
            "clone the scripted policies of a benchmark",
            "Clones Meta-World's scripted policies with a method, in minutes. The result is a run like any\n"
            "other: it can be evaluated, and `train --warm-start RUN` goes on with SAC.",
        ),
    ):
        flags = "[--preset NAME] [--run PATH] [--resume] [flags, see below]"
        training = command(name, about, "metaworld", usage=f"dynroute {name} {flags}", description=more)
        training.option(WHAT, "--preset", choices=PRESETS, usual="paper", about="settings that flags change further")
        training.option(PLACE, "--run", **path, about="the directory of the run (in runs/, named by the options)")
        training.option(PLACE, "--resume", action="store_true", about="go on with the run if it exists")
        rebuild = "collect demonstrations anew, not from the cache"
        training.option(IMITATION, "--rebuild", action="store_true", about=rebuild)
        alone = name == "imitate"
        used = [name for name, option in FIELDS.items() if not (alone and option.metadata["sac"])]
        training.run_options(used, IMITATION_ALONE if alone else None)

    sweeping = command(
        "sweep",
        "run methods x benchmarks x seeds, on this machine or on a cluster",
        *("metaworld", "sweep"),
        usage="dynroute sweep --methods NAME ... [--benchmarks NAME ...] [--seeds N ...] [flags, see below]",
        description="Runs methods x benchmarks x seeds, as many at a time as there are cores, and prints the results.\n"
        "The same command goes on after a stop, a crash or a kill. Flags of `train` apply to every run.",
    )
    several: dict[str, Any] = {"nargs": "+", "action": "extend"}
    sweeping.option(WHAT, "--methods", **several, default=[], choices=METHODS, about="networks")
    sweeping.option(WHAT, "--benchmarks", **several, usual="that of the preset, or MT10", about="benchmarks")
    sweeping.option(WHAT, "--seeds", **several, type=int, usual="1 2 3", about="seeds")
    vary = "another axis: protect=rsg,none"
    sweeping.option(WHAT, "--vary", action="append", default=[], metavar="FLAG=VALUE,...", about=vary)
    sweeping.option(WHAT, "--imitate", action="store_true", about="run `imitate` instead of `train`")
    sweeping.option(WHAT, "--preset", default="paper", choices=PRESETS, about="settings that flags change further")
    sweeping.option(PLACE, "--folder", **path, about="where runs are (in sweeps/, named by the benchmarks)")
    sweeping.option(PLACE, "--summary", action="store_true", about="run nothing, and print the results so far")
    sweeping.option(MACHINE, "--cores-per-run", type=int, least=1, default=1, about="cores of a run, and its threads")
    share = "GPUs of a run; 0.5 lets two runs share one, 0 is the CPU"
    sweeping.option(MACHINE, "--gpus-per-run", type=float, least=0, default=0, about=share)
    join = "a cluster of Ray to join (this machine alone)"
    sweeping.option(MACHINE, "--address", metavar="HOST:PORT", about=join)
    sweeping.run_options([name for name in FIELDS if name not in AXES])

    evaluating = command("evaluate", "evaluate a run, or Meta-World's scripted policies", "metaworld")
    evaluating.option(WHAT, "run", about='the directory of a run, or "scripted"')
    evaluating.option(WHAT, "--benchmark", about="for scripted policies (MT10)")
    evaluating.option(LENGTH, "--episodes", type=int, least=1, about="episodes of each task (100)")
    evaluating.option(PLACE, "--output", **path, about="a file for all figures, as JSON")
    evaluating.option(EVALUATION, "--success", choices=SUCCESS, usual="any", about="which steps of an episode count")
    evaluating.run_options(["goals", "horizon", "workers"], note="as in the run")
    evaluating.run_options(["seed"], note="for random goals 1000000, otherwise the run's, and 0 for scripts")
    evaluating.option(MACHINE, "--device", default="auto", about=NETWORKS)

    extracting = command(
        "extract",
        "save the plain policy of one task of a run",
        "metaworld",
        description="Extracts the policy of one task, with only the modules that its routes use, from the state to\n"
        "the action in -1..1; saves it, and compares it with the whole network.\n\n"
        "formats:\n"
        "  torch       one safetensors file; dynroute.Program.load reads it, and it cannot run code\n"
        "  export      a .pt2 file of torch.export: only torch reads it, and it must come from a trusted source\n"
        "  onnx        an .onnx file; needs the packages onnx and onnxscript, and onnxruntime for the comparison\n"
        "  executorch  a .pte file for phones and small devices, one state at a time; needs the package executorch",
    )
    extracting.option(WHAT, "run", **path, about="the directory of a run")
    extracting.option(WHAT, "--task", required=True, about="one of its tasks, for instance drawer-close")
    extracting.option(WHAT, "--format", default="torch", choices=FORMATS, about="of the file, see above")
    extracting.option(WHAT, "--coverage", type=float, default=1.0, about="share of states whose routes stay whole")
    extracting.option(WHAT, "--states", default="policy", choices=STATES, about="where states come from")
    extracting.option(
        LENGTH, "--collect", type=int, least=1, default=10, about="episodes of states; a fifth are for the check"
    )
    extracting.option(PLACE, "--output", **path, about="the file (named by the task, in the run)")
    extracting.option(EVALUATION, "--episodes", type=int, least=0, default=0, about="episodes to evaluate both in")

    for name, about, output, more in (
        (
            "analyze",
            "write data and figures of runs: curves, success, routes",
            "a directory for all files (analysis/ in the run, or here)",
            "Writes curves, success, modules used, routes, their similarity and t-SNE as CSV, npz and\n"
            "figures. Runs that differ only in their seeds are grouped, with intervals.",
        ),
        (
            "report",
            "write a page about runs, with curves and a route explorer",
            "the file (report.html in the run, or here)",
            "Writes one HTML file that opens offline: success, curves, routes beside the scene, provenance.",
        ),
    ):
        viewing = command(name, about, "metaworld", "report", description=more)
        viewing.option(WHAT, "runs", nargs="+", **path, metavar="RUN", about="directories of runs")
        viewing.option(
            LENGTH, "--episodes", type=int, least=1, default=2, about="episodes of each task to take routes from"
        )
        viewing.option(PLACE, "--output", **path, about=output)
        if name == "report":
            viewing.option(PLACE, "--no-frames", action="store_true", about="leave out pictures of the scene")
        viewing.option(MACHINE, "--device", default="auto", about=NETWORKS)

    rendering = command(
        "render",
        "film the policy of a run with its live route graph",
        *("metaworld", "report"),
        description="Films the policy of a run's last checkpoint in a task. Without a display, MUJOCO_GL=egl or\n"
        "osmesa chooses the library that draws; by default both are tried.",
    )
    rendering.option(WHAT, "run", **path, about="the directory of a run")
    rendering.option(WHAT, "--task", required=True, about="one of its tasks, for instance door-open")
    rendering.option(WHAT, "--seed", type=int, about="seed of the goals (as in an evaluation)")
    rendering.option(LENGTH, "--episodes", type=int, least=1, default=1, about="how many")
    rendering.option(PLACE, "--output", **path, about="a file .gif or .mp4 (TASK.gif in the run)")
    rendering.option(PLACE, "--size", type=int, default=320, about="pixels of the scene")
    rendering.option(MACHINE, "--device", default="auto", about=NETWORKS)

    benching = command("bench", "measure this machine: how long would a run take?", "metaworld")
    benching.option(WHAT, "--benchmark", default="MT10", about="the tasks")
    benching.option(WHAT, "--methods", nargs="+", choices=METHODS, default=["mt-sac", "sm", "d2r"], about="networks")
    benching.option(LENGTH, "--seconds", type=float, default=10, about="how long each is measured")
    benching.option(PLACE, "--output", **path, about="a file for all figures, as JSON; its folder is made")
    benching.option(MACHINE, "--workers", type=int, default=2, about="processes for the environments")
    benching.option(MACHINE, "--device", default="auto", about=NETWORKS)

    command("version", "print the versions of all packages that results depend on", "metaworld")
    completing = command(
        "completion",
        "print the script with which a shell completes this command",
        description="bash: dynroute completion bash > ~/.local/share/bash-completion/completions/dynroute\n"
        "zsh:  dynroute completion zsh > _dynroute, in a directory of $fpath\n"
        "fish: dynroute completion fish > ~/.config/fish/completions/dynroute.fish",
    )
    completing.option(WHAT, "shell", choices=SHELLS, about="the shell")
    return parser
