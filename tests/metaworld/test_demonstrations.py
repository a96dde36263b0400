"""Demonstrations: what is recorded, what it depends on, how it is kept, and what is refused."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import PATIENCE, wait_until

from dynroute_metaworld import WorkerError, make_envs
from dynroute_metaworld.envs.scripted import ScriptedPolicy
from dynroute_metaworld.imitation import collection as module
from dynroute_metaworld.imitation.collection import collect
from dynroute_metaworld.imitation.demonstrations import Demonstrations
from dynroute_sb3 import DamagedError
from dynroute_sb3.randomness import random_state

PAIR = ("reach", "drawer-close")
SMALL: dict[str, Any] = {"benchmark": PAIR, "episodes": 3, "horizon": 12, "seed": 5}


def small(folder: Path, **changes: Any) -> Demonstrations:
    return collect(**{**SMALL, "folder": folder, **changes})


def arrays(demonstrations: Demonstrations) -> dict[str, Any]:
    return {name: value for name, value in vars(demonstrations).items() if isinstance(value, np.ndarray)}


def files(folder: Path) -> dict[str, bytes]:
    """All that is there, but for the locks."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "demonstrations"
    small(folder)
    return folder


@pytest.fixture
def copy(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "copy"))


@pytest.fixture(scope="module")
def shown(kept: Path) -> Demonstrations:
    return small(kept)


def test_what_is_recorded(shown: Demonstrations) -> None:
    assert shown.tasks == PAIR
    expected = {
        "observations": (np.float32, (2, 3, 12, 39)),
        "actions": (np.float32, (2, 3, 12, 4)),
        "executed": (np.float32, (2, 3, 12, 4)),
        "rewards": (np.float32, (2, 3, 12)),
        "next_observations": (np.float32, (2, 3, 12, 39)),
        "solved": (np.bool_, (2, 3)),
    }
    assert {name: (array.dtype, array.shape) for name, array in arrays(shown).items()} == expected
    assert np.array_equal(shown.next_observations[:, :, :-1], shown.observations[:, :, 1:])
    assert not np.array_equal(shown.next_observations[:, :, -1], shown.observations[:, :, -1])
    assert not np.shares_memory(shown.next_observations, shown.observations)
    assert shown.settings["tasks"] == list(PAIR)
    assert (shown.settings["horizon"], shown.settings["noise"], shown.settings["goals"]) == (12, [0.0, 0.3], "random")
    assert json.loads(json.dumps(shown.settings)) == shown.settings


def test_actions_are_those_of_the_scripts_for_what_was_observed(shown: Demonstrations) -> None:
    one_hots = np.broadcast_to(np.eye(2, dtype=np.float32)[:, None, None], (2, 3, 12, 2))
    actions, _ = ScriptedPolicy(PAIR).predict(np.concatenate([shown.observations, one_hots], axis=-1))
    assert np.array_equal(shown.actions, actions)


def test_what_was_done_is_the_action_with_noise(tmp_path: Path) -> None:
    found = small(tmp_path, episodes=4, horizon=100, noise=(0, 0.05, 0.5))
    assert np.array_equal(found.executed[:, [0, 3]], found.actions[:, [0, 3]])
    assert np.abs(found.executed).max() <= 1
    inside = (np.abs(found.actions) < 0.4) & (np.abs(found.executed) < 1)
    noise = found.executed - found.actions
    for episode, level in ((1, 0.05), (2, 0.5)):
        assert noise[:, episode][inside[:, episode]].std() == pytest.approx(level, rel=0.25)
    assert not np.array_equal(noise[0], noise[1])  # each task draws its own


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_episodes_are_those_of_the_environments_of_the_same_seed(version: str, tmp_path: Path) -> None:
    found = small(tmp_path, horizon=70, noise=0.3, reward_version=version)
    env = make_envs(PAIR, horizon=70, seed=5, reward_version=version)
    observations: Any = env.reset()
    for episode in range(3):
        solved = np.zeros(2, dtype=bool)
        for step in range(70):
            assert np.array_equal(observations[:, :39], found.observations[:, episode, step])
            observations, rewards, _, infos = env.step(found.executed[:, episode, step])
            assert np.array_equal(rewards, found.rewards[:, episode, step])
            solved |= [info["success"] for info in infos]
        for task in range(2):
            assert np.array_equal(infos[task]["terminal_observation"][:39], found.next_observations[task, episode, -1])
        assert np.array_equal(found.solved[:, episode], solved)
    env.close()
    assert 0 < found.solved.sum() < 6  # at this horizon both happen


def test_scripts_solve_these_tasks(tmp_path: Path) -> None:
    assert small(tmp_path, episodes=2, horizon=150).solved.all()


@pytest.mark.parametrize("goals", ["random", "fixed", "benchmark"])
def test_goals(goals: str, tmp_path: Path) -> None:
    found = small(tmp_path, goals=goals, horizon=1, episodes=4).observations[:, :, 0]
    assert [len(np.unique(task[:, 36:], axis=0)) for task in found] == [1 if goals == "fixed" else 4] * 2
    env = make_envs(PAIR, goals=goals, horizon=1, seed=5)
    drawn = np.stack([env.reset()[:, :39] for _ in range(50 if goals == "benchmark" else 4)], axis=1)
    env.close()
    # An evaluation draws the benchmark's goals from the first on: it has other ones as long as there are any.
    assert np.array_equal(found, drawn[:, :-5:-1] if goals == "benchmark" else drawn)


def test_the_same_settings_give_the_same_and_others_do_not(shown: Demonstrations, kept: Path, tmp_path: Path) -> None:
    again = small(tmp_path / "again", horizon=np.int64(12), seed=np.int64(5), episodes=np.int64(3))
    assert again.fingerprint == shown.fingerprint
    assert len(shown.fingerprint) == 64
    assert files(tmp_path / "again") == files(kept)
    others = [small(tmp_path / str(i), **changes) for i, changes in enumerate(({"seed": 6}, {"noise": (0.0, 0.2)}))]
    assert len({shown.fingerprint, *[other.fingerprint for other in others]}) == 3
    assert not np.array_equal(others[0].observations[:, :, 0], shown.observations[:, :, 0])
    assert np.array_equal(others[1].observations[:, :, 0], shown.observations[:, :, 0])


def test_goals_are_those_of_the_whole_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the tasks is enough here."""
    collected, drawn = [], []
    goals_of = lambda *given: drawn.append(given) or {name: (name,) for name in module.task_names("MT10")}  # noqa: E731
    monkeypatch.setattr(module, "goals_of", goals_of)
    monkeypatch.setattr(module, "_collect", lambda task, specifications, *rest: collected.extend(specifications))
    with pytest.raises(
        DamagedError, match=r"reach must be a folder that was stored before, there is none; remove .*reach, or collect"
    ):
        collect("mt10", folder=tmp_path, seed=3, horizon=7)
    assert drawn == [("mt10", 3)]
    assert [(one.name, one.tasks, one.horizon) for one in collected][1] == ("push", ("push",), 7)


def test_what_is_kept_is_read_again(kept: Path, shown: Demonstrations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_episodes", None)  # nothing is collected
    monkeypatch.setattr(module, "make_envs", None)
    told: list[Any] = []
    again = small(kept, progress=lambda *counts: told.append(counts))
    assert told == []
    assert again.settings == shown.settings
    assert again.fingerprint == shown.fingerprint
    assert all(np.array_equal(array, arrays(shown)[name]) for name, array in arrays(again).items())


def test_the_fingerprint_tells_of_every_array(kept: Path, shown: Demonstrations) -> None:
    whole = arrays(shown)
    assert Demonstrations.of(shown.settings, whole).fingerprint == shown.fingerprint
    for name, array in whole.items():
        changed = array.copy()
        changed.flat[-1] = not changed.flat[-1]
        assert Demonstrations.of(shown.settings, {**whole, name: changed}).fingerprint != shown.fingerprint
    assert Demonstrations.of({**shown.settings, "seed": 6}, whole).fingerprint != shown.fingerprint


def test_processes_change_nothing(tmp_path: Path, shown: Demonstrations, kept: Path) -> None:
    told: list[Any] = []
    found = small(tmp_path, workers=2, progress=lambda *counts: told.append(counts))
    assert found.fingerprint == shown.fingerprint
    assert files(tmp_path) == files(kept)
    assert told == [(1, 2), (2, 2)]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_was_interrupted_goes_on(workers: int, tmp_path: Path, shown: Demonstrations, kept: Path) -> None:
    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(tmp_path, workers=workers, progress=interrupt)
    assert not multiprocessing.active_children()
    assert (tmp_path / PAIR[0] / "manifest.json").exists()
    first = (tmp_path / PAIR[0]).stat().st_mtime_ns
    told: list[Any] = []
    found = small(tmp_path, progress=lambda *counts: told.append(counts))
    assert (tmp_path / PAIR[0]).stat().st_mtime_ns == first
    assert told in ([(2, 2)], [])  # a process may have been done with the second before it was ended
    assert told or workers
    assert found.fingerprint == shown.fingerprint
    assert files(tmp_path) == files(kept)


SCRIPT = """
import multiprocessing, sys
from pathlib import Path
from dynroute_metaworld.imitation.collection import collect

def progress(*counts):
    print(*counts, *[process.pid for process in multiprocessing.active_children()], flush=True)

if __name__ == "__main__":
    settings = {"benchmark": ("reach", "drawer-close"), "episodes": 3, "seed": 5, "folder": Path(sys.argv[1])}
    collect(**settings, horizon=12, workers=int(sys.argv[2]), progress=progress)
"""


def start(tmp_path: Path, folder: Path, workers: int) -> "subprocess.Popen[str]":
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "script.py"), str(folder), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_what_was_killed_goes_on_and_leaves_no_process(
    workers: int, tmp_path: Path, shown: Demonstrations, kept: Path
) -> None:
    folder = tmp_path / "demonstrations"
    with start(tmp_path, folder, workers) as process:
        assert process.stdout is not None
        told = process.stdout.readline().split()
        wait_until(process, lambda: any(folder.glob(f"*{PAIR[1]}*")), every=0.001)  # it begins with the next task
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert told[:2] == ["1", "2"]
    children = [int(pid) for pid in told[2:]]
    assert len(children) == workers
    for _ in range(10 * PATIENCE):
        if not any(map(lives, children)):
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process of one that was killed goes on")
    assert small(folder).fingerprint == shown.fingerprint
    assert files(folder) == files(kept)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == sorted(PAIR)  # nothing half is left


UNGUARDED = """
import sys
from dynroute_metaworld import WorkerError, make_envs
from dynroute_metaworld.imitation.collection import collect

try:
    collect("reach", episodes=1, horizon=5, workers=1, folder=sys.argv[1])
except WorkerError as error:
    print(error)
make_envs("reach", workers=1)
"""


@pytest.mark.slow
def test_a_program_without_a_guard_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "script.py"), str(tmp_path / "demonstrations")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, start_new_session=True, check=False)
    assert done.returncode == 1
    assert "a process that collects demonstrations has died; was it killed" in done.stdout
    assert "lack `if __name__ == '__main__':`? Call it again to go on." in done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert "WorkerError: " in last
    assert "has died with exit code 1; workers import the main program" in last
    assert "must be under `if __name__ == '__main__':`" in last


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    def kill(*_: int) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)

    tasks = (*PAIR, "window-close", "door-open")
    with pytest.raises(WorkerError, match="a process that collects demonstrations has died; was it killed"):
        collect(tasks, episodes=1, horizon=200, folder=tmp_path, workers=1, progress=kill)
    assert not multiprocessing.active_children()


def test_an_error_in_a_process_is_told(tmp_path: Path) -> None:
    (tmp_path / "drawer-close").touch()  # where a folder is to appear
    with pytest.raises(FileExistsError, match=r"drawer-close must not exist yet"):
        small(tmp_path, workers=2)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_folder_is_shared(tmp_path: Path, shown: Demonstrations, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demonstrations"
    episodes, calls, found = module._episodes, [], []

    def watched(*given: Any) -> Any:
        calls.append(given)
        return episodes(*given)

    monkeypatch.setattr(module, "_episodes", watched)
    both = [threading.Thread(target=lambda: found.append(small(folder))) for _ in range(2)]
    with start(tmp_path, folder, 1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert [one.fingerprint for one in found] == [shown.fingerprint] * 2
    assert len(calls) <= 1  # the other process had collected one task before, and began with the second
    assert files(folder) == files(kept)


def flip(path: Path) -> None:
    stored = bytearray(path.read_bytes())
    stored[len(stored) // 2] ^= 1
    path.write_bytes(stored)


DAMAGES: dict[str, Any] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"}"),
    "one bit": flip,
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


def test_a_folder_of_others_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    collect("reach", episodes=2, horizon=5, folder=tmp_path)
    monkeypatch.setattr("dynroute_metaworld.imitation.collection._lock", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        collect("reach", episodes=2, horizon=5, folder=tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "settings.json", "observations.npy", "solved.npy"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_named(name: str, damage: str, copy: Path) -> None:
    DAMAGES[damage](copy / PAIR[1] / name)
    before = files(copy)
    for _ in range(2):
        advice = r"; remove .*, or collect anew: rebuild=True or --rebuild, with --resume .*\.$"
        with pytest.raises(DamagedError, match=advice) as told:
            small(copy)
        assert "checkpoint" not in str(told.value)
        # A manifest with another bit may be one that tells of another file.
        assert str(copy / PAIR[1] / ("" if (name, damage) == ("manifest.json", "one bit") else name)) in str(told.value)
    assert files(copy) == before


@pytest.mark.parametrize("name", ["manifest.json", "settings.json", "actions.npy"])
def test_what_is_damaged_is_made_anew_on_request(name: str, copy: Path, kept: Path, shown: Demonstrations) -> None:
    (copy / PAIR[1] / name).unlink()
    told: list[Any] = []
    assert small(copy, rebuild=True, progress=lambda *counts: told.append(counts)).fingerprint == shown.fingerprint
    assert told == [(1, 2), (2, 2)]  # all of it
    assert files(copy) == files(kept)
    small(copy, rebuild=False, progress=lambda *counts: told.append(counts))
    assert len(told) == 2


def test_files_that_are_missing_in_the_manifest_too_are_not_passed_over(copy: Path) -> None:
    path = copy / PAIR[0] / "manifest.json"
    listed = json.loads(path.read_text())
    path.write_text(json.dumps({name: seal for name, seal in listed.items() if name != "rewards.npy"}))
    (copy / PAIR[0] / "rewards.npy").unlink()
    with pytest.raises(DamagedError, match=r"No such file.*reach/rewards.npy'; remove .*reach, or collect"):
        small(copy)
    path.write_text("{}")
    with pytest.raises(
        DamagedError, match=r"manifest.json must list the files of .*, got none; remove .*reach, or collect"
    ):
        small(copy)


def test_no_object_is_read(copy: Path) -> None:
    np.save(copy / PAIR[0] / "rewards.npy", np.array([print], dtype=object), allow_pickle=True)
    path = copy / PAIR[0] / "manifest.json"
    stored = (copy / PAIR[0] / "rewards.npy").read_bytes()
    digest = hashlib.sha256(stored).hexdigest()
    path.write_text(json.dumps({**json.loads(path.read_text()), "rewards.npy": [len(stored), digest]}))
    with pytest.raises(DamagedError, match="Object arrays cannot be loaded when allow_pickle=False"):
        small(copy)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "horizon": ({"horizon": 13}, r"has horizon 12, not 13; name another folder\."),
    "episodes": ({"episodes": 4}, r"has episodes 3, not 4; name"),
    "noise": ({"noise": (0.0,)}, r"has noise \[0.0, 0.3\], not \[0.0\]; name"),
    "seed": ({"seed": 6}, r"has seed 5, not 6; name"),
    "goals": ({"goals": "fixed"}, r"has goals 'random', not 'fixed'; name"),
    "rewards": ({"reward_version": "v1"}, r"has reward_version 'v2', not 'v1'; name"),
    "tasks": ({"benchmark": PAIR[::-1]}, r"has benchmark 'reach, drawer-close', not .*; tasks \['reach', 'dr.*; name"),
    "others": ({"benchmark": "push"}, r"has benchmark 'reach, drawer-close', not 'push'; tasks"),
}


@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_those_of_other_settings_are_refused(name: str, rebuild: bool, kept: Path) -> None:
    changes, told = OTHERS[name]
    before = files(kept)
    with pytest.raises(ValueError, match=rf"`folder` must hold demonstrations of the same settings or none, .*{told}"):
        small(kept, **changes, rebuild=rebuild)
    assert files(kept) == before


@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("version", r"has metaworld '3.*', not '9.9'; mujoco '3.*', not '9.9'; name"),
        ("STATE_FEATURES", r"has observation 39, not 40; name"),
        ("FORMAT", r"has format 'dynroute demonstrations 1', not 'another'; name"),
    ],
)
def test_those_of_other_versions_are_refused(
    target: str, told: str, rebuild: bool, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"version": lambda _: "9.9", "STATE_FEATURES": 40, "FORMAT": "another"}[target]
    monkeypatch.setattr(module, target, changed)
    with pytest.raises(ValueError, match=told):
        small(kept, rebuild=rebuild)


def test_those_of_another_task_are_refused(copy: Path) -> None:
    (copy / PAIR[0]).rename(copy / "aside")
    (copy / PAIR[1]).rename(copy / PAIR[0])
    with pytest.raises(ValueError, match="reach has task 'drawer-close', not 'reach'; name another folder"):
        small(copy)


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / PAIR[1]).mkdir()
    (tmp_path / PAIR[1] / "notes.txt").touch()
    (tmp_path / "others").mkdir()
    with pytest.raises(DamagedError, match=r"drawer-close/manifest.json is missing or damaged; remove"):
        small(tmp_path)
    with pytest.raises(FileExistsError, match=r"drawer-close holds other files, \['notes.txt'\]; name another folder"):
        small(tmp_path, rebuild=True)
    assert (tmp_path / PAIR[1] / "notes.txt").exists()
    (tmp_path / PAIR[1] / "notes.txt").unlink()
    small(tmp_path, rebuild=True)
    assert (tmp_path / "others").is_dir()


def test_split(shown: Demonstrations) -> None:
    learn, check = shown.split(1)
    for name, array in arrays(shown).items():
        assert np.array_equal(getattr(learn, name), array[:, :2])
        assert np.array_equal(getattr(check, name), array[:, 2:])
    assert learn.tasks == check.tasks == PAIR
    assert learn.settings == check.settings == shown.settings
    assert len({shown.fingerprint, learn.fingerprint, check.fingerprint}) == 3
    assert shown.split(1)[1].fingerprint == check.fingerprint
    everything, nothing = shown.split(0)
    assert everything.fingerprint == shown.fingerprint
    assert nothing.actions.shape == (2, 0, 12, 4)


@pytest.mark.parametrize("held_out", [-1, 3, 4])
def test_a_split_leaves_some_to_learn_from(held_out: int, shown: Demonstrations) -> None:
    told = rf"`held_out` must be at least 0 and less than 3, .* 3 episodes .* got {held_out}\."
    with pytest.raises(ValueError, match=told):
        shown.split(held_out)


def test_the_folder_where_none_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    options: dict[str, Any] = {"episodes": 1, "horizon": 2, "seed": 5}
    found = [collect("reach", **options, noise=noise) for noise in (0.0, 0.1, 0.0)]
    assert found[0].fingerprint == found[2].fingerprint != found[1].fingerprint
    folders = list((tmp_path / "xdg" / "dynroute" / "demonstrations").iterdir())
    assert len(folders) == 2
    assert all((folder / "reach" / "actions.npy").is_file() for folder in folders)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    collect("reach", **options)
    assert len(list((tmp_path / "home" / ".cache" / "dynroute" / "demonstrations").glob("*/reach"))) == 1


def test_nothing_else_is_changed(tmp_path: Path) -> None:
    def exact(state: dict[str, Any]) -> list[Any]:
        kind, *rest = state["numpy"]
        return [state["python"], kind, *[np.asarray(part).tolist() for part in rest], state["torch"].tolist()]

    before = exact(random_state())
    small(tmp_path, seed=77)
    assert exact(random_state()) == before


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no episodes": ({"episodes": 0}, r"`episodes` must be at least 1, got 0\."),
    "half an episode": ({"episodes": 1.5}, r"`episodes` must be an integer, got 1.5\."),
    "negative noise": ({"noise": (0.1, -0.1)}, r"`noise` must be standard deviations, .* got \(0.1, -0.1\)\."),
    "noise that is none": ({"noise": float("nan")}, r"`noise` must be .* finite and not negative, got nan\."),
    "endless noise": ({"noise": [float("inf")]}, r"`noise` must be .* got \[inf\]\."),
    "no noise": ({"noise": ()}, r"`noise` must be standard deviations, at least one, .* got \(\)\."),
    "workers": ({"workers": -1}, r"`workers` must be at least 0, got -1\."),
    "half a worker": ({"workers": 0.5}, r"`workers` must be an integer, got 0.5\."),
    "task": ({"benchmark": "reech"}, r"`benchmark` must be MT10, MT25, MT50 or tasks of Meta-World, got 'reech'"),
    "goals": ({"goals": "many"}, r"`goals` must be one of .*, got 'many'\."),
    "horizon": ({"horizon": 501}, r"`horizon` must be an integer in 1..500, .* got 501\."),
    "seed": ({"seed": -1}, r"`seed` must be an integer in 0\.\..*, got -1\."),
    "rewards": ({"reward_version": "v3"}, r"`reward_version` must be 'v1' or 'v2', got 'v3'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options(name: str, tmp_path: Path) -> None:
    changes, told = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=told):
        small(tmp_path / "demonstrations", **changes)
    assert not (tmp_path / "demonstrations").exists()
