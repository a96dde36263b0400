"""Run the policy of one task from a file.

Only dynroute, torch and safetensors read the file, and nothing that trained the policy. `dynroute extract RUN --task
drawer-close` writes one from a run. Without a file, an untrained network is extracted here. The program prints the
notes of the file, shows that actions are in -1..1, and measures how long one takes.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch

from dynroute import Program, extract, trace_program
from dynroute.networks import build

STATE = 39


class Policy(torch.nn.Module):
    """Computes the mean action of a state, the squashed first half of the network's outputs."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        mean, _ = self.network(state).chunk(2, dim=-1)
        return torch.tanh(mean)


def make(path: Path) -> None:
    """Writes the file of a network that routes only by the task, so that no router is left."""
    net = build("d2r", STATE, 10, 8, num_modules=8, width=32, trunk_sizes=(64,), router_sizes=(32,), state_free=True)
    states = torch.randn(64, STATE)
    small = extract(net, states, task=3)
    notes = {"task": "nothing yet", "parameters": small.report.parameters}
    trace_program(Policy(small), states, notes=notes).save(path)


def main(steps: int = 1000, file: str | None = None) -> Program:
    """Loads a policy and calls it `steps` times."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(file) if file else Path(folder) / "policy.safetensors"
        if file is None:
            make(path)
        size, policy = path.stat().st_size, Program.load(path)

    print(f"{path.name}: {size:,} bytes, {policy}")
    for name, note in policy.notes.items():
        print(f"  {name}: {note}")
    states = 0.1 * torch.randn(steps, 1, STATE).cumsum(dim=0)  # in place of a robot's observations
    with torch.inference_mode():
        policy(states[0])  # the first call prepares the others
        began = time.perf_counter()
        actions = torch.cat([policy(state) for state in states])
        taken = 1e3 * (time.perf_counter() - began) / steps
    largest = actions.abs().max()
    print(f"{steps} actions of {actions.shape[1]} numbers within {largest:.2f} of 0, {taken:.3f} ms each")
    return policy


if __name__ == "__main__":
    main(file=sys.argv[1] if len(sys.argv) > 1 else None)
