"""Demonstrations beside own experience: they stay, they make up their share of each batch, and they have paths."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv

from dynroute import Topology
from dynroute_sb3 import DemonstrationBuffer, MultiTaskSAC, add_demonstrations, point_tasks

TASKS, COUNT = 2, 6
SPACES = (spaces.Box(-np.inf, np.inf, (3 + TASKS,)), spaces.Box(-1, 1, (2,)))


def demonstrations(count: int = COUNT, tasks: int = TASKS, states: int = 3) -> dict[str, NDArray[Any]]:
    """Transitions with rewards lower than any other here, in which their task and number can be read."""
    numbers = np.arange(1, count + 1) + 100 * np.arange(tasks)[:, None]
    one_hots = np.broadcast_to(np.eye(tasks)[:, None], (tasks, count, tasks))
    seen = np.repeat(numbers[..., None] / 1000, states, axis=-1)
    observations, following = (np.concatenate([part, one_hots], axis=-1).astype(np.float32) for part in (seen, -seen))
    actions = np.stack([numbers, -numbers], axis=-1).astype(np.float32) / 1000
    ends = np.zeros((tasks, count), np.bool_)
    ends[:, -1] = True
    rest = {"rewards": -1000 - numbers.astype(np.float32), "dones": ends, "timeouts": ends & [[True], [False]]}
    return {"observations": observations, "actions": actions, "next_observations": following, **rest}


def make_model(policy: str = "D2RPolicy", *, count: int = COUNT, **options: Any) -> MultiTaskSAC:
    sizes = {"num_modules": 4, "width": 8, "trunk_sizes": (8,), "router_sizes": (8,)}
    share = options.pop("share", 0.5)
    return MultiTaskSAC(
        policy,
        DummyVecEnv(point_tasks(TASKS)),
        policy_kwargs={"network_kwargs": sizes if policy == "D2RPolicy" else {"hidden_sizes": (8,)}},
        replay_buffer_class=DemonstrationBuffer,
        replay_buffer_kwargs={"demonstrations": count, "demonstration_share": share},
        batch_size=8,
        buffer_size=40,
        learning_starts=4,
        seed=0,
        device="cpu",
        **options,
    )


def shown_to(model: MultiTaskSAC, **changes: Any) -> DemonstrationBuffer:
    states = model.policy.task_space.state_features
    add_demonstrations(model, **{**demonstrations(states=states), **changes})
    buffer = model.replay_buffer
    assert isinstance(buffer, DemonstrationBuffer)
    return buffer


def own_step(buffer: DemonstrationBuffer) -> None:
    """One own transition for each task."""
    states = buffer.task_space.state_features
    observations = np.concatenate([np.zeros((TASKS, states)), np.eye(TASKS)], axis=1).astype(np.float32)
    paths = None if buffer.paths is None else np.zeros((TASKS, buffer.paths.shape[-1]), np.uint8)
    buffer.add(observations, observations, np.zeros((TASKS, 2)), np.zeros(TASKS), np.zeros(TASKS), [{}] * TASKS, paths)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 4), (0.25, 2), (0.75, 6)])
def test_every_task_has_its_share(share: float, expected: int) -> None:
    model = make_model(share=share)
    buffer = shown_to(model)
    model.learn(60)  # far more than the buffer holds
    batch = buffer.sample(16)
    theirs = batch.rewards[:, 0] < -1000
    for task in range(TASKS):
        assert ((batch.tasks == task) & theirs).sum() == expected
        assert (batch.tasks == task).sum() == 8
    # Demonstrations come first, with what was wanted.
    assert theirs.tolist() == [True] * (2 * expected) + [False] * (16 - 2 * expected)
    assert batch.wanted is not None
    assert torch.equal(batch.wanted, batch.actions[: 2 * expected])
    assert {-reward % 100 for reward in batch.rewards[: 2 * expected, 0].tolist()} <= set(range(1, COUNT + 1))


def test_all_of_them_are_drawn_alike() -> None:
    buffer = shown_to(make_model())
    own_step(buffer)
    np.random.seed(0)
    drawn = torch.cat([buffer.sample(80).rewards[:40, 0] for _ in range(50)]).long().neg() - 1000
    counts = torch.bincount(drawn, minlength=107)
    expected = 50 * 40 / (TASKS * COUNT)
    assert counts.count_nonzero() == TASKS * COUNT
    assert ((counts[counts > 0] - expected).square() / expected).sum() < 31.3  # 11 degrees, 99.9 %


def test_what_was_wanted_differs_from_what_was_done() -> None:
    wanted = np.full((TASKS, COUNT, 2), 0.5, np.float32) * [[[1]], [[-1]]]
    buffer = shown_to(make_model("MlpPolicy"), wanted=wanted.astype(np.float32))
    own_step(buffer)
    batch = buffer.sample(16)
    assert batch.wanted is not None
    assert batch.wanted[:, 0].tolist() == [0.5] * 4 + [-0.5] * 4
    assert batch.paths is None


def test_ends_of_episodes() -> None:
    """The first task ran out of time and goes on; the second one ended for good."""
    buffer = shown_to(make_model("MlpPolicy"))
    batch = buffer.shown.gather(np.array([0, 1, 1]), np.array([COUNT - 1, COUNT - 1, 0]))
    assert batch.dones[:, 0].tolist() == [0, 1, 0]
    assert torch.equal(batch.next_observations[:, :3], -batch.observations[:, :3])


def test_paths_are_those_of_the_actor() -> None:
    model = make_model()
    torch.manual_seed(0)
    buffer = shown_to(model)
    observations = torch.as_tensor(demonstrations(states=model.policy.task_space.state_features)["observations"])
    torch.manual_seed(0)
    _, _, route = model.actor.distribution(observations.flatten(0, 1), sample=True)
    assert route is not None
    tasks, places = np.repeat(np.arange(TASKS), COUNT), np.tile(np.arange(COUNT), TASKS)
    replayed = buffer.shown.gather(tasks, places).paths
    assert replayed is not None
    assert torch.equal(replayed, route.path)


def test_without_demonstrations_it_is_a_replay_buffer() -> None:
    for share in (0.5, 0.0):
        model = make_model(share=share)
        if not share:
            shown_to(model)
        model.learn(12)
        batch = model.replay_buffer.sample(8)
        assert batch.wanted is None
        assert (batch.rewards > -1000).all()


@pytest.mark.parametrize("policy", ["D2RPolicy", "MlpPolicy"])
def test_a_checkpoint_holds_them(policy: str, tmp_path: Path) -> None:
    options = {"actor_starts": 3, "demonstration_weight": 0.3, "demonstration_decay": 20}
    whole, parts = make_model(policy, **options), make_model(policy, **options)
    for model in (whole, parts):
        torch.manual_seed(0)
        shown_to(model)
    torch.manual_seed(1)
    np.random.seed(1)
    whole.learn(60)
    torch.manual_seed(1)
    np.random.seed(1)
    parts.learn(20)
    parts.save_checkpoint(tmp_path / "step_20")
    loaded = MultiTaskSAC.load_checkpoint(tmp_path / "step_20", DummyVecEnv(point_tasks(TASKS)), "cpu")
    assert isinstance(loaded.replay_buffer, DemonstrationBuffer)
    assert np.array_equal(loaded.replay_buffer.wanted, whole.replay_buffer.wanted)
    loaded.learn(40, reset_num_timesteps=False)
    for (name, one), other in zip(whole.actor.state_dict().items(), loaded.actor.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_wrong_arguments() -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"`demonstrations` must be at least 1 transition .*, got {wrong}"):
            DemonstrationBuffer(8, *SPACES, "cpu", num_tasks=TASKS, demonstrations=wrong)
    for share in (-0.1, 1.0, 2.0):
        with pytest.raises(ValueError, match=f"`demonstration_share` must be in .*, got {share}"):
            DemonstrationBuffer(8, *SPACES, "cpu", num_tasks=TASKS, demonstrations=1, demonstration_share=share)
    for name, shape in (("observations", "(2, 6, 6)"), ("wanted", "(2, 6, 2)"), ("rewards", "(2, 6)")):
        message = re.escape(f"`{name}` must have shape {shape}, 6 transitions for each of 2 tasks as in the buffer")
        with pytest.raises(ValueError, match=message):
            shown_to(make_model(), **{name: np.zeros((2, 1, 2), np.float32)})
    for name in ("observations", "next_observations"):
        swapped = demonstrations(states=4)[name][::-1]
        with pytest.raises(ValueError, match=f"`{name}` must begin with all transitions of task 0, and so on"):
            shown_to(make_model(), **{name: swapped})
    shown = demonstrations(states=4)["actions"].copy()
    shown[1, 2] = 1.5
    with pytest.raises(ValueError, match=r"`actions` must be scaled to .*, got \[1.5, 1.5\] in transition 2 of task 1"):
        shown_to(make_model(), actions=shown)
    shown[1, 2] = 1 + 1e-6  # by rounding
    shown_to(make_model(), actions=shown)
    plain = MultiTaskSAC("MlpPolicy", DummyVecEnv(point_tasks(TASKS)), device="cpu", buffer_size=10)
    with pytest.raises(TypeError, match="`model` must have been made with replay_buffer_class=DemonstrationBuffer"):
        add_demonstrations(plain, **demonstrations(states=4))


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("actor_starts", -1, "at least 0"),
        ("demonstration_weight", -0.5, "at least 0"),
        ("demonstration_decay", 0, "at least 1 or None"),
        ("route_balance", -1, "at least 0"),
    ],
)
def test_wrong_options(name: str, value: float, rule: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be {rule}, got {value}"):
        make_model("MlpPolicy", **{name: value})


def test_options_that_could_do_nothing() -> None:
    for share in (0.01, 0.1, 0.9, 0.99):  # of four
        with pytest.raises(
            ValueError, match=f"`demonstration_share` must leave .* in the 4 of each task .*, got {share}"
        ):
            make_model("MlpPolicy", share=share)
    message = "`demonstration_weight` needs demonstrations to clone: .*, got 0.5"
    with pytest.raises(ValueError, match=message):
        make_model("MlpPolicy", share=0.0, demonstration_weight=0.5)
    with pytest.raises(ValueError, match=message):
        MultiTaskSAC("MlpPolicy", DummyVecEnv(point_tasks(TASKS)), device="cpu", demonstration_weight=0.5)


@pytest.mark.parametrize("balanced", [True, False])
def test_a_batch_that_demonstrations_would_fill(balanced: bool) -> None:
    buffer = DemonstrationBuffer(
        8, *SPACES, "cpu", num_tasks=TASKS, demonstrations=COUNT, demonstration_share=0.9, balanced=balanced
    )
    own_step(buffer)
    own_step(buffer.shown)
    size = TASKS if balanced else 1
    place = "each task in a" if balanced else "a"
    with pytest.raises(ValueError, match=f"^`demonstration_share` must leave .* in the 4 of {place} batch, got 0.9"):
        buffer.sample(4 * size)
    assert buffer.sample(10 * size).wanted.shape == (9 * size, 2)


def test_other_buffers_are_refused(tmp_path: Path) -> None:
    model = make_model("MlpPolicy")
    shown_to(model)
    model.save_replay_buffer(tmp_path / "shown")
    plain = MultiTaskSAC("MlpPolicy", DummyVecEnv(point_tasks(TASKS)), device="cpu", buffer_size=40)
    plain.save_replay_buffer(tmp_path / "plain")
    with pytest.raises(ValueError, match="the stored buffer must have demonstrations 0, got 6"):
        plain.load_replay_buffer(tmp_path / "shown")
    with pytest.raises(ValueError, match="the stored buffer must have demonstrations 6, got 0"):
        model.load_replay_buffer(tmp_path / "plain")
    with pytest.raises(ValueError, match="the stored buffer must have demonstrations 7, got 6"):
        make_model("MlpPolicy", count=7).load_replay_buffer(tmp_path / "shown")


def test_what_is_not_finite_is_refused() -> None:
    rewards = demonstrations()["rewards"]
    rewards[1, 2] = np.nan
    wanted = np.full((TASKS, COUNT, 2), np.inf, np.float32)
    for name, values, where in (("rewards", rewards, "2 of task 1"), ("wanted", wanted, "0 of task 0")):
        model = make_model()
        with pytest.raises(ValueError, match=f"`{name}` must be finite, got NaN or infinity in transition {where}"):
            shown_to(model, **{name: values})
        assert model.replay_buffer.shown.size() == 0


def test_topologies_agree() -> None:
    buffer = DemonstrationBuffer(8, *SPACES, "cpu", num_tasks=TASKS, demonstrations=2)
    buffer.keep_paths(Topology.dag(4))
    assert buffer.shown.topology is buffer.topology
