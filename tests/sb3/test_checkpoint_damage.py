"""Checkpoints that are damaged, made up or do not fit are refused by a sentence, and no file of them can run code."""

import copy
import json
import math
import pickle
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from checkpoint_cases import (
    ENVIRONMENTS,
    FACTORY,
    NETWORKS,
    OPTIMIZER,
    OwnPolicy,
    Planted,
    assert_same,
    decay,
    everything,
    load,
    make_model,
    makers,
    put,
    rewrite,
    wrapped,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
)
from torch import nn

from dynroute import TopK, networks
from dynroute_sb3 import (
    DamagedError,
    MultiTaskSAC,
    PointTask,
    latest_checkpoint,
    storage,
)
from dynroute_sb3.checkpoint import FORMAT


def flip(data: bytes, place: int, mask: int = 1) -> bytes:
    return data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]


FILES = ["manifest.json", "model.json", "model.safetensors", "paths.npy", "rows.npy"]


def test_every_file_is_tested(stored: Path) -> None:
    assert sorted(path.name for path in stored.iterdir()) == FILES


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data[:-1], "must have [0-9]+ bytes, got [0-9]+; take another checkpoint"),
        (lambda data: data + b"\0", "must have [0-9]+ bytes, got [0-9]+; take another checkpoint"),
        (lambda data: b"", "must have [0-9]+ bytes, got 0; take another checkpoint"),
        (lambda data: flip(data, 0), "was altered: its SHA-256 is not the stored one; take another checkpoint"),
        (lambda data: flip(data, len(data) // 2), "was altered: its SHA-256"),
        (lambda data: flip(data, len(data) - 1), "was altered: its SHA-256"),
        (None, "is missing; take another checkpoint"),
    ],
    ids=["cut", "longer", "empty", "first byte", "middle byte", "last byte", "removed"],
)
def test_damage_is_told_by_file(name: str, damage: Any, told: str, changed: Path) -> None:
    path = changed / name
    data = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(data))
    if name == "manifest.json":
        # A bit of a digest that changed cannot be told from one of the file; test_manifest looks at every byte.
        told = ".*" if damage and len(damage(data)) == len(data) else "is missing or damaged; take another checkpoint"
        path = changed if told == ".*" else path
    with pytest.raises(DamagedError, match=f"^{re.escape(str(path))}.*{told}"):
        load(changed)


def test_manifest(changed: Path) -> None:
    # Whatever byte of it changes, nothing is loaded. Some bytes are enough for a bit that makes another digit.
    manifest = changed / "manifest.json"
    data = manifest.read_bytes()
    for place in range(len(data)):
        for mask in (0x01, 0x80):
            manifest.write_bytes(flip(data, place, mask))
            with pytest.raises(DamagedError, match=f"^{re.escape(str(changed))}"):
                storage.check_folder(changed)
    for text in (
        "[]",
        "{",
        "[" * 99_999,
        '{"rows.npy": 3}',
        '{"rows.npy": [1]}',
        '{"rows.npy": ["x", "y"]}',
        "null",
        "\xff",
    ):
        manifest.write_text(text, encoding="latin-1")
        with pytest.raises(DamagedError, match=r"manifest.json is missing or damaged; take another checkpoint"):
            storage.check_folder(changed)
    whole = json.loads(data)
    for files, told in (
        ({}, r"manifest.json must list the files of .*changed, got none; take another checkpoint"),
        ({**whole, "../there/rows.npy": [1, ""]}, r"must list files of its folder, got '../there/rows.npy'"),
        *(
            ({name: seal for name, seal in whole.items() if name != missing}, f"{missing} is not listed in .*manifest")
            for missing in whole
        ),
    ):
        manifest.write_text(json.dumps(files))
        with pytest.raises(DamagedError, match=told):
            storage.check_folder(changed)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must be a folder that was stored before, there is none"):
        load(tmp_path / "none")
    with pytest.raises(DamagedError, match=r"manifest.json is missing"):
        load(tmp_path)


def test_what_is_no_folder_of_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match="`folder` must be a path, got None; latest_checkpoint returns None if a folder"
    ):
        load(latest_checkpoint(tmp_path))  # type: ignore[arg-type]
    file = tmp_path / "model.zip"
    file.touch()
    with pytest.raises(
        ValueError, match=r"must be the folder of a checkpoint, got the file .*zip; `load` reads files of"
    ):
        load(file)
    (tmp_path / "step_20").mkdir()
    with pytest.raises(
        ValueError, match=r"must be a checkpoint, got the folder .* of several; the newest is .*step_20"
    ):
        load(tmp_path)


def test_nothing_is_unpickled(changed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model.pkl", "policy.pth", "data.pkl", "buffer.pkl", "evil.npy", "__init__.py"):
        (changed / name).write_bytes(pickle.dumps(Planted()))

    def refuse(*args: Any, **kwargs: Any) -> Any:
        pytest.fail("pickle was used")

    for module, name in [
        *((pickle, name) for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler", "_Unpickler")),
        (torch, "load"),
        (torch, "save"),
    ]:
        monkeypatch.setattr(module, name, refuse)
    model = load(changed).learn(20, reset_num_timesteps=False)
    model.save_checkpoint(tmp_path / "again")
    written = everything(model)
    model.save_replay_buffer(tmp_path / "buffer")
    model.replay_buffer.reset()
    model.load_replay_buffer(tmp_path / "buffer")
    assert_same(everything(model), written)
    assert_same(everything(load(tmp_path / "again")), written)


WIDE = ("options", "policy_kwargs", "network_kwargs", "width")


MADE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "NaN": (put("options", "gamma", value=math.nan), r"gamma=nan is not"),
    "infinite": (put("options", "learning_rate", value=math.inf), "learning_rate=inf is not"),
    "NaN inside": (put("options", "replay_buffer_kwargs", "x", value=math.nan), "replay_buffer_kwargs.x=nan is not"),
    "NaN limit": (put("options", "max_grad_norm", value=math.nan), "max_grad_norm=nan is not"),
    "a method": (put("options", "learn", value=3), "holds 'learn', which is none of the options"),
    "a method in progress": (put("progress", "train", value=3), "holds 'train', which is none of the progress"),
    "no option": (lambda state: state["options"].pop("gamma"), "must hold the option 'gamma', and has none"),
    "no part": (lambda state: state.pop("report"), "must hold the part 'report', and has none"),
    "no critics": (lambda state: state.pop("critics"), "must hold the part 'critics', and has none"),
    "no count of tasks": (lambda state: state["report"]["totals"].pop("present"), "does not fit together"),
    "a list": (put("options", value=[]), "must hold 'options' as it was written, got \\[\\]"),
    "width": (put(*WIDE, value=10**12), "policy_kwargs.network_kwargs.width=1000000000000 is more"),
    "another width": (put(*WIDE, value=1000), "holds another network"),
    "a wide network": (
        lambda state: (put(*WIDE, value=9)(state), state.update(network=state["network"].replace("8", "9"))),
        "holds another network|must hold .* with the shape",
    ),
    "buffer": (put("options", "buffer_size", value=10**18), "needs more memory than there is|array is too big"),
    "batch": (put("options", "batch_size", value=-4), "as `batch_size` an integer of at least 1, got -4"),
    "no batch": (put("options", "batch_size", value=None), "as `batch_size` an integer of at least 1, got None"),
    "discount": (
        put("options", "gamma", value=1.5),
        "changed cannot be restored: `gamma` must be .*at most 1, got 1.5",
    ),
    "a text": (put("options", "tau", value="0.1"), "`tau` must be a number, got '0.1'"),
    "half a step": (put("options", "learning_starts", value=20.5), "`learning_starts` must be an integer, got 20.5"),
    "critics' bins": (put("options", "bins", value=1), "changed cannot be restored: `bins` must be at least 2, got 1"),
    "steps": (put("progress", "num_timesteps", value="many"), "as `num_timesteps` an integer of at least 0"),
    "total": (put("progress", "_total_timesteps", value=54.0), "as `total_timesteps` an integer of at least 0, got 54"),
    "left": (
        put("progress", "_current_progress_remaining", value=2),
        "as `current_progress_remaining` a number of at most 1",
    ),
    "unit": (put("options", "train_freq", value=[1, "year"]), "changed cannot be restored: The frequency of `train_f"),
    "paths": (put("options", "actor_paths", value="best"), "changed cannot be restored: `actor_paths` must be one of"),
    "policy": (put("policy", value=["MlpPolicy"]), "must hold 'policy' as it was written"),
    "spaces": (put("spaces", value={}), "cannot be restored, since what it holds does not fit together"),
    "random": (put("random", "torch", value=3), "cannot be restored, since what it holds does not fit together"),
    "parameters": (
        lambda state: state["parameters"]["policy"].pop("actor.temperature"),
        r"model.safetensors must hold actor.temperature with the shape",
    ),
    "optimizer": (put("parameters", "actor.optimizer", value=[]), "cannot be restored"),
    "report": (put("report", value={}), "cannot be restored, since what it holds does not fit together"),
    "environments": (put("environments", "seeds", value=None), "cannot be restored, since what it holds does not"),
    "counts": (put("buffer", "counts", value=[60, -6]), r"'counts' of a buffer, 2 integers in 0..50, got \[60, -6\]"),
    "positions": (put("buffer", "positions", value=[50, 0]), r"'positions' of a buffer, 2 integers in 0..49, got \[50"),
    "numbers of rows": (put("buffer", "counts", value=[1, 1]), r"rows.npy must hold 2 rows"),
}


@pytest.mark.parametrize("name", MADE)
def test_what_was_made_with_a_manifest_that_fits(name: str, changed: Path) -> None:
    change, told = MADE[name]
    rewrite(changed, change)
    with pytest.raises(ValueError, match=f"^{re.escape(str(changed))}.*") as caught:
        load(changed)
    assert re.search(told, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"most_at_once": 0}, "as 'most_at_once' of a buffer an integer of at least 1, got 0"),
        ({"most_at_once": 2.5}, "as 'most_at_once' of a buffer an integer"),
        ({"latest": [[0, 50]]}, r"as 'latest' of a buffer a task and a place for each environment, got \[\[0, 50\]\]"),
        ({"latest": [3]}, "as 'latest' of a buffer a task and a place"),
        ({"order_bytes": 0}, "the stored buffer must have order_bytes 4, got 0"),
    ],
    ids=str,
)
def test_the_order_of_transitions(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    folder = tmp_path / "there"
    make_model(ENVIRONMENTS["dummy"](), n_steps=3, buffer_size=100).learn(8).save_checkpoint(folder)
    rewrite(folder, lambda state: state["buffer"].update(changes))
    with pytest.raises(ValueError, match=told):
        load(folder, "dummy")


def test_the_order_of_transitions_is_sealed(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    make_model(ENVIRONMENTS["dummy"](), n_steps=3, buffer_size=100).learn(8).save_checkpoint(folder)
    manifest = folder / "manifest.json"
    seals = json.loads(manifest.read_text())
    del seals["back.npy"]
    manifest.write_text(json.dumps(seals))
    with pytest.raises(DamagedError, match=r"back.npy is not listed in .*manifest"):
        load(folder, "dummy")


class Scaled(nn.Module):
    """A network with keywords that are no sizes."""

    def __init__(self, state_features: int, num_tasks: int, out_features: int, *, salt: int, scale: float) -> None:
        super().__init__()
        self.layer, self.salt, self.scale = nn.Linear(state_features + num_tasks, out_features), salt, scale

    def forward(self, state: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat([state, task], dim=-1)).clamp(-self.scale, self.scale)


def test_keywords_of_a_network_of_the_user_are_no_sizes(tmp_path: Path) -> None:
    keywords = {"network": Scaled, "network_kwargs": {"salt": 10**9, "scale": math.inf}}
    options = {**keywords, "critic_kwargs": {"salt": -(10**9)}}
    make_model(ENVIRONMENTS["dummy"](), "MultiTaskPolicy", policy_kwargs=options).save_checkpoint(tmp_path / "there")
    loaded = load(tmp_path / "there", network=Scaled)
    assert loaded.policy_kwargs["network_kwargs"] == keywords["network_kwargs"]
    rewrite(tmp_path / "there", put("options", "policy_kwargs", "n_critics", value=10**12))
    with pytest.raises(DamagedError, match=r"policy_kwargs.n_critics=1000000000000 is more"):
        load(tmp_path / "there", network=Scaled)


@pytest.mark.parametrize(
    "options",
    [
        {"critic_loss": "categorical", "value_range": (-100_000, 100_000)},
        {"policy_kwargs": {"network_kwargs": {"hidden_sizes": [8]}, "log_std_range": (-20_000, 2)}},
    ],
    ids=["value_range", "log_std_range"],
)
def test_the_ends_of_a_range_are_no_sizes(options: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(ENVIRONMENTS["dummy"](), "MlpPolicy", **options)
    model.save_checkpoint(tmp_path / "there")
    assert load(tmp_path / "there").policy_kwargs == model.policy_kwargs


def test_wrappers_whose_methods_would_be_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    make_model(ENVIRONMENTS["VecNormalize"]()).learn(8).save_checkpoint(folder)
    whole = (folder / "model.json").read_text()
    for place in (("step",), ("ret_rms", "update")):
        (folder / "model.json").write_text(whole)
        rewrite(folder, put("environments", "vector_wrappers", 0, *place, value=3))
        with pytest.raises(ValueError, match=r"there cannot be restored: the state of VecNormalize must hold .*, got "):
            load(folder, "VecNormalize")
    (folder / "model.json").write_text(whole)
    rewrite(folder, put("environments", "vector_wrappers", 0, value={}))
    with pytest.raises(ValueError, match=r"the state of VecNormalize must hold .*, got \[\]"):
        load(folder, "VecNormalize")


def test_attributes_of_wrappers_that_would_be_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    make_model(ENVIRONMENTS["wrappers"]()).learn(8).save_checkpoint(folder)
    whole = (folder / "model.json").read_text()
    for place in (("step",), ("obs_rms",), ("obs_rms", "update")):
        (folder / "model.json").write_text(whole)

        def forge(state: dict[str, Any], place: tuple[str, ...] = place) -> None:
            (attributes,) = (
                wrapper["$tuple"][1]
                for wrapper in state["environments"]["wrappers"][0]
                if wrapper["$tuple"][0] == "NormalizeObservation"
            )
            put(*place, value=3)(attributes)

        rewrite(folder, forge)
        with pytest.raises(ValueError, match=r"there cannot be restored: `env` must be wrapped as it was when the "):
            load(folder, "wrappers")


def test_a_state_that_is_deep_or_none(changed: Path) -> None:
    for text, told in (
        ("[" * 99_999, r"model.json or .safetensors is missing or damaged"),
        ("[]", f"must have format {FORMAT}"),
    ):
        (changed / "model.json").write_text(text)
        manifest = json.loads((changed / "manifest.json").read_text())
        manifest["model.json"] = storage.digest(changed / "model.json")
        (changed / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=told):
            load(changed)


def places(tree: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*before, key)
        yield from places(value, (*before, key))


@pytest.mark.slow
def test_whatever_is_changed_is_a_sentence(changed: Path) -> None:
    whole = (changed / "model.json").read_text()
    draw = random.Random(0)
    junk = [
        None,
        True,
        -1,
        0,
        2.5,
        10**30,
        "auto",
        "",
        [],
        [[1]],
        {},
        {"$tensor": "0"},
        {"$array": "4"},
        {"$missing": ""},
    ]
    everywhere = list(places(json.loads(whole)))
    chosen = draw.sample([place for place in everywhere if place[0] in ("parameters", "random")], 40)
    chosen += [place for place in everywhere if place[0] not in ("parameters", "random")]
    refused = set()
    for place in chosen:
        value = draw.choice(junk)
        (changed / "model.json").write_text(whole)
        rewrite(changed, put(*place, value=value))
        told: list[str] = []
        try:
            load(changed)
        except ValueError as error:
            told.append(str(error))
            refused.add(place)
        assert all(str(changed) in sentence for sentence in told), (place, value, told)
    assert len(refused) > 0.5 * len(chosen)
    assert {("options",), ("policy",), ("progress",), ("report",), ("spaces",)} <= refused


@pytest.mark.parametrize("number", [0, FORMAT - 1, FORMAT + 1, None, str(FORMAT)])
def test_another_format(number: Any, changed: Path) -> None:
    rewrite(changed, lambda state: state.update(format=number))
    with pytest.raises(ValueError, match=f"changed must have format {FORMAT}, got {number}; it was written by anoth"):
        load(changed)


def test_another_number_of_environments(stored: Path) -> None:
    with pytest.raises(
        ValueError, match=r"needs 2 environments to go on as before, got 3; save\(\) and load\(\) allow"
    ):
        load(stored, "several of a task")


class Wide(PointTask):
    """A point with other spaces."""

    def __init__(self, goal: tuple[float, float], observation: float = 2, action: float = 1) -> None:
        super().__init__(goal)
        self.observation_space = gym.spaces.Box(-observation, observation, (4,), dtype=np.float32)
        self.action_space = gym.spaces.Box(-action, action, (2,), dtype=np.float32)


@pytest.mark.parametrize(
    ("sizes", "told"), [({"observation": 3}, "observation space Box"), ({"action": 2}, "action space Box")], ids=str
)
def test_other_spaces(sizes: dict[str, float], told: str, stored: Path) -> None:
    env = DummyVecEnv(makers(lambda goal: Wide(goal, **sizes)))
    with pytest.raises(ValueError, match=rf"needs environments with the {told}.*, got Box"):
        MultiTaskSAC.load_checkpoint(stored, env, "cpu")


def other(*args: Any, **kwargs: Any) -> nn.Module:
    return networks.build("mt-sac", *args, hidden_sizes=(8,))


def wider(*args: Any, **kwargs: Any) -> nn.Module:
    return networks.build("d2r", *args, num_modules=2, width=5, **kwargs)


@pytest.mark.parametrize("network", [other, wider])
def test_another_network(network: Any, tmp_path: Path) -> None:
    model = make_model(ENVIRONMENTS["dummy"](), "MultiTaskPolicy", policy_kwargs=FACTORY).learn(54)
    model.save_checkpoint(tmp_path / "there")
    env = ENVIRONMENTS["dummy"]()
    env.reset()
    before = copy.deepcopy(env.env_method("get_state"))
    with pytest.raises(ValueError, match=r"holds another network: DynamicDepthRouting .*, and not "):
        MultiTaskSAC.load_checkpoint(tmp_path / "there", env, "cpu", {"network": network})
    assert_same(env.env_method("get_state"), before)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"learning_rate": decay}, "learning_rate checkpoint_cases.decay"),
        ({"policy": "MultiTaskPolicy", "policy_kwargs": FACTORY}, "network checkpoint_cases.tiny_network"),
        ({"policy_kwargs": OPTIMIZER}, "optimizer_class torch.optim.rmsprop.RMSprop"),
        ({"policy": OwnPolicy}, "policy checkpoint_cases.OwnPolicy"),
    ],
    ids=["learning_rate", "network", "optimizer_class", "policy"],
)
def test_what_is_no_part_of_a_checkpoint_is_asked_for(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    make_model(ENVIRONMENTS["dummy"](), **options).save_checkpoint(tmp_path / "there")
    name = told.split()[0]
    asked = re.escape(f"needs the {told}, which it does not hold: pass replace={{{name!r}: ...}}.")
    with pytest.raises(ValueError, match=asked):
        load(tmp_path / "there")


def test_functions_of_one_name_are_told_apart_by_their_places(tmp_path: Path) -> None:
    parts = {
        "network_kwargs": {**NETWORKS["MlpPolicy"], "activation": nn.Tanh},
        "critic_kwargs": {"activation": nn.GELU},
    }
    folder = tmp_path / "there"
    make_model(ENVIRONMENTS["dummy"](), "MlpPolicy", policy_kwargs=parts).save_checkpoint(folder)
    with pytest.raises(
        ValueError,
        match=r"`replace` must say which activation .*, by 'network_kwargs.activation' or 'critic_kwargs.activation', "
        r"got 'activation', which is 2 of them",
    ):
        load(folder, activation=nn.Tanh)
    with pytest.raises(ValueError, match=r"needs the critic_kwargs.activation .*GELU, .*={'critic_kwargs.activation':"):
        load(folder, **{"network_kwargs.activation": nn.Tanh})
    places = {"network_kwargs.activation": nn.Tanh, "policy_kwargs.critic_kwargs.activation": nn.GELU}
    model = load(folder, **places)
    for net, activation in ((model.actor.net, nn.Tanh), (model.critic.nets[0], nn.GELU)):
        assert any(isinstance(module, activation) for module in net.modules())


def test_other_critics(tmp_path: Path) -> None:
    folder, gates = tmp_path / "there", {"network_kwargs.gate": TopK(2), "critic_kwargs.gate": TopK(3)}
    network = {**NETWORKS["D2RPolicy"], "gate": gates["network_kwargs.gate"]}
    parts = {"network_kwargs": network, "critic_kwargs": {"gate": gates["critic_kwargs.gate"]}}
    make_model(ENVIRONMENTS["dummy"](), policy_kwargs=parts).save_checkpoint(folder)
    assert load(folder, **gates).critic.nets[0].routed.gate.k == 3
    with pytest.raises(ValueError, match=r"holds other critics: .* TopK\(3\).*, and not .* TopK\(2\)"):
        load(folder, **{**gates, "critic_kwargs.gate": TopK(2)})


class Telling(gym.Wrapper[Any, Any, Any, Any]):
    """Tells something at the end of an episode."""

    thing: Any = None

    def step(self, action: Any) -> Any:
        *rest, info = self.env.step(action)
        return (*rest, {**info, "thing": self.thing})


def test_what_cannot_be_stored_is_named_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = DummyVecEnv(wrapped(lambda env: Monitor(Telling(env), info_keywords=("thing",))))
    model = make_model(env, learning_starts=100)
    monkeypatch.setattr(Telling, "thing", object())
    model.learn(50)

    def assert_refused(place: str, kind: str) -> None:
        told = f"`{place}` must be plain data, a tensor or an array to be stored without code, got {kind}."
        with pytest.raises(TypeError, match=f"^{re.escape(told)}"):
            model.save_checkpoint(tmp_path / "there")
        assert list(tmp_path.iterdir()) == []

    assert_refused("model.progress.ep_info_buffer.0.thing", "object")
    model.ep_info_buffer.clear()
    monkeypatch.setattr(PointTask, "get_state", lambda self: {"generators": [self.np_random]})
    assert_refused("model.environments.states.0.generators.0", "Generator")
    monkeypatch.undo()
    model.policy_kwargs["network_kwargs"] = {"sizes": [3, {4}]}
    assert_refused("model.options.policy_kwargs.network_kwargs.sizes.1", "set")
    del model.policy_kwargs["network_kwargs"]
    model.action_noise = NormalActionNoise(np.zeros(2), np.ones(2))
    assert_refused("model.options.action_noise", "NormalActionNoise")
