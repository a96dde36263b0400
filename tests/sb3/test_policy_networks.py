"""The networks of a policy: by alias, by `net_arch`, of the user, on-policy."""

import copy
import functools
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sac_models import SIZES, SMALL, TASKS, TINY, make_model, make_plain, observations, points, same, wrong_size
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn

from dynroute import networks
from dynroute_sb3 import (
    D2RPolicy,
    MultiTaskActorCriticPolicy,
    MultiTaskSAC,
)
from dynroute_sb3.policies import ELSEWHERE, POLICIES

NETWORKS = {
    "MultiTaskPolicy": "MultiTaskMLP",
    "MlpPolicy": "MultiTaskMLP",
    "MultiHeadPolicy": "MultiHead",
    "MoEPolicy": "MixtureOfExperts",
    "HardRoutingPolicy": "HardRouting",
    "SoftModularPolicy": "SoftModularization",
    "CAREPolicy": "CARE",
    "PaCoPolicy": "PaCo",
    "D2RPolicy": "DynamicDepthRouting",
    "BRCPolicy": "ResidualMLP",
    "ScaleMoEPolicy": "ScaleMoE",
}


@pytest.mark.parametrize("policy", POLICIES)
def test_every_alias_builds_its_network_and_is_saved_alone(policy: str, tmp_path: Path) -> None:
    for given in (policy, POLICIES[policy]):
        model = make_model(given, policy_kwargs={"network_kwargs": SIZES[policy]})
        nets = [model.actor.net, *model.critic.nets, *model.critic_target.nets]
        assert [type(net).__name__ for net in nets] == [NETWORKS[policy]] * 5
        assert not any(p.requires_grad for p in model.critic_target.parameters())
    model.policy.save(str(tmp_path / "policy"))
    loaded = POLICIES[policy].load(str(tmp_path / "policy"), device="cpu")
    assert type(loaded) is POLICIES[policy]
    assert same(loaded.state_dict(), model.policy.state_dict())
    for deterministic in (True, False):
        torch.manual_seed(3)
        expected = model.policy.predict(observations(), deterministic=deterministic)[0]
        torch.manual_seed(3)
        assert np.array_equal(loaded.predict(observations(), deterministic=deterministic)[0], expected)


class Own(nn.Module):
    """A network that a user wrote, who knows nothing of dynroute."""

    def __init__(self, state_features: int, num_tasks: int, out_features: int, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(state_features + num_tasks, width), nn.Linear(width, out_features))

    def forward(self, state: Tensor, task: Tensor, *, return_route: bool = False, **_: Any) -> Any:
        output = self.layers(torch.cat([state, task], dim=-1))
        return (output, None) if return_route else output


def own(*sizes: int, **kwargs: Any) -> Own:
    return Own(*sizes, **kwargs)


FACTORIES: dict[str, Any] = {
    "class": Own,
    "function": own,
    "lambda": lambda *sizes, **kwargs: Own(*sizes, **kwargs),
    "partial": functools.partial(networks.build, "d2r", **TINY),
    "method": networks.DynamicDepthRouting,
}


@pytest.mark.parametrize("name", FACTORIES)
def test_a_network_of_the_user(name: str, tmp_path: Path) -> None:
    sizes = {"partial": {}, "method": TINY}.get(name, {"width": 5})
    model = make_model("MultiTaskPolicy", policy_kwargs={"network": FACTORIES[name], "network_kwargs": sizes})
    assert isinstance(model.actor.net, Own if sizes == {"width": 5} else networks.DynamicDepthRouting)
    assert model.actor_paths == ("topk" if isinstance(model.actor.net, Own) else "replayed")
    model.learn(52)
    model.save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model", env=points(), device="cpu")
    best, again = (m.predict(observations(), deterministic=True)[0] for m in (model, loaded))
    assert np.array_equal(best, again)
    loaded.learn(52)


@pytest.mark.parametrize(("n_critics", "optimizer"), [(1, torch.optim.SGD), (3, torch.optim.AdamW)])
def test_keywords_of_a_policy(n_critics: int, optimizer: type[torch.optim.Optimizer], tmp_path: Path) -> None:
    kwargs = {"n_critics": n_critics, "optimizer_class": optimizer, "optimizer_kwargs": {"weight_decay": 0.1}}
    model = make_model(policy_kwargs=kwargs)
    model.learn(60)
    model.policy.save(str(tmp_path / "policy"))
    model.save(tmp_path / "model")
    for policy in (
        model.policy,
        D2RPolicy.load(str(tmp_path / "policy"), device="cpu"),
        MultiTaskSAC.load(tmp_path / "model", device="cpu").policy,
    ):
        assert len(policy.critic.nets) == len(policy.critic_target.nets) == n_critics
        assert type(policy.actor.optimizer) is type(policy.critic.optimizer) is optimizer
        assert policy.actor.optimizer.defaults["weight_decay"] == 0.1


def widths(net: nn.Module) -> list[int]:
    """The widths of the hidden layers of an MLP."""
    return [layer.out_features for layer in net.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize(
    ("policy", "net_arch", "pi", "qf"),
    [
        ("MlpPolicy", [12, 8], [12, 8], [12, 8]),
        ("MlpPolicy", (6,), [6], [6]),
        ("MlpPolicy", [], [], []),
        ("MlpPolicy", {"pi": [8], "qf": [10, 9]}, [8], [10, 9]),
        ("MultiHeadPolicy", {"pi": [8, 7], "qf": [10]}, [8, 7], [10]),
    ],
)
def test_net_arch_says_the_widths(policy: str, net_arch: Any, pi: list[int], qf: list[int], tmp_path: Path) -> None:
    model = make_plain(policy, policy_kwargs={"net_arch": net_arch, "activation_fn": nn.Tanh, "n_critics": 2})
    heads = TASKS if policy == "MultiHeadPolicy" else 1

    def check(policy: Any) -> None:
        assert widths(policy.actor.net) == [*pi, *[4] * heads]
        for net in (*policy.critic.nets, *policy.critic_target.nets):
            assert widths(net) == [*qf, *[1] * heads]
        activations = [layer for layer in policy.modules() if isinstance(layer, (nn.Tanh, nn.ReLU))]
        assert len(activations) == len(pi) + 4 * len(qf)
        assert all(isinstance(layer, nn.Tanh) for layer in activations)

    check(model.policy)
    model.learn(60)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    loaded = MultiTaskSAC.load(tmp_path / "model", env=points(), device="cpu")
    check(loaded.policy)
    check(type(model.policy).load(tmp_path / "policy"))
    assert np.array_equal(*(m.predict(observations(), deterministic=True)[0] for m in (model, loaded)))


def test_net_arch_and_network_kwargs_make_the_same_model() -> None:
    one = make_plain(policy_kwargs={"net_arch": [8]})
    other = make_plain(policy_kwargs=SMALL)
    for name, value in one.policy.state_dict().items():
        assert torch.equal(value, other.policy.state_dict()[name])


def test_net_arch_belongs_to_a_checkpoint(tmp_path: Path) -> None:
    model = make_plain(policy_kwargs={"net_arch": {"pi": [8], "qf": [9]}}).learn(60)
    model.save_checkpoint(tmp_path / "there")
    loaded = MultiTaskSAC.load_checkpoint(tmp_path / "there", points(), "cpu")
    assert widths(loaded.critic.nets[0]) == [9, 1]


ROUTED = r"needs a network that is one MLP, such as 'mt-sac' or 'mh-sac', got it with "


UNUSED = r"must not be given in `policy_kwargs`, got .*whose keywords are `network_kwargs`\."


KEYWORDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "d2r": ("D2RPolicy", {"net_arch": [8]}, f"`net_arch` {ROUTED}'d2r'; give .*`network_kwargs`: .*num_modules"),
    "paco": ("PaCoPolicy", {"activation_fn": nn.Tanh}, f"`activation_fn` {ROUTED}'paco'; .*`network_kwargs`: .*num_se"),
    "own": ("MlpPolicy", {"net_arch": [8], "network": lambda *_: nn.Linear(1, 1)}, f"`net_arch` {ROUTED}<lambda>;"),
    "twice": (
        "MlpPolicy",
        {"net_arch": [8], "network_kwargs": {"hidden_sizes": (9,)}},
        r"`net_arch` and `hidden_sizes` of `network_kwargs` say the same; give one of them, got \[8\] and \(9,\)",
    ),
    "twice for the critics": (
        "MlpPolicy",
        {"net_arch": [8], "critic_kwargs": {"hidden_sizes": (9,)}},
        r"`net_arch` and `hidden_sizes` of `critic_kwargs` say the same; give one of them, got \[8\] and \(9,\)",
    ),
    "keys": (
        "MlpPolicy",
        {"net_arch": {"pi": [8], "vf": [8]}},
        r"`net_arch` must be a list.*got the keys \['pi', 'vf'\]",
    ),
    "no list": ("MlpPolicy", {"net_arch": 8}, "`net_arch` must list widths of layers, integers of at least 1, got 8"),
    "no width": ("MlpPolicy", {"net_arch": [8, 0]}, r"`net_arch` must list widths of layers.*got \[8, 0\]"),
    "old form": (
        "MlpPolicy",
        {"net_arch": [{"pi": [8], "qf": [8]}]},
        "`net_arch` must list widths of layers, integers",
    ),
    "heads": ("MultiHeadPolicy", {"net_arch": []}, "`hidden_sizes` must list at least one size"),
    "log_std_init": ("MlpPolicy", {"log_std_init": -2}, f"`log_std_init` {UNUSED}"),
    "clip_mean": ("MlpPolicy", {"clip_mean": 1.0}, f"`clip_mean` {UNUSED}"),
    "use_expln": ("MlpPolicy", {"use_expln": True}, f"`use_expln` {UNUSED}"),
    "shared": ("MlpPolicy", {"share_features_extractor": True}, f"`share_features_extractor` {UNUSED}"),
    "extractor": ("MlpPolicy", {"features_extractor_class": NatureCNN}, f"`features_extractor_class` {UNUSED}"),
    "its keywords": ("MlpPolicy", {"features_extractor_kwargs": {"a": 1}}, f"`features_extractor_kwargs` {UNUSED}"),
}


@pytest.mark.parametrize("name", KEYWORDS)
def test_keywords_without_a_place(name: str) -> None:
    policy, kwargs, told = KEYWORDS[name]
    with pytest.raises(ValueError, match=told):
        make_plain(policy, policy_kwargs=kwargs)


def test_keywords_that_have_the_defaults_of_sb3() -> None:
    parameters = inspect.signature(SACPolicy.__init__).parameters
    kwargs = {name: parameters[name].default for name in ELSEWHERE}
    assert kwargs["clip_mean"] == 2.0
    policy = make_plain(policy_kwargs={"network_kwargs": {"hidden_sizes": (8,)}, **kwargs}).policy
    assert next(layer.out_features for layer in policy.actor.net.modules() if isinstance(layer, torch.nn.Linear)) == 8


@pytest.mark.parametrize("name", ["network_kwargs", "critic_kwargs"])
def test_keywords_are_a_dictionary(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^`{name}` must be a dictionary of keywords, got \[\('width', 8\)\]\.$"):
        make_plain(policy_kwargs={name: [("width", 8)]})


@pytest.mark.parametrize("kwargs", [{}, {"log_std_init": -2, "net_arch": [8]}], ids=["plain", "as in the Zoo"])
def test_state_dependent_exploration(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"`use_sde` must be False: state-dependent exploration .* `action_noise`"):
        make_plain(use_sde=True, policy_kwargs=kwargs)
    with pytest.raises(ValueError, match="`use_sde` must be False: state-dependent exploration"):
        make_plain(policy_kwargs={**kwargs, "use_sde": True})


def test_a_keyword_of_a_network_among_those_of_the_policy() -> None:
    with pytest.raises(
        TypeError,
        match=r"`policy_kwargs` must be keywords of MultiTaskPolicy, got `num_modules`; keywords of the network",
    ):
        make_plain(policy_kwargs={"num_modules": 4})


def test_keywords_that_ask_for_nothing() -> None:
    kwargs = {
        "normalize_images": False,
        "share_features_extractor": False,
        "features_extractor_class": FlattenExtractor,
        "features_extractor_kwargs": {},
    }
    model = make_plain(policy_kwargs={"net_arch": [8], **kwargs})
    assert not model.policy.normalize_images
    one, other = (m.policy.state_dict() for m in (model, make_plain(policy_kwargs=SMALL)))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


class Plain(nn.Module):
    """Takes a state and a task, and nothing else."""

    def __init__(self, state_features: int, num_tasks: int, out_features: int, wider: int = 0) -> None:
        super().__init__()
        self.layer = nn.Bilinear(state_features, num_tasks, out_features + wider)
        self.norm = nn.BatchNorm1d(out_features + wider)
        self.drop = nn.Dropout(0.5)

    def forward(self, state: Tensor, task: Tensor) -> Any:
        return self.drop(self.norm(self.layer(state, task)))


def test_a_network_needs_a_state_and_a_task_alone(tmp_path: Path) -> None:
    model = make_plain(policy_kwargs={"network": Plain})
    assert all(net.norm.num_batches_tracked == 0 and net.training for net in [model.actor.net, *model.critic.nets])
    model.learn(60)
    model.save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model", env=points(), device="cpu")
    assert np.array_equal(*(m.predict(observations(), deterministic=True)[0] for m in (model, loaded)))
    loaded.learn(60)
    assert loaded._n_updates > model._n_updates


@pytest.mark.parametrize("name", ["net_arch", "ortho_init", "features_extractor_kwargs", "full_std"])
def test_on_policy_keywords_without_a_place(name: str) -> None:
    kwargs = {"num_tasks": TASKS, "network": Plain, name: {"a": 1}}
    with pytest.raises(ValueError, match=f"`{name}` must not be given: `network` and `network_kwargs` say all of the"):
        PPO(MultiTaskActorCriticPolicy, points(), policy_kwargs=kwargs, device="cpu")


def test_on_policy_keywords_that_ask_for_nothing() -> None:
    nothing = {"ortho_init": False, "net_arch": None, "activation_fn": None, "features_extractor_kwargs": {}}
    kwargs = {"num_tasks": TASKS, "network": Plain, **nothing}
    sizes: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "device": "cpu", "seed": 0}
    one, other = (
        PPO(MultiTaskActorCriticPolicy, points(), policy_kwargs=each, **sizes).learn(32).policy.state_dict()
        for each in (kwargs, {"num_tasks": TASKS, "network": Plain})
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_on_policy_a_network_needs_a_state_and_a_task_alone() -> None:
    kwargs = {"num_tasks": TASKS, "network": Plain}
    model = PPO(
        MultiTaskActorCriticPolicy, points(), n_steps=8, batch_size=8, device="cpu", policy_kwargs=kwargs, seed=0
    )
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(32)
    after = list(model.policy.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("network", ["d2r", "mt-sac"])
def test_on_policy_networks_of_doubles(network: str) -> None:
    sizes = {**(TINY if network == "d2r" else SIZES["MlpPolicy"]), "dtype": torch.float64}
    kwargs = {"num_tasks": TASKS, "network": network, "network_kwargs": sizes}
    model = PPO(MultiTaskActorCriticPolicy, points(), n_steps=8, batch_size=8, device="cpu", policy_kwargs=kwargs)
    assert {p.dtype for p in model.policy.mlp_extractor.parameters()} == {torch.float64}
    before = copy.deepcopy(model.policy.mlp_extractor.state_dict())
    model.learn(32)
    assert not same(model.policy.mlp_extractor.state_dict(), before)
    actions, values, log_probs = model.policy(torch.as_tensor(observations()))
    assert actions.dtype == values.dtype == log_probs.dtype == torch.float32


def test_a_network_that_is_tried_draws_nothing() -> None:
    class Drawing(Plain):
        def forward(self, state: Tensor, task: Tensor) -> Any:
            return super().forward(state, task) + torch.rand(())

    draws = []
    for network in (Plain, Drawing):
        make_plain(policy_kwargs={"network": network})
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


class Half(Plain):
    def forward(self, state: Tensor, task: Tensor, path: Any = None, sample: bool = False) -> Any:  # type: ignore[override]
        return super().forward(state, task)


class Pair(Plain):
    def forward(self, state: Tensor, task: Tensor) -> Any:
        return [super().forward(state, task)]


class Nothing(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()

    def forward(self, state: Tensor, task: Tensor) -> Tensor:
        return state


OWN: dict[str, tuple[Any, type[Exception], str]] = {
    "instance": (Plain(4, 4, 4), TypeError, "`network` must make networks, got a Plain that is made: .*pass the class"),
    "no callable": (3, TypeError, r"`network` must be a name of dynroute.networks.available\(\), or a class.*got 3\."),
    "no module": (lambda *_: torch.relu, TypeError, "`network` must make modules of torch, it made <built-in"),
    "nothing to learn": (Nothing, ValueError, "`network` must make networks with parameters to learn, got a Nothing"),
    "width": (
        lambda *sizes: Plain(*sizes, wider=1),
        ValueError,
        r"`network` must make networks whose forward\(state, task\) returns a tensor with shape \(batch, 4\), as "
        r"out_features=4 asks for, got a tensor of torch.float32 with shape \(2, 5\) of a Plain for a batch of 2\.",
    ),
    "no tensor": (Pair, ValueError, r"returns a tensor with shape \(batch, 4\).*got .*of a Pair for a batch of 2"),
    "some keywords": (
        Half,
        TypeError,
        r"`forward` of a Half must take \(state, task\) alone, or all keywords of routing, got path, sample without "
        r"temperature, generator, return_route; add these, or \*\*kwargs\.",
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_networks_that_do_not_fit(name: str) -> None:
    network, kind, told = OWN[name]
    with pytest.raises(kind, match=told):
        make_plain(policy_kwargs={"network": network})


def test_a_network_that_fails_is_told_with_the_shapes_it_was_tried_on() -> None:
    class Swapped(Plain):
        def forward(self, task: Tensor, state: Tensor) -> Any:
            return super().forward(state[:, :3], task)

    with pytest.raises(RuntimeError) as failed:
        make_plain(policy_kwargs={"network": Swapped})
    assert failed.value.__notes__ == [
        "`network` made a Swapped, which was tried on a state with shape (2, 4) and a task with shape (2, 4)."
    ]


def test_a_network_that_is_made_once() -> None:
    nets: dict[int, nn.Module] = {}
    with pytest.raises(
        ValueError, match="`network` must make a new network at each call, it made the same Plain again"
    ):
        make_plain(policy_kwargs={"network": lambda *sizes: nets.setdefault(sizes[-1], Plain(*sizes))})


def test_on_policy_a_network_that_is_made_once() -> None:
    nets: dict[int, nn.Module] = {}
    with pytest.raises(ValueError, match="`network` must make a new network at each call, it made the same Plain"):
        MultiTaskActorCriticPolicy(
            spaces.Box(-2, 2, (8,)),
            spaces.Box(-1, 1, (1,)),  # as many outputs as a value has
            lambda _: 1e-3,
            TASKS,
            lambda *sizes: nets.setdefault(sizes[-1], Plain(*sizes)),
        )


def test_modes_of_training() -> None:
    model = make_plain(policy_kwargs={"network": Plain}).learn(60)
    nets = [model.actor.net, *model.critic.nets]
    for mode in (True, False):
        model.policy.set_training_mode(mode)
        assert all(part.training == mode for net in nets for part in net.modules())
        assert not any(net.training for net in model.critic_target.nets)
    before = copy.deepcopy(model.actor.net.norm.running_mean)
    one, other = (model.predict(observations(), deterministic=True)[0] for _ in range(2))
    assert np.array_equal(one, other)
    assert torch.equal(model.actor.net.norm.running_mean, before)


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("MultiInputPolicy", "got 'MultiInputPolicy': it is for observations that are dictionaries, .*OneHotTask"),
        ("CnnPolicy", "got 'CnnPolicy': it is for images, and these networks read vectors"),
        ("Mlp", "got 'Mlp'; did you mean 'MlpPolicy'"),
        (
            SACPolicy,
            "or a class that inherits from MultiTaskPolicy, got <class .*SACPolicy'>; a network of your own",
        ),
        (nn.Linear, "or a class that inherits from MultiTaskPolicy, got <class .*Linear'>"),
    ],
)
def test_policies_that_are_not_there(policy: Any, told: str) -> None:
    with pytest.raises(ValueError, match=rf"`policy` must be one of 'MultiTaskPolicy', 'MlpPolicy', .*{told}"):
        make_plain(policy)


@pytest.mark.parametrize(
    ("kwargs", "action_space"), [({"use_sde": True}, spaces.Box(-1, 1, (2,))), ({}, spaces.Discrete(3))]
)
def test_on_policy_needs_gaussian_actions(kwargs: dict[str, Any], action_space: spaces.Space[Any]) -> None:
    with pytest.raises(ValueError, match="`action_space` must be a Box, and `use_sde` False, for these networks"):
        MultiTaskActorCriticPolicy(spaces.Box(-2, 2, (8,)), action_space, lambda _: 1e-3, 4, **kwargs)


@pytest.mark.parametrize(
    "useless", [{"net_arch": [8]}, {"activation_fn": nn.ReLU}, {"features_extractor_class": nn.Identity}]
)
def test_on_policy_has_no_layers_of_sb3(useless: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"`{next(iter(useless))}` must not be given: `network` and `network_kwargs`"):
        MultiTaskActorCriticPolicy(
            spaces.Box(-2, 2, (8,)), spaces.Box(-1, 1, (2,)), lambda _: 1e-3, 4, network_kwargs=TINY, **useless
        )


def test_on_policy_factory_with_other_tasks() -> None:
    with pytest.raises(ValueError, match="`network` must make networks with num_tasks=4"):
        PPO(
            MultiTaskActorCriticPolicy,
            points(),
            policy_kwargs={"num_tasks": 4, "network": lambda *sizes: wrong_size(sizes, 1)},
            device="cpu",
        )


@pytest.mark.parametrize("num_tasks", [2, 8, 9])
def test_on_policy_with_another_number_of_tasks(num_tasks: int) -> None:
    """One that fits the shape is told by what the observations end with."""
    kwargs = {"num_tasks": num_tasks, "network_kwargs": TINY}
    with pytest.raises(ValueError, match="one-hot"):
        PPO(
            MultiTaskActorCriticPolicy, points(), n_steps=8, batch_size=8, device="cpu", policy_kwargs=kwargs, seed=0
        ).learn(40)


@pytest.mark.parametrize("network", ["mt-sac", Plain])
def test_on_policy_with_a_wrong_number_of_tasks(network: Any) -> None:
    kwargs = {"num_tasks": TASKS + 1, "network": network}
    model = PPO(MultiTaskActorCriticPolicy, points(), policy_kwargs=kwargs, n_steps=8, batch_size=8, device="cpu")
    message = rf"^the observation must end with the one-hot of one of {TASKS + 1} tasks, .*, or `num_tasks` wrong\?$"
    with pytest.raises(ValueError, match=message):
        model.learn(16)
    with pytest.raises(ValueError, match=message):
        model.predict(observations())


@pytest.mark.parametrize("algorithm", [PPO, A2C, SAC])
def test_policies_of_multi_task_sac_are_not_for_algorithms_of_sb3(algorithm: Any) -> None:
    with pytest.raises(ValueError, match=r"is for MultiTaskSAC, .* PPO and A2C take MultiTaskActorCritic"):
        algorithm(D2RPolicy, points(), device="cpu")


def test_on_policy_without_the_number_of_tasks() -> None:
    with pytest.raises(ValueError, match=r"^`num_tasks` must be given in `policy_kwargs`, since a policy does not see"):
        PPO(MultiTaskActorCriticPolicy, points(), policy_kwargs={"network": "d2r"}, device="cpu")
