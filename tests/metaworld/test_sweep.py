"""Sweeps: what is planned, what a cluster does when nodes and processes die, and what comes of it."""

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from processes import PATIENCE, fork_command, wait_until
from ray.cluster_utils import Cluster
from results import result_of

from benchmarks.join import join
from dynroute_command.parser import read_variants
from dynroute_metaworld import Configuration, Run, RunError, load_model, train
from dynroute_metaworld.cli import main
from dynroute_metaworld.runs import cluster as module
from dynroute_metaworld.runs import sweeps
from dynroute_metaworld.runs.cluster import _attempt, _wait_for_release, check_nodes, check_room, joined, run_all
from dynroute_metaworld.runs.presets import IMITATION_ALONE, preset
from dynroute_metaworld.runs.provenance import versions
from dynroute_metaworld.runs.summary import SUMMARY, read_sweep, summarize, summary_rows, summary_table
from dynroute_metaworld.runs.sweeps import _check_rows, _combine, _locked, _note, _open, sweep
from dynroute_sb3 import DamagedError

PROBLEM = ["--benchmarks", "reach", "--horizon", "20", "--final-episodes", "2"]
SMALL = ["--methods", "mt-sac", "--network", "hidden_sizes=[8]", *PROBLEM]
CLONING = ["--imitate", *SMALL, "--demonstrations", "3", "--held-out", "1", "--cloning-batch-size", "4"]
CLONING += ["--cloning-steps", "1500", "--patience", "100"]
NODE = {"num_cpus": 1, "object_store_memory": 10**8}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Demonstrations are not kept where those of a user are, and Ray tells nobody that it is used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(scope="module")
def cluster(cache: None) -> Iterator[Cluster]:
    """Two nodes of one core each, on this machine; its tests are in one group, so that one process starts it."""
    two = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    two.add_node(**NODE)
    yield two
    two.shutdown()


def ended(process: BaseProcess) -> int | None:
    """The exit status of a process, once it has ended; None if that takes minutes."""
    process.join(600)
    return process.exitcode


def attempts(folder: Path) -> list[str]:
    """The output of a run, for each time it was tried."""
    path = folder.with_name(f"{folder.name}.txt")
    return path.read_text().split("--- on ")[1:] if path.exists() else []


def in_the_middle(folder: Path) -> bool:
    return any((folder / "cloning").rglob("update_*/manifest.json"))


def assert_undisturbed(folder: Path, tmp_path: Path) -> None:
    """A run came to what it comes to by itself."""
    run, other = Run.open(folder), Run.create(tmp_path / "undisturbed" / folder.name, Run.open(folder).configuration)
    train(other)
    one, two = (load_model(each, "cpu").actor.state_dict() for each in (run, other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (run.evaluations / "final.json").read_text() == (other.evaluations / "final.json").read_text()


@pytest.mark.slow
@pytest.mark.xdist_group("cluster")
def test_a_node_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    (head, victim) = cluster.list_all_nodes()
    command = ["sweep", *CLONING, "--folder", str(folder), "--seeds", "1", "2", "--address", cluster.address]
    process = fork_command(command, output := tmp_path / "printed")

    def on_victim() -> str | None:
        for seed in "12":
            tried = attempts(folder / f"reach-mt-sac-seed{seed}")
            if tried and victim.node_id in tried[-1] and in_the_middle(folder / f"reach-mt-sac-seed{seed}"):
                return f"reach-mt-sac-seed{seed}"
        return None

    name = wait_until(process, on_victim, every=0.1)  # it reads many files
    cluster.remove_node(victim, allow_graceful=False)
    assert ended(process) == 0, output.read_text()
    printed = output.read_text()
    assert f"retried {name}: its process or node died" in printed
    assert printed.count("finished reach") == 2
    assert "2 of 2" in printed
    assert "raylet" not in printed
    first, last = attempts(folder / name)
    assert head.node_id in last
    assert "100 of 1,500 updates" in first
    assert "   100 of 1,500 updates" not in last  # it went on, and did not start again
    assert "1,500 of 1,500 updates" in last
    for seed in "12":
        assert_undisturbed(folder / f"reach-mt-sac-seed{seed}", tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    sessions = summary["runs"][name]["sessions"]
    assert len(sessions) == 2
    assert "dynroute sweep --imitate" in sessions[0]["command"]
    assert summary["runs"][name]["minutes"] is None
    assert summary["rows"][0]["minutes"] > 0  # of the others
    cluster.add_node(**NODE)


@pytest.mark.slow
def test_a_sweep_is_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweep"
    command = ["sweep", *CLONING, "--folder", str(folder), "--vary", "cloning_std=0.1", "--seeds", "1"]
    run, output = folder / "reach-mt-sac-cloning_std=0.1-seed1", tmp_path / "printed"
    process = fork_command(command, output)
    wait_until(process, lambda: in_the_middle(run), every=0.05)
    process.kill()
    with suppress(ProcessLookupError):  # its worker too, which a fast machine would let finish before it is told
        os.kill(int(re.findall(r", process (\d+)", attempts(run)[0])[0]), signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    assert not (run / "evaluations" / "final.json").exists()
    process = fork_command(command, output)  # while what it started may not have ended yet
    assert ended(process) == 0, output.read_text()
    assert len(attempts(run)) == 2
    assert "   100 of 1,500 updates" not in attempts(run)[1]
    assert_undisturbed(run, tmp_path)
    # What is finished is left alone; what differs is refused, and what may change is done.
    assert main([*command]) == 0
    printed = capsys.readouterr().out
    assert "1 of 1 runs are finished already" in printed
    assert "cloning_std=0.1  1 of 1" in printed
    assert "One seed does not show how much seeds differ: it has no interval." in printed
    assert main([*command, "--cloning-steps", "200"]) == 1
    told = capsys.readouterr().err
    assert "holds a run with cloning_steps=1500, got 200" in told
    assert "For a sweep, --folder names another directory." in told
    assert main(["sweep", "--folder", str(folder), "--summary"]) == 0
    assert "reach 0." in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.xdist_group("cluster")
def test_stopped_twice_and_a_run_that_fails(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    learning = ["--learning-starts", "20", "--batch-size", "4", "--log-every", "20", "--buffer-size", "1000"]
    command = ["sweep", *PROBLEM, "--methods", "d2r", "--network", "num_modules=3", "width=8"]
    command += ["trunk_sizes=[8]", "router_sizes=[8]"]
    command += ["--critic-network", "num_modules=2", *learning]  # critics with another graph cannot replay paths
    command += ["--seeds", "1", "--folder", str(folder), "--address", cluster.address]
    run, output = folder / "reach-d2r-critic_paths=sampled-seed1", tmp_path / "printed"

    def size() -> int:
        return (run / "metrics.jsonl").stat().st_size if (run / "metrics.jsonl").exists() else 0

    def grown(before: int) -> bool:
        return size() > before

    # The other variant, which fails, comes afterwards: it might or might not have failed before the interruption.
    for number in (signal.SIGINT, signal.SIGTERM):
        before = size()
        process = fork_command([*command, "--vary", "critic-paths=sampled", "--steps", "1000000"], output)
        wait_until(process, functools.partial(grown, before), every=0.05)
        assert process.pid is not None
        os.kill(process.pid, number)
        assert ended(process) == 130, output.read_text()
        printed = output.read_text()
        assert "stopping 1 runs with checkpoints; Ctrl-C again stops at once" in printed
        assert "dynroute: stopped; the same command goes on" in printed
    first, steps = sorted(int(each.name.removeprefix("step_")) for each in (run / "checkpoints").glob("step_*"))
    assert 0 < first < steps  # the second attempt went on
    process = fork_command([*command, "--vary", "critic-paths=sampled,replayed", "--steps", str(steps + 10)], output)
    assert ended(process) == 1
    printed = output.read_text()
    assert f"[1/2] failed {run.name.replace('sampled', 'replayed')}: `critic_paths` can be 'replayed' where" in printed
    assert f"finished {run.name} with" in printed
    assert "0 of 1" in printed
    assert (run / "checkpoints" / f"step_{steps + 10}").exists()
    assert not (folder / run.name.replace("sampled", "replayed") / "config.json").exists()


@pytest.fixture
def member(cluster: Cluster) -> Iterator[Cluster]:
    """This process joins the cluster."""
    with joined(cluster.address):
        yield cluster


@pytest.mark.slow
@pytest.mark.xdist_group("cluster")
def test_clusters_that_have_no_room(member: Cluster, tmp_path: Path) -> None:
    lines: list[str] = []
    check_room(1, 0, lines.append)
    assert not lines
    with pytest.raises(ValueError, match="`cores_per_run` must be at most 1, the cores of the largest of 2 n"):
        sweep(tmp_path / "wide", ["mt-sac"], ["reach"], cores_per_run=2)
    with pytest.raises(ValueError, match="`gpus_per_run` must be at most 0, the GPUs of the largest of 2 n"):
        sweep(tmp_path / "fast", ["mt-sac"], ["reach"], gpus_per_run=0.5)
    assert not list(tmp_path.glob("*/*/config.json"))

    @ray.remote(num_cpus=1)
    def hold() -> None:
        time.sleep(600)

    held = [hold.remote() for _ in range(2)]
    try:
        end = time.monotonic() + PATIENCE
        while ray.available_resources().get("CPU", 0):
            assert time.monotonic() < end, "the tasks do not start"
            time.sleep(0.05)
        with pytest.raises(RunError, match="busy: of 2 cores 0 are free, and a run needs 1; wait for other jobs"):
            check_room(1, 0, lines.append, patience=0)
        check = "the cluster is busy: of 2 cores 0 are free, and a run needs 1; waiting 0.1 seconds"
        with pytest.raises(RunError):
            check_room(1, 0, lines.append, patience=0.1)
        assert check in lines
    finally:
        for one in held:
            ray.cancel(one, force=True)


@pytest.mark.slow
@pytest.mark.xdist_group("cluster")
def test_nodes_that_do_not_see_the_folder(member: Cluster, tmp_path: Path) -> None:
    token = _note(tmp_path, {})
    check_nodes(tmp_path, token)
    with pytest.raises(RunError, match=r"the node .* does not see .*; the nodes of a sweep must share its file system"):
        check_nodes(tmp_path, "another")
    run = Run.create(tmp_path / "run", Configuration(benchmark="reach"))
    assert "nodes must share its file system" in _attempt(run, "another")[1]
    with pytest.raises(ValueError, match=r"`address` must be None where ray.init was called before, got '127"):
        sweep(tmp_path / "sweep", ["mt-sac"], ["reach"], address="127.0.0.1:1")


@pytest.mark.slow
@pytest.mark.xdist_group("cluster")
def test_nodes_that_cannot_run_what_runs_here(member: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = _note(tmp_path, {})
    with monkeypatch.context() as patch:
        patch.setattr(module, "versions", lambda: {**versions(), "torch": "0"})
        told = rf"the node \S+ \([\d.]+\) has torch {re.escape(torch.__version__)}, not 0; install there what is inst"
        with pytest.raises(RunError, match=told):
            check_nodes(tmp_path, token)

    def fail(*_: object) -> None:
        raise ImportError("no metaworld")

    monkeypatch.setattr(module, "_check_node", fail)
    told = r"the node \S+ \([\d.]+\) cannot run dynroute: ImportError: no metaworld; install it as it is installed here"
    with pytest.raises(RunError, match=told):
        check_nodes(tmp_path, token)


def test_clusters_in_which_room_never_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = SimpleNamespace(remote=lambda *_: object())
    full = SimpleNamespace(remote=lambda **_: lambda work: task, wait=lambda *_, **__: ([], []))
    monkeypatch.setattr(module, "_ray", lambda: full)
    run, lines = Run(tmp_path / "run", Configuration(benchmark="reach")), list[str]()
    with pytest.raises(RunError, match=r"^no node had room for a run for minutes; is the cluster busy, or gone"):
        run_all({"run": run}, "token", {"num_cpus": 1}, lines.append)
    assert lines == ["[0/1] no node has room for a run, though none is running; 0 running, 1 waiting"] * 10


@pytest.mark.slow
@pytest.mark.xdist_group("cluster")
def test_a_run_that_always_dies(member: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> Iterator[tuple[str, Any]]:
        yield "started", "there"
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("dynroute_metaworld.runs.cluster._work", die)
    assert module.RETRIES == 3
    monkeypatch.setattr(module, "RETRIES", 1)  # each starts a process
    run, lines = Run(tmp_path / "run", Configuration(benchmark="reach")), list[str]()
    failures = run_all({"run": run}, "token", {"num_cpus": 1}, lines.append)
    assert "its process died 2 times without a new checkpoint" in failures["run"]
    assert [line.split()[1] for line in lines if " retried " in line] == ["retried"]
    assert lines[-1].startswith("[1/1] failed run: its process died 2 times")
    assert lines[-1].endswith("0 running, 0 waiting")


def test_a_folder_that_another_sweep_holds(tmp_path: Path) -> None:
    _note(tmp_path, {})
    refused = pytest.raises(RunError, match="is in use by another sweep, which must end first")
    with _locked(tmp_path), refused, _locked(tmp_path):
        pass


def test_runs_that_others_hold(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Configuration(benchmark="reach"))
    _wait_for_release([run], 0)
    with run.locked(), pytest.raises(RunError, match="in use by another process"):
        _wait_for_release([run], 0.1)


def test_addresses_where_no_cluster_is() -> None:
    with socket.socket() as gone:
        gone.bind(("", 0))  # and nobody listens
        port = gone.getsockname()[1]
        refused = pytest.raises(ConnectionError, match=rf"no cluster can be reached at [\d.]+:{port} ")
        with refused, joined(f"127.0.0.1:{port}"):
            pass
    for wrong in ("head", "head:", ":6379", "ray://head:10001", "head:port"):
        refused = pytest.raises(ValueError, match=r"`address` must be HOST:PORT, as `ray start --head` prints it, got")
        with refused, joined(wrong):
            pass


def test_something_else_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER", 2.0)
    command = [sys.executable, "-m", "http.server", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        port = server.stdout.readline().split("port ")[1].split()[0]
        with (
            pytest.raises(ConnectionError, match="the program there is not Ray"),
            joined(f"127.0.0.1:{port}"),
        ):
            pass
        server.kill()


WRONG: dict[str, tuple[list[str], str]] = {
    "seeds": (["--methods", "sm", "--seeds", "1", "1"], "`seeds` must be a list of values, at least one and each once"),
    "method": (["--methods", "sm", "d2"], "`method` must be one of 'mt-sac', "),
    "benchmark": (["--methods", "sm", "--benchmarks", "MT11"], "`benchmark` must be MT10, MT25, MT50 or tasks of Meta"),
    "preset": (["--methods", "sm", "--preset", "fast"], "`preset` must be one of"),
    "vary": (["--methods", "sm", "--vary", "protct=rsg"], "`vary` must be an option of a run and its values, for inst"),
    "vary a method": (["--methods", "sm", "--vary", "method=d2r"], "methods, benchmarks and seeds have flags of their"),
    "twice": (["--methods", "sm", "--vary", "gamma=1,1"], "`vary` of `gamma` must be a list of values, at least one"),
    "both": (["--methods", "sm", "--vary", "gamma=0.9", "--gamma", "1"], "`options` must not set `gamma`, which the s"),
    "value": (["--methods", "sm", "--vary", "gamma=0.9,1.5"], "`gamma` must be in 0..1, got 1.5"),
    "type": (["--methods", "sm", "--vary", "width=wide"], "`width` must be of type int or none, got 'wide'"),
    "gate": (["--methods", "d2r", "--gate", "top-x"], "`gate` must be one of 'soft', 'hard', 'top-K', 'sample-K', "),
    "address": (["--methods", "sm", "--address", "127.0.0.1:1"], "no cluster can be reached at "),
}


def test_a_sweep_that_has_begun_keeps_flags_that_a_new_one_may_not_have(tmp_path: Path) -> None:
    options = {"actor_paths": "sampled", "steps": 40, "device": "cpu"}
    again = functools.partial(sweep, methods=["mt-sac"], benchmarks=["reach"], options=options, settings="quick")
    with pytest.raises(ValueError, match="`actor_paths` must be left out"):
        again(tmp_path / "new", seeds=[1, 2])
    run = {"method": "mt-sac", "benchmark": "reach", "seed": 1, "threads": 1, **options}
    Run.create(tmp_path / "begun" / "reach-mt-sac-seed1", preset("quick", run).resolve())
    _note(tmp_path / "begun", {})
    with pytest.raises(ConnectionError, match="no cluster can be reached"):
        again(tmp_path / "begun", seeds=[1, 2], address="127.0.0.1:1")


def test_shares_of_the_machine_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`cores_per_run` must be at least 1, got 0"):
        sweep(tmp_path / "sweep", ["sm"], cores_per_run=0)
    with pytest.raises(ValueError, match="`gpus_per_run` must be at least 0"):
        sweep(tmp_path / "sweep", ["sm"], gpus_per_run=-1)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", WRONG)
def test_wrong_sweeps(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = WRONG[name]
    assert main(["sweep", *arguments, "--folder", str(tmp_path / "sweep")]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("config.json"))


def test_flags_of_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", "--methods", "sm", "--seed", "1"])
    assert "unrecognized arguments: --seed 1; did you mean --seeds?" in capsys.readouterr().err


def test_a_sweep_without_methods(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`methods` must be a list of values, at least one and each once, got \[\]"):
        sweep(tmp_path / "sweep", [])


def test_runs_with_other_keywords_of_networks_are_others(tmp_path: Path) -> None:
    base = {"benchmark": "reach", "method": "sm"}
    Run.create(tmp_path / "run", preset("quick", {**base, "network": {"router_sizes": [16]}}).resolve())
    with pytest.raises(RunError, match=r"holds a run with network=.*\[16\].*, got .*\[64\]"):
        _open(tmp_path / "run", preset("quick", base).resolve(), [])


def test_a_run_whose_time_was_up_goes_on_with_more(tmp_path: Path) -> None:
    options = {"benchmark": "reach", "method": "mt-sac", "steps": 5000, "hours": 1e-6, "log_every": 20, "horizon": 20}
    run = Run.create(tmp_path / "run", preset("quick", {**options, "learning_starts": 10**4, "final_episodes": 1}))
    assert train(run) is not None
    assert run.done() is not None
    run.agree({"hours": 5.0})
    assert run.done() is None


def test_a_cluster_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_worker_niceness")
    monkeypatch.setattr(ray, "init", lambda *_, **__: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with joined(None):
        assert os.environ.get("RAY_worker_niceness") == "0"  # noqa: SIM112
    assert "RAY_worker_niceness" not in os.environ
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"  # it was set before


def test_a_cluster_that_cannot_be_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("versions differ")

    monkeypatch.setattr(module, "_check_address", lambda address: None)
    monkeypatch.setattr(ray, "init", refuse)
    message = r"the cluster at head:6379 cannot be joined: versions differ; this machine must be one of its nodes"
    with pytest.raises(ConnectionError, match=message), joined("head:6379"):
        pass


def test_a_benchmark_is_noted_by_its_name() -> None:
    for written in ("mt10", "MT10"):
        configurations, noted = _combine("paper", {}, {"benchmark": [written], "method": ["sm"], "seed": [1]})
        assert list(configurations) == ["MT10-sm-seed1"]
        assert noted["MT10-sm-seed1"]["benchmark"] == "MT10"


def test_the_minutes_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [30.0]

    def learn(run: Run) -> SimpleNamespace:
        clock[0] += 90.0
        return SimpleNamespace(mean_success=0.5)

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(module, "train", learn)
    token = _note(tmp_path, {})
    assert _attempt(Run(tmp_path / "run", Configuration(benchmark="reach")), token) == ("finished", (0.5, 1.5))


def test_a_run_that_is_asked_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "train", lambda run: None)
    monkeypatch.setattr(module, "_sees", lambda folder, token: True)
    run = Run.create(tmp_path / "run", preset("quick", {"benchmark": "reach"}).resolve())
    assert _attempt(run, "") == ("failed", "it was stopped; the same command goes on")


def test_folders_that_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(FileExistsError, match="holds other files, and no sweep; --folder names another place"):
        sweep(tmp_path, ["mt-sac"], ["reach"])
    with pytest.raises(FileExistsError, match=r"photo.jpg is a file; --folder names another place"):
        sweep(tmp_path / "photo.jpg", ["mt-sac"], ["reach"])
    with pytest.raises(FileNotFoundError, match=r"is not the folder of a sweep: it has no sweep\.json"):
        summarize(tmp_path)
    for text in ("{", "[]", '{"format": "another"}'):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(DamagedError, match=r"sweep.json is not the file of a sweep, or is damaged"):
            read_sweep(tmp_path)


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["sweep", "--methods", "sm", "--folder", str(tmp_path / "sweep")]) == 1
    assert capsys.readouterr().err == "dynroute: a sweep needs Ray; type: pip install 'dynroute[sweep]'\n"


def test_what_is_planned() -> None:
    values = {"benchmark": ["MT10", "reach,push"], "method": ["d2r"], "protect": ["rsg", "none"], "seed": [1, 2]}
    configurations, noted = _combine("quick", {"threads": 1}, values)
    assert list(configurations)[:2] == ["MT10-d2r-protect=rsg-seed1", "MT10-d2r-protect=rsg-seed2"]
    assert list(configurations)[-1] == "reach,push-d2r-protect=none-seed2"
    assert len(configurations) == len(noted) == 8
    last = configurations["reach,push-d2r-protect=none-seed2"]
    assert (last.tasks, last.protect, last.seed, last.steps) == (("reach", "push"), "none", 2, 12_000)
    told = {"benchmark": "reach,push", "method": "d2r", "variant": "protect=none", "seed": 2}
    assert noted["reach,push-d2r-protect=none-seed2"] == told
    assert read_variants(["ent-coef=auto,0.1", "gamma=0.9", "ent_coef=0.2"]) == {
        "ent_coef": ["auto", "0.1", "0.2"],
        "gamma": [0.9],
    }
    assert read_variants(["metadata=a/b.safetensors,none"]) == {"metadata": ["a/b.safetensors", None]}
    with pytest.raises(ValueError, match="`vary` must give runs of different names, got two of reach-"):
        _combine("paper", {}, {"benchmark": ["reach"], "method": ["sm"], "memory_map": ["a/b", "a b"], "seed": [1]})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Records the requests of a sweep to a cluster that is not there."""
    found: list[Any] = []

    def run_all(runs: dict[str, Run], token: str, resources: Any, tell: object, finish: object) -> dict[str, str]:
        (run,) = runs.values()
        found.append((run.configuration, token, resources, finish))
        return {}

    monkeypatch.setattr(sweeps, "joined", lambda address: found.append(address) or nullcontext())
    monkeypatch.setattr(sweeps, "check_room", lambda cores, gpus, tell: found.append((cores, gpus)))
    monkeypatch.setattr(sweeps, "check_nodes", lambda folder, token: found.append((folder, token)))
    monkeypatch.setattr(sweeps, "run_all", run_all)
    return found


@pytest.mark.parametrize(
    ("options", "expected", "resources"),
    [
        ({}, {"threads": 1, "device": "cpu", "steps": 1_500_000}, (1, 0)),
        ({"cores_per_run": 3}, {"threads": 3, "device": "cpu"}, (3, 0)),
        ({"gpus_per_run": 0.5}, {"threads": 1, "device": "auto"}, (1, 0.5)),
        ({"options": {"threads": 2, "device": "cuda"}}, {"threads": 2, "device": "cuda"}, (1, 0)),
        ({"vary": {"threads": [4]}}, {"threads": 4, "device": "cpu"}, (1, 0)),
        ({"settings": "quick"}, {"steps": 12_000, "batch_size": 32}, (1, 0)),
        ({"imitate": True, "settings": "quick"}, dict(IMITATION_ALONE), (1, 0)),
        ({"imitate": True, "options": {"demonstrations": 7}}, {**IMITATION_ALONE, "demonstrations": 7}, (1, 0)),
    ],
)
def test_what_a_run_takes(
    options: dict[str, Any],
    expected: dict[str, Any],
    resources: tuple[float, float],
    asked: list[Any],
    tmp_path: Path,
) -> None:
    assert sweep(tmp_path, ["mt-sac"], ["reach"], [1], address="head:1", finish=repr, **options) == {}
    token, (cores, gpus) = read_sweep(tmp_path)["token"], resources
    configuration = asked[-1][0]
    assert asked == [
        "head:1",
        resources,
        (tmp_path, token),
        (configuration, token, {"num_cpus": cores, "num_gpus": gpus}, repr),
    ]
    assert {name: getattr(configuration, name) for name in expected} == expected


def test_a_run_goes_on_with_its_own_threads(asked: list[Any], tmp_path: Path) -> None:
    sweep(tmp_path, ["mt-sac"], ["reach"], [1])
    Run.create(tmp_path / "reach-mt-sac-seed1", asked[-1][0])
    sweep(tmp_path, ["mt-sac"], ["reach"], [1], cores_per_run=2)
    configuration, _, resources, _ = asked[-1]
    assert (configuration.threads, resources["num_cpus"]) == (1, 2)
    with pytest.raises(RunError, match="holds a run with threads=1, got 2"):
        sweep(tmp_path, ["mt-sac"], ["reach"], [1], options={"threads": 2})


def test_every_run_starts_from_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (1, 2):
        Run.create(tmp_path / f"reach-mt-sac-seed{seed}", preset("quick", {"benchmark": "reach", "method": "mt-sac"}))
    monkeypatch.chdir(tmp_path)
    values = {"benchmark": ["reach"], "method": ["mt-sac"], "seed": [1, 2]}
    pattern = "{benchmark}-{method}-seed{seed}"
    configurations, _ = _combine("quick", {"warm_start": pattern}, values)
    starts = [configuration.warm_start for configuration in configurations.values()]
    assert starts == [str(tmp_path / f"reach-mt-sac-seed{seed}") for seed in (1, 2)]
    of_sm: dict[str, Any] = {"folder": "new", "methods": ["sm"], "benchmarks": ["reach"], "settings": "quick"}
    with pytest.raises(FileNotFoundError, match="reach-sm-seed1 is not the directory of a run"):
        sweep(**of_sm, options={"warm_start": pattern})
    with pytest.raises(RunError, match="`warm_start` must be a run with the same tasks, method and sizes, sm on reach"):
        sweep(**of_sm, options={"warm_start": "reach-mt-sac-seed1"})
    assert not Path("new").exists()
    for wrong in ("{network}", "{", "{0}"):
        with pytest.raises(ValueError, match=re.escape(f"the values of the new run, got {wrong!r}")):
            _combine("quick", {"warm_start": wrong}, values)


def test_a_sweep_goes_on_when_the_runs_it_started_from_are_gone(tmp_path: Path) -> None:
    options = {"warm_start": str(tmp_path / "gone-seed{seed}"), "threads": 1, "device": "cpu", "final_episodes": 1}
    first, noted = _combine("quick", options, {"benchmark": ["reach,push"], "method": ["mt-sac"], "seed": [1]})
    folder = tmp_path / "sweep"
    run = Run.create(folder / "reach,push-mt-sac-seed1", first["reach,push-mt-sac-seed1"])
    _note(folder, noted)
    run.start_session(None, None, ())
    result_of([[True], [True]]).save(run.evaluations / "final.json")
    assert sweep(folder, ["mt-sac"], ["reach,push"], [1], options=options, settings="quick") == {}
    with pytest.raises(FileNotFoundError, match="gone-seed2 is not the directory of a run"):
        sweep(folder, ["mt-sac"], ["reach,push"], [1, 2], options=options, settings="quick")


def test_rows_hold_runs_of_the_same_settings(tmp_path: Path) -> None:
    first, noted = _combine("quick", {}, {"benchmark": ["reach"], "method": ["sm"], "seed": [1]})
    Run.create(tmp_path / "reach-sm-seed1", first["reach-sm-seed1"])
    _note(tmp_path, noted)
    for settings, options, message in (
        ("paper", {}, "batch_size=32, got 128"),
        ("quick", {"steps": 2000}, "steps=12000, got 2000"),
        ("quick", {"final_episodes": 1}, "final_episodes=.*, got 1"),
        ("quick", IMITATION_ALONE, "steps=12000, got 0"),
    ):
        with pytest.raises(RunError, match=f"holds reach-sm-seed1 with .*{message}.*: runs of other settings do not"):
            sweep(tmp_path, ["sm"], ["reach"], [2], settings=settings, options=options)
        with pytest.raises(RunError, match="holds a run with "):  # but for what may change when a run goes on
            sweep(tmp_path, ["sm"], ["reach"], [1], settings=settings, options={**options, "gamma": 0.5})
    changed, told = _combine("quick", {"log_every": 7}, {"benchmark": ["reach"], "method": ["sm"], "seed": [2]})
    _check_rows(tmp_path, changed, told)  # in these options runs of a row may differ
    with pytest.raises(ValueError, match=r"`vary` must name other options, got \['method', 'seed'\], which have"):
        sweep(tmp_path, ["sm"], ["reach"], [2], vary={"seed": [1], "method": ["sm"]})


def test_sizes_may_be_tuples(tmp_path: Path) -> None:
    sizes = {"network": {"hidden_sizes": (16, 16)}, "critic_network": {"hidden_sizes": (8,)}}
    combined = [
        _combine("quick", sizes, {"benchmark": ["reach"], "method": ["mt-sac"], "seed": [seed]}) for seed in (1, 2)
    ]
    (first, noted), (second, new) = combined
    run = Run.create(tmp_path / "reach-mt-sac-seed1", first["reach-mt-sac-seed1"])
    _note(tmp_path, noted)
    _open(run.folder, first["reach-mt-sac-seed1"], ())
    _check_rows(tmp_path, second, new)
    Run.open(run.folder).agree(sizes)
    with pytest.raises(RunError, match=r"'hidden_sizes': \[16, 16\]}, got {'hidden_sizes': \[16\]}"):
        Run.open(run.folder).agree({"network": {"hidden_sizes": (16,)}})


def test_rows_start_from_runs_of_the_same_settings(tmp_path: Path) -> None:
    base = {"benchmark": "reach", "method": "sm"}
    for name, seed, demonstrations in (("few-1", 1, 5), ("few-2", 2, 5), ("many-2", 2, 20)):
        Run.create(tmp_path / name, preset("quick", {**base, "seed": seed, "demonstrations": demonstrations}))
    values = {"benchmark": ["reach"], "method": ["sm"], "seed": [1]}
    first, noted = _combine("quick", {"warm_start": str(tmp_path / "few-1")}, values)
    folder = tmp_path / "sweep"
    Run.create(folder / "reach-sm-seed1", first["reach-sm-seed1"])
    _note(folder, noted)
    told = {"reach-sm-seed2": {**noted["reach-sm-seed1"], "seed": 2}}
    second, wrong = (
        preset("quick", {**base, "seed": 2, "warm_start": str(tmp_path / name)}).resolve()
        for name in ("few-2", "many-2")
    )
    _check_rows(folder, {"reach-sm-seed2": second}, told)
    with pytest.raises(RunError, match=r"with warm_start='.*few-1', got '.*many-2': runs of other settings do not"):
        _check_rows(folder, {"reach-sm-seed2": wrong}, told)


def write_result(
    folder: Path, rates: list[list[bool]], modules: float | None, minutes: float = 2.0, **options: Any
) -> None:
    """A run that is finished, with the success of each episode of the tasks reach and push."""
    run = Run.create(folder, Configuration(benchmark="reach,push", **options))
    run.start_session(None, None, ())
    (session,) = run.sessions
    (folder / "sessions.jsonl").write_text(json.dumps({**session, "minutes": minutes}) + "\n")
    used = None if modules is None else np.full(np.shape(rates), modules)
    result_of(rates, modules_used=used).save(run.evaluations / "final.json")


def test_the_summary(tmp_path: Path) -> None:
    noted = {
        f"{method}-{seed}": {"benchmark": "reach,push", "method": method, "variant": "", "seed": seed}
        for method, count in (("d2r", 3), ("sm", 2), ("care", 1))
        for seed in range(1, count + 1)
    }
    _note(tmp_path, noted)
    write_result(tmp_path / "d2r-1", [[True, True], [False, False]], 3.0)
    write_result(tmp_path / "d2r-2", [[True, False], [False, True]], 5.0, minutes=4.0)
    write_result(tmp_path / "sm-1", [[True, True], [True, False]], None)
    summary = summarize(tmp_path)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["rows"] == summary_rows(summary["runs"].values())
    d2r, sm, care = summary["rows"]
    # reach 1 and 1/2, push 0 and 1/2: sorted 0 1/2 1/2 1, of which the middle half is 1/2 and 1/2.
    assert (d2r["seeds"], d2r["missing"]) == ([1, 2], [3])
    assert d2r["success"] == {"reach": 0.75, "push": 0.25}
    assert (d2r["mean"], d2r["iqm"], d2r["worst_task"]) == (0.5, 0.5, "push")
    low, high = d2r["iqm_interval"]
    assert 0.25 <= low < 0.5 < high <= 0.75
    low, high = d2r["mean_interval"]
    assert 0.25 <= low < 0.5 < high <= 0.75
    assert d2r["modules_used"] == {"reach": 4.0, "push": 4.0}
    assert d2r["minutes"] == 3.0
    assert (sm["seeds"], sm["missing"], sm["mean"], sm["iqm_interval"]) == ([1], [2], 0.75, None)
    assert (sm["modules_used"], sm["minutes"]) == (None, 2.0)
    assert (care["seeds"], care["missing"]) == ([], [1])
    assert summary["runs"]["sm-1"]["success"] == {"reach": 1.0, "push": 0.5}
    (session,) = summary["runs"]["sm-1"]["sessions"]
    assert {"command", "commit", "versions", "machine"} <= set(session)
    table = summary_table(summary)
    lines = table.splitlines()
    assert lines[1].split()[:6] == ["reach,push", "d2r", "-", "2", "of", "3"]
    assert "0.500" in lines[1]
    assert "push 0.25" in lines[1]
    assert "push and 1 more 0.25" in summary_table({"rows": [{**d2r, "success": {"reach": 0.25, "push": 0.25}}]})
    assert "one seed" in lines[2]
    assert lines[3].split()[-6:] == ["-"] * 6
    assert "One seed does not show how much seeds differ" in table

    # Of a run that was killed it is not known how long it took.
    path = tmp_path / "sm-1" / "sessions.jsonl"
    path.write_text(path.read_text() + json.dumps({"command": "dynroute sweep"}) + "\n" + '{"command": "dyn')
    again = summarize(tmp_path)
    assert again["rows"][1]["minutes"] is None
    assert len(again["runs"]["sm-1"]["sessions"]) == 2


def _noted(*seeds: int) -> dict[str, dict[str, Any]]:
    return {f"d2r-{seed}": {"benchmark": "reach,push", "method": "d2r", "variant": "", "seed": seed} for seed in seeds}


def test_runs_that_went_on_are_apart_in_the_summary(tmp_path: Path) -> None:
    _note(tmp_path, _noted(1, 2, 3, 4))
    for seed, solved in ((1, False), (2, False), (3, True)):
        longer = {"steps": 60, "final_episodes": 9} if seed == 3 else {"steps": 20}
        write_result(tmp_path / f"d2r-{seed}", [[solved], [solved]], None, seed=seed, **longer)
    few, many, open_ones = summarize(tmp_path)["rows"]
    assert (few["variant"], few["seeds"], few["mean"]) == ("steps=20,final_episodes=100", [1, 2], 0.0)
    assert (many["variant"], many["seeds"], many["mean"]) == ("steps=60,final_episodes=9", [3], 1.0)
    assert (open_ones["variant"], open_ones["missing"]) == ("", [4])
    run = Run.open(tmp_path / "d2r-3")
    run.agree({"steps": 20, "final_episodes": 100})
    run.configuration.write(run.folder / "config.json")
    (row,) = summarize(tmp_path)["rows"]
    assert (row["variant"], row["seeds"], row["missing"]) == ("", [1, 2, 3], [4])


def test_a_damaged_run_leaves_the_summary_of_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _note(tmp_path, _noted(1, 2, 3))
    for seed in (1, 2, 3):
        write_result(tmp_path / f"d2r-{seed}", [[True], [False]], None, seed=seed)
    command = ["sweep", "--summary", "--folder", str(tmp_path)]
    assert main(command) == 0
    for seed, name in ((2, "evaluations/final.json"), (3, "config.json")):
        path = tmp_path / f"d2r-{seed}" / name
        path.write_text(path.read_text()[:50])
    capsys.readouterr()
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "1 of 3" in printed
    assert "d2r-2: evaluations/final.json is damaged, and the run is left out.\n" in printed
    assert "d2r-3: config.json is damaged, and the run is left out.\n" in printed
    assert json.loads((tmp_path / "summary.json").read_text())["rows"][0]["missing"] == [2, 3]


def _part(seed: int, command: str, **changes: Any) -> dict[str, Any]:
    """A summary of one run, which ended the better the larger its seed is."""
    session = {"command": command, "versions": {"torch": "2"}, "machine": {"threads": 1}, "minutes": 1.0}
    run = {"benchmark": "reach", "method": "sm", "variant": "", "seed": seed, "sessions": [session], "minutes": 1.0}
    run |= {"success": {"reach": seed / 10}, "modules_used": None, "episodes": 20, **changes}
    return {"format": SUMMARY, "rows": [], "runs": {f"reach-sm-seed{seed}": run}}


def test_parts_of_a_sweep_are_joined() -> None:
    one, two = (_part(seed, f"dynroute sweep --methods sm --seeds {seed} --horizon 9") for seed in (1, 2))
    missing = _part(2, "dynroute sweep", success=None)
    for order in ([one, two], [two, one], [one, missing, two], [two, missing, one, one]):
        joined = join(order)
        (row,) = joined["rows"]
        assert (row["seeds"], row["missing"], row["mean"]) == ([1, 2], [], pytest.approx(0.15))
        assert joined["runs"] == {**one["runs"], **two["runs"]}
    assert join([one, missing])["rows"][0]["missing"] == [2]
    equal = _part(2, "dynroute sweep --horizon=9 --vary='gamma=.9' --methods=sm --seeds=2 --folder='a --width 7'")
    assert list(join([one, equal])["runs"]) == ["reach-sm-seed1", "reach-sm-seed2"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (_part(1, "dynroute sweep --horizon 9", success={"reach": 0.5}), "reach-sm-seed1 ended differently in two"),
        (_part(2, "dynroute sweep --horizon 8"), "reach-sm-seed2 and reach-sm-seed1 differ in their flags"),
        (_part(2, "dynroute sweep --horizon 9", episodes=10), "differ in their episodes"),
        (_part(2, "dynroute sweep --horizon 9", success={"push": 1.0}), "differ in their tasks"),
        ({"format": "another", "runs": {}}, "a part has the format 'another'"),
    ],
)
def test_parts_that_differ_are_not_joined(part: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        join([_part(1, "dynroute sweep --horizon 9"), part])
