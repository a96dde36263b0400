"""The contract of a routed layer as an assertion, for tests of your own layers."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from .gates import Gate
from .route import Route
from .topology import Topology

__all__ = ["assert_routed"]


def assert_routed(module: nn.Module, x: Tensor, context: Tensor | None = None, *, tolerance: float = 1e-5) -> None:
    """Asserts that a module satisfies the contract of a routed layer.

    The module is called as ``module(x, context, path=..., sample=..., generator=..., return_route=...)`` and has a
    `topology`. The assertions run on a copy, and buffers that a pass changes, such as the bias of
    :class:`dynroute.BalancedTopK`, are restored before the next pass. It asserts, in training and in evaluation mode:

    1. the route has the topology's shape, a source in every row (unless a gate says that rows may be empty, see
       :attr:`dynroute.Gate.may_be_empty`), and no weight off its path;
    2. replaying a route, or its path alone, reproduces the output bit for bit;
    3. a generator decides the sampled paths, and evaluation is deterministic;
    4. in evaluation, samples do not influence each other, and the batch may have any number of dimensions, none
       included;
    5. copies and restored state dicts compute the same;
    6. every parameter receives a finite gradient, and nodes that no sample uses receive exact zeros.

    `module` must treat each sample on its own in evaluation mode alone, so it may hold batch normalization. It may not
    draw random numbers beside its route: set the rate of dropout to 0.

    Args:
        module: The routed layer.
        x: A batch of at least 2 samples with different values, with shape ``[B, ...]``.
        context: The context of the batch, ``[B, ...]``; `x` itself if None.
        tolerance: The largest difference of two float32 computations of one value, relative to the largest value.

    Example:
        >>> assert_routed(ModuleRouting.mlp(5, 8, 4, 2), torch.randn(16, 5))
    """
    module = copy.deepcopy(module)
    if not isinstance(getattr(module, "topology", None), Topology):
        raise TypeError(f"`module` must have a `topology`, {type(module).__name__} has none; set it to a Topology.")
    if x.dim() < 1 or x.shape[0] < 2:
        raise ValueError(f"`x` must hold at least 2 samples, got shape {tuple(x.shape)}.")

    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        for mode in (True, False):
            module.train(mode)
            _assert_route(module, x, context)
            _assert_replay(module, x, context)
            _assert_generator(module, x, context)
            _assert_gradients(module, x, context)
        _assert_batch(module, x, context, tolerance)
        _assert_copies(module, x, context)


def _call(module: nn.Module, x: Tensor, context: Tensor | None, **keywords: Any) -> tuple[Tensor, Route]:
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    result = module(x, context, return_route=True, **keywords)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.data.copy_(before)  # `data` is not counted as a change, which the backward pass would refuse
    assert isinstance(result, tuple), f"`return_route=True` must return a tuple, got {type(result).__name__}."
    assert len(result) == 2, f"`return_route=True` must return (output, route), got {len(result)} values."
    output, route = result
    assert isinstance(output, Tensor), f"the output must be a tensor, got {type(output).__name__}."
    assert isinstance(route, Route), f"the route must be a dynroute.Route, got {type(route).__name__}."
    return output, route


def _assert_route(module: nn.Module, x: Tensor, context: Tensor | None) -> None:
    topology = _topology(module)
    output, route = _call(module, x, context)

    hint = "" if x.dim() > 1 else "; `x` must be a batch of at least 2 samples"
    assert output.shape[:1] == x.shape[:1], (
        f"the output must keep the batch shape, got {tuple(output.shape)} for `x` of shape {tuple(x.shape)}{hint}."
    )
    assert output.isfinite().all(), "the output of a finite input must be finite."
    shape = (x.shape[0], *topology.path_shape)
    for name, tensor in route._asdict().items():
        assert tensor.shape == shape, f"`route.{name}` must have shape {shape}, got {tuple(tensor.shape)}."
    topology.check_path(route.path)
    empty = any(isinstance(part, Gate) and part.may_be_empty for part in module.modules())
    assert empty or route.path.any(dim=-1).all(), "`route.path` must choose a source for every destination."
    assert (route.weights[~route.path] == 0).all(), "`route.weights` must be exactly 0 off the path."
    assert (route.weights >= 0).all(), "`route.weights` must not be negative."
    assert route.weights.sum(dim=-1).max() <= 1 + 1e-5, "`route.weights` must not sum to more than 1."
    assert torch.equal(topology.unpack(topology.pack(route.path)), route.path), "the path must survive packing."


def _assert_replay(module: nn.Module, x: Tensor, context: Tensor | None) -> None:
    output, route = _call(module, x, context)
    random = [
        name for name, part in module.named_modules() if isinstance(part, _DropoutNd) and part.p and part.training
    ]
    hint = f"; `{random[0]}` is dropout, which draws random numbers: set its rate to 0" if random else ""
    for record in (route, route.path):
        again, replayed = _call(module, x, context, path=record)
        assert torch.equal(again, output), f"replaying a route must reproduce the output bit for bit{hint}."
        assert torch.equal(replayed.path, route.path), "replaying a route must return its path."


def _assert_generator(module: nn.Module, x: Tensor, context: Tensor | None) -> None:
    outputs = [
        _call(module, x, context, generator=torch.Generator(x.device).manual_seed(seed))[0] for seed in (0, 0, 1)
    ]
    assert torch.equal(outputs[0], outputs[1]), "equal generators must give equal outputs."
    if not module.training:
        assert torch.equal(outputs[0], outputs[2]), "evaluation must be deterministic."


def _assert_gradients(module: nn.Module, x: Tensor, context: Tensor | None) -> None:
    module.zero_grad(set_to_none=True)
    output, route = _call(module, x, context)
    torch.autograd.backward(output.square().sum())

    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"parameter `{name}` must receive a gradient, if only zeros, got None."
            assert parameter.grad.isfinite().all(), f"parameter `{name}` must receive a finite gradient."

    nodes = getattr(module, "nodes", None)
    if isinstance(nodes, nn.ModuleList):
        used = _topology(module).used(route.path).any(dim=0)
        for i in (~used).nonzero().flatten().tolist():
            for name, parameter in nodes[i].named_parameters():
                assert parameter.grad is None or not parameter.grad.any(), (
                    f"node {i} is used by no sample, but its `{name}` has a gradient."
                )
    module.zero_grad(set_to_none=True)


def _assert_batch(module: nn.Module, x: Tensor, context: Tensor | None, tolerance: float) -> None:
    module.eval()
    output, route = _call(module, x, context)

    def part(index: Any) -> tuple[Tensor, Route]:
        return _call(module, x[index], None if context is None else context[index], path=route.path[index])

    order = torch.arange(x.shape[0], device=x.device).flip(0)
    _assert_close(part(order)[0], output[order], tolerance, "a permuted batch must give permuted outputs")
    _assert_close(part(slice(0, 1))[0], output[:1], tolerance, "a sample must not depend on the others in its batch")
    _assert_close(part(0)[0], output[0], tolerance, "a sample without batch dimension must give the same output")
    _assert_close(part(slice(0, 0))[0], output[:0], tolerance, "an empty batch must give an empty output")
    _assert_close(
        part((None, slice(None)))[0], output[None], tolerance, "leading dimensions must not change the output"
    )


def _assert_copies(module: nn.Module, x: Tensor, context: Tensor | None) -> None:
    module.eval()
    output, _ = _call(module, x, context)
    clone = copy.deepcopy(module)
    assert torch.equal(_call(clone, x, context)[0], output), "a deep copy must compute the same."

    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.add_(1.0)
    assert torch.equal(_call(module, x, context)[0], output), "a deep copy must not share parameters."
    clone.load_state_dict(module.state_dict())
    assert torch.equal(_call(clone, x, context)[0], output), "a restored state dict must compute the same."


def _assert_close(actual: Tensor, expected: Tensor, tolerance: float, rule: str) -> None:
    assert actual.shape == expected.shape, f"{rule}: expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}."
    if expected.numel():
        scale = float(expected.detach().abs().max()) + 1.0
        gap = float((actual - expected).detach().abs().max())
        assert gap <= tolerance * scale, f"{rule}: outputs differ by {gap:.2g}, allowed {tolerance * scale:.2g}."


def _topology(module: nn.Module) -> Topology:
    topology = module.topology
    assert isinstance(topology, Topology)
    return topology
