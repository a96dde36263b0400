"""See which gradients the residual stop-gradient stops.

The route is the chain 0 -> 1 -> 2 -> 3, with module 3 as the output. The router finds module 1 unsuitable for module 2,
but the route is a replayed one that still takes it. The program prints the gradient norm of each module under each
`protect`.
"""

import torch
from torch import Tensor, nn

from dynroute import ModuleRouting, Router, Soft, Topology

TOPOLOGY = Topology.dag(4)
CHAIN = torch.eye(3, dtype=torch.bool)  # [destination, source]: node 1 reads 0, node 2 reads 1, node 3 reads 2
VERDICTS = {
    ("none", True): "every module on the route learns, the unsuitable one too",
    ("sg", True): "everything behind the stop starves: a chain has no other way back",
    ("sg", False): "the same without shortcuts (Eq. 9)",
    ("input", True): "module 1 still learns, through the shortcut of module 2 (released code)",
    ("rsg", True): "module 1 gets exactly 0, module 0 still learns (Eq. 11-12)",
}


class Opinion(Router):
    """A router with fixed logits: module 2 should not read module 1."""

    def score(self, context: Tensor) -> Tensor:
        logits = torch.zeros(self.topology.path_shape)
        logits[self.topology.destinations.index(2), 1] = -4.0
        return self.topology.to_edges(logits).expand(*context.shape[:-1], -1)


def gradient_norms(protect: str, shortcut: bool) -> list[float]:
    """Computes the norm of the gradient of each module for one batch."""
    torch.manual_seed(0)  # the same weights and inputs for every mode
    modules = [nn.Linear(8, 8, bias=False) for _ in range(4)]
    net = ModuleRouting(modules, Soft(), Opinion(TOPOLOGY), shortcut=shortcut, protect=protect)
    x = torch.randn(16, 8)
    net(x, path=CHAIN.expand(16, -1, -1)).square().mean().backward()
    return [module.weight.grad.norm().item() for module in net.nodes]


def main(steps: int = 1) -> dict[tuple[str, bool], list[float]]:
    """Prints the norms of each mode and returns them; nothing is trained, `steps` repeats the measurement."""
    print("The router finds module 1 unsuitable for module 2. Gradient norms:\n")
    print(f"{'protect':18}" + "".join(f"{name:>10}" for name in ("module 0", "module 1", "module 2", "output")))
    norms = {}
    for protect, shortcut in VERDICTS:
        for _ in range(steps):
            norms[protect, shortcut] = gradient_norms(protect, shortcut)
        name = protect if shortcut else f"{protect}, no shortcut"
        print(f"{name:18}" + "".join(f"{norm:10.4f}" for norm in norms[protect, shortcut]))
    print()
    for (protect, shortcut), verdict in VERDICTS.items():
        print(f"{protect if shortcut else protect + ', no shortcut':18}  {verdict}")
    return norms


if __name__ == "__main__":
    main()
