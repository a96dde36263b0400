"""Small transformers that differ only in the feed-forward part of their blocks."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from dynroute import BalancedTopK, Gate, LinearRouter, ModelRouting, ModuleRouting, RoutedGraph, SampleK, TopK
from dynroute.losses import load_balance

from .text import SYMBOLS
from .textbook import Loop

WIDTH, HEADS, BLOCKS, LENGTH = 64, 4, 2, 64
HIDDEN, EXPERTS, ACTIVE = 128, 8, 2
DEPTH, DEPTH_HIDDEN = 5, 64
"""The number of feed-forward modules in each block of the depth-routed transformer; a token visits four."""


def perceptron(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, WIDTH))


class Dense(nn.Module):
    """The usual feed-forward part; all parts return an output and an auxiliary loss, here zero."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.perceptron = perceptron(hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.perceptron(x), x.new_zeros(())


class Routed(nn.Module):
    """A routed part, with the loss of the Switch Transformer or without."""

    def __init__(self, graph: RoutedGraph, *, balance: bool = False) -> None:
        super().__init__()
        self.graph = graph
        self.balance = balance

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, route = self.graph(x, return_route=True)
        return y, load_balance(route) if self.balance else x.new_zeros(())


class Looped(nn.Module):
    """The usual loop of a mixture with its auxiliary loss, with the experts and the router of a ModelRouting."""

    def __init__(self, mixture: ModelRouting) -> None:
        super().__init__()
        assert isinstance(mixture.router, LinearRouter)
        self.loop = Loop(list(mixture.nodes)[:-1], mixture.router.layers[0], ACTIVE)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.flatten(0, -2)
        logits, weights, chosen = self.loop.choose(flat)
        share = F.one_hot(chosen, EXPERTS).to(weights.dtype).mean(dim=(0, 1))
        balance = EXPERTS * (share * logits.softmax(dim=-1).mean(dim=0)).sum()
        return self.loop.mix(flat, weights, chosen).view_as(x), balance


def mixture(gate: Gate) -> ModelRouting:
    return ModelRouting.ffn(WIDTH, HIDDEN, EXPERTS, gate, activation=nn.GELU)


def depth() -> ModuleRouting:
    """Makes feed-forward modules that are chained for each token by its route."""
    modules = [nn.Sequential(nn.LayerNorm(WIDTH), *perceptron(DEPTH_HIDDEN)) for _ in range(DEPTH)]
    return ModuleRouting([*modules, nn.Identity()], SampleK(2), protect="none", context_features=WIDTH)


PARTS: dict[str, Callable[[], nn.Module]] = {
    "dense, active size": lambda: Dense(ACTIVE * HIDDEN),
    "dense, total size": lambda: Dense(EXPERTS * HIDDEN),
    "mixture, loss": lambda: Routed(mixture(TopK(ACTIVE)), balance=True),
    "mixture, bias": lambda: Routed(mixture(BalancedTopK(ACTIVE))),
    "mixture, neither": lambda: Routed(mixture(TopK(ACTIVE))),
    "loop, loss": lambda: Looped(mixture(TopK(ACTIVE))),
    "depth": lambda: Routed(depth()),
}
"""The feed-forward parts that are compared, by name."""


class Attention(nn.Module):
    """Causal attention."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        output: Tensor = self.output(y.transpose(1, 2).flatten(2))
        return output


class Transformer(nn.Module):
    """Predicts the next character."""

    def __init__(self, part: Callable[[], nn.Module]) -> None:
        super().__init__()
        symbols = len(SYMBOLS) + 1
        self.embed = nn.Embedding(symbols, WIDTH)
        self.place = nn.Embedding(LENGTH, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * BLOCKS + 1))
        self.attention = nn.ModuleList(Attention() for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, symbols)
        self.parts = nn.ModuleList(part() for _ in range(BLOCKS))  # last, so that all others are initialized equally

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits and the sum of the auxiliary losses."""
        x = self.embed(tokens) + self.place.weight[: tokens.shape[-1]]
        total = x.new_zeros(())
        for i, (attention, part) in enumerate(zip(self.attention, self.parts, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            y, loss = part(self.norms[2 * i + 1](x))
            x, total = x + y, total + loss
        return self.head(self.norms[-1](x)), total


def products(name: str, modules: float = ACTIVE) -> float:
    """Counts the multiplications of the forward pass for one token; `modules` run in each routed part."""
    hidden, edges = {
        "dense, active size": (ACTIVE * HIDDEN, 0),
        "dense, total size": (EXPERTS * HIDDEN, 0),
        "depth": (modules * DEPTH_HIDDEN, DEPTH * (DEPTH + 1) // 2),
    }.get(name, (ACTIVE * HIDDEN, EXPERTS))
    attention = 4 * WIDTH**2 + 2 * LENGTH * WIDTH
    return BLOCKS * (attention + 2 * WIDTH * hidden + WIDTH * edges) + WIDTH * (len(SYMBOLS) + 1)
