"""Compile and export a mixture of experts.

A transformer block with routed experts is compiled and trained, then exported to a file that needs no dynroute code.
The file runs every expert for every token. One graph without breaks holds router, gate and experts, and takes batches
of any size. The default `backend` of torch.compile needs a C++ compiler; "aot_eager" traces the same graphs without
one.
"""

import copy
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from dynroute import BalancedTopK, ModelRouting


class Block(nn.Module):
    """The second half of a transformer block."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.experts = ModelRouting.ffn(width, 32, num_experts=4, gate=BalancedTopK(2), shared=1, gated=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.experts(self.norm(x))


def train(block: nn.Module, steps: int) -> list[float]:
    """Trains on a function that depends on the sign of a feature, and returns the losses."""
    generator = torch.Generator().manual_seed(0)
    optimizer, losses = torch.optim.Adam(block.parameters(), lr=1e-2), []
    for _ in range(steps):
        x = torch.randn(8, 10, 16, generator=generator)
        loss = nn.functional.mse_loss(block(x), torch.where(x[..., :1] > 0, x.flip(-1), -x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(steps: int = 100, backend: str = "aot_eager") -> tuple[list[float], list[float], float]:
    """Returns the losses of eager and of compiled training, and the deviation of the exported program."""
    torch.manual_seed(0)
    block = Block()
    twin = copy.deepcopy(block)
    eager = train(block, steps)
    compiled = train(torch.compile(twin, fullgraph=True, backend=backend), steps)

    block.eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(block, (torch.randn(8, 10, 16),), dynamic_shapes={"x": {0: batch}})
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(program, Path(folder, "block.pt2"))
        loaded = torch.export.load(Path(folder, "block.pt2")).module()
    x = torch.randn(5, 10, 16)
    gap = (loaded(x) - block(x)).abs().max().item()

    print(f"eager    {eager[0]:.3f} -> {eager[-1]:.3f}\ncompiled {compiled[0]:.3f} -> {compiled[-1]:.3f}")
    print(f"the exported program differs by {gap:.0e}")
    return eager, compiled, gap


if __name__ == "__main__":
    main()
