"""Products and storage of the dense form, with vectors in shape ``[nodes, batch, width]``."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..plan import Span

__all__ = ["Scratch", "Vectors", "entered_gradient", "parameter_gradients", "products"]


class Scratch:
    """Reusable memory for temporary products, since writing to new memory costs more.

    Args:
        like: A tensor with the type and device.
        reuse: Whether to reuse memory; if not, every product is a new tensor. It requires that each layer has a single
            reader, so that a product is consumed before the next one of the same name.
    """

    def __init__(self, like: Tensor, *, reuse: bool) -> None:
        self._like = like
        self._reuse = reuse
        self._rooms: dict[tuple[str, tuple[int, int, int]], Tensor] = {}

    def bmm(self, name: str, left: Tensor, right: Tensor) -> Tensor:
        """Computes a batched product, which the next one with this name and shape overwrites."""
        if not self._reuse:
            return torch.bmm(left, right)
        shape = (*left.shape[:2], right.shape[2])
        room = self._rooms.get((name, shape))
        if room is None:
            room = self._rooms[name, shape] = self._like.new_empty(shape)
        return torch.bmm(left, right, out=room)


class Vectors:
    """The vectors of all samples and nodes, in one tensor ``[nodes, batch, width]`` for each block of nodes."""

    def __init__(self, spans: Sequence[Span], blocks: Sequence[Tensor] = ()) -> None:
        self.spans = spans
        self.blocks = dict(enumerate(blocks))

    def at(self, nodes: Span) -> Tensor:
        """Returns the vectors of neighbouring nodes."""
        k, within = self._find(nodes)
        return self.blocks[k][within]

    def take(self, nodes: Span) -> Tensor:
        """Returns the vectors of the last remaining nodes of a block, and frees the block with its first node."""
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
        """Adds to the vectors of neighbouring nodes, which start at zero."""
        k, within = self._find(nodes)
        if self.spans[k] == nodes and k not in self.blocks:
            self.blocks[k] = vectors
        else:
            self._whole(k, vectors)[within] += vectors

    def whole(self) -> list[Tensor]:
        """Returns the tensors of all blocks."""
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
    """Computes the outputs of the linear layers of a layer."""
    if _is_shared(entered, weight):
        inner = nn.functional.linear(entered[0], weight.flatten(0, 1), None if bias is None else bias.flatten())
        return inner.reshape(len(inner), *weight.shape[:2]).transpose(0, 1)
    if bias is None:
        return torch.bmm(entered, weight.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), entered, weight.transpose(1, 2))


def entered_gradient(inner: Tensor, weight: Tensor, entered: Tensor, scratch: Scratch) -> Tensor:
    """Computes the gradient of the inputs of the linear layers of a layer."""
    if _is_shared(entered, weight):
        return (inner.transpose(0, 1).flatten(1) @ weight.flatten(0, 1)).unsqueeze(0)
    return scratch.bmm("through", inner, weight)


def parameter_gradients(inner: Tensor, entered: Tensor, biased: bool) -> list[Tensor | None]:
    """Computes the gradients of weight and bias, node after node."""
    if _is_shared(entered, inner):
        weights = (inner.transpose(0, 1).flatten(1).t() @ entered[0]).reshape(len(inner), -1, entered.shape[-1])
    else:
        weights = torch.bmm(inner.transpose(1, 2), entered)
    biases: Sequence[Tensor | None] = inner.sum(dim=1).unbind() if biased else [None] * len(inner)
    return [gradient for pair in zip(weights.unbind(), biases, strict=True) for gradient in pair]


def _is_shared(entered: Tensor, nodes: Tensor) -> bool:
    """Whether all nodes of a layer read one matrix."""
    return len(entered) == 1 < len(nodes)
