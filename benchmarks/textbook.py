"""Routing in plain torch: lists of linear layers, torch.stack, every module for every sample."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class TextbookModule(nn.Module):
    """Module level: Top-K node by node, and the residual stop-gradient by a second stack of detached outputs."""

    def __init__(
        self,
        features: int,
        context: int,
        width: int,
        num_modules: int,
        out: int,
        k: int,
        router_sizes: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.k = k
        self.layers = nn.ModuleList(nn.Linear(width if i else features, width) for i in range(num_modules))
        self.router = perceptron(context, *router_sizes, num_modules * (num_modules + 1) // 2)
        self.head = nn.Linear(width, out)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        logits = self.router(context).split(list(range(1, len(self.layers) + 1)), dim=-1)
        outputs = [self.layers[0](x).relu()]
        stopped = [outputs[0].detach()]
        for z, layer in zip(logits, [*self.layers[1:], None], strict=True):
            best = z.topk(min(self.k, z.shape[-1]), dim=-1)
            weights = torch.zeros_like(z).scatter(-1, best.indices, best.values.softmax(-1)).unsqueeze(-1)
            sources = torch.stack(outputs, dim=1)
            if self.training:
                keep = (z.softmax(-1) >= 1 / (z.shape[-1] + 1)).unsqueeze(-1)
                sources = torch.where(keep, sources, torch.stack(stopped, dim=1))
            mixed = (weights * sources).sum(dim=1)
            if layer is None:
                return self.head(mixed)
            inner = layer(mixed).relu()
            outputs.append(mixed + inner)
            stopped.append(mixed + inner.detach())
        raise AssertionError


class TextbookLayer(nn.Module):
    """Layer level with soft weights (Soft Modularization)."""

    def __init__(self, features: int, context: int, width: int, sizes: list[int], out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(width if depth else features, width) for _ in range(size))
            for depth, size in enumerate(sizes)
        )
        self.routers = nn.ModuleList(
            nn.Linear(context, before * after) for before, after in zip(sizes, [*sizes[1:], 1], strict=True)
        )
        self.head = nn.Linear(width, out)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        inputs = [x] * len(self.layers[0])
        for layer, router in zip(self.layers, self.routers, strict=True):
            outputs = torch.stack([module(mixed).relu() for module, mixed in zip(layer, inputs, strict=True)], dim=1)
            weights = router(context).unflatten(-1, (-1, len(layer))).softmax(-1)
            inputs = [(weights[:, i].unsqueeze(-1) * outputs).sum(dim=1) for i in range(weights.shape[1])]
        return self.head(inputs[0])


class TextbookModel(nn.Module):
    """Model level: a mixture of MLPs with Top-K weights, or soft ones."""

    def __init__(self, features: int, context: int, width: int, num_models: int, out: int, depth: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.models = nn.ModuleList(plain_mlp(features, width, depth, out) for _ in range(num_models))
        self.router = nn.Linear(context, num_models)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        z = self.router(context)
        best = z.topk(self.k, dim=-1)
        weights = torch.zeros_like(z).scatter(-1, best.indices, best.values.softmax(-1))
        return (weights.unsqueeze(-1) * torch.stack([model(x) for model in self.models], dim=1)).sum(dim=1)


class TextbookOutput(nn.Module):
    """Output level: every head for every sample, then a gather."""

    def __init__(self, features: int, num_heads: int, out: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(features, out) for _ in range(num_heads))

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        outputs = torch.stack([head(x) for head in self.heads], dim=1)
        return outputs.gather(1, task[:, None, None].expand(-1, 1, outputs.shape[-1])).squeeze(1)


class Loop(nn.Module):
    """A mixture of experts as the usual loop: index the tokens of each expert, run it, add its outputs.

    A single expert is weighted by its probability among all, as in the Switch Transformer.

    Args:
        experts: The experts.
        router: Turns tokens with shape ``[n, features]`` into logits with shape ``[n, experts]``.
        k: The number of experts of a token.
    """

    def __init__(self, experts: Iterable[nn.Module], router: nn.Module, k: int) -> None:
        super().__init__()
        self.experts, self.router, self.k = nn.ModuleList(experts), router, k

    def forward(self, x: Tensor) -> Tensor:
        _, weights, chosen = self.choose(x)
        return self.mix(x, weights, chosen)

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the logits, and the weights and the numbers of the chosen experts."""
        logits = self.router(x)
        scores, chosen = logits.topk(self.k)
        weights = scores.softmax(dim=-1) if self.k > 1 else logits.softmax(dim=-1).gather(-1, chosen)
        return logits, weights, chosen

    def mix(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Runs the experts and adds their outputs."""
        output = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == i)
            output.index_add_(0, token, (expert(x[token]) * weights[token, slot, None]).to(x.dtype))
        return output


def perceptron(*sizes: int) -> nn.Sequential:
    """Makes linear layers of the given widths with ReLU between them."""
    layers = [layer for widths in pairwise(sizes) for layer in (nn.Linear(*widths), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def plain_mlp(features: int, width: int, depth: int, out: int) -> nn.Sequential:
    """Makes an MLP with `depth` hidden layers."""
    return perceptron(features, *[width] * depth, out)


def equal_mlp(net: nn.Module, features: int, out: int, depth: int = 5) -> nn.Sequential:
    """Makes the plain MLP whose number of parameters is nearest to that of a network."""
    wanted = sum(parameter.numel() for parameter in net.parameters())

    def gap(width: int) -> int:
        return abs(sum(p.numel() for p in plain_mlp(features, width, depth, out).to("meta").parameters()) - wanted)

    low, high = 1, 4096
    while high - low > 2:  # the number of parameters grows with the width
        third = (high - low) // 3
        left, right = low + third, high - third
        low, high = (low, right) if gap(left) <= gap(right) else (left, high)
    return plain_mlp(features, min(range(low, high + 1), key=gap), depth, out)


class D2RNetwork(nn.Module):
    """The whole network of D2R around a routed layer: F, H and their product as the context."""

    def __init__(self, routed: nn.Module, state: int = 39, tasks: int = 10, width: int = 400) -> None:
        super().__init__()
        self.routed = routed
        self.first, self.second, self.task = nn.Linear(state, width), nn.Linear(width, width), nn.Linear(tasks, width)

    def forward(self, state: Tensor, task: Tensor) -> Tensor:
        features = self.second(self.first(state).relu())
        return self.routed(features.relu(), features * self.task(task))
