"""Critics of BRC teach the embedding of the task that their actor reads, and may have another size."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from dynroute_sb3 import MultiTaskSAC, critic_plasticity, point_tasks
from dynroute_sb3.actor import MultiTaskActor
from dynroute_sb3.update import follow, update

TASKS = 4
NETWORKS: dict[str, dict[str, Any]] = {
    "brc": {"width": 8, "blocks": 1, "embedding_features": 3},
    "scalemoe-feature": {"num_experts": 3, "width": 8, "embedding_features": 3},
    "scalemoe-output": {"num_experts": 3, "width": 8, "embedding_features": 3, "gate": "hard"},
}


def make(network: str = "brc", kwargs: dict[str, Any] | None = None, **options: Any) -> MultiTaskSAC:
    policy = {"network": network, "network_kwargs": NETWORKS.get(network, {}), **(kwargs or {})}
    given = {"batch_size": 32, "learning_starts": 40, "seed": 0, "learning_rate": 1e-2, **options}
    return MultiTaskSAC("MultiTaskPolicy", DummyVecEnv(point_tasks()), policy_kwargs=policy, device="cpu", **given)


def observations() -> np.ndarray:
    states = np.random.default_rng(0).uniform(-1, 1, (2 * TASKS, 4))
    return np.concatenate([states, np.eye(TASKS).repeat(2, axis=0)], axis=1).astype(np.float32)


def embeddings(model: MultiTaskSAC) -> list[Tensor]:
    return [net.encoder.embedding for net in (model.actor.net, *model.critic.nets)]


@pytest.mark.parametrize("network", NETWORKS)
def test_actor_and_critics_have_one_embedding_and_the_targets_a_copy(network: str) -> None:
    model = make(network)
    first, *others = embeddings(model)
    assert all(other is first for other in others)
    target, again = (net.encoder.embedding for net in model.critic_target.nets)
    assert target is again
    assert target is not first
    assert torch.equal(target, first)
    assert not target.requires_grad
    assert not model.actor.net.encoder.learn_embedding
    assert all(net.encoder.learn_embedding for net in (*model.critic.nets, *model.critic_target.nets))
    assert getattr(model.actor.net, "merges_deviations", False) == (network == "scalemoe-output")
    assert not any(getattr(net, "merges_deviations", False) for net in model.critic.nets)

    optimizers = [model.actor.optimizer, model.critic.optimizer, model.policy.shared_optimizer]
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    learning = {id(p) for part in (model.actor, model.critic) for p in part.parameters()}
    assert len(held) == len(set(held))
    assert set(held) == learning
    assert model.policy.shared_optimizer.param_groups[0]["params"] == [first]


@pytest.mark.parametrize("network", NETWORKS)
def test_the_loss_of_the_actor_does_not_reach_the_embedding(network: str) -> None:
    model = make(network)
    table, states = embeddings(model)[0], torch.as_tensor(observations())
    actions, log_probs, *_ = model.actor.action_log_prob(states)
    (log_probs.sum() + actions.sum()).backward()
    assert table.grad is None
    assert any(p.grad is not None and p.grad.any() for p in model.actor.parameters())
    model.critic(states, actions.detach()).sum().backward()
    assert table.grad is not None
    assert table.grad.any(dim=1).all()


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_an_update_moves_the_embedding_by_the_gradient_of_the_critics(network: str, joint: bool) -> None:
    model = make(network, {"optimizer_class": torch.optim.SGD}, joint_update=joint, ent_coef=0.1).learn(80)
    batch, start = model.replay_buffer.sample(32), copy.deepcopy(model._networks())

    def gradient(*, actor_learns: bool, reads: bool) -> Tensor:
        networks = copy.deepcopy(start)
        networks.actor.net.encoder.learn_embedding = reads
        torch.manual_seed(0)
        update(batch, networks, dataclasses.replace(model._coefficients(), actor_learns=actor_learns))
        table, before = networks.actor.net.encoder.embedding, start.actor.net.encoder.embedding
        if actor_learns:
            torch.testing.assert_close(table, before - 1e-2 * table.grad)
        return table.grad

    of_critics = gradient(actor_learns=False, reads=False)
    assert of_critics.any(dim=1).all()
    torch.testing.assert_close(gradient(actor_learns=True, reads=False), of_critics)
    assert not torch.allclose(gradient(actor_learns=True, reads=True), of_critics)


def test_targets_follow_the_embedding() -> None:
    model = make()
    table, target = embeddings(model)[0], model.critic_target.nets[0].encoder.embedding
    before = target.clone()
    with torch.no_grad():
        table.add_(1.0)
    follow(model.critic_target, model.critic, 0.25)
    torch.testing.assert_close(target, before + 0.25)


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_saved_shares_again(network: str, tmp_path: Path) -> None:
    model = make(network).learn(120)
    model.save(tmp_path / "model")
    model.save_checkpoint(tmp_path / "checkpoint")
    expected = model.predict(observations(), deterministic=True)[0]
    for loaded in (
        MultiTaskSAC.load(tmp_path / "model", DummyVecEnv(point_tasks()), device="cpu"),
        MultiTaskSAC.load_checkpoint(tmp_path / "checkpoint", DummyVecEnv(point_tasks()), "cpu"),
    ):
        first, *others = embeddings(loaded)
        assert all(other is first for other in others)
        assert torch.equal(first, embeddings(model)[0])
        assert not loaded.actor.net.encoder.learn_embedding
        assert np.array_equal(loaded.predict(observations(), deterministic=True)[0], expected)
    model.actor.save(tmp_path / "actor")
    actor = MultiTaskActor.load(tmp_path / "actor", device="cpu")
    assert np.array_equal(actor.predict(observations(), deterministic=True)[0], expected)
    assert not actor.net.encoder.learn_embedding


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_critics_of_another_size(precision: str, tmp_path: Path) -> None:
    sizes = {"network_kwargs": {"width": 8, "blocks": 1}, "critic_kwargs": {"width": 24, "blocks": 2}}
    model = make("brc", sizes, precision=precision).learn(120)
    assert model.actor.net.head.in_features == 8
    for net in (*model.critic.nets, *model.critic_target.nets):
        assert net.head.in_features == 24
        assert len(net.blocks) == 2
    assert len(model.actor.net.blocks) == 1
    assert all(p.isfinite().all() for p in model.policy.parameters())
    assert all(p.dtype == torch.float32 for p in model.policy.parameters())
    model.policy.save(tmp_path / "policy")
    loaded = type(model.policy).load(tmp_path / "policy", device="cpu")
    assert loaded.critic.nets[0].head.in_features == 24


def test_critics_of_another_size_for_other_networks() -> None:
    model = make("d2r", {"network_kwargs": {"num_modules": 3, "width": 8}, "critic_kwargs": {"width": 16}})
    assert [net.routed.nodes[-1].in_features for net in (model.actor.net, model.critic.nets[0])] == [8, 16]
    with pytest.raises(ValueError, match="`widths` is not a keyword of the network d2r; did you mean `width`"):
        make("d2r", {"critic_kwargs": {"widths": 8}})
    with pytest.raises(ValueError, match=r"`embedding` must have shape \(4, 5\), a row for each task, got \(4, 3\)"):
        make("brc", {"critic_kwargs": {"embedding_features": 5}})


def test_critics_balance_their_experts_in_updates_alone_and_targets_follow() -> None:
    model = make("scalemoe-feature", {"critic_kwargs": {"gate": "balanced-2"}}).learn(120)
    learning, following = (
        [net.routed.gate.bias.clone() for net in critics.nets] for critics in (model.critic, model.critic_target)
    )
    rate = model.critic.nets[0].routed.gate.rate
    for bias, target in zip(learning, following, strict=True):
        moves = bias / rate
        assert torch.equal(bias, target)
        assert model._n_updates / 2 < moves.abs().max() < model._n_updates  # once in each, by the critics' own loss
        assert torch.allclose(moves, moves.round(), atol=1e-3)  # whole steps
    model.predict(observations())
    critic_plasticity(model, 64)
    assert all(torch.equal(net.routed.gate.bias, bias) for net, bias in zip(model.critic.nets, learning, strict=True))
