"""A mixture of equal MLPs that reads no values, for devices on which reading a path stalls the stream.

Each sample takes as many places as its gate may choose experts, so shapes are fixed and a CUDA graph can hold it.
Places are sorted by expert on the device, and one grouped product computes a layer of all experts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...checks import full_precision
from ..plan import Pass
from .linear import Perceptron, entering

__all__ = ["groups", "run_grouped"]

ALIGNED = 16
"""The number of bytes that must divide the rows of a grouped product on CUDA."""


def groups(call: Pass, experts: Sequence[Perceptron]) -> str | None:
    """Returns the reason why this form cannot run or does not pay, or None if it can."""
    if not hasattr(nn.functional, "grouped_mm"):
        return "this torch has no grouped products"
    if call.max_sources is None:
        return "nothing says how many experts a sample may choose, as with a replayed path"
    if 2 * call.max_sources > len(experts):
        return "samples choose more than half of the experts"
    kinds = {
        tuple((layer.behind, layer.linear.weight.shape, layer.linear.bias is None) for layer in expert)
        for expert in experts
    }
    if len(kinds) > 1:
        return "the experts differ in their sizes or activations"
    x, parameters = entering(call, experts[:1])
    narrow = x.device.type != "cpu" or torch.compiler.is_compiling()
    if x.dtype not in ((torch.bfloat16,) if narrow else (torch.bfloat16, torch.float32)):
        return f"grouped products have no fast form for {x.dtype} on {x.device.type}"
    widths = {x.shape[-1], *(parameter.shape[0] for parameter in parameters if parameter is not None)}
    if any(width * x.element_size() % ALIGNED for width in widths):
        return f"grouped products take rows of a multiple of {ALIGNED} bytes, and the widths are {sorted(widths)}"
    return _loops_on(x.device)


def _loops_on(device: torch.device) -> str | None:
    """The reason why torch computes a grouped product by a loop, which reads the rows of each expert; None if not."""
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    if major in (9, 10) and torch.version.hip is None:
        return None
    return f"torch computes grouped products by a loop on {device}, of compute capability {major}.{minor}"


def run_grouped(call: Pass, experts: Sequence[Perceptron]) -> Tensor:
    """Runs a graph with one destination, given the layers of all other nodes, which are equal."""
    flat, num_experts = call.flat(), len(experts)
    assert call.max_sources is not None
    places = min(call.max_sources, num_experts)
    x, parameters = entering(flat, experts)
    with full_precision(x):  # all tensors are converted already
        weights = flat.weights[:, 0]
        chosen = (weights != 0).float().topk(places, dim=-1).indices
        shares = weights.gather(-1, chosen)
        expert, order = chosen.flatten().sort(stable=True)
        every = torch.arange(num_experts, device=x.device)
        ends = torch.searchsorted(expert, every, right=True).to(torch.int32)
        belongs = (expert.unsqueeze(1) == every).to(x.dtype)  # adds biases by a product, without atomic sums

        output = x.unsqueeze(1).expand(-1, places, -1).flatten(0, 1).index_select(0, order)
        step = 2 * len(experts[0])
        for k, layer in enumerate(experts[0]):
            weight = torch.stack(parameters[2 * k :: step])  # type: ignore[arg-type]
            output = nn.functional.grouped_mm(output, weight.transpose(1, 2), offs=ends)
            if layer.linear.bias is not None:
                output = output + belongs @ torch.stack(parameters[2 * k + 1 :: step])  # type: ignore[arg-type]
            output = layer.behind.forward(output)

        output = output.index_select(0, order.argsort()).reshape(len(flat.x), places, output.shape[-1])
        if flat.suitable is not None:
            live = flat.suitable[:, 0].gather(-1, chosen).unsqueeze(-1)
            output = torch.where(live, output, output.detach())
        mixed = (shares.unsqueeze(-1) * output).sum(dim=1).to(x.dtype)
    return call.nodes[-1](call.unflat(mixed))
