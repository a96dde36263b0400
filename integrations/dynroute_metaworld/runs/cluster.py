"""Runs on the cores of a machine or cluster, by Ray. A run whose process dies restarts from its last checkpoint."""

import contextlib
import os
import platform
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from .configuration import Configuration
from .provenance import versions
from .run import Run, RunError
from .summary import read_sweep
from .training import train

__all__ = ["check_nodes", "check_room", "joined", "run_all"]

ANSWER = 30.0  # seconds that `ray status` may take to find a cluster; it usually takes two
RETRIES = 3  # restarts of a run without a new checkpoint
RELEASE = 60.0  # seconds to wait for the processes of a killed sweep to end; most end within two
IDLE = 10  # waits of 30 seconds in which no run could start
STOPPING = 120.0  # seconds for stopping runs to write their checkpoints
QUIET = {"log_to_driver": False, "logging_level": "ERROR"}


@contextlib.contextmanager
def joined(address: str | None) -> Iterator[None]:
    """Joins a cluster, or starts one on this machine. After an earlier ray.init, that cluster is used as it is."""
    ray = _ray()
    if ray.is_initialized():
        if address is not None:
            raise ValueError(f"`address` must be None where ray.init was called before, got {address!r}.")
        yield
        return
    defaults = {"RAY_USAGE_STATS_ENABLED": "0"}
    if address is None:
        defaults["RAY_worker_niceness"] = "0"  # Ray's default of 15 slows runs down on a busy machine
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        if address is None:
            ray.init("local", include_dashboard=False, object_store_memory=10**8, **QUIET)
        else:
            _join(ray, address)
        yield
    finally:
        ray.shutdown()
        for name in added:
            os.environ.pop(name, None)


def _join(ray: Any, address: str) -> None:
    _check_address(address)
    try:
        ray.init(address, **QUIET)
    except (Exception, SystemExit) as error:
        raise ConnectionError(
            f"the cluster at {address} cannot be joined: {error}; this machine must be one of its nodes "
            f"(`ray start --address={address}`), with the same versions of Ray and Python."
        ) from error


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError("a sweep needs Ray; type: pip install 'dynroute[sweep]'") from error
    return ray


def _check_address(address: str) -> None:
    """Raises an error where no cluster answers; ``ray.init`` tries for minutes, and then ends the process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ValueError(f"`address` must be HOST:PORT, as `ray start --head` prints it, got {address!r}.")
    if host in ("localhost", "127.0.0.1"):  # as Ray does
        host = _ray().util.get_node_ip_address()
    status = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", f"{host}:{port}"]
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        subprocess.run(status, capture_output=True, timeout=ANSWER)
    except (OSError, OverflowError, subprocess.TimeoutExpired) as error:
        why = "the program there is not Ray" if isinstance(error, subprocess.TimeoutExpired) else error
        raise ConnectionError(
            f"no cluster can be reached at {host}:{port} ({why}); `address` must be what `ray start --head` prints, "
            "or left out to run on this machine."
        ) from error


def check_room(cores: int, gpus: float, tell: Callable[[str], object], patience: float = 10.0) -> None:
    """Raises an error unless a node is large enough for a run, and some of its cores are free.

    Args:
        cores: The cores of a run.
        gpus: The GPUs of a run.
        tell: Called with a sentence while the sweep waits for cores.
        patience: How many seconds to wait; a sweep that was just killed holds its cores for a moment.
    """
    ray = _ray()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needs = {"CPU": ("cores_per_run", "cores", cores), "GPU": ("gpus_per_run", "GPUs", gpus)}
    fit = nodes  # the nodes with enough of each resource so far: a run takes all its resources from one node
    for kind, (argument, what, amount) in needs.items():
        most = max((node.get(kind, 0) for node in fit), default=0)
        if amount > most:
            raise ValueError(
                f"`{argument}` must be at most {most:g}, the {what} of the largest of {len(fit)} nodes, got {amount:g}."
            )
        fit = [node for node in fit if node.get(kind, 0) >= amount]
    end, reported = time.monotonic() + patience, False
    while True:
        free = ray.available_resources()
        taken = [
            f"of {sum(node.get(kind, 0) for node in nodes):g} {what} {free.get(kind, 0):g} are free, and a run needs "
            f"{amount:g}"
            for kind, (_, what, amount) in needs.items()
            if free.get(kind, 0) < amount
        ]
        if not taken:
            return
        if time.monotonic() > end:
            raise RunError(f"the cluster is busy: {', '.join(taken)}; wait for other jobs, or use another cluster.")
        if not reported:
            tell(f"the cluster is busy: {', '.join(taken)}; waiting {patience:g} seconds")
            reported = True
        time.sleep(0.5)


def check_nodes(folder: Path, token: str) -> None:
    """Raises an error that names the first node that cannot see a sweep's folder or cannot run dynroute."""
    ray = _ray()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    check = ray.remote(num_cpus=0, max_retries=0)(_check_node)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    answers = [
        check.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            folder, token
        )
        for node in nodes
    ]
    for node, answer in zip(nodes, answers, strict=True):
        where = f"the node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        try:
            seen, found = ray.get(answer, timeout=120)
        except ray.exceptions.RayError as error:
            last = str(error).strip().splitlines()[-1]
            raise RunError(f"{where} cannot run dynroute: {last}; install it as it is installed here.") from error
        if not seen:
            raise RunError(f"{where} does not see {folder}; the nodes of a sweep must share its file system.")
        differ = [f"{name} {found.get(name)}, not {own}" for name, own in versions().items() if found.get(name) != own]
        if differ:
            raise RunError(f"{where} has {', '.join(differ)}; install there what is installed here.")


def _check_node(folder: Path, token: str) -> tuple[bool, dict[str, str]]:
    return _sees(folder, token), versions()


def _sees(folder: Path, token: str) -> bool:
    """Whether this node has the folder, and not another one of the same name."""
    try:
        return bool(read_sweep(folder)["token"] == token)
    except OSError:
        return False


def run_all(
    runs: Mapping[str, Run],
    token: str,
    resources: Mapping[str, float],
    tell: Callable[[str], object],
    finish: Callable[[Run], object] | None = None,
) -> dict[str, str]:
    """Executes runs, each in its own process, as many at a time as the resources allow.

    A run whose process or node dies restarts from its last checkpoint. If a run fails, `tell` reports it, and the
    others go on.

    Args:
        runs: The runs by name.
        token: The token of the sweep.
        resources: What a run takes, as Ray calls it: ``num_cpus`` and ``num_gpus``.
        tell: Called with a sentence for each event.
        finish: Called with each finished run, in its process; an error there does not make the run fail.

    Returns:
        The reasons of the runs that failed, by name.
    """
    ray = _ray()
    # A stream reports when a run starts. Each run has a new process, so that no state is left from the run before.
    task = ray.remote(max_calls=1, max_retries=0, num_returns="streaming", **resources)(_work)
    streams = {task.remote(run.folder, run.configuration, token, sys.argv, finish): name for name, run in runs.items()}
    total, started, failures, idle = len(runs), set[str](), dict[str, str](), 0
    deaths: dict[str, list[list[str]]] = {name: [] for name in runs}

    def say(event: str) -> None:
        counts = f"{len(started)} running, {len(streams) - len(started)} waiting"
        tell(f"[{total - len(streams)}/{total}] {event}; {counts}")

    try:
        while streams:
            ready, _ = ray.wait(list(streams), num_returns=1, timeout=30, fetch_local=False)
            if not ready:
                idle = 0 if started else idle + 1
                if idle:
                    say("no node has room for a run, though none is running")
                if idle == IDLE:
                    raise RunError("no node had room for a run for minutes; is the cluster busy, or gone?")
                continue
            stream = ready[0]
            name = streams[stream]
            try:
                what, detail = ray.get(next(stream))
            except ray.exceptions.RayTaskError as error:
                what, detail = "failed", str(error).strip().splitlines()[-1]
            except ray.exceptions.RayError as error:
                what, detail = "died", type(error).__name__
            if what == "started":
                started.add(name)
                say(f"started {name} on {detail}")
                continue
            del streams[stream]
            started.discard(name)
            if what == "died":
                deaths[name].append(_written(runs[name].folder))
                if deaths[name][-RETRIES - 1 :].count(deaths[name][-1]) <= RETRIES:
                    again = task.remote(runs[name].folder, runs[name].configuration, token, sys.argv, finish)
                    streams[again] = name
                    say(f"retried {name}: its process or node died ({detail})")
                    continue
                what, detail = (
                    "failed",
                    f"its process died {RETRIES + 1} times without a new checkpoint ({detail}); was it out of memory?",
                )
            if what == "finished":
                success, minutes = detail
                say(f"finished {name} with {success:.3f} success after {minutes:.1f} minutes")
            else:
                failures[name] = detail
                say(f"failed {name}: {detail}")
    except KeyboardInterrupt:
        tell(f"stopping {len(started)} runs with checkpoints; Ctrl-C again stops at once")
        for stream in streams:
            ray.cancel(stream)
        with contextlib.suppress(RunError):
            _wait_for_release([runs[name] for name in started], STOPPING)
        raise
    return failures


def _written(folder: Path) -> list[str]:
    """The names of the checkpoints and cloning files of a run, which show how far it has come."""
    patterns = ("checkpoints/*", "cloning/*", "cloning/*/*")
    return sorted(str(path) for pattern in patterns for path in folder.glob(pattern))


def _wait_for_release(runs: Sequence[Run], patience: float) -> None:
    """Waits until no process has locked the runs; raises an error after `patience` seconds."""
    end = time.monotonic() + patience
    for run in runs:
        while True:
            try:
                with run.locked():
                    break
            except RunError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)


def _work(
    folder: Path,
    configuration: Configuration,
    token: str,
    command: list[str],
    finish: Callable[[Run], object] | None,
) -> Iterator[tuple[str, Any]]:
    """Executes a run in a process of the cluster; yields its start, and then its outcome."""
    node = _ray().get_runtime_context().get_node_id()
    with folder.with_name(f"{folder.name}.txt").open("a", buffering=1) as output:
        print(f"--- on {platform.node()}, node {node}, process {os.getpid()}", file=output)
        yield "started", platform.node()
        sys.argv = command  # the session records the typed command
        with redirect_stdout(output), redirect_stderr(output):
            outcome = _attempt(Run(folder, configuration), token, finish)
        yield outcome


def _attempt(run: Run, token: str, finish: Callable[[Run], object] | None = None) -> tuple[str, Any]:
    try:
        if not _sees(run.folder.parent, token):
            raise RunError(f"{platform.node()} does not see {run.folder.parent}; nodes must share its file system.")
        if not (run.folder / "config.json").exists():
            run = Run.create(run.folder, run.configuration)
        _wait_for_release([run], RELEASE)
        began = time.monotonic()
        result = train(run)
        if result is None:
            return "failed", "it was stopped; the same command goes on"
        print(result)
        try:
            if finish is not None:
                finish(run)
        except Exception:  # an error in a picture does not make the run fail
            traceback.print_exc()
        return "finished", (result.mean_success, (time.monotonic() - began) / 60)
    except Exception as error:  # the other runs go on
        traceback.print_exc()
        return "failed", str(error) or repr(error)
