"""The helper for users accepts what keeps the contract and names what does not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynroute import ModelRouting, ModuleRouting, Route, TopK
from dynroute.testing import assert_routed

X = torch.linspace(-2, 2, 80).reshape(16, 5)


class Wrapped(nn.Module):
    """A user's layer that wraps a routed one; subclasses break one rule each."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ModuleRouting.mlp(5, 8, 4, 2)
        self.topology = self.inner.topology

    def forward(self, x: Tensor, context: Tensor | None = None, **keywords: Any) -> Any:
        return self.inner(x, context, **keywords)


class Forgetful(Wrapped):
    def forward(self, x: Tensor, context: Tensor | None = None, path: Any = None, **keywords: Any) -> Any:
        return self.inner(x, context, **keywords)


class Unseeded(Wrapped):
    def forward(self, x: Tensor, context: Tensor | None = None, generator: Any = None, **keywords: Any) -> Any:
        return self.inner(x, context, **keywords)


class Noisy(Wrapped):
    def forward(self, x: Tensor, context: Tensor | None = None, **keywords: Any) -> Any:
        return self.inner(x + 1e-3 * torch.randn_like(x), context, **keywords)


class Idle(Wrapped):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.zeros(3))


class Plain(Wrapped):
    def forward(self, x: Tensor, context: Tensor | None = None, **keywords: Any) -> Any:
        return self.inner(x, context, **(keywords | {"return_route": False}))


class Normalized(Wrapped):
    """Batch normalization couples the samples in training, and treats each on its own in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor, context: Tensor | None = None, **keywords: Any) -> Any:
        normalized = self.norm(x.reshape(-1, 5)).reshape(x.shape)
        return self.inner(normalized, x if context is None else context, **keywords)


class Dropping(Wrapped):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, context: Tensor | None = None, **keywords: Any) -> Any:
        return self.inner(self.drop(x), x if context is None else context, **keywords)


class Sampling(Wrapped):
    def forward(self, x: Tensor, context: Tensor | None = None, **keywords: Any) -> Any:
        return self.inner(x, context, **keywords, sample=True)


class Steep(Wrapped):
    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor, context: Tensor | None = None, **keywords: Any) -> Any:
        output, route = self.inner(x, context, **keywords)
        return output + self.zero.sqrt(), route


class Decaying(Wrapped):
    """Node 1 is used by no sample, but every output reads its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ModelRouting.mlp(5, 8, 3, 2, gate=TopK(2))
        self.topology, self.nodes = self.inner.topology, self.inner.nodes
        with torch.no_grad():
            self.inner.router.layers[-1].bias[1] = -1e4

    def forward(self, x: Tensor, context: Tensor | None = None, **keywords: Any) -> Any:
        output, route = self.inner(x, context, **keywords)
        return output + sum(parameter.sum() for parameter in self.nodes.parameters()), route


class Shared(Wrapped):
    def __deepcopy__(self, memo: dict[int, Any]) -> "Shared":
        twin = Shared()
        twin.inner = self.inner
        return twin


class Forgotten(Wrapped):
    def __deepcopy__(self, memo: dict[int, Any]) -> "Forgotten":
        return Forgotten()


class Unloaded(Wrapped):
    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        return None


class Altered(Wrapped):
    """Returns something else than the layer inside."""

    def __init__(self, alter: Callable[[Tensor, Route], Any]) -> None:
        super().__init__()
        self.alter = alter

    def forward(self, x: Tensor, context: Tensor | None = None, **keywords: Any) -> Any:
        return self.alter(*self.inner(x, context, **keywords))


ALTERED: dict[str, Callable[[Tensor, Route], Any]] = {
    r"`return_route=True` must return \(output, route\), got 3 values": lambda y, route: (y, *route[:2]),
    "the output must be a tensor, got list": lambda y, route: ([y], route),
    "the route must be a dynroute.Route, got tuple": lambda y, route: (y, tuple(route)),
    r"the output must keep the batch shape, got \(2, 16\)": lambda y, route: (y.mT, route),
    "the output of a finite input must be finite": lambda y, route: (y / 0.0, route),
    r"`route.logits` must have shape \(16, 4, 4\), got \(16, 4\)": lambda y, route: (
        y,
        route._replace(logits=route.logits[..., 0]),
    ),
    "`route.path` must choose a source for every destination": lambda y, route: (
        y,
        route._replace(path=torch.zeros_like(route.path), weights=torch.zeros_like(route.weights)),
    ),
    "`route.weights` must be exactly 0 off the path": lambda y, route: (y, route._replace(weights=route.weights + 0.5)),
    "`route.weights` must not be negative": lambda y, route: (y, route._replace(weights=-route.weights)),
    "`route.weights` must not sum to more than 1": lambda y, route: (y, route._replace(weights=2 * route.weights)),
    "a permuted batch must give permuted outputs": lambda y, route: (y + torch.arange(len(y))[:, None], route),
    "a sample must not depend on the others in its batch": lambda y, route: (y + y.sum(), route),
    "a sample without batch dimension must give the same output": lambda y, route: (y + (y.dim() == 1), route),
    "an empty batch must give an empty output": lambda y, route: (y if len(y) else y.new_zeros(1, 2), route),
    "leading dimensions must not change the output": lambda y, route: (y + (y.dim() == 3), route),
}


def test_a_sound_layer_passes_and_stays_untouched() -> None:
    layer = Wrapped().eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    state = torch.get_rng_state()
    assert_routed(layer, X)
    assert not layer.training
    assert all(p.grad is None for p in layer.parameters())
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_batch_normalization_passes() -> None:
    assert_routed(Normalized(), X)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Dropping, "bit for bit; `drop` is dropout, which draws random numbers: set its rate to 0"),
        (Forgetful, "replaying a route must"),
        (Unseeded, "equal generators must give equal outputs"),
        (Noisy, "replaying a route must reproduce the output bit for bit"),
        (Idle, "parameter `idle` must receive a gradient"),
        (Plain, "`return_route=True` must return a tuple, got Tensor"),
        (Sampling, "evaluation must be deterministic"),
        (Steep, "parameter `zero` must receive a finite gradient"),
        (Decaying, "node 1 is used by no sample, but its `0.weight` has a gradient"),
        (Forgotten, "a deep copy must compute the same"),
        (Shared, "a deep copy must not share parameters"),
        (Unloaded, "a restored state dict must compute the same"),
    ],
)
def test_a_broken_rule_is_named(layer: type[Wrapped], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_routed(layer(), X)


@pytest.mark.parametrize("message", ALTERED)
def test_what_a_layer_returns_is_checked(message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_routed(Altered(ALTERED[message]), X)


def test_misuse_is_told_apart_from_failure() -> None:
    with pytest.raises(TypeError, match="`module` must have a `topology`, Linear has none"):
        assert_routed(nn.Linear(5, 2), X)
    with pytest.raises(ValueError, match=r"`x` must hold at least 2 samples, got shape \(1, 5\)"):
        assert_routed(ModuleRouting.mlp(5, 8, 3, 2, gate=TopK(2)), X[:1])
    with pytest.raises(
        AssertionError, match=r"\(2,\) for `x` of shape \(5,\); `x` must be a batch of at least 2 samples"
    ):
        assert_routed(ModuleRouting.mlp(5, 8, 3, 2, gate=TopK(2)), X[0])
