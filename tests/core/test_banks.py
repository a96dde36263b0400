"""A bank of linear modules is what separate modules are, and its parameters lie side by side wherever they go."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from dynroute import LayerRouting, LinearBank, LinearRouter, Soft, Topology
from dynroute.banks import lay_adjacent, stacked


def is_view(parameters: list[torch.Tensor]) -> bool:
    return stacked(parameters).data_ptr() == parameters[0].data_ptr()


def net_of_banks() -> LayerRouting:
    layers = [LinearBank(3, 5, 8, nn.ReLU), LinearBank(3, 8, 8, nn.ReLU)]
    return LayerRouting(layers, Soft(), LinearRouter(5, Topology.layered([3, 3])))


def net_of_modules() -> LayerRouting:
    layers = [[nn.Sequential(nn.Linear(width, 8), nn.ReLU()) for _ in range(3)] for width in (5, 8)]
    return LayerRouting(layers, Soft(), LinearRouter(5, Topology.layered([3, 3])))


def layers_lie_adjacent(net: LayerRouting) -> bool:
    parts = [next(part for part in module.modules() if isinstance(part, nn.Linear)) for module in net.nodes[:6]]
    return all(
        is_view([linear.weight for linear in row]) and is_view([linear.bias for linear in row])
        for row in (parts[:3], parts[3:])
    )


def test_the_stack_of_a_bank_is_a_view_of_its_parameters() -> None:
    bank = LinearBank(4, 3, 2)
    weights = [layer.weight for layer in bank]
    assert is_view(weights)
    assert torch.equal(stacked(weights), torch.stack(weights))
    with torch.no_grad():
        weights[2].fill_(7.0)
    assert torch.equal(stacked(weights)[2], torch.full((2, 3), 7.0))


def test_other_parameters_are_copied_together() -> None:
    first, second = LinearBank(2, 3, 2), LinearBank(2, 3, 2)
    for weights in (
        [first[0].weight, second[1].weight],
        [first[1].weight, first[0].weight],
        [first[0].weight, first[0].weight],
        [nn.Linear(3, 2).weight for _ in range(2)],
    ):
        assert not is_view(weights)
        assert torch.equal(stacked(weights), torch.stack(weights))


def test_laying_parameters_keeps_them_and_their_values() -> None:
    modules = [nn.Linear(3, 2) for _ in range(3)]
    weights = [module.weight for module in modules]
    before = [weight.detach().clone() for weight in weights]
    lay_adjacent(weights)
    assert is_view(weights)
    assert all(module.weight is weight for module, weight in zip(modules, weights, strict=True))
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


def test_a_bank_has_the_keys_of_separate_modules() -> None:
    banks, modules = net_of_banks(), net_of_modules()
    assert list(banks.state_dict()) == list(modules.state_dict())
    modules.load_state_dict(banks.state_dict())
    x = torch.randn(50, 5)
    assert torch.equal(banks(x), modules(x))
    assert layers_lie_adjacent(banks)
    assert not layers_lie_adjacent(modules)


def test_no_bias_and_no_activation() -> None:
    bank = LinearBank(2, 3, 4, bias=False)
    assert list(bank.state_dict()) == ["0.weight", "1.weight"]
    assert all(type(layer) is nn.Linear for layer in bank)


def test_parameters_stay_adjacent_when_they_are_converted_copied_and_loaded() -> None:
    net = net_of_banks()
    stream = io.BytesIO()
    torch.save(net.state_dict(), stream)
    stream.seek(0)
    loaded = net_of_banks()
    loaded.load_state_dict(torch.load(stream, weights_only=True))
    for twin in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net)), loaded, loaded.double(), net.half().float()):
        assert layers_lie_adjacent(twin)
    for bank in (LinearBank(2, 3, 4).double(), copy.deepcopy(LinearBank(2, 3, 4))):
        assert is_view([layer.weight for layer in bank])


def test_parameters_learn_as_separate_ones_do() -> None:
    banks, modules = net_of_banks(), net_of_modules()
    modules.load_state_dict(banks.state_dict())
    x = torch.randn(300, 5)
    for net in (banks, modules):
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    for mine, theirs in zip(banks.parameters(), modules.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert layers_lie_adjacent(banks)


def test_a_bank_has_at_least_one_module() -> None:
    with pytest.raises(ValueError, match="`num_modules` must be at least 1, got 0"):
        LinearBank(0, 3, 2)


def test_what_cannot_lie_adjacent_is_left_alone() -> None:
    weight = torch.zeros(2, 6, 4)
    assert not is_view([weight[0].t(), weight[1].t()])  # side by side, and not contiguous
    bank = LinearBank(2, 3, 4)
    bank[1] = nn.Linear(3, 7)
    assert bank.double()[1].weight.dtype == torch.float64
    bank = LinearBank(2, 3, 4)
    bank[0].double()
    assert bank.cpu()[1].weight.dtype == torch.float32
    lazy = [[nn.LazyLinear(4), nn.LazyLinear(4)], [nn.LazyLinear(4), nn.LazyLinear(4)]]
    net = LayerRouting(lazy, Soft(), LinearRouter(3, Topology.layered([2, 2])))
    assert net(torch.zeros(5, 3)).shape == (5, 4)


def test_memory_that_processes_share_stays_shared() -> None:
    for assign in (False, True):
        net = net_of_banks()
        net.load_state_dict({name: value.clone() for name, value in net.state_dict().items()}, assign=assign)
        net.share_memory()
        assert all(parameter.is_shared() for parameter in net.parameters())


def test_parts_of_a_bank() -> None:
    bank = LinearBank(4, 3, 2)
    assert isinstance(bank[1:3], nn.ModuleList)
    assert list(bank[1:3]) == [bank[1], bank[2]]
    assert bank[-1] is bank[3]
