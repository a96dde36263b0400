"""Updates as CUDA graphs, held on the CPU: a tape stands for a graph, and replays operations into the same memory."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_cases import SIZES, SMALL, NoReading
from replay_cases import TASKS, fill
from replay_cases import make as make_buffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor
from torch.utils._pytree import tree_leaves

import dynroute
from dynroute.networks import available
from dynroute_sb3 import (
    DemonstrationBuffer,
    MultiTaskSAC,
    OverlappedSAC,
    RouteReplayBuffer,
    captured,
    point_tasks,
)
from dynroute_sb3.device_replay import DeviceReplay
from dynroute_sb3.report import Report
from dynroute_sb3.update import follow, update


class Tape(NoReading):
    """Notes operations, and runs them again on the same tensors, as a CUDA graph does.

    What Python decides is decided once: a number that an operation was given stays what it was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_dispatch__(func, types, args, kwargs)
        outputs = list(found) if isinstance(found, (tuple, list)) else [found]
        returns = func._schema.returns
        new = [
            output
            for i, output in enumerate(outputs)
            if isinstance(output, Tensor) and returns[min(i, len(returns) - 1)].alias_info is None
        ]
        self.calls.append((func, args, kwargs or {}, new))
        return found

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, outputs in self.calls:
            found = func(*args, **kwargs)
            found = list(found) if isinstance(found, (tuple, list)) else [found]
            for old, new in zip(outputs, [each for each in found if isinstance(each, Tensor)], strict=False):
                old.detach().copy_(new)


tapes: list[Tape] = []


def record(step: Callable[[], object]) -> Callable[[], object]:
    """In the place of :func:`dynroute_sb3.captured.cuda_graph`."""
    for _ in range(captured.WARM_UP):
        step()
    with Tape() as tape:
        step()
    tapes.append(tape)
    return tape.replay


@pytest.fixture(autouse=True)
def a_cpu_that_captures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(captured, "CAPTURING_DEVICE", "cpu")
    monkeypatch.setattr(captured, "cuda_graph", record)
    tapes.clear()
    dynroute.set_checks(False)
    with dynroute.backend("reference"):  # which a tape runs too; sums of other backends may round otherwise
        yield
    dynroute.set_checks(None)


BRC = {
    "critic_loss": "categorical",
    "bins": 11,
    "q_target": "mean",
    "normalize_returns": True,
    "shared_ent_coef": True,
    "ent_coef_beta1": 0.5,
    "target_entropy": "auto_0.5",
    "batch_size": 18,
    "replay_buffer_kwargs": {"balanced": False},
}
BRC_POLICY = {"optimizer_class": torch.optim.AdamW, "log_std": "tanh", "log_std_range": (-10, 2)}


def make(
    network: str = "mt-sac", cls: type[MultiTaskSAC] = MultiTaskSAC, policy: Any = None, **options: Any
) -> MultiTaskSAC:
    """A model that has stepped its environments and not learned yet."""
    options = {"batch_size": 16, "learning_starts": 80, "seed": 0, "max_grad_norm": 1.0, "max_task_loss": 3e3} | options
    kwargs = {"network": network, "network_kwargs": SIZES[network], **(policy or {})}
    model = cls("MultiTaskPolicy", DummyVecEnv(point_tasks()), policy_kwargs=kwargs, **options)
    model.set_logger(Logger(None, []))
    return model.learn(80)


def numbers(model: MultiTaskSAC) -> dict[str, Tensor]:
    """All that an update changes, by name."""
    found = {f"policy.{name}": tensor for name, tensor in model.policy.state_dict().items()}
    found |= {f"total.{name}": tensor for name, tensor in model.report.totals.items()}
    if model.log_ent_coef is not None:
        found["alpha"] = model.log_ent_coef.detach()
    optimizers = {"actor": model.actor.optimizer, "critic": model.critic.optimizer, "alpha": model.ent_coef_optimizer}
    optimizers["shared"] = model.policy.shared_optimizer
    for kind, optimizer in optimizers.items():
        states = [] if optimizer is None else optimizer.state_dict()["state"].items()
        found |= {f"{kind}.{i}.{name}": value for i, state in states for name, value in state.items()}
    return {name: tensor.clone() for name, tensor in found.items()}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert list(actual) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


EXACT = {"rtol": 0.0, "atol": 0.0}
ROUNDED = {"rtol": 1e-4, "atol": 1e-6}


def eager_updates(model: MultiTaskSAC, count: int) -> None:
    """The updates of ``train`` with the draws of the device, one operation at a time."""
    model.policy.set_training_mode(True)
    replay = DeviceReplay(model.replay_buffer, "cpu")
    replay.update()
    for _ in range(count):
        batch = replay.sample(*model.replay_buffer.parts(model.batch_size))
        model.report.add(update(batch, model._networks(), model._coefficients()))
        if model._n_updates % model.target_update_interval == 0:
            follow(model.critic_target, model.critic, model.tau)
        model._n_updates += 1


class OneDevice(NoReading):
    """Refuses operations between the CPU and a device, and on the CPU alone: each would be a copy, or lead to one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_dispatch__(func, types, args, kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, Tensor)]
        assert {tensor.device.type for tensor in tensors} <= {"meta"}, f"{func} has tensors on the CPU"
        return found


def still(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """An optimizer that does nothing: fused Adam has no form for tensors without values."""
    optimizer = torch.optim.SGD(parameters, 0.1)
    optimizer.step = lambda: None  # type: ignore[assignment, misc]
    return optimizer


ROUTED = ("moe", "hard", "sm", "care", "d2r", "d2r-layer", "d2r-model", "scalemoe-feature")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "learner", "setting"),
    [
        *((name, {}, "auto") for name in available()),
        *((name, {}, "reference") for name in ROUTED),  # the others have no graph, or that of one of these
        ("mt-sac", BRC, "auto"),
        ("d2r", BRC, "auto"),
    ],
    ids=str,
)
def test_an_update_on_another_device_stays_there(
    network: str, learner: dict[str, Any], setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tensors without values stand for those of a GPU: what is chosen for them is what is chosen for it.
    monkeypatch.setattr("dynroute.execution.backends.hiding_mode", lambda: None)
    monkeypatch.setattr("dynroute.execution.backends.groups", lambda *_: "in float32 a GPU has none")
    monkeypatch.setattr("torch.autocast", lambda *_, **__: contextlib.nullcontext())  # it has none for them
    with dynroute.backend(setting):
        model = make(network, max_ent_coef=1.0, task_weights="alpha-sum", max_task_loss=3e3, **learner)
        if model.return_bounds is not None:
            model.return_bounds.on_device = torch.zeros(4, 2, dtype=torch.float64, device="meta")
        model.policy.set_training_mode(True)
        model.policy.to("meta")
        # What is shared was moved to this device once for each network.
        targets = model.critic_target
        for shared, nets in ((model.policy._shared(), model.critic.nets), (targets.nets[0].shared, targets.nets)):
            for part in (part for net in nets for part in net.modules()):
                part._parameters.update({name: shared[name] for name in part._parameters.keys() & shared.keys()})
        assert model.log_ent_coef is not None
        model.log_ent_coef = model.log_ent_coef.detach().to("meta").requires_grad_()
        shared = {id(parameter) for parameter in model.policy._shared().values()}
        for module in (model.actor, model.critic):
            module.optimizer = still([each for each in module.parameters() if id(each) not in shared])
        networks = dataclasses.replace(
            model._networks(),
            alpha_optimizer=still([model.log_ent_coef]),
            shared_optimizer=still(model.policy._shared().values()) if shared else None,
        )
        report = Report(4, 1, torch.device("meta"))
        replay = DeviceReplay(model.replay_buffer, "meta")
        replay.update()

        def step() -> None:
            report.add_up(update(replay.sample(4), networks, model._coefficients()))
            follow(networks.critic_target, networks.critic, 0.005)

        step()  # what is made once is copied to the device
        with OneDevice():
            step()


@pytest.mark.parametrize("network", SMALL)
def test_replays_are_the_updates_that_would_have_run(network: str) -> None:
    options: dict[str, Any] = {"actor_starts": 2, "target_update_interval": 2, "task_weights": "alpha-sum"}
    model = make(network, **options)
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    model.train(6, 16)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    eager_updates(other, 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(tapes) == 4  # with and without the actor, and the same with the targets that follow
    assert model.report.updates == other.report.updates == 6
    assert_same(numbers(model), numbers(other), **ROUNDED)
    assert {group["lr"] for group in model.actor.optimizer.param_groups} == {3e-4}  # as it is stored


@pytest.mark.parametrize("network", ["mt-sac", "d2r"])
@pytest.mark.parametrize("joint", [False, True])
def test_replays_of_the_learner_of_brc(network: str, joint: bool) -> None:
    model = make(network, policy=BRC_POLICY, joint_update=joint, **BRC)
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    model.train(3, 18)
    model.return_bounds.add(np.arange(4), np.full(4, -9.0), np.ones(4, dtype=bool), np.ones(4, dtype=bool))
    model.train(3, 18)  # the graph reads the new bounds
    torch.manual_seed(1)
    eager_updates(other, 3)
    other.return_bounds.add(np.arange(4), np.full(4, -9.0), np.ones(4, dtype=bool), np.ones(4, dtype=bool))
    eager_updates(other, 3)
    assert len(tapes) == 1
    assert_same(numbers(model), numbers(other), **ROUNDED)


def test_trials_before_a_capture_change_nothing() -> None:
    model = make("d2r")
    before, state = numbers(model), torch.get_rng_state()

    def trial(step: Callable[[], object]) -> Callable[[], object]:
        replay = record(step)
        assert not torch.equal(torch.get_rng_state(), state)
        assert any(not torch.equal(numbers(model)[name], value) for name, value in before.items())
        return lambda: replay

    graphs = captured.CapturedUpdate(model._networks(), model.replay_buffer, model.report, model.device, trial)
    graphs(model._coefficients(), 16, 0.005)
    after = numbers(model)
    assert_same({name: after[name] for name in before}, before, **EXACT)
    assert all(not after[name].any() for name in set(after) - set(before))  # what Adam begins with
    assert torch.equal(torch.get_rng_state(), state)


def test_a_replay_makes_nothing_new_and_reads_nothing() -> None:
    model = make("d2r")
    model.train(1, 16)

    def places() -> list[int]:
        assert model._graphs is not None
        return [tensor.data_ptr() for tensor in model._graphs._changing()]

    before = places()
    model.train(3, 16)
    assert places() == before
    assert len(tapes) == 1
    with NoReading():
        tapes[0].replay()


def test_new_transitions_are_learned_from() -> None:
    model = make(learning_starts=0, train_freq=1)
    model.learn(40, reset_num_timesteps=False)
    assert len(tapes) == 1
    replay = DeviceReplay(model.replay_buffer, "cpu")
    replay.update()
    assert model._graphs is not None
    kept = model.replay_buffer.counts[0]
    for task in range(4):
        captured, copied = (each._own.arrays["rows"][task, :kept] for each in (model._graphs.replay, replay))
        assert torch.equal(captured, copied)


def test_n_step_returns_that_look_further_are_captured_anew() -> None:
    model = make(n_steps=3)
    model.train(1, 16)
    for rows, count in ((1, 1), (5, 2), (5, 2)):  # so many transitions at once, and so many tapes then
        states = model._last_obs[[0] * rows]
        model.replay_buffer.add(states, states, np.zeros((rows, 2)), np.ones(rows), np.zeros(rows, bool), [{}] * rows)
        model.train(1, 16)
        assert len(tapes) == count
    assert model._graphs is not None
    assert model._graphs.replay.reach == (9,)


def test_learning_rates_are_written_before_a_replay() -> None:
    models = [make(learning_rate=lambda left: 1e-2 * left, ent_coef_lr=rate) for rate in (None, 1e-3)]
    for model in models:
        other = copy.deepcopy(model)
        for each in (model, other):
            torch.manual_seed(1)
            for left in (1.0, 0.5, 0.0):
                each._current_progress_remaining = left
                if each is model:
                    each.train(1, 16)
                    continue
                optimizers = [each.actor.optimizer, each.critic.optimizer]
                optimizers += [each.ent_coef_optimizer] if each.ent_coef_lr is None else []
                each._update_learning_rate(optimizers)
                eager_updates(each, 1)
        assert_same(numbers(model), numbers(other), **ROUNDED)
    assert len(tapes) == 2


@pytest.mark.parametrize("cls", [MultiTaskSAC, OverlappedSAC])
def test_a_run_goes_on_from_a_checkpoint_to_the_bit(cls: type[MultiTaskSAC], tmp_path: Path) -> None:
    model = make("d2r", cls, learning_starts=40)
    model.learn(40, reset_num_timesteps=False)
    model.save_checkpoint(tmp_path / "here")
    model.learn(40, reset_num_timesteps=False)
    expected, random = numbers(model), torch.get_rng_state()
    again = cls.load_checkpoint(tmp_path / "here", DummyVecEnv(point_tasks()))
    again.set_logger(Logger(None, []))
    again.learn(40, reset_num_timesteps=False)
    assert again._n_updates == model._n_updates > 20
    assert_same(numbers(again), expected, **EXACT)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_coefficient_that_a_callback_changes_is_written_before_a_replay() -> None:
    model = make(ent_coef=0.1)
    other = copy.deepcopy(model)
    for value in (0.1, 0.5):
        for each in (model, other):
            torch.manual_seed(1)
            each.ent_coef_tensor.fill_(value)
            each.train(1, 16) if each is model else eager_updates(each, 1)
    assert_same(numbers(model), numbers(other), **ROUNDED)
    assert len(tapes) == 1


def test_loaded_states_are_captured_anew() -> None:
    model, other = make(), make()
    for each in (model, other):
        torch.manual_seed(1)
        each.train(2, 16)
    parameters = copy.deepcopy(model.get_parameters())
    model.train(2, 16)
    model.set_parameters(parameters)
    assert model.log_ent_coef is not None
    assert other.log_ent_coef is not None
    model.log_ent_coef.data = other.log_ent_coef.detach().clone()  # as SB3's load() does it
    for name, total in model.report.totals.items():
        total.copy_(other.report.totals[name])
    assert len(tapes) == 2
    for each in (model, other):
        torch.manual_seed(2)
        each.train(2, 16)
    assert len(tapes) == 3
    assert_same(numbers(model), numbers(other), **EXACT)


def test_a_copy_of_a_model_has_graphs_of_its_own() -> None:
    model = make()
    model.train(2, 16)
    other = copy.deepcopy(model)
    before, state = numbers(model), torch.get_rng_state()
    other.train(2, 16)
    assert_same(numbers(model), before, **EXACT)
    torch.set_rng_state(state)
    model.train(2, 16)
    assert_same(numbers(model), numbers(other), **EXACT)
    assert len(tapes) == 2


def test_a_buffer_that_is_replaced_is_copied_anew() -> None:
    model = make()
    model.train(1, 16)
    model.replay_buffer = copy.deepcopy(model.replay_buffer)
    model.train(1, 16)
    assert model._graphs is not None
    assert model._graphs.replay.buffer is model.replay_buffer
    assert len(tapes) == 2


def test_a_buffer_that_does_not_fit_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = make()
    monkeypatch.setattr(captured, "DeviceReplay", full)
    with pytest.warns(UserWarning, match="not as a CUDA graph: the device has no memory for a copy of the replay"):
        model.train(2, 16)
    assert model._n_updates == 2
    assert not tapes


def test_options_that_change_have_a_graph_of_their_own() -> None:
    model = make()
    for gamma in np.linspace(0.9, 0.99, captured.MOST_GRAPHS + 1):
        model.gamma = float(gamma)
        model.train(2, 16)
    assert len(tapes) == captured.MOST_GRAPHS + 1
    assert model._graphs is not None
    assert len(model._graphs._graphs) == captured.MOST_GRAPHS
    model.train(1, 16)
    assert len(tapes) == captured.MOST_GRAPHS + 1


class OwnBuffer(RouteReplayBuffer):
    def draw(self, each: int) -> Any:
        return super().draw(each)


def normalized() -> VecNormalize:
    return VecNormalize(DummyVecEnv(point_tasks()), norm_obs=False)


DEMONSTRATIONS = {"replay_buffer_class": DemonstrationBuffer, "replay_buffer_kwargs": {"demonstrations": 5}}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"compile_networks": "eager"}, "`compile_networks` runs them by a compiler"),
        (DEMONSTRATIONS | {"demonstration_weight": 1.0, "demonstration_decay": 9}, "`demonstration_decay` changes"),
        ({"replay_buffer_class": OwnBuffer}, "OwnBuffer overrides `draw`"),
        ({"policy_kwargs": {"optimizer_class": torch.optim.SGD}}, "a SGD that is not fused"),
        ({"env": normalized}, "VecNormalize normalizes each batch"),
    ],
)
def test_what_cannot_be_captured_runs_eagerly_and_says_why(options: dict[str, Any], why: str) -> None:
    env = options.get("env", lambda: DummyVecEnv(point_tasks()))()
    options = {name: value for name, value in options.items() if name != "env"}
    options["policy_kwargs"] = {"network_kwargs": SMALL["mt-sac"], **options.get("policy_kwargs", {})}
    model = MultiTaskSAC("MlpPolicy", env, learning_starts=40, batch_size=16, **options)
    with pytest.warns(UserWarning, match=f"not as a CUDA graph: {why}") as warned:
        model.learn(80)
    assert len(warned) == 1
    assert model._n_updates == 10
    assert not tapes


def test_a_capture_that_fails_leaves_the_update_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = make(), make()

    def fail(step: Callable[[], object]) -> Callable[[], object]:
        step()
        raise captured.CaptureError("operation not permitted when stream is capturing")

    monkeypatch.setattr(captured, "cuda_graph", fail)
    other.capture = False
    for each in (model, other):
        torch.manual_seed(1)
        np.random.seed(1)
        if each is model:
            with pytest.warns(UserWarning, match="not as a CUDA graph: operation not permitted"):
                each.train(3, 16)
        else:
            each.train(3, 16)
    assert_same(numbers(model), numbers(other), **EXACT)


def test_demonstrations_are_sampled_on_the_device() -> None:
    model = make(**DEMONSTRATIONS, demonstration_weight=1.0, actor_starts=1)
    buffer = model.replay_buffer
    assert isinstance(buffer, DemonstrationBuffer)
    model.train(2, 16)
    assert len(tapes) == 2
    for i in range(5):
        rows = buffer.observations[i], buffer.next_observations[i], buffer.actions[i], buffer.rewards[i], np.zeros(4)
        buffer.shown.add(*rows, [{}] * 4, None)  # type: ignore[arg-type]
    buffer.wanted[:] = np.arange(5)[:, None] / 8
    model.train(1, 16)
    assert len(tapes) == 3  # the batch has another layout
    assert model._graphs is not None
    batch = model._graphs.replay.sample(*buffer.parts(16))
    assert batch.wanted is not None
    shown = buffer.shown.actions.swapaxes(0, 1)
    assert batch.tasks.tolist() == [*np.repeat(range(4), 2), *np.repeat(range(4), 2)]
    for action, wanted, task in zip(batch.actions[:8], batch.wanted, batch.tasks[:8], strict=True):
        place = int(8 * wanted[0])
        assert torch.equal(action, torch.from_numpy(shown[task, place].copy()))


# The copy of the buffer


def matching(buffer: RouteReplayBuffer, replay: DeviceReplay, each: int) -> None:
    """Asserts that a batch of the copy has rows of the buffer, as many of each task, and their paths."""
    replay.update()
    batch = replay.sample(each)
    assert batch.tasks.tolist() == [task for task in range(buffer.num_tasks) for _ in range(each)]
    kept = [buffer.gather(np.full(n, task), np.arange(n)) for task, n in enumerate(buffer.counts)]
    for i, task in enumerate(batch.tasks.tolist()):
        same = (kept[task].observations == batch.observations[i]).all(dim=1)
        same &= (kept[task].actions == batch.actions[i]).all(dim=1)
        assert same.any()
        place = int(same.nonzero()[0])
        for name in ("observations", "next_observations", "actions", "rewards", "dones", "paths"):
            ours, theirs = getattr(batch, name), getattr(kept[task], name)
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert torch.equal(ours[i], theirs[place]), name
                assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("paths", [True, False])
def test_a_copy_has_the_transitions_of_the_buffer(paths: bool, tmp_path: Path) -> None:
    buffer = make_buffer(5, paths=paths)
    replay = DeviceReplay(buffer, "cpu")
    for step in range(4):  # the rings are full in between, and more comes at once than they hold
        steps = (1, 3, 2, 9)[step]
        fill(buffer, steps, first=20 * step)
        matching(buffer, replay, 4)
    fill(buffer, 2, tasks=[0, 0, 2], first=200)  # tasks with other numbers of transitions
    matching(buffer, replay, 4)
    state = buffer.save(tmp_path)
    buffer.reset()
    fill(buffer, 30, first=300)
    matching(buffer, replay, 4)
    buffer.load(tmp_path, state)
    matching(buffer, replay, 4)
    buffer.rewards[:] *= 2
    buffer.version += 1
    matching(buffer, replay, 4)
    assert replay._own.numbers[0].tolist() == [5] * TASKS


def test_a_copy_has_the_paths_of_a_graph_that_grew() -> None:
    buffer = fill(make_buffer(5), 3)
    replay = DeviceReplay(buffer, "cpu")
    matching(buffer, replay, 4)
    rows = replay._own.arrays["rows"]
    buffer.lift_paths(dynroute.Topology.dag(7))  # a byte more
    matching(buffer, replay, 4)
    assert replay._own.arrays["rows"] is rows  # only what has another shape is allocated anew


def test_a_copy_draws_evenly_from_all_places() -> None:
    buffer = fill(make_buffer(10), 4)
    replay = DeviceReplay(buffer, "cpu", torch.Generator().manual_seed(0))
    replay.update()
    drawn = replay.sample(40_000).observations[:, 0]
    _, counts = drawn.unique(return_counts=True)
    assert len(counts) == 12
    assert ((counts - 10_000).abs() < 400).all()  # 4.6 standard deviations


@pytest.mark.parametrize("n_steps", [1, 3])
def test_sampling_reads_no_value_and_has_fixed_shapes(n_steps: int) -> None:
    buffer = fill(make_buffer(10, n_steps=n_steps), 4)
    replay = DeviceReplay(buffer, "cpu")
    replay.update()
    with Tape() as tape:
        batch = replay.sample(8)
    first = batch.observations.clone()
    fill(buffer, 9, first=100)
    replay.update()
    tape.replay()
    assert not torch.equal(batch.observations, first)
    assert batch.observations[:, 0].max() > 100  # transitions that came after the capture
    assert batch.observations.shape == first.shape
