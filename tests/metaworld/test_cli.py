"""The dynroute command: what it tells, what it refuses, and the flags of a configuration."""

import argparse
import dataclasses
import errno
import functools
import inspect
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from metaworld import env_dict
from processes import PATIENCE, wait_until
from rich.console import Console
from safetensors.torch import save_file

import dynroute
import dynroute_command
from benchmarks import outputs
from dynroute.levels.graph import PROTECT_MODES
from dynroute.networks import available
from dynroute_command import choices
from dynroute_command.options import GROUPS, IMITATION_ALONE, Options, kinds_of
from dynroute_command.parser import EXAMPLES, METAVARS, _commands, _parser, completion, given_options, read_variants
from dynroute_command.parser import parse as read
from dynroute_metaworld import PRESETS, Configuration, EvaluationResult, Run, read_metrics
from dynroute_metaworld import cli as commands
from dynroute_metaworld.cli import main
from dynroute_metaworld.report.curves import draw_curves
from dynroute_metaworld.report.data import read_run
from dynroute_metaworld.runs.configuration import OPTIMIZERS
from dynroute_metaworld.runs.methods import PUBLISHED, count_parameters, methods_table
from dynroute_metaworld.runs.metrics import MetricsFile, forget_after
from dynroute_metaworld.runs.presets import RELEASED, preset
from dynroute_metaworld.runs.progress import Display
from dynroute_metaworld.runs.seeds import settings_key
from dynroute_sb3 import categorical, gaussian, losses
from dynroute_sb3 import options as learner

META_WORLD = {"MT10": env_dict.MT10_V3, "MT25": env_dict.MT25_V3, "MT50": env_dict.MT50_V3}
TINY = ["--benchmark", "reach", "--goals", "fixed", "--horizon", "5", "--device", "cpu", "--learning-starts", "4"]
TINY += ["--steps", "20", "--batch-size", "2", "--final-episodes", "1", "--method", "mt-sac"]
TINY += ["--network", "hidden_sizes=[8]", "--log-every", "10"]


def told(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 1) -> str:
    """The output of the command on standard error."""
    assert main(arguments) == status
    return capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The output of the command's parser when it does not understand."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_run_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY]) == 0
    printed = capsys.readouterr().out
    assert "reach" in printed.split("success at any step")[1]
    folder = Path("runs/reach-fixed-mt-sac-seed1")
    assert (folder / "curves.png").exists()
    assert f"{folder} holds a run already; --resume goes on with it" in told(capsys, "train", *TINY)

    # It goes on, for longer, and with nothing else changed.
    assert main(["train", "--run", str(folder), "--resume", "--steps", "30"]) == 0
    assert read_metrics(folder / "metrics.jsonl")[-1]["step"] == 30
    error = told(capsys, "train", "--run", str(folder), "--resume", "--horizon", "6", "--steps", "40")
    assert "holds a run with horizon=5, got 6; leave it out to go on, or name another directory by --run" in error
    assert Run.open(folder).configuration.steps == 30
    # The same command with --resume goes on, and one with another preset does not.
    assert main(["train", *TINY, "--steps", "30", "--resume"]) == 0
    error = told(capsys, "train", "--run", str(folder), "--resume", "--preset", "quick")
    assert f"{folder} holds a run with horizon=5, got 150 from --preset quick; leave --preset out to go on" in error
    missing = told(capsys, "evaluate", str(folder), "--output", "nowhere/result.json")
    assert "`--output` must be in an existing directory, got nowhere" in missing
    assert "`--output` must be a file, got the directory .; name a file in it" in told(
        capsys, "evaluate", str(folder), "--output", "."
    )
    assert "`--device` is for networks, and scripts have none; got cpu" in (
        told(capsys, "evaluate", "scripted", "--device", "cpu")
    )

    assert "`episodes` must be at least 1, got 0" in told(capsys, "evaluate", str(folder), "--episodes", "0")
    assert main(["evaluate", str(folder), "--episodes", "2", "--device", "cpu", "--output", "result.json"]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith(f"evaluating {folder} ...\n")
    assert "so all episodes of a task are equal: one is run, not 2" in printed.err
    assert ", 1 episode a task, " in printed.out
    result = EvaluationResult.load("result.json")
    # The goal and the horizon are those of the run, and episodes with a fixed goal are all equal.
    assert (result.episodes, result.goals, result.horizon, result.seed) == (1, "fixed", 5, 1)
    assert main(["evaluate", str(folder), "--episodes", "1", "--goals", "random", "--horizon", "4"]) == 0
    printed = capsys.readouterr()
    assert "reach, random goals, horizon 4" in printed.out
    assert "one is run" not in printed.err


def test_scripted_policies_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "scripted", "--benchmark", "reach,drawer-close", "--episodes", "1"]) == 0
    printed = capsys.readouterr()
    assert "drawer-close" in printed.out
    assert printed.err == "evaluating scripted policies on reach,drawer-close ...\n"
    fixed = ["evaluate", "scripted", "--benchmark", "reach", "--goals", "fixed", "--episodes", "3"]
    assert main(fixed) == 0
    assert "so all episodes of a task are equal: one is run, not 3" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--final-episodes", "--evaluation-episodes"])
def test_episodes_that_would_be_equal_are_told(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "train", lambda run, **_: None)
    sentence = (
        "dynroute: goals are fixed and actions deterministic, so all episodes of a task are equal: one is run, not 5"
    )
    fixed, goals = ["train", *TINY, flag], ["--goals", "random"]
    assert told(capsys, *fixed, "5", "--run", str(tmp_path / "five"), status=130) == f"{sentence}\n"
    assert told(capsys, *fixed, "5", "--run", str(tmp_path / "random"), *goals, status=130) == ""
    assert told(capsys, *fixed, "1", "--run", str(tmp_path / "one"), status=130) == ""
    monkeypatch.setattr(commands, "sweep", lambda *_, **__: {})
    monkeypatch.setattr(commands, "summarize", lambda folder: {"rows": [], "runs": {}})
    assert told(capsys, "sweep", "--methods", "sm", "--goals", "fixed", flag, "5", status=0) == f"{sentence}\n"


def test_what_cannot_be_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{tmp_path} is not the directory of a run: it has no config.json" in told(capsys, "evaluate", str(tmp_path))
    (tmp_path / "file").touch()
    assert "file is not the directory of a run: it is a file" in told(capsys, "evaluate", str(tmp_path / "file"))
    error = told(capsys, "evaluate", str(tmp_path / "rum"), "--benchmark", "MT10")
    assert "rum is not the directory of a run: it does not exist" in error
    run = Run.create(tmp_path / "run", Configuration().resolve())
    assert "no config.json; the runs inside of it are run." in told(capsys, "evaluate", str(tmp_path))
    assert "has no checkpoint yet; training writes one every" in told(capsys, "evaluate", str(run.folder))
    cloned = {"demonstrations": 3, "cloning_steps": 10}
    for steps, command in ((0, "imitate"), (20, "train")):
        run = Run.create(tmp_path / "runs" / command, Configuration(steps=steps, **cloned).resolve())
        sentence = f"has no checkpoint yet: its cloning has not ended; `dynroute {command} --run {run.folder} --resume`"
        assert sentence in told(capsys, "evaluate", str(run.folder))
        assert sentence in told(capsys, "extract", str(run.folder), "--task", "reach")
    run = Run.open(tmp_path / "run")
    assert "a run is evaluated on its own tasks" in told(capsys, "evaluate", str(run.folder), "--benchmark", "MT50")
    (run.folder / "config.json").write_text("{")
    assert "config.json is not the configuration of a run" in told(capsys, "evaluate", str(run.folder))


def test_a_run_that_is_not_there_is_told_before_another_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "train", lambda run, rebuild: None)
    resume = ["train", "--run", str(tmp_path / "rum"), "--resume"]
    assert main(resume) == 1
    assert (
        f"there is no run in {tmp_path / 'rum'} to go on with; without --resume, `train` starts"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "rum").exists()
    assert main([*resume, "--benchmark", "MT10"]) == 130
    told = f"there is no run in {tmp_path / 'rum'}: a new one starts, MT10, 1,500,000 steps of each task"
    assert told in capsys.readouterr().err
    assert main(resume) == 130
    assert capsys.readouterr().err == ""


def test_a_batch_size_that_has_no_effect_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "--preset", "brc-small", "--run", str(tmp_path / "run")]
    error = told(capsys, *train, "--batch-size", "16")
    assert "`batch_size` must be left out beside `mixed_batch_size`, which is 512 by the preset and counts" in error


def test_a_reader_that_has_enough_sees_no_traceback() -> None:
    command = f"{sys.executable} -m dynroute_command completion bash | head -1"
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert process.stdout.count("\n") == 1
    assert process.stderr == ""


def test_a_network_that_cannot_be_built_leaves_no_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = told(capsys, "train", "--run", str(tmp_path / "run"), "--gate", "top-1")
    assert "`gate` must read at least 2 sources to learn from their weights, got 'top-1'; try \"hard\"" in error
    error = told(capsys, "train", "--run", str(tmp_path / "run"), "--gate", "top-17")
    assert error == "dynroute: `gate` must read at most the 16 sources of a node, got 'top-17'; soft reads all.\n"
    assert not (tmp_path / "run").exists()


def test_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--benchmark", "MT50"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(available())
    d2r = next(line for line in lines if line.startswith("d2r "))
    assert "1,401,177" in d2r
    assert "1.40 M" in d2r
    for count, number in enumerate((10, 50)):
        for method, published in PUBLISHED.items():
            assert round(count_parameters(method, number)[1] / 1e6, 2) == pytest.approx(published[count], abs=0.011)
    assert " M " not in methods_table(7).replace(" MT", "")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert {"dynroute", "torch", "metaworld", "mujoco", "device"} <= {
        line.split()[0] for line in capsys.readouterr().out.splitlines()
    }


def test_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "`seconds` must be above 0, got 0.0" in told(capsys, "bench", "--seconds", "0")
    assert "`seconds` must be finite, got inf" in told(capsys, "bench", "--seconds", "inf")
    assert "`output` must be a file, got the directory" in told(capsys, "bench", "--output", str(tmp_path))
    command = ["bench", "--benchmark", "reach", "--methods", "mt-sac", "--workers", "0", "--seconds", "0.1"]
    assert main([*command, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "steps/s of the environments" in printed
    assert "1,500,000" in printed


RUN = SimpleNamespace(folder="RUN")

CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    # What each command calls, and the arguments that its flags become.
    "evaluate scripted --benchmark reach,push --episodes 3 --goals benchmark --horizon 9 --seed 4 --success last "
    "--workers 1": (
        "evaluate",
        {"policy": "scripted", "benchmark": ["reach", "push"], "episodes": 3, "goals": "benchmark", "horizon": 9}
        | {"seed": 4, "success": "last", "workers": 1},
    ),
    "evaluate RUN --episodes 3 --seed 4 --success last --workers 1 --device cpu": (
        "evaluate_run",
        {"run": RUN, "model": "RUN on cpu", "episodes": 3} | {"options": {"seed": 4, "success": "last", "workers": 1}},
    ),
    "evaluate RUN": ("evaluate_run", {"run": RUN, "model": "RUN on auto", "episodes": 100}),
    "extract RUN --task reach --format onnx --output r.onnx --coverage 0.9 --states demonstrations --collect 5 "
    "--episodes 3": (
        "extract_task",
        {"run": RUN, "model": "RUN on cpu", "task": "reach", "form": "onnx", "output": Path("r.onnx")}
        | {"coverage": 0.9, "states": "demonstrations", "collected": 5, "episodes": 3},
    ),
    "analyze RUN other --output out --episodes 3 --device cpu": (
        "analyze",
        {"folders": [Path("RUN"), Path("other")], "output": Path("out"), "episodes": 3, "device": "cpu"},
    ),
    "report RUN --output page.html --episodes 3 --no-frames --device cpu": (
        "write_report",
        {"folders": [Path("RUN")], "output": Path("page.html"), "episodes": 3, "frames": False, "device": "cpu"},
    ),
    "render RUN --task reach --output r.gif --episodes 3 --seed 4 --size 64 --device cpu": (
        "render",
        {"folder": Path("RUN"), "task": "reach", "output": Path("r.gif"), "episodes": 3, "seed": 4, "size": 64}
        | {"device": "cpu"},
    ),
    "bench --benchmark reach,push --methods sm d2r --workers 1 --seconds 2.5 --device cpu --output b.json": (
        "bench",
        {"benchmark": "reach,push", "methods": ["sm", "d2r"], "workers": 1, "seconds": 2.5, "device": "cpu"}
        | {"output": Path("b.json")},
    ),
    "sweep --methods sm d2r --benchmarks reach MT10 --seeds 4 5 --folder s --preset quick --imitate --vary width=8,16 "
    "--cores-per-run 2 --gpus-per-run 0.5 --address head:1 --cloning-steps 9": (
        "sweep",
        {"folder": Path("s"), "methods": ["sm", "d2r"], "benchmarks": ["reach", "MT10"], "seeds": [4, 5]}
        | {"settings": "quick", "imitate": True, "vary": {"width": [8, 16]}, "cores_per_run": 2, "gpus_per_run": 0.5}
        | {"address": "head:1", "options": {"cloning_steps": 9}, "finish": draw_curves},
    ),
    "sweep --methods sm": (
        "sweep",
        {"folder": Path("sweeps/MT10"), "methods": ["sm"], "benchmarks": ["MT10"], "seeds": [1, 2, 3]}
        | {"settings": "paper", "imitate": False, "vary": {}, "cores_per_run": 1, "gpus_per_run": 0}
        | {"address": None, "options": {}, "finish": draw_curves},
    ),
    "sweep --methods sm --preset brc": (
        "sweep",
        {"folder": Path("sweeps/MT50"), "methods": ["sm"], "benchmarks": ["MT50"], "seeds": [1, 2, 3]}
        | {"settings": "brc", "imitate": False, "vary": {}, "cores_per_run": 1, "gpus_per_run": 0}
        | {"address": None, "options": {}, "finish": draw_curves},
    ),
}


@pytest.mark.parametrize("command", CALLS)
def test_flags_are_the_arguments_of_what_a_command_calls(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, expected = CALLS[command]
    signature, calls = inspect.signature(getattr(commands, name)), list[dict[str, Any]]()

    def call(*arguments: Any, **keywords: Any) -> Any:
        shown = {word: value for word, value in keywords.items() if word not in ("progress", "tell")}
        calls.append(signature.bind(*arguments, **shown).arguments)
        return {} if name == "sweep" else SimpleNamespace(episodes=3, goals="random")

    monkeypatch.setattr(Run, "open", lambda folder: SimpleNamespace(folder=str(folder)))
    monkeypatch.setattr(commands, "load_model", lambda run, device: f"{run.folder} on {device}")
    monkeypatch.setattr(commands, "summarize", lambda folder: {"rows": [], "runs": {}})
    monkeypatch.setattr(commands, name, call)
    assert main(command.split()) == 0
    assert calls == [expected]


def helped(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The help of a sub-command."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_tells_of_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    printed = helped(capsys, "train")
    words = " ".join(printed.split())
    for option in dataclasses.fields(Configuration):
        assert f"--{option.name.replace('_', '-')}" in printed
        assert option.metadata["about"][:20] in words
        assert " | ".join(option.metadata["choices"]) in words
    for name in (*PRESETS, "(MT10)", "(paper)", "(0.0003)"):
        assert name in words
    for line in (
        "of adamw; default: torch's, 0.01; none restores the default --joint",
        "after which to stop and evaluate; default: no limit; none restores the default --horizon",
        "a task with a larger loss is left out of an update; none turns it off (3000.0)",
    ):
        assert line in words
    titles = [f"\n{title}:\n" for title in GROUPS]
    assert sorted(titles, key=printed.index) == titles  # what one needs first comes first
    alone = helped(capsys, "imitate")
    assert "episodes of each task (20)" in alone
    assert "before SAC" not in alone
    assert "episodes of each task (0)" in printed


def commands_in(text: str, prompt: str = "") -> list[str]:
    """The commands of a text without their comments, but for those that an error follows."""
    whole = re.sub(r"\\\n\s*", "", text)
    pattern = rf"^ *{re.escape(prompt)}dynroute (.+?)(?:  .*| [#>].*)?\n(?! *dynroute.*(?:error|: `))"
    return re.findall(pattern, whole, re.MULTILINE)


def test_commands_of_the_help_and_the_pages_are_understood() -> None:
    assert commands_in("$ dynroute a \\\n  b  # c\n$ dynroute d\ndynroute: `d` must\n", "$ ") == ["a b"]
    root = Path(__file__).parents[2]
    found = {page.name: commands_in(page.read_text(), "$ ") for page in [root / "README.md", *root.glob("docs/*.rst")]}
    found["help"] = commands_in(EXAMPLES)
    assert min(len(found[name]) for name in ("help", "README.md", "runs.rst", "imitation.rst")) > 2
    for page, several in found.items():
        for command in several:
            try:
                read(shlex.split(command))
            except (ValueError, SystemExit) as error:
                pytest.fail(f"{page} shows dynroute {command}, which is not understood: {error}")


def test_lists_that_the_command_shows_without_importing_what_has_them() -> None:
    assert available() == choices.METHODS
    assert tuple(PRESETS) == choices.PRESETS
    named = {name: tuple(kind.removesuffix("-v3") for kind in kinds) for name, kinds in META_WORLD.items()}
    assert named == choices.BENCHMARKS
    assert {name.removesuffix("-v3") for name in env_dict.ALL_V3_ENVIRONMENTS} == {*named["MT50"]}
    of = {option.name: option for option in dataclasses.fields(Configuration)}
    for name, words in {
        "optimizer": tuple(OPTIMIZERS),
        "protect": PROTECT_MODES,
        "warmup_actions": learner.WARMUP_ACTIONS,
        "critic_loss": learner.CRITIC_LOSSES,
        "precision": learner.PRECISIONS,
        "actor_paths": learner.PATHS,
        "critic_paths": learner.PATHS,
        "q_target": losses.Q_TARGETS,
        "mask_rule": losses.MASK_RULES,
        "task_weights": losses.TASK_WEIGHTS,
        "log_std": gaussian.LOG_STD_LIMITS,
    }.items():
        assert of[name].metadata["choices"] == words, name
    assert of["route_temperature"].metadata["words"] == losses.TEMPERATURES
    assert of["bins"].default == learner.BINS
    assert (of["value_low"].default, of["value_high"].default) == categorical.VALUE_RANGE
    assert (of["log_std_low"].default, of["log_std_high"].default) == gaussian.LOG_STD_RANGE


def test_flags_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unrecognized arguments: --metod; did you mean --method?" in refused(capsys, "train", "--metod")
    assert "--method d2r; did you mean --methods?" in refused(capsys, "sweep", "--method", "d2r")
    error = refused(capsys, "evaluate", "runs/first", "--task", "reach")
    assert error.startswith("usage: dynroute evaluate")
    assert "arguments: --task reach; --task is only for dynroute extract and dynroute render\n" in error
    assert "'x' must be a whole number" in refused(capsys, "train", "--seed", "x")
    assert "'x' must be a number" in refused(capsys, "train", "--gamma", "x")
    assert "'none' must be a number" in refused(capsys, "train", "--gamma", "none")
    assert "'width' must be name=value, for instance num_modules=8" in refused(capsys, "train", "--network", "width")
    for flags in (
        ("render", "run", "--task", "reach", "--seed"),
        ("report", "run", "--episodes"),
        ("train", "--steps"),
    ):
        for number in ("1.5", "1e-3", "1e999"):
            assert f"argument {flags[-1]}: '{number}' must be a whole number" in refused(capsys, *flags, number)
    assert "unrecognized arguments: --verson; did you mean --version?" in refused(capsys, "--verson")
    required = "arguments are required: --methods, or --summary for the results so far, with --folder PATH"
    assert required in refused(capsys, "sweep")
    error = refused(capsys, "sweep", "--summary", "sweeps/first")
    assert "unrecognized arguments: sweeps/first; the folder of a sweep is --folder sweeps/first\n" in error
    error = refused(capsys)
    assert "    train     train a method on a benchmark\n" in error
    assert error.endswith("\ndynroute: error: a command is required, one of those above\n")
    assert "there is no command 'tran'; did you mean 'train'?" in refused(capsys, "tran")


def test_the_names_of_values_in_the_help_are_of_one_list() -> None:
    written = {"FLAG=VALUE,...", "NAME=VALUE", "HOST:PORT"}
    for command in _commands(_parser()).values():
        for action in command._actions:
            if action.option_strings and action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction):
                assert action.metavar in {*METAVARS.values(), *written}, action.option_strings


def test_flags_of_sac_are_refused_where_nothing_learns_by_it(capsys: pytest.CaptureFixture[str]) -> None:
    flags = {name: set(command._option_string_actions) for name, command in _commands(_parser()).items()}
    sac = flags["train"] - flags["imitate"]
    assert {"--ent-coef", "--steps", "--batch-size", "--critic-network", "--no-bootstrap-timeouts"} <= sac
    assert "--restart" in flags["imitate"]  # a round of DAgger starts again
    assert not flags["imitate"] - flags["train"]
    for name in sorted(sac):
        told = f"unrecognized arguments: {name}; {name} is only for dynroute train and dynroute sweep"
        assert told in refused(capsys, "imitate", name)
    varied = refused(capsys, "sweep", "--imitate", "--methods", "sm", "--vary", "ent-coef=0.1,0.2")
    assert "--vary ent-coef is for runs of SAC only, not with --imitate" in varied
    error = refused(capsys, "sweep", "--imitate", "--ent-coef", "0.1")
    assert "--ent-coef is for runs of SAC only, not with --imitate" in error


def test_a_flag_of_sac_names_that_of_cloning(capsys: pytest.CaptureFixture[str]) -> None:
    told = "--steps is only for dynroute train and dynroute sweep; for cloning it is --cloning-steps"
    assert told in refused(capsys, "imitate", "--steps", "30")
    told = "not with --imitate; for cloning it is --cloning-steps"
    assert told in refused(capsys, "sweep", "--imitate", "--methods", "sm", "--steps", "30")


def test_each_option_of_imitation_alone_reaches_a_part_of_it(tmp_path: Path) -> None:
    parts = (
        *("benchmark", "method", "seed", "device", "threads", "problem", "noise_levels", "demonstrations", "restart"),
        *("cloning_steps", "dagger_rounds", "cloning", "warm_start", "policy_kwargs", "final_episodes"),
    )
    words: dict[str, Any] = {"benchmark": "MT50", "device": "cpu", "noise": "0.5", "warm_start": "runs/other"}
    words |= {"gate": "hard", "network": {"width": 8}, "metadata": str(tmp_path / "vectors")}
    save_file({task: torch.zeros(2) for task in choices.BENCHMARKS["MT10"]}, tmp_path / "vectors")
    plain = Configuration(**{**IMITATION_ALONE, "dagger_rounds": 1})
    for option in dataclasses.fields(Options):
        if not option.metadata["sac"]:
            value = getattr(plain, option.name)
            flags = (False, True) if bool in kinds_of(option.type) else ()
            others = (words.get(option.name), *option.metadata["choices"], *flags)
            changed = next((one for one in others if one not in (None, value)), None)
            base = dataclasses.replace(plain, method="care") if option.name == "metadata" else plain
            other = dataclasses.replace(base, **{option.name: (value or 0) + 1 if changed is None else changed})
            assert any(getattr(base, part) != getattr(other, part) for part in parts), option.name


MISTYPED = {
    "train --method d2x": "`method` must be one of 'mt-sac', {}, got 'd2x'; did you mean 'd2r'?",
    "bench --methods sm d2": "`method` must be one of 'mt-sac', {}, got 'd2'; did you mean 'd2r'?",
    "train --preset quik": "`preset` must be one of 'paper', {}, got 'quik'; did you mean 'quick'?",
    "train --goals rand": "`goals` must be one of 'fixed', 'random', 'benchmark', got 'rand'; did you mean 'random'?",
    "train --gate tpo-2": "`gate` must be one of 'soft', {}, got 'tpo-2'; did you mean 'top-2'?",
    "train --gate top-K": "`gate` {}, 'balanced-K' with a number for K, got 'top-K'; did you mean 'top-2'?",
    "imitate --gate topk": "`gate` must be one of 'soft', {}, got 'topk'; did you mean 'top-2'?",
    "sweep --methods d2r --vary gate=top-2,samplek-3": "`gate` {}, got 'samplek-3'; did you mean 'sample-3'?",
    "train --protect rgs": "`protect` must be one of 'rsg', {}, got 'rgs'; did you mean 'rsg'?",
    "train --precision bfloat16": "`precision` must be one of {}, got 'bfloat16'; did you mean 'bf16'?",
    "train --steps=-1": "`steps` must be at least 0, got -1.",
    "sweep --benchmarks MT10 reahc": "`benchmark` must be MT10, {}, got 'reahc'; did you mean 'reach'?",
    "extract runs/first --task reahc": "`task` must be a task of Meta-World, got 'reahc'; did you mean 'reach'?",
    "evaluate runs/first --success first": "`success` must be one of 'any', 'last', got 'first'.",
    "extract runs/first --task reach --format onx": "`format` must be one of 'torch', {}; did you mean 'onnx'?",
    "evaluate scripted --episodes 0": "`episodes` must be at least 1, got 0.",
    "evaluate scripted --device cuda": "`--device` is for networks, and scripts have none; got cuda.",
    "report runs/first --episodes 0": "`episodes` must be at least 1, got 0.",
    "sweep --methods sm --vary protect=foo": "`protect` must be one of 'rsg', 'input', 'sg', 'none', got 'foo'.",
    "sweep --methods sm --vary prtect=rsg": "`vary` must be an option {}, got 'prtect=rsg'; did you mean 'protect'?",
    "sweep --methods sm --seeds 1 -1": "`seed` must be at least 0, got -1.",
    "sweep --methods sm --cores-per-run 0": "`cores_per_run` must be at least 1, got 0.",
    "sweep --methods sm --gpus-per-run -1": "`gpus_per_run` must be at least 0 and finite, got -1.0.",
    "sweep --methods sm --vary seeds=1,2": "`vary` {}; methods, benchmarks and seeds have flags of their own.",
    "sweep --methods sm --vary critic_network=x": "`vary` {}; --critic-network is the same for all runs.",
    "completion bsh": "`shell` must be one of 'bash', 'zsh', 'fish', got 'bsh'; did you mean 'bash'?",
}

IMPORTS = """
import atexit, sys
names = ("torch", "numpy", "stable_baselines3", "gymnasium", "metaworld", "mujoco", "ray", "matplotlib", "rich")
atexit.register(lambda: print(*["imported", *(name for name in names if name in sys.modules)], file=sys.stderr))
from dynroute.command import main
sys.argv = ["dynroute", *sys.argv[1:]]
sys.exit(main())
"""


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        *(f"{name} --help" for name in _commands(_parser())),
        *(f"completion {shell}" for shell in ("bash", "zsh", "fish")),
        "train --metod",
        "imitate --ent-coef 0.1",
        "sweep --benchmarks reach",
        *MISTYPED,
    ],
)
def test_nothing_heavy_is_imported_by_help_completion_and_refusals(command: str) -> None:
    ended = subprocess.run([sys.executable, "-c", IMPORTS, *command.split()], capture_output=True, text=True)
    *printed, imported = ended.stderr.splitlines()
    assert imported == "imported"
    if command in MISTYPED:
        assert ended.returncode == 1
        start, _, end = MISTYPED[command].partition("{}")
        assert printed[0].startswith(f"dynroute: {start}")
        assert printed[0].endswith(end)
    else:
        assert ended.returncode == (2 if printed else 0)


@pytest.mark.parametrize("module", ["dynroute", "dynroute.command", "dynroute_command"])
def test_the_command_is_a_module_too(module: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", module, "--version"], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, f"dynroute {dynroute.__version__}\n")
    assert not re.search(r"\| +(torch|stable_baselines3|metaworld)$", ended.stderr, re.MULTILINE)


def test_completion_for_bash(tmp_path: Path) -> None:
    program = tmp_path / "dynroute.bash"
    program.write_text(completion("bash"))
    for words, expected in {
        ("imi",): ["imitate"],
        ("train", "--meth"): ["--method"],
        ("train", "--method", "d2r-l"): ["d2r-layer"],
        ("train", "--benchmark", "window"): ["window-open", "window-close"],
        ("train", "--gate", "top"): ["top-2"],
        ("imitate", "--preset", "q"): ["quick"],
        ("evaluate", "run", "--device", "cu"): ["cuda"],
        ("imitate", "--ent"): [],
        ("extract", "run", "--task", "drawer-c"): ["drawer-close"],
        ("train", "--run", f"{tmp_path}/d"): [str(program)],
        ("imitate", "--metadata", f"{tmp_path}/d"): [str(program)],
    }.items():
        line = " ".join(f"'{word}'" for word in ("dynroute", *words))
        script = f"source {program}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_dynroute"
        script += '; printf "%s\\n" "${COMPREPLY[@]}"'
        ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
        assert ended.stdout.split() == expected, words


def test_a_place_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    error = told(capsys, "train", "--benchmark", "drawer-close", "--run", f"{tmp_path}/file/run")
    assert error.startswith(f"dynroute: {tmp_path}/file/run cannot be made: not a directory; name another")
    error = told(capsys, "bench", "--output", f"{tmp_path}/file/table.json")
    assert error == f"dynroute: {tmp_path}/file: file exists.\n"


PATHS = {
    "train": ("--run", "--warm-start", "--memory-map", "--metadata"),
    "sweep --methods d2r": ("--folder", "--warm-start"),
    "bench": ("--output",),
    "evaluate runs/a": ("--output",),
    **dict.fromkeys(("evaluate", "extract --task reach", "render --task reach", "report", "analyze"), ("",)),
}


@pytest.mark.parametrize("words", PATHS)
def test_paths_of_the_command(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for flag in PATHS[words]:
        argument = f"{flag}=" if flag else ""
        options = vars(read([*words.split(), f"{argument}~/a"]))
        value = options[flag[2:].replace("-", "_") or ("runs" if "runs" in options else "run")]
        assert str(value[0] if isinstance(value, list) else value) == "/home/me/a"
        assert "'' must be a path" in refused(capsys, *words.split(), argument)


def test_paths_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert read_variants(["metadata=~/a,none"]) == {"metadata": ["/home/me/a", None]}
    with pytest.raises(ValueError, match="`warm_start` must be a path, got ''"):
        read_variants(["warm-start="])


def test_a_limit_of_time_is_taken_off(tmp_path: Path) -> None:
    given = ["train", "--run", str(tmp_path), "--resume", "--hours"]
    assert given_options(read([*given, "none"])) == {"hours": None}
    assert given_options(read([*given, "2"])) == {"hours": 2.0}


def test_values_of_a_preset_are_taken_off() -> None:
    resolved = {"steps", "threads"}  # without a value, they are chosen by the machine and the tasks
    plain = Configuration()
    for options in (*PRESETS.values(), *RELEASED.values()):
        for name in (name for name in options if getattr(plain, name) is None and name not in resolved):
            flag = f"--{name.replace('_', '-')}"
            taken_off = "none" if name == "task_weights" else None  # of which "none" is one
            assert given_options(read(["train", flag, "none"])) == {name: taken_off}
    none = {"method": "brc", "optimizer": "adam", "weight_decay": None}
    assert preset("brc-small", none).policy_kwargs["optimizer_class"] is torch.optim.Adam
    with pytest.raises(ValueError, match=r"got 0\.0001 with adam; --weight-decay none leaves out that of a preset"):
        preset("brc-small", {"optimizer": "adam"})


def test_the_ways_to_write_a_benchmark() -> None:
    assert given_options(read(["train", "--benchmark", "mt10"]))["benchmark"] == "MT10"
    assert given_options(read(["train", "--benchmark", "reach-v3, push"]))["benchmark"] == "reach,push"
    assert read(["sweep", "--methods", "d2r", "--benchmarks", "mt10", "push-v3"]).benchmarks == ["MT10", "push"]


def test_values_of_a_flag_that_is_given_twice_are_all_taken() -> None:
    words = "--methods d2r --methods sm --seeds 4 --seeds 5 6 --benchmarks reach --benchmarks push"
    options = read(["sweep", *words.split(), "--network", "width=8", "--network", "num_modules=4"])
    assert (options.methods, options.seeds, options.benchmarks) == (["d2r", "sm"], [4, 5, 6], ["reach", "push"])
    assert given_options(options)["network"] == {"width": 8, "num_modules": 4}
    critics = read(["train", "--critic-network", "width=8", "--critic-network", "blocks=2"])
    assert given_options(critics)["critic_network"] == {"width": 8, "blocks": 2}
    assert Configuration(benchmark="mt50").resolve().benchmark == "MT50"
    keys = {settings_key(Configuration(benchmark=name)) for name in ("mt10", "MT10", " MT10")}
    assert len(keys) == 1


def test_completion_needs_shtab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    error = told(capsys, "completion", "zsh")
    assert error == "dynroute: completion needs shtab; type: pip install 'dynroute[metaworld]'\n"


def test_help_tells_what_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not installed" not in helped(capsys)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    printed = helped(capsys)
    assert "not installed here (this help, --version and the library work without):" in printed
    for extra, names in {
        "metaworld": "methods, train, imitate, sweep, evaluate, extract, analyze, report, render, bench, version",
        "sweep": "sweep",
        "report": "analyze, report, render",
    }.items():
        assert re.search(rf"pip install 'dynroute\[{extra}\]' +for {names}\n", printed)
    assert re.search(r"pip install 'dynroute\[metaworld\]' +for train\n", helped(capsys, "train"))


def parse(*arguments: str) -> dict[str, Any]:
    return given_options(read(["train", *arguments]))


def test_options_that_are_given() -> None:
    assert parse() == {}
    given = parse("--max-grad-norm", "none", "--no-bootstrap-timeouts", "--steps", "10_000", "--ent-coef", "0.1")
    assert given == {"max_grad_norm": None, "bootstrap_timeouts": False, "steps": 10_000, "ent_coef": "0.1"}
    assert parse("--steps", "1e5", "--buffer-size", "2.5E4") == {"steps": 100_000, "buffer_size": 25_000}
    assert parse("--network", "a=[1, 2]", "b=dot", "c=0.5") == {"network": {"a": [1, 2], "b": "dot", "c": 0.5}}
    words = ["d=true", "e=True", "f=[False, None]", "g=null", "h=top-2"]
    assert parse("--network", *words)["network"] == {"d": True, "e": True, "f": [False, None], "g": None, "h": "top-2"}
    # A run that goes on compares with config.json, which has lists and no tuples, sets or bytes.
    words = ["a=(64, 32)", "b={1}", "c=b'x'", "d={[]: 1}"]
    assert parse("--network", *words)["network"] == {"a": [64, 32], "b": "{1}", "c": "b'x'", "d": "{[]: 1}"}
    assert parse("--critic-network", "width=64", "blocks=2") == {"critic_network": {"width": 64, "blocks": 2}}


def test_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for step in (10, 20, 30):
        file.write({"a": step / 2, "b": float("nan"), "c": "text"}, {}, step)
    file.close()
    assert read_metrics(path) == [{"step": step, "a": step / 2, "b": None} for step in (10, 20, 30)]
    with path.open("a") as broken:
        broken.write('{"step": 40, "a"')  # cut short
    assert [line["step"] for line in read_metrics(path)] == [10, 20, 30]
    forget_after(path, 20)
    assert [line["step"] for line in read_metrics(path)] == [10, 20]
    file = MetricsFile(path)
    file.write({"a": 1.0}, {}, 25)
    file.close()
    assert [line["step"] for line in read_metrics(path)] == [10, 20, 25]
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-3], lines[2]]) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged in line 2: b'"):
        read_metrics(path)


def test_nothing_to_draw(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Configuration(benchmark="reach"))
    assert draw_curves(run) is None
    run.metrics.write_text(json.dumps({"step": 1, "train/n_updates": 0}) + "\n")
    assert draw_curves(run) is None


def test_the_display(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(100, ["reach", "push"]) as display:  # no terminal
        display.advance(50)
        display.show(50, {"reach": 0.5, "push": None})
    assert "50 of 100 steps of all tasks, success 50% (reach 50%)" in capsys.readouterr().out
    console = Console(force_terminal=True, width=100)
    with Display(100, ["reach", "push"], console) as display:
        display.advance(50, "evaluating")
        display.show(50, {"reach": 0.5, "push": None})
        display.tell("[done]")
    shown = capsys.readouterr().out
    for part in ("evaluating", "50 of 100 steps", "reach", "50%", "[done]"):
        assert part in shown
    with Display(1, (), console) as display:  # an evaluation has a bar alone
        display.advance(3, "evaluating scripted policies", 7)
    assert "evaluating scripted policies" in (shown := capsys.readouterr().out)
    assert "3 of 7 steps" in shown


def test_a_display_after_days_is_one_line() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    display = Display(15_000_000, ["reach"], console)
    (task,) = display.bar.tasks
    for hours in (20, 25, 2400):
        task.start_time, task.stop_time = 0.0, 3600.0 * hours
        assert isinstance(console.file, io.StringIO)
        console.file.truncate(0)
        console.print(display._picture())
        lines = console.file.getvalue().strip("\0").splitlines()
        assert len(lines) == 2
        assert "…" not in lines[1]
        assert "0 of 15,000,000 steps" in lines[1]


@pytest.mark.parametrize("width", [30, 41, 60, 80, 120])
def test_a_narrow_display_cuts_neither_names_nor_numbers(width: int) -> None:
    names = ["button-press-topdown", "button-press-topdown-wall", "reach"]
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    display = Display(15_000_000, names, console)
    display.advance(1_234_567)
    display.show(1_234_567, dict(zip(names, (0.25, None, 1.0), strict=True)))
    console.print(display._picture())
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    shown = " ".join(lines)
    for part in ("button-press-topdown ", "button-press-topdown-wall ", "25%", "100%", "1,234,567 of 15,000,000 steps"):
        assert part in shown
    assert "…" not in shown
    assert max(map(len, lines)) <= width
    assert ("━" in lines[0], "━" in lines[-1]) == (width > 40, width > 60)
    assert ("training" in shown, "left" in shown) == (width > 40, width > 41)


def test_drawing_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "metaworld.py").write_text("raise AttributeError('glGetError')")
    command = [sys.executable, "-c", "import dynroute_metaworld"]
    environment = {"PYTHONPATH": str(tmp_path), "MUJOCO_GL": "osmesa"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "cannot draw with MUJOCO_GL=osmesa; install the library (libosmesa6" in ended.stderr
    del environment["MUJOCO_GL"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.stderr.endswith("AttributeError: glGetError\n")  # an error of another kind stays what it is


def test_reports_are_imported_when_they_are_asked_for() -> None:
    program = """if True:
        import sys
        import dynroute_metaworld as package
        print("write_report" in dir(package), "dynroute_metaworld.report" in sys.modules)
        print(package.write_report is package.report.write_report, hasattr(package, "write_reports"))
    """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "True False\nTrue False\n"


def test_without_the_extra(tmp_path: Path) -> None:
    (tmp_path / "metaworld.py").write_text("raise ImportError('not there')")
    command = [sys.executable, "-c", "import sys; from dynroute.command import main; sys.exit(main())", "methods"]
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == "dynroute: dynroute_metaworld needs Meta-World; type: pip install 'dynroute[metaworld]'\n"


def start(*arguments: str, first: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """Starts the command, which imports from a folder first, in a group of processes of its own."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_"))}
    if first is not None:
        variables["PYTHONPATH"] = os.pathsep.join([str(first), variables.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "dynroute_command", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**variables, **environment},
        start_new_session=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def test_a_process_that_is_waited_for_may_print_more_than_a_pipe_holds(tmp_path: Path) -> None:
    code = "import sys, time; print('x' * 10**6, flush=True); open(sys.argv[1], 'w').close(); time.sleep(900)"
    command = [sys.executable, "-c", code, str(tmp_path / "there")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        wait_until(process, (tmp_path / "there").exists)
        process.kill()
        printed, _ = process.communicate(timeout=300)
    assert printed == "x" * 10**6 + "\n"


@pytest.mark.parametrize("module", ["torch", "gymnasium", "metaworld"])
def test_ctrl_c_while_modules_are_imported(module: str, tmp_path: Path) -> None:
    # Who presses Ctrl-C then is the module itself, so that the moment is always the same.
    (tmp_path / f"{module}.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\nraise SystemExit(9)\n")
    process = start("methods", first=tmp_path)
    printed, _ = process.communicate(timeout=300)
    assert (process.returncode, printed) == (130, "\ndynroute: stopped at once\n")


def test_ctrl_c_is_an_exception_again_once_modules_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: list[Any] = []
    monkeypatch.setattr(commands, "run", lambda options: handlers.append(signal.getsignal(signal.SIGINT)) or 0)
    monkeypatch.setattr(sys, "argv", ["dynroute", "methods"])
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # nothing is left of it behind this test
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert dynroute_command.main() == 0
        own = functools.partial(print, "an own handler")
        signal.signal(signal.SIGINT, own)
        assert dynroute_command.main() == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert handlers == [signal.default_int_handler, own]


def test_a_run_goes_on_with_its_own_options_where_none_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    Run.create(folder, Configuration(benchmark="MT25", method="sm", optimizer="adamw").resolve())
    went_on: list[Configuration] = []
    monkeypatch.setattr(commands, "train", lambda run, **_: went_on.append(run.configuration))
    assert main(["train", "--run", str(folder), "--resume", "--workers", "20"]) == 130
    assert main(["train", "--run", f"{folder}/", "--resume", "--weight-decay", "0.01"]) == 1  # asks for another decay
    assert "holds a run with weight_decay=None, got 0.01" in capsys.readouterr().err
    assert [one.workers for one in went_on] == [20]
    assert "holds a run with method='sm', got 'paco'" in (
        told(capsys, "train", "--run", str(folder), "--resume", "--method", "paco")
    )


def test_the_run_to_start_from_is_noted_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Run.create(tmp_path / "first", Configuration(benchmark="reach").resolve())
    started: list[Configuration] = []
    monkeypatch.setattr(commands, "train", lambda run, **_: started.append(run.configuration))
    monkeypatch.chdir(tmp_path)
    main(["train", "--benchmark", "reach", "--run", "second", "--warm-start", "first/"])
    assert [one.warm_start for one in started] == [str(tmp_path / "first")]
    main(["train", "--run", "second", "--warm-start", "first", "--resume"])
    third = Run.create("third", Configuration(benchmark="reach", warm_start="first"))
    assert [one.warm_start for one in (*started, third.configuration)] == [str(tmp_path / "first")] * 3
    assert "holds a run with warm_start=" in told(
        capsys, "train", "--run", "second", "--warm-start", "third", "--resume"
    )
    assert "`episodes` must be at least 1, got 0" in (
        told(capsys, "evaluate", "scripted", "--benchmark", "reach", "--goals", "fixed", "--episodes", "0")
    )


def test_ctrl_c_while_workers_start(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start("train", "--benchmark", "reach,push", "--workers", "2", "--run", str(folder))
    wait_until(process, (folder / "config.json").exists)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    assert "stopped" in printed


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "PASSIVE 0 None"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None None"),
        ({"GOMP_SPINCOUNT": "9"}, "None None 9"),
    ],
)
def test_how_threads_wait_is_set_before_torch_is_imported(given: dict[str, str], expected: str, tmp_path: Path) -> None:
    names = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT")
    (tmp_path / "torch.py").write_text(f"import os\nprint(*[os.environ.get(n) for n in {names}])\nos._exit(0)\n")
    printed, _ = start("methods", first=tmp_path, **given).communicate(timeout=300)
    assert printed == f"{expected}\n"


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for name, told in (
        ("nope", "`device` must be cpu, cuda or auto, got 'nope'"),
        ("cuda:99", "`device` must be"),
    ):
        assert main(["bench", "--device", name, "--seconds", "0.1"]) == 1
        assert capsys.readouterr().err.startswith(f"dynroute: {told}")


def test_a_disk_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "evaluate", "scripted", "--benchmark", "reach", "--goals", "fixed", "--horizon", "1", "--output"

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    error = told(capsys, *words, f"{tmp_path}/a.json")
    assert error.endswith(f"dynroute: there is no space left for {tmp_path}/a.json; free some, and start again.\n")
    monkeypatch.setattr(EvaluationResult, "save", fail)
    error = told(capsys, *words, f"{tmp_path}/a.json")
    assert error.endswith("dynroute: there is no space left for a file; free some, and start again.\n")


def test_paths_that_are_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "n" * 300
    for command in (
        ["train", "--run"],
        ["train", "--resume", "--run"],
        ["evaluate"],
        ["sweep", "--summary", "--folder"],
    ):
        assert main([*command, name]) == 1
        assert "a path must have at most 4095 bytes, and each name in it 255, got nnnnn" in capsys.readouterr().err
    deep = tmp_path / Path(*["n" * 99] * ((4000 - len(str(tmp_path))) // 100))
    assert main(["train", "--benchmark", "reach", "--run", str(deep)]) == 1
    assert "`folder` must be a path of at most 3900 bytes" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_hours_that_bench_foretells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "not" / "there" / "bench.json"

    def measure(*_: Any) -> float:
        assert target.parent.is_dir(), "the folder is made before anything is measured"
        return 0.01

    monkeypatch.setattr("dynroute_metaworld.bench._step_seconds", measure)
    monkeypatch.setattr("dynroute_metaworld.bench._update_seconds", measure)
    command = ["bench", "--benchmark", "reach,push", "--methods", "mt-sac", "--workers", "0", "--output", str(target)]
    assert main(command) == 0
    stored = json.loads(target.read_text())
    assert (stored["benchmark"], stored["workers"], stored["step"]) == ("reach,push", 0, 0.01)
    (row,) = stored["rows"]
    assert (row["method"], row["update"]) == ("mt-sac", 0.01)
    evaluated = 32 * 200 / 10_000  # steps, for each one of learning
    assert row["hours"] == pytest.approx(1_500_000 * (0.01 * (1 + evaluated) + 0.01) / 3600)
    first, _, last = capsys.readouterr().out.splitlines()
    assert first.strip() == "200 steps/s of the environments, 2 tasks, 0 workers"
    assert last.split() == ["mt-sac", str(row["threads"]), "10.0", "ms", "3,000,000", "11"]


def test_where_benchmarks_write(tmp_path: Path) -> None:
    target = tmp_path / "taken"
    target.write_text("")
    assert outputs.folder(str(tmp_path / "a" / "b")).is_dir()
    assert outputs.file(str(tmp_path / "c" / "d.json")).parent.is_dir()
    for make, path, told in (
        (outputs.folder, target, "must be a folder, or one that can be made"),
        (outputs.file, target / "e.json", "must be a folder, or one that can be made"),
        (outputs.file, tmp_path, "must be a file, and is a folder"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=told):
            make(str(path))
    for program in Path(outputs.__file__).parent.glob("*.py"):  # each asks for what is made
        for flag, kind in re.findall(r'"(?:--)?(folder|output)",\s*type=(\w+)', program.read_text()):
            assert kind in ("folder", "file"), f"{program} takes --{flag} as it is"


def test_a_run_of_the_learner_of_brc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # It goes on from a checkpoint with all that it has learned of returns, and no optimizer need be handed in.
    tiny = [part for i, part in enumerate(TINY) if "--batch-size" not in TINY[max(i - 1, 0) : i + 1]]
    command = ["train", *tiny, "--preset", "brc-small", "--mixed-batch-size", "3", "--bins", "11", "--value-low", "-5"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*command, "--steps", "30", "--run", str(whole)]) == 0
    assert main([*command, "--run", str(parts)]) == 0
    assert main(["train", "--run", str(parts), "--resume", "--steps", "30"]) == 0
    lines = [read_metrics(folder / "metrics.jsonl")[-1] for folder in (whole, parts)]
    assert lines[0]["step"] == lines[1]["step"] == 30
    for name in ("critic_loss/reach", "outside_range/reach", "ent_coef/reach"):
        assert lines[0][name] == lines[1][name]
    assert read_run(parts).curves("outside_range")["reach"].values[-1] == lines[1]["outside_range/reach"]
    error = told(capsys, "train", "--run", str(parts), "--resume", "--critic-loss", "mse")
    assert "holds a run with critic_loss='categorical', got 'mse'; leave it out to go on" in error
    error = told(capsys, "train", "--run", str(parts), "--resume", "--bins", "21")
    assert "holds a run with bins=11, got 21" in error


def test_wrong_options_end_with_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = told(capsys, "train", "--benchmark", "MT11", "--run", str(tmp_path / "run"))
    assert error.startswith("dynroute: `benchmark` must be")
    assert not (tmp_path / "run").exists()
