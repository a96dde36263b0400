"""Train a mixture of experts with Lightning Fabric.

Fabric sets the device, the precision and the processes, here a single one on the CPU in bfloat16, and the loop stays as
it is: the routed layer is an ordinary module. Its figures go to Fabric's loggers, and `fabric.save` keeps the weights.
It prints the loss and the load of the experts. It needs `pip install lightning-fabric`.
"""

from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import CSVLogger
from torch import nn

from dynroute import BalancedTopK, ModelRouting, record


class Net(nn.Module):
    """A residual mixture between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(8, 32)
        self.experts = ModelRouting.ffn(32, 64, num_experts=8, gate=BalancedTopK(2))
        self.decode = nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.encode(x)
        return self.decode(x + self.experts(x))


def main(steps: int = 300, logs: str = "fabric", every: int = 20) -> list[dict[str, float]]:
    """Trains, and returns the logged figures."""
    torch.set_num_threads(1)
    logger = CSVLogger(logs, name="routing", flush_logs_every_n_steps=1)
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed", loggers=logger)
    fabric.launch()
    torch.manual_seed(fabric.global_rank)  # samples of its own for each process; Fabric shares the first one's weights
    net = Net()
    model, optimizer = fabric.setup(net, torch.optim.Adam(net.parameters(), lr=3e-3))
    logged = []
    for start in range(0, steps, every):
        done = min(start + every, steps)
        with record(net) as routes:
            for _ in range(start, done):
                x = torch.randn(256, 8, device=fabric.device)
                loss = nn.functional.mse_loss(model(x), x[:, :1] * x[:, 1:2].sign())  # a piecewise linear function
                optimizer.zero_grad()
                fabric.backward(loss)
                optimizer.step()
        figures = {"loss": loss.item(), **{f"routing/{name}": value for name, value in routes.metrics().items()}}
        fabric.log_dict(figures, step=done)
        logged.append(figures)
    fabric.save(Path(logs) / "net.ckpt", {"model": model})
    for name in ("loss", "routing/experts/load_max", "routing/experts/dead"):
        print(f"{name:25} {logged[0][name]:.3f} -> {logged[-1][name]:.3f}")
    return logged


if __name__ == "__main__":
    main()
