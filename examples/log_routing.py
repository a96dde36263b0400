"""Log routing to TensorBoard.

An ordinary training loop logs its mixtures of experts. The figures are plain numbers by name: TensorBoard takes them
one by one, `wandb.log` and Lightning's `self.log_dict` take the dictionary. Here the dictionaries also become lines of
a file. At the end the load of the experts is drawn. It needs TensorBoard.
"""

import json
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from dynroute import ModelRouting, TopK, inspect, record
from dynroute.losses import load_balance


class Net(nn.Module):
    """Two consecutive mixtures, and the auxiliary loss of both."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ModelRouting.ffn(16, 32, num_experts=4, gate=TopK(2, capacity=1.25))
        self.second = ModelRouting.ffn(16, 32, num_experts=4, gate=TopK(2, capacity=1.25))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, route = self.first(x, return_route=True)
        z, other = self.second(x + y, return_route=True)
        return x + y + z, load_balance(route) + load_balance(other)


def main(steps: int = 200, folder: str = "demo", every: int = 10) -> list[dict[str, float]]:
    """Trains, and returns the logged figures."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    Path(folder).mkdir(parents=True, exist_ok=True)
    logged = []
    with SummaryWriter(folder) as writer, open(Path(folder, "figures.jsonl"), "w") as lines:
        for start in range(0, steps, every):
            done = min(start + every, steps)
            with record(net) as routes:  # a recording for each row of the log
                for _ in range(start, done):
                    x = torch.randn(256, 16)
                    y, balance = net(x)
                    loss = nn.functional.mse_loss(y, torch.where(x[:, :1] > 0, x.flip(-1), -x))
                    optimizer.zero_grad()
                    (loss + 0.01 * balance).backward()
                    optimizer.step()
            figures = {"loss": loss.item()} | {f"routing/{key}": value for key, value in routes.metrics().items()}
            for key, value in figures.items():
                writer.add_scalar(key, value, done)
            lines.write(json.dumps({"step": done, **figures}) + "\n")
            logged.append(figures)

    load = torch.tensor([[figures[f"routing/first/load/{expert}"] for expert in range(4)] for figures in logged])
    Path(folder, "load.svg").write_text(inspect.draw_load(load, title="Load of the first mixture"))
    for key in ("loss", "routing/first/load_max", "routing/second/dropped_share"):
        print(f"{key:30} {logged[0][key]:.3f} -> {logged[-1][key]:.3f}")
    print(f"tensorboard --logdir {folder}")
    return logged


if __name__ == "__main__":
    main()
