"""What the dense form multiplies, and where it keeps the vectors of nodes: ``[nodes, batch, width]`` throughout."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..plan import Span

__all__ = ["Scratch", "Vectors", "entered_gradient", "parameter_gradients", "products"]


class Scratch:
    """Where products that are soon forgotten are written, since memory that is touched for the first time costs more.

    Args:
        like: Gives the type and the device.
        reuse: Whether to write to the same memory again; where not, every product is a new tensor. Right where each
            layer has a single reader, so that a product is consumed before the next one of its name.
    """

    def __init__(self, like: Tensor, *, reuse: bool) -> None:
        self._like = like
        self._reuse = reuse
        self._rooms: dict[tuple[str, tuple[int, int, int]], Tensor] = {}

    def bmm(self, name: str, left: Tensor, right: Tensor) -> Tensor:
        """A batched product; it is overwritten by the next one with this name and shape."""
        if not self._reuse:
            return torch.bmm(left, right)
        shape = (*left.shape[:2], right.shape[2])
        room = self._rooms.get((name, shape))
        if room is None:
            room = self._rooms[name, shape] = self._like.new_empty(shape)
        return torch.bmm(left, right, out=room)


class Vectors:
    """A vector for each sample and node, in one tensor ``[nodes, batch, width]`` for each block of nodes."""

    def __init__(self, spans: Sequence[Span], blocks: Sequence[Tensor] = ()) -> None:
        self.spans = spans
        self.blocks = dict(enumerate(blocks))

    def at(self, nodes: Span) -> Tensor:
        """The vectors of neighbouring nodes."""
        k, within = self._find(nodes)
        return self.blocks[k][within]

    def take(self, nodes: Span) -> Tensor:
        """The vectors of the last nodes that are left of their block, which is let go with the first of them."""
        vectors = self.at(nodes)
        k, within = self._find(nodes)
        if within.start == 0:
            del self.blocks[k]
        return vectors

    def put(self, nodes: Span, vectors: Tensor) -> None:
        """Sets the vectors of neighbouring nodes."""
        k, within = self._find(nodes)
        if self.spans[k] == nodes:
            self.blocks[k] = vectors
        else:
            self._whole(k, vectors)[within] = vectors

    def add(self, nodes: Span, vectors: Tensor) -> None:
        """Adds to the vectors of neighbouring nodes, which are zero at first."""
        k, within = self._find(nodes)
        if self.spans[k] == nodes and k not in self.blocks:
            self.blocks[k] = vectors
        else:
            self._whole(k, vectors)[within] += vectors

    def whole(self) -> list[Tensor]:
        """The tensors of all blocks."""
        return [self.blocks[k] for k in range(len(self.spans))]

    def _find(self, nodes: Span) -> tuple[int, slice]:
        k = next(k for k, (first, stop) in enumerate(self.spans) if first <= nodes[0] < stop)
        return k, slice(nodes[0] - self.spans[k][0], nodes[1] - self.spans[k][0])

    def _whole(self, k: int, like: Tensor) -> Tensor:
        if k not in self.blocks:
            first, stop = self.spans[k]
            self.blocks[k] = like.new_zeros(stop - first, *like.shape[1:])
        return self.blocks[k]


def products(entered: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the linear layers of a layer give."""
    if _is_shared(entered, weight):
        inner = nn.functional.linear(entered[0], weight.flatten(0, 1), None if bias is None else bias.flatten())
        return inner.reshape(len(inner), *weight.shape[:2]).transpose(0, 1)
    if bias is None:
        return torch.bmm(entered, weight.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), entered, weight.transpose(1, 2))


def entered_gradient(inner: Tensor, weight: Tensor, entered: Tensor, scratch: Scratch) -> Tensor:
    """The gradient of what the linear layers of a layer read."""
    if _is_shared(entered, weight):
        return (inner.transpose(0, 1).flatten(1) @ weight.flatten(0, 1)).unsqueeze(0)
    return scratch.bmm("through", inner, weight)


def parameter_gradients(inner: Tensor, entered: Tensor, biased: bool) -> list[Tensor | None]:
    """The gradients of weight and bias, node after node."""
    if _is_shared(entered, inner):
        weights = (inner.transpose(0, 1).flatten(1).t() @ entered[0]).reshape(len(inner), -1, entered.shape[-1])
    else:
        weights = torch.bmm(inner.transpose(1, 2), entered)
    biases: Sequence[Tensor | None] = inner.sum(dim=1).unbind() if biased else [None] * len(inner)
    return [gradient for pair in zip(weights.unbind(), biases, strict=True) for gradient in pair]


def _is_shared(entered: Tensor, nodes: Tensor) -> bool:
    """Whether all nodes of a layer read one matrix."""
    return len(entered) == 1 < len(nodes)
