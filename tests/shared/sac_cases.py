"""An update of MultiTaskSAC beside the update of the oracle, on the same transitions and the same noise."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("stable_baselines3")
import oracle_sac
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from dynroute_sb3 import MultiTaskSAC
from dynroute_sb3.points import point_tasks
from dynroute_sb3.replay import RouteReplaySamples
from dynroute_sb3.update import TaskReport, follow
from dynroute_sb3.update import update as update_networks

TASKS = 3


STATE = 4


ROWS = 12  # the transitions of each task


TOLERANCE = {"rtol": 0.0, "atol": 1e-8}


# Adam forgets the scale of a gradient, but for its epsilon: one that is large lets a wrong scale show.
ADAM = {"eps": 0.1}


RATE = 1e-2


SHOWN = {"demonstrations": 2}


ELSEWHERE = (
    "precision",
    "target_update_interval",
    "replay_buffer_class",
    "replay_buffer_kwargs",
    "policy_kwargs",
)  # the oracle does not know them


D2R = {"num_modules": 4, "width": 5, "trunk_sizes": (6,), "router_sizes": (6,), "output_init": None}


NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "mt-sac": ("mt-sac", {"hidden_sizes": (8, 8)}),
    "mh-sac": ("mh-sac", {"hidden_sizes": (8, 8)}),
    "moe": ("moe", {"num_experts": 3, "width": 6, "depth": 2, "router_sizes": (5,)}),
    "moe-top-2": ("moe", {"num_experts": 3, "width": 6, "depth": 2, "router_sizes": (5,), "gate": "top-2"}),
    "hard": ("hard", {"trunk_sizes": (6,), "layer_sizes": (2, 2), "width": 5}),
    "sm": ("sm", {"trunk_sizes": (6,), "layer_sizes": (2, 2), "width": 5, "router_sizes": (6,), "output_init": None}),
    "care": (
        "care",
        {"embedding_features": 4, "num_encoders": 2}
        | {f"{part}_sizes": (6,) for part in ("encoder", "context", "gate", "hidden")},
    ),
    "paco": ("paco", {"num_sets": 2, "hidden_sizes": (6, 6), "output_init": None}),
    "d2r": ("d2r", D2R),
    "d2r-input": ("d2r", D2R | {"protect": "input"}),
}


def update(model: MultiTaskSAC, batch: RouteReplaySamples) -> TaskReport:
    return update_networks(batch, model._networks(), model._coefficients())


class Recorder:
    """Notes what an update draws, by what it is drawn for, so that the order of the calls does not matter."""

    def __init__(self, model: MultiTaskSAC) -> None:
        self.actor_calls: list[tuple[Tensor, Tensor]] = []
        self.critic_calls: list[list[tuple[Tensor, Tensor]]] = [[] for _ in model.critic.nets]
        self.noises: list[tuple[Tensor, Tensor]] = []

    @contextmanager
    def listen(self, model: MultiTaskSAC) -> Iterator[None]:
        def note(calls: list[tuple[Tensor, Tensor]]) -> Any:
            def hook(net: Any, args: Any, kwargs: Any) -> None:
                source = kwargs.get("generator") or torch.default_generator
                calls.append((args[0].detach().clone(), source.get_state()))

            return hook

        draw = torch.randn

        def randn(*args: Any, **kwargs: Any) -> Tensor:
            noise = draw(*args, **kwargs)
            self.noises.append((self.actor_calls[-1][0], noise))
            return noise

        nets = [(model.actor.net, self.actor_calls), *zip(model.critic.nets, self.critic_calls, strict=True)]
        hooks = [net.register_forward_pre_hook(note(calls), with_kwargs=True) for net, calls in nets]
        try:
            with mock.patch("dynroute_sb3.actor.torch.randn", randn):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def draws(self, batch: oracle_sac.Batch) -> oracle_sac.Draws:
        def find(calls: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
            found = [drawn for inputs, drawn in calls if torch.equal(inputs.nan_to_num(), x.nan_to_num())]
            assert found, "no forward on the whole batch as it lies: the recorder does not know this update"
            return found[0]

        inputs = torch.cat([batch.state, batch.action], dim=1)
        return oracle_sac.Draws(
            find(self.noises, batch.state),
            find(self.noises, batch.next_state),
            find(self.actor_calls, batch.state),
            [find(calls, inputs) for calls in self.critic_calls],
        )


def make(
    network: str = "d2r", adam: dict[str, Any] | None = ADAM, n_critics: int = 2, **options: Any
) -> tuple[MultiTaskSAC, Any]:
    """The algorithm with a replay buffer of random transitions, and the oracle that starts where it does."""
    options = {"learning_rate": RATE, "tau": 0.1, "gamma": 0.9} | options
    name, sizes = NETWORKS[network]
    own = options.pop("policy_kwargs", {})
    policy_kwargs = {"network": name, "network_kwargs": sizes, "n_critics": n_critics, **own}
    if adam is not None:
        policy_kwargs["optimizer_kwargs"] = {"fused": True, **adam}
    model = MultiTaskSAC(
        "MultiTaskPolicy",
        DummyVecEnv(point_tasks(TASKS)),
        policy_kwargs=policy_kwargs,
        batch_size=TASKS * 4,
        device="cpu",
        **options,
    )
    model.set_logger(Logger(None, []))
    model.policy.double().set_training_mode(True)
    with torch.no_grad():
        for net in (model.actor.net, *model.critic.nets, *model.critic_target.nets):
            for parameter_name, parameter in net.named_parameters():
                if "router" in parameter_name:
                    parameter *= 3  # logits that matter beside the noise, and differ by the temperature
        for parameter in model.critic_target.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # targets that are not the critics
        if model.ent_coef_optimizer is not None:
            # Three coefficients, or the one of all tasks, in float64.
            model.log_ent_coef.data = torch.tensor([-1.5, 0.4, -0.3], dtype=torch.float64)[: len(model.log_ent_coef)]
            model.ent_coef_optimizer.defaults.update(adam or {})
            model.ent_coef_optimizer.param_groups[0].update(adam or {})
        else:
            model.ent_coef_tensor = torch.tensor(options["ent_coef"], dtype=torch.float64)
    fill(model)

    routed = model.policy.topology is not None
    sac = oracle_sac.SAC(
        model.actor.net,
        list(model.critic.nets),
        list(model.critic_target.nets),
        model.log_ent_coef,
        oracle_sac.Options(
            TASKS,
            target_entropy=model.target_entropy,
            returns=[] if model.return_bounds is None else play_episodes(model),
            optimizer=own.get("optimizer_class", torch.optim.Adam),
            **{name: value for name, value in own.items() if name.startswith("log_std")},
            adam=adam or {},
            # The documented default: what selects some sources replays them.
            **{"actor_paths": "replayed" if routed and network.startswith(("d2r", "moe-top")) else "topk"}
            | {name: value for name, value in options.items() if name not in (*ELSEWHERE, "target_entropy")},
        ),
    )
    return model, sac


def play_episodes(model: MultiTaskSAC) -> list[tuple[float, float]]:
    """Lets a model see episodes of random rewards; the smallest and the largest return of each task."""
    generator, gamma = np.random.default_rng(3), model.gamma
    running: list[list[float]] = [[] for _ in range(TASKS)]
    returns: list[list[float]] = [[] for _ in range(TASKS)]
    for _ in range(30):
        rewards = generator.normal(size=TASKS) * (1, 4, 20) + (0, -2, 0)
        dones, cut = generator.random(TASKS) < 0.3, generator.random(TASKS) < 0.5
        model.return_bounds.add(np.arange(TASKS), rewards, dones, dones & cut)
        for task in range(TASKS):
            running[task].append(float(rewards[task]))
            if dones[task]:
                returns[task] += oracle_sac.returns_of_an_episode(running[task], gamma, bool(cut[task]))
                running[task] = []
    return [(min(each), max(each)) for each in returns]


def fill(model: MultiTaskSAC) -> None:
    generator = np.random.default_rng(1)
    for _ in range(ROWS):
        now, after = (np.concatenate([generator.normal(size=(TASKS, STATE)), np.eye(TASKS)], axis=1) for _ in range(2))
        paths = None
        if model.replays_paths:
            route = model.actor.act(torch.tensor(now), deterministic=False)[1]
            paths = model.policy.topology.pack(route.path).numpy()
        model.replay_buffer.add(
            now,
            after,
            generator.uniform(-1, 1, (TASKS, 2)),
            2 * generator.normal(size=TASKS),
            generator.random(TASKS) < 0.3,
            [{}] * TASKS,
            paths=paths,
        )


def draw(model: MultiTaskSAC, counts: Sequence[int] = (5, 3, 4), seed: int = 0) -> RouteReplaySamples:
    """A batch in float64 with so many transitions of each task, shuffled."""
    generator = np.random.default_rng(seed)
    tasks = generator.permutation(np.repeat(np.arange(TASKS), counts))
    places = np.empty_like(tasks)
    for task, count in enumerate(counts):
        places[tasks == task] = generator.permutation(ROWS)[:count]
    batch = model.replay_buffer.gather(tasks, places)
    doubles = ("observations", "actions", "next_observations", "dones", "rewards")
    return batch._replace(**{name: getattr(batch, name).double() for name in doubles})


def translate(batch: RouteReplaySamples) -> oracle_sac.Batch:
    return oracle_sac.Batch(
        batch.observations[:, :STATE],
        batch.actions,
        batch.next_observations[:, :STATE],
        batch.rewards[:, 0].tolist(),
        batch.dones[:, 0].tolist(),
        batch.observations[:, STATE:].argmax(dim=1).tolist(),
        batch.paths,
        batch.wanted,
        None if batch.discounts is None else batch.discounts[:, 0].tolist(),
    )


def step(model: MultiTaskSAC, sac: Any, batch: RouteReplaySamples) -> TaskReport:
    """An update of both from the same draws, compared."""
    recorder = Recorder(model)
    with recorder.listen(model):
        report = update(model, batch)
    translated = translate(batch)
    expected = sac.update(translated, recorder.draws(translated))
    assert_agree(report, expected)
    return report


def assert_agree(report: TaskReport, expected: oracle_sac.Result) -> None:
    for name, values in vars(expected).items():
        got = getattr(report, name).double()
        torch.testing.assert_close(
            got,
            torch.tensor(values, dtype=torch.float64),
            rtol=1e-8,
            atol=1e-8,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def assert_same_state(model: MultiTaskSAC, sac: Any) -> None:
    ours = (sac.actor, *sac.critics, *sac.targets)
    theirs = (model.actor.net, *model.critic.nets, *model.critic_target.nets)
    for i, (expected, got) in enumerate(zip(ours, theirs, strict=True)):
        for (name, x), y in zip(expected.named_parameters(), got.parameters(), strict=True):
            torch.testing.assert_close(
                y.detach(), x.detach(), **TOLERANCE, msg=lambda text, name=name, i=i: f"{name} of network {i}: {text}"
            )
    if sac.log_ent_coef is not None:
        torch.testing.assert_close(model.log_ent_coef.detach(), sac.log_ent_coef.detach(), **TOLERANCE)


def assert_updated_as_specified(
    model: MultiTaskSAC, sac: Any, updates: int = 2, shown: int = 0, **batch: Any
) -> list[TaskReport]:
    """Compares some updates; the first rows of each batch may be demonstrations."""
    reports = []
    for seed in range(updates):
        drawn = draw(model, **{"seed": seed} | batch)
        wanted = torch.tensor(np.random.default_rng(seed).uniform(-1, 1, (shown, 2))) if shown else None
        reports.append(step(model, sac, drawn._replace(wanted=wanted)))
        model._n_updates += 1
        follow(model.critic_target, model.critic, model.tau)
        sac.follow()
        assert_same_state(model, sac)
    return reports


def spread_rewards(batch: RouteReplaySamples, rewards: Sequence[float]) -> RouteReplaySamples:
    """Adds to the rewards of each task, which moves its loss."""
    return batch._replace(rewards=batch.rewards + torch.tensor(rewards).double()[batch.tasks, None])


def step_and_repair(model: MultiTaskSAC, sac: Any, batch: RouteReplaySamples) -> TaskReport:
    """A step where rows of the table are replaced by random ones: they are held to their contract, then copied."""
    report = step(model, sac, batch)
    if not hasattr(model.actor.net, "composition"):
        return report
    got, before = model.actor.net.composition.detach(), sac.actor.composition.detach()
    out = report.masked.bool()
    if out.all():
        out = torch.zeros_like(out)
    torch.testing.assert_close(got[~out], before[~out], **TOLERANCE)
    kept = torch.cat([before[~out], torch.ones(int((~out).sum()), 1, dtype=torch.float64)], dim=1)
    for row in got[out]:  # a convex combination of those that stay
        shares = torch.linalg.lstsq(kept.T, torch.cat([row, torch.ones(1, dtype=torch.float64)])).solution
        torch.testing.assert_close(shares @ kept[:, :-1], row, **TOLERANCE)
        assert (shares > -1e-9).all()
        assert abs(float(shares.sum()) - 1) < 1e-9
    sac.actor.composition.data[out] = got[out]
    return report


def distance(model: MultiTaskSAC, sac: oracle_sac.SAC) -> float:
    """The largest difference of a parameter of ours to that of the oracle."""
    ours = (model.actor.net, *model.critic.nets, *model.critic_target.nets)
    pairs = [
        (x, y)
        for net, other in zip(ours, (sac.actor, *sac.critics, *sac.targets), strict=True)
        for x, y in zip(net.parameters(), other.parameters(), strict=True)
    ]
    assert sac.log_ent_coef is not None
    pairs.append((model.log_ent_coef, sac.log_ent_coef))
    return max(float((x.detach() - y.detach()).abs().max()) for x, y in pairs)
