"""The helper for users accepts what keeps the contract and names what does not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynroute import ModuleRouting, Route, TopK
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


class Leaky(Wrapped):
    def forward(self, x: Tensor, context: Tensor | None = None, **keywords: Any) -> Any:
        output, route = self.inner(x, context, **keywords)
        return output + output.sum(), route


class Forgetful(Wrapped):
    def forward(self, x: Tensor, context: Tensor | None = None, path: Any = None, **keywords: Any) -> Any:
        return self.inner(x, context, **keywords)


class Unseeded(Wrapped):
    def forward(self, x: Tensor, context: Tensor | None = None, generator: Any = None, **keywords: Any) -> Any:
        return self.inner(x, context, **keywords)


class Noisy(Wrapped):
    def forward(self, x: Tensor, context: Tensor | None = None, **keywords: Any) -> Any:
        return self.inner(x + 1e-3 * torch.randn_like(x), context, **keywords)


class Unscaled(Wrapped):
    def forward(self, x: Tensor, context: Tensor | None = None, **keywords: Any) -> Any:
        output, route = self.inner(x, context, **keywords)
        return output, Route(route.logits, route.path, route.weights + 0.5)


class Idle(Wrapped):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.zeros(3))


class Plain(Wrapped):
    def forward(self, x: Tensor, context: Tensor | None = None, **keywords: Any) -> Any:
        return self.inner(x, context, **(keywords | {"return_route": False}))


class Infinite(Wrapped):
    def forward(self, x: Tensor, context: Tensor | None = None, **keywords: Any) -> Any:
        output, route = self.inner(x, context, **keywords)
        return output / 0.0, route


def test_a_sound_layer_passes_and_stays_untouched() -> None:
    layer = Wrapped().eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    state = torch.get_rng_state()
    assert_routed(layer, X)
    assert not layer.training
    assert all(p.grad is None for p in layer.parameters())
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Leaky, "a sample must not depend on the others in its batch"),
        (Forgetful, "replaying a route must"),
        (Unseeded, "equal generators must give equal outputs"),
        (Noisy, "replaying a route must reproduce the output bit for bit"),
        (Unscaled, "`route.weights` must be exactly 0 off the path"),
        (Idle, "parameter `idle` must receive a gradient"),
        (Plain, "`return_route=True` must return a tuple, got Tensor"),
        (Infinite, "the output of a finite input must be finite"),
    ],
)
def test_a_broken_rule_is_named(layer: type[Wrapped], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_routed(layer(), X)


def test_misuse_is_told_apart_from_failure() -> None:
    with pytest.raises(TypeError, match="`module` must have a `topology`, Linear has none"):
        assert_routed(nn.Linear(5, 2), X)
    with pytest.raises(ValueError, match=r"`x` must hold at least 2 samples, got shape \(1, 5\)"):
        assert_routed(ModuleRouting.mlp(5, 8, 3, 2, gate=TopK(2)), X[:1])
