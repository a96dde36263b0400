"""Times mixtures of MLPs beside a loop over experts and dense layers; `python -m benchmarks.moe --help`."""

import argparse

import torch
from torch import Tensor, nn

from dynroute import Hard, LinearRouter, ModelRouting, TopK, Topology

from .outputs import parse, session, write
from .textbook import Loop
from .timing import Job, interleave, medians, ratios


def perceptron(features: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features))


def contenders(num_experts: int, k: int, features: int, hidden: int) -> dict[str, nn.Module]:
    """Makes the layer of this library, the loop, and dense layers of the size of one expert and of the active size."""
    experts = [perceptron(features, hidden) for _ in range(num_experts)]
    router = LinearRouter(features, Topology.parallel(num_experts))
    return {
        "loop": Loop(experts, router.layers[0], k),
        "dynroute": ModelRouting(experts, TopK(k) if k > 1 else Hard(), router),
        "dense, active size": perceptron(features, k * hidden),
        "one expert": perceptron(features, hidden),
    }


def job(net: nn.Module, x: Tensor, *, training: bool) -> Job:
    """Makes a job of a training step, forward and backward, or of inference."""

    def step() -> None:
        with torch.set_grad_enabled(training):
            output = net(x)
        if training:
            output.square().sum().backward()

    return step


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each row of the table")
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parse(parser, "moe.json", arguments)

    started, rows = session("benchmarks.moe"), []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for num_experts in options.experts:
            for k in options.k:
                torch.manual_seed(0)
                nets = contenders(num_experts, k, 64, 256)
                for training in (True, False):
                    x = torch.randn(options.tokens, 64, requires_grad=training)
                    times = interleave(
                        {name: job(net, x, training=training) for name, net in nets.items()}, seconds=options.seconds
                    )
                    mode = "training step" if training else "inference"
                    ms, ratio = medians(times), ratios(times, "loop")
                    cells = "  ".join(f"{name} {ms[name]:.2f} ({ratio[name]:.2f})" for name in times)
                    print(f"{threads} threads  {num_experts:3} experts top-{k}  {mode:13}  {cells}", flush=True)
                    rows.append(
                        {"threads": threads, "experts": num_experts, "k": k, "mode": mode, "ms": ms, "to loop": ratio}
                    )
    about = {"torch": torch.__version__, "tokens": options.tokens, "width": [64, 256]}
    write(options.output, {"session": started, "about": about, "rows": rows})


if __name__ == "__main__":
    main()
