"""An update of MultiTaskSAC computes what the oracle of its specification does, in every option."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

import oracle_sac
from dynroute_sb3 import DemonstrationBuffer, MultiTaskSAC
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
    "paco": ("paco", {"num_sets": 2, "hidden_sizes": (6, 6)}),
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
    model: MultiTaskSAC, sac: Any, updates: int = 3, shown: int = 0, **batch: Any
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


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_is_updated_as_specified(network: str) -> None:
    assert_updated_as_specified(*make(network))


@pytest.mark.parametrize("network", ["mt-sac", "paco", "d2r"])
def test_five_updates_with_the_default_optimizer(network: str) -> None:
    assert_updated_as_specified(*make(network, adam=None, learning_rate=3e-4), updates=5)


@pytest.mark.parametrize("task_weights", ["none", "alpha-sum", "alpha-mean", "inverse-alpha-sum", "inverse-alpha-mean"])
def test_weights_of_tasks(task_weights: str) -> None:
    assert_updated_as_specified(*make("mt-sac", task_weights=task_weights))


@pytest.mark.parametrize(
    ("actor_paths", "critic_paths", "temperature"),
    [
        (actor, critic, temperature)
        for actor in ("sampled", "replayed", "topk")
        for critic in ("sampled", "replayed", "topk")
        for temperature in ("inverse-alpha-sum", "inverse-alpha-mean", 0.7)
        if temperature == "inverse-alpha-sum"
        or "sampled" in (actor, critic)  # else there is nothing that it would change
    ],
)
def test_paths_and_their_temperature(actor_paths: str, critic_paths: str, temperature: float | str) -> None:
    options = {"actor_paths": actor_paths, "critic_paths": critic_paths, "route_temperature": temperature}
    assert_updated_as_specified(*make("d2r", **options), updates=2)


@pytest.mark.parametrize("network", ["hard", "sm", "moe-top-2"])
def test_replayed_paths_of_other_gates(network: str) -> None:
    assert_updated_as_specified(*make(network, actor_paths="replayed", critic_paths="replayed"), updates=2)


@pytest.mark.parametrize(
    "options",
    [
        {"max_grad_norm": 0.02},
        {"max_grad_norm": 0.02, "task_weights": "alpha-mean"},
        {"reward_scale": 7.0},
        {"ent_coef": 0.2},
        {"ent_coef": 0.2, "task_weights": "alpha-sum"},
        {"ent_coef_lr": 0.3},
        {"gamma": 0.5, "tau": 0.7},
    ],
    ids=str,
)
@pytest.mark.parametrize("network", ["paco", "d2r"])
def test_options(network: str, options: dict[str, Any]) -> None:
    assert_updated_as_specified(*make(network, **options))


SHOWING: dict[str, dict[str, Any]] = {
    "waiting": {"actor_starts": 2},
    "cloning": {"demonstration_weight": 0.5},
    "both": {"demonstration_weight": 0.5, "demonstration_decay": 3, "actor_starts": 1, "max_grad_norm": 0.1},
    "without-a-task": {"demonstration_weight": 0.5, "max_task_loss": 8.0},
}


@pytest.mark.parametrize("name", SHOWING)
@pytest.mark.parametrize("network", ["mt-sac", "d2r", "care"])
def test_demonstrations(network: str, name: str) -> None:
    model, sac = make(network, **SHOWING[name], replay_buffer_class=DemonstrationBuffer, replay_buffer_kwargs=SHOWN)
    assert_updated_as_specified(model, sac, updates=5, shown=6)


def test_what_is_shared_waits_with_the_actor() -> None:
    model, sac = make("paco", actor_starts=2)
    assert_updated_as_specified(model, sac, updates=4)


@pytest.mark.parametrize("network", ["d2r", "paco", "care"])
def test_an_actor_that_waits_stays_as_it_is(network: str) -> None:
    model, _ = make(network, actor_starts=2)
    alphas = model.log_ent_coef.detach().clone()
    before = [p.detach().clone() for p in model.actor.parameters()]
    update(model, draw(model))
    model._n_updates = 1
    update(model, draw(model))
    assert all(torch.equal(old, new) for old, new in zip(before, model.actor.parameters(), strict=True))
    assert torch.equal(alphas, model.log_ent_coef)
    model._n_updates = 2
    update(model, draw(model))
    assert not all(torch.equal(old, new) for old, new in zip(before, model.actor.parameters(), strict=True))
    assert not torch.equal(alphas, model.log_ent_coef)


def test_coefficients_of_entropy_are_limited() -> None:
    model, sac = make("mh-sac", max_ent_coef=0.5, ent_coef_lr=0.3)
    assert_updated_as_specified(model, sac, updates=1)
    assert abs(float(model.log_ent_coef.detach().exp().max()) - 0.5) < 1e-12  # one was above it
    assert_updated_as_specified(model, sac)


@pytest.mark.parametrize("n_critics", [1, 3])
def test_any_number_of_critics(n_critics: int) -> None:
    assert_updated_as_specified(*make("paco", n_critics=n_critics, max_grad_norm=0.5), updates=2)


def test_unclipped_gradients_are_far_above_the_limit_that_is_tested() -> None:
    model, _ = make("paco")
    update(model, draw(model))
    for net in (model.actor.net, *model.critic.nets):
        own = [p.grad for p in net.parameters() if p is not net.composition]
        assert torch.stack([gradient.norm() for gradient in own]).norm() > 0.05


def test_log_std_is_limited_and_log_probabilities_are_exact_far_out() -> None:
    model, sac = make("mt-sac")
    for actor in (model.actor.net, sac.actor):
        with torch.no_grad():
            last = list(actor.parameters())[-2:]
            last[0].mul_(30)
            last[1].mul_(30)
    output = model.actor.net(*model.policy.task_space.split(draw(model).observations))[:, 2:]
    assert (output > 2).any()
    assert (output < -2).any()
    assert_updated_as_specified(model, sac)


def test_log_std_has_a_lower_limit() -> None:
    model, sac = make("mt-sac")
    for actor in (model.actor.net, sac.actor):
        with torch.no_grad():
            list(actor.parameters())[-1][2:] = torch.tensor([-30.0, -19.0])
    assert_updated_as_specified(model, sac)


def spread_rewards(batch: RouteReplaySamples, rewards: Sequence[float]) -> RouteReplaySamples:
    """Adds to the rewards of each task, which moves its loss."""
    return batch._replace(rewards=batch.rewards + torch.tensor(rewards).double()[batch.tasks, None])


@pytest.mark.parametrize(
    ("network", "weights"),
    [("mt-sac", "none"), ("mh-sac", "none"), ("d2r", "none"), ("paco", "none"), ("paco", "alpha-mean")],
)
@pytest.mark.parametrize(
    ("rewards", "masked"),
    [
        ((0.0, 0.0, 0.0), [0, 0, 0]),
        ((0.0, 100.0, 0.0), [0, 1, 0]),
        ((100.0, 0.0, -100.0), [1, 0, 1]),
        ((100.0, 100.0, 100.0), [1, 1, 1]),
        ((0.0, 0.0, float("nan")), [0, 0, 1]),
        ((0.0, float("inf"), 0.0), [0, 1, 0]),
    ],
    ids=str,
)
def test_tasks_whose_critics_loss_is_too_large_are_left_out(
    network: str, weights: str, rewards: Sequence[float], masked: list[int]
) -> None:
    model, sac = make(network, max_task_loss=2000.0, task_weights=weights, max_grad_norm=1.0)
    step_and_repair(model, sac, draw(model))  # gives Adam moments, which move parameters even where no task is left
    report = step_and_repair(model, sac, spread_rewards(draw(model, seed=5), rewards))
    assert_same_state(model, sac)
    assert report.masked.tolist() == masked
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


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


@pytest.mark.parametrize(("network", "shift"), [("mh-sac", -300.0), ("paco", 300.0)])
def test_a_task_whose_actor_loss_is_too_large_is_left_out_of_the_actor_alone(network: str, shift: float) -> None:
    # Rewards are the values, which are large, so that only the actor's loss, which is minus a value, is large.
    model, sac = make(network, max_task_loss=200.0, gamma=0.0)
    for critics in (model.critic.nets, sac.critics):
        for net in critics:
            with torch.no_grad():
                list(net.parameters())[-1][-1] += shift  # the head of the last task, or the last parameter set
    batch = draw(model)
    inputs = torch.cat([batch.observations[:, :STATE], batch.actions], dim=1)
    values = torch.stack([net(inputs, batch.tasks) for net in model.critic.nets]).mean(dim=0).detach()
    report = step_and_repair(model, sac, batch._replace(rewards=values))
    assert_same_state(model, sac)
    assert (report.critic_loss < 200).all()
    assert 0 < report.masked.sum() < TASKS


@pytest.mark.parametrize("network", ["mt-sac", "mh-sac", "care", "paco", "d2r"])
@pytest.mark.parametrize("options", [{}, {"ent_coef": 0.2}], ids=str)
def test_the_number_of_samples_of_a_task_is_no_weight(network: str, options: dict[str, Any]) -> None:
    assert_updated_as_specified(*make(network, task_weights="alpha-mean", **options), updates=2, counts=(1, 7, 4))


# The replay buffer never leaves a task out; a batch of one's own may.
@pytest.mark.parametrize("network", ["mt-sac", "mh-sac", "care", "paco", "d2r"])
@pytest.mark.parametrize("counts", [(6, 0, 2), (0, 0, 5)], ids=str)
def test_a_task_without_samples_has_losses_of_zero(network: str, counts: Sequence[int]) -> None:
    reports = assert_updated_as_specified(*make(network, ent_coef=0.2), updates=2, counts=counts)
    for losses in (getattr(report, name) for report in reports for name in ("actor_loss", "critic_loss")):
        assert [bool(loss) for loss in losses] == [count > 0 for count in counts]


def test_the_coefficient_of_a_task_without_samples_stays() -> None:
    assert_updated_as_specified(*make("mt-sac"), updates=1, counts=(6, 0, 2))


def test_rows_can_be_in_any_order() -> None:
    results = []
    for reverse in (False, True):
        torch.manual_seed(0)
        model, _ = make("mh-sac", ent_coef=0.2, max_grad_norm=1.0)
        batch = draw(model)
        if reverse:
            batch = RouteReplaySamples(*(None if part is None else part.flip(0) for part in batch))
        with mock.patch(
            "dynroute_sb3.actor.torch.randn", lambda shape, **options: torch.ones(shape, dtype=options["dtype"])
        ):
            results.append(vars(update(model, batch)))
    for name, values in results[0].items():
        torch.testing.assert_close(results[1][name], values, msg=name)


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("network", ["paco", "d2r"])
def test_training_moves_the_targets_every_so_many_updates_however_they_are_called_for(
    network: str, interval: int
) -> None:
    model, sac = make(network, target_update_interval=interval)
    batches = [draw(model, (4, 4, 4), seed) for seed in range(5)]
    recorder = Recorder(model)
    model.policy.set_training_mode(False)  # train() sets it
    with mock.patch.object(model.replay_buffer, "sample", side_effect=batches), recorder.listen(model):
        model.train(3, 12)
        model.train(2, 12)
    for i, batch in enumerate(batches):
        translated = translate(batch)
        sac.update(translated, recorder.draws(translated))
        if i % interval == 0:
            sac.follow()
    assert_same_state(model, sac)


@pytest.mark.parametrize("network", NETWORKS)
def test_products_in_16_bits_change_little_and_nothing_else_is_in_16_bits(network: str) -> None:
    models = []
    for precision in ("float32", "bf16"):
        torch.manual_seed(0)
        model, _ = make(network, adam=None, learning_rate=1e-3, precision=precision)
        model.policy.float()
        models.append(model)
    models[1].policy.load_state_dict(models[0].policy.state_dict())
    batch = draw(models[0])
    kept = {name: part for name, part in batch._asdict().items() if torch.is_tensor(part) and part.is_floating_point()}
    batch = batch._replace(**{name: part.float() for name, part in kept.items()})
    reports = []
    for model in models:
        torch.manual_seed(1)
        reports.append(update(model, batch))
        for optimizer in (model.actor.optimizer, model.critic.optimizer):
            for parameter, state in optimizer.state.items():
                assert {parameter.dtype, parameter.grad.dtype, state["exp_avg"].dtype} == {torch.float32}
    plain, rough = reports
    for name, values in vars(rough).items():
        assert values.dtype in (torch.float32, torch.float64)
        expected = vars(plain)[name]
        torch.testing.assert_close(values, expected, rtol=0.1, atol=0.1 * float(expected.abs().max() + 1), msg=name)
    assert not torch.equal(rough.critic_loss, plain.critic_loss), "nothing was in 16 bits"
