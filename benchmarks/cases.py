"""The cases to time: a network, its textbook form and a plain MLP with the same number of parameters."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dynroute
from dynroute import LayerRouting, ModelRouting, ModuleRouting, OutputRouting, Soft, TopK, networks

from .textbook import (
    D2RNetwork,
    TextbookLayer,
    TextbookModel,
    TextbookModule,
    TextbookOutput,
    equal_mlp,
    plain_mlp,
)
from .timing import Job

CONTEXT = 16
OUT = 8


@dataclass
class Case:
    """One network with one batch size and mode.

    Attributes:
        name: The name of the network.
        batch: The number of samples.
        mode: "training step" or "inference".
        jobs: The contenders.
    """

    name: str
    batch: int
    mode: str
    jobs: dict[str, Job]


def _job(net: nn.Module, inputs: tuple[Tensor, ...], mode: str, backend: str | None = None) -> Job:
    training = mode == "training step"
    net = net.train(training)
    parameters = list(net.parameters())

    def forward() -> Tensor:
        if backend is None:
            return net(*inputs)
        with dynroute.backend(backend):
            return net(*inputs)

    def train() -> object:
        return torch.autograd.grad(forward().sum(), parameters, allow_unused=True)

    def infer() -> object:
        with torch.no_grad():
            return forward()

    return train if training else infer


def make(
    name: str, net: nn.Module, textbook: nn.Module, inputs: tuple[Tensor, ...], mode: str, **others: nn.Module
) -> Case:
    """Makes a case: a network with three backends, its textbook form, and MLPs."""
    size, textbook_size = (sum(parameter.numel() for parameter in part.parameters()) for part in (net, textbook))
    assert size == textbook_size, f"{name} has {size:,} parameters, and its textbook form {textbook_size:,}"
    fast = "fused" if mode == "training step" else "skip"
    jobs = {backend: _job(net, inputs, mode, backend) for backend in ("reference", fast, "auto")}
    jobs["textbook"] = _job(textbook, inputs, mode)
    jobs["equal MLP"] = _job(equal_mlp(net, inputs[0].shape[-1], OUT), inputs[:1], mode)
    jobs |= {label: _job(other, inputs[:1], mode) for label, other in others.items()}
    return Case(name, inputs[0].shape[0], mode, jobs)


def inputs_of(batch: int, features: int) -> tuple[Tensor, Tensor]:
    """Draws an input, and a context for which some sources are far better than others."""
    return torch.randn(batch, features), 3 * torch.randn(batch, CONTEXT)


def module_level(batch: int, mode: str, modules: int = 16, width: int = 128, k: int = 2) -> Case:
    """D2R's graph: `modules` linear modules and a head."""
    net = ModuleRouting.mlp(width, width, modules, OUT, CONTEXT, TopK(k), router_sizes=())
    textbook = TextbookModule(width, CONTEXT, width, modules, OUT, k)
    chained = plain_mlp(width, width, modules, OUT)
    name = f"module level {modules}x{width} top-{k}"
    return make(name, net, textbook, inputs_of(batch, width), mode, **{"chained modules": chained})


def layer_level(batch: int, mode: str, sizes: tuple[int, ...] = (4, 4, 4, 4), width: int = 128) -> Case:
    """Soft Modularization's graph: layers of linear modules and a head."""
    topology = dynroute.Topology.layered(list(sizes))
    layers = [dynroute.LinearBank(size, width, width, nn.ReLU) for size in sizes]
    router = dynroute.LinearRouter(CONTEXT, topology)
    net = LayerRouting(layers, Soft(), router, head=nn.Linear(width, OUT))
    textbook = TextbookLayer(width, CONTEXT, width, list(sizes), OUT)
    return make(f"layer level {len(sizes)}x{sizes[0]}x{width} soft", net, textbook, inputs_of(batch, width), mode)


def model_level(batch: int, mode: str) -> Case:
    """Four experts like MT-SAC with three hidden layers of 400, Top-2."""
    net = ModelRouting.mlp(39, 400, 4, OUT, CONTEXT, TopK(2), depth=3, router_sizes=())
    textbook = TextbookModel(39, CONTEXT, 400, 4, OUT, depth=3, k=2)
    return make("model level 4 of 400x3 top-2", net, textbook, inputs_of(batch, 39), mode)


def output_level(batch: int, mode: str, heads: int = 10) -> Case:
    """A linear head for each task on 400 features."""
    net = OutputRouting([nn.Linear(400, OUT) for _ in range(heads)])
    task = torch.arange(batch) % heads
    return make(
        f"output level {heads} heads", net, TextbookOutput(400, heads, OUT), (torch.randn(batch, 400), task), mode
    )


def whole_d2r(batch: int, mode: str) -> Case:
    """D2R's actor at its published size, including F, H and the router."""
    net = networks.build("d2r", 39, 10, OUT, gate="top-2")
    textbook = D2RNetwork(TextbookModule(400, 400, 128, 16, OUT, 2, router_sizes=(256, 256)))
    task = torch.eye(10)[torch.arange(batch) % 10]
    return make("D2R actor", net, textbook, (torch.randn(batch, 39), task), mode)


CASES: list[Callable[[int, str], Case]] = [
    module_level,
    layer_level,
    lambda batch, mode: layer_level(batch, mode, sizes=(2, 2), width=256),
    model_level,
    output_level,
    lambda batch, mode: output_level(batch, mode, heads=50),
    whole_d2r,
]


def scaling() -> dict[str, Iterator[tuple[int, Case]]]:
    """The module level along each of its sizes."""
    step = "training step"
    return {
        "batch": ((n, module_level(n, step)) for n in (1, 10, 128, 1280, 6400)),
        "modules": ((n, module_level(1280, step, modules=n)) for n in (8, 16, 32, 64)),
        "width": ((n, module_level(1280, step, width=n)) for n in (64, 128, 256, 512, 1024)),
        "k": ((n, module_level(1280, step, k=n)) for n in (2, 3, 4, 8)),
    }
