"""A mixture of MLPs as an autograd function that runs each expert on the samples that chose it.

Only one node mixes, so a path is the choice of experts. Running one expert after the other keeps the hidden layers of
an expert in the cache between products, which one large product over all experts would not.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from ...checks import full_precision
from ..plan import Pass
from ..rows import fill_up, multiples
from .double_backward import Equations, in_full_precision, wants_more
from .linear import Perceptron, entering, row_multiple

__all__ = ["run_experts"]


def run_experts(call: Pass, experts: Sequence[Perceptron]) -> Tensor:
    """Runs a graph with one destination, given the layers of all other nodes."""
    flat = call.flat()
    x, parameters = entering(flat, experts)
    program = _Program(flat, experts, x.dtype)
    with full_precision(x):  # all tensors are converted already
        mixed: Tensor = _FusedExperts.apply(program, x, flat.weights, flat.suitable, *parameters)  # type: ignore[no-untyped-call]
    return call.nodes[-1](call.unflat(mixed))


class _Program:
    """The arguments of the function that are not tensors: the experts, and the samples that chose each of them."""

    def __init__(self, call: Pass, experts: Sequence[Perceptron], dtype: torch.dtype) -> None:
        self.equations = Equations(call.plan, experts, call.protect if call.suitable is not None else "none")
        self.experts = experts
        self.learns = torch.is_grad_enabled()  # inference frees the memory of each expert
        self.first_layer = [0, *accumulate(len(expert) for expert in experts)]

        chosen = call.read()[:, 0].t().contiguous()
        num_experts, num_samples = chosen.shape
        place = chosen.flatten().nonzero().squeeze(1)
        expert = torch.div(place, max(num_samples, 1), rounding_mode="floor")
        self.samples = place - expert * num_samples
        """The sample of each choice, expert by expert."""
        self.everyone = len(place) == chosen.numel()
        """Whether every sample chose every expert."""
        self._slots = self.samples * num_experts + expert
        counts: list[int] = chosen.sum(dim=1).tolist()
        spans = multiples(counts, row_multiple(dtype))
        self._bounds = [0, *accumulate(spans)]
        self._place: Tensor | None = None
        if spans != counts:
            copies, self._place = fill_up(counts, spans, place.device)
            self.samples, self.everyone = self.samples[copies], False

    def running(self) -> Iterator[tuple[Perceptron, int, slice]]:
        """Yields each chosen expert, the index of its first layer among all layers, and its choices."""
        for i, rows in enumerate(map(slice, *zip(*pairwise(self._bounds), strict=True))):
            if rows.start < rows.stop:
                yield self.experts[i], self.first_layer[i], rows

    def of_choices(self, slots: Tensor) -> Tensor:
        """Converts numbers with shape ``[samples, 1, experts]`` to one for each choice; 0 for padding."""
        values = slots.flatten().index_select(0, self._slots)
        return values if self._place is None else values.new_zeros(len(self.samples)).index_copy(0, self._place, values)

    def to_slots(self, values: Tensor, like: Tensor) -> Tensor:
        """Converts numbers of choices back to slots, zero elsewhere."""
        values = values if self._place is None else values[self._place]
        slots = torch.zeros_like(like, memory_format=torch.contiguous_format)
        slots.view(-1).index_copy_(0, self._slots, values.to(like.dtype))
        return slots


class _FusedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, program: _Program, x: Tensor, weights: Tensor, suitable: Tensor | None, *parameters: Tensor | None
    ) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)  # 16 bits lose small terms of the sum
        shares = program.of_choices(weights).to(wide).unsqueeze(1)
        read = None if program.everyone else x.index_select(0, program.samples)
        outputs = x.new_empty(len(program.samples), program.experts[0][-1].linear.out_features)
        kept: list[Tensor] = []  # for each layer of each expert: its input, and a tensor for the derivative
        for expert, first, rows in program.running():
            entered = x if read is None else read[rows]
            for k, layer in enumerate(expert, first):
                weight, bias = parameters[2 * k : 2 * k + 2]
                assert weight is not None
                last = layer is expert[-1]
                inner = outputs[rows] if last and not layer.behind.from_input else None
                if bias is None:
                    inner = torch.mm(entered, weight.t(), out=inner)
                else:
                    inner = torch.addmm(bias, entered, weight.t(), out=inner)
                left = layer.behind.forward(inner)
                if last and layer.behind.from_input:
                    outputs[rows] = left
                if program.learns:
                    kept += [entered, inner if layer.behind.from_input else left]
                entered = left
        mixed = x.new_zeros(len(x), outputs.shape[1], dtype=wide).index_add_(0, program.samples, outputs * shares)
        ctx.program = program
        ctx.save_for_backward(x, weights, suitable, shares, outputs, *parameters, *kept)
        return mixed.to(x.dtype)

    @staticmethod
    @in_full_precision
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        program: _Program = ctx.program
        x, weights, suitable, shares, outputs, *rest = ctx.saved_tensors
        parameters, kept = rest[: 2 * program.first_layer[-1]], iter(rest[2 * program.first_layer[-1] :])
        (gradient,) = gradients
        if wants_more(gradient):
            return program.equations.gradients(ctx.needs_input_grad, gradient, x, weights, suitable, parameters)

        # Experts have no shortcut, so the whole gradient is stopped (Eq. 9).
        live = shares if suitable is None else shares * program.of_choices(suitable).unsqueeze(1)
        arrived = gradient.index_select(0, program.samples)
        grad_weights = None
        if ctx.needs_input_grad[2]:
            grad_weights = program.to_slots((arrived * outputs).sum(dim=1, dtype=shares.dtype), weights)
        arrived = (arrived * live).to(x.dtype)
        left = torch.empty(len(arrived), x.shape[1], dtype=x.dtype) if ctx.needs_input_grad[1] else None
        grads: list[Tensor | None] = [None] * len(parameters)
        for expert, first, rows in program.running():
            kept_here = [(next(kept), next(kept)) for _ in expert]
            sent = arrived[rows]
            for k in reversed(range(len(expert))):
                weight, bias = 2 * (first + k), 2 * (first + k) + 1
                entered, sloped = kept_here[k]
                inner = expert[k].behind.backward(sent, sloped, sent)
                if ctx.needs_input_grad[4 + weight]:
                    grads[weight] = inner.t() @ entered
                if ctx.needs_input_grad[4 + bias]:
                    grads[bias] = inner.sum(dim=0)
                if k:
                    sent = inner @ parameters[weight]
                elif left is not None:
                    torch.mm(inner, parameters[weight], out=left[rows])
        grad_x = None if left is None else torch.zeros_like(x).index_add_(0, program.samples, left)

        for i, parameter in enumerate(parameters):
            if grads[i] is None and ctx.needs_input_grad[4 + i]:
                grads[i] = torch.zeros_like(parameter)  # no sample chose the expert
        return (None, grad_x, grad_weights, None, *grads)
