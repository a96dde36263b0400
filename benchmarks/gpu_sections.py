"""The sections of gpu.py, each a set of steps to compute and time."""

import copy
import gc
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import dynroute
from dynroute import (
    LayerRouting,
    LinearRouter,
    ModelRouting,
    ModuleRouting,
    OutputRouting,
    RoutedGraph,
    SampleK,
    TopK,
    Topology,
    networks,
)
from dynroute.execution import BACKENDS
from dynroute.functional import gumbel_noise

from .textbook import Loop, TextbookModule, plain_mlp
from .timing import Job, medians, ratios

Row = dict[str, Any]
Steps = dict[str, Callable[[], Row]]

STATE, TASKS, OUT = 24, 10, 8
MODES = ("training step", "inference")
TOLERANCE = {"float32": 1e-4, "bf16": 0.06}
"""The largest deviation of an element that passes, relative to the largest element of its tensor plus 1."""
CLEAR = 1e-5
"""The least distance of probabilities from the threshold of Eq. 10, so that rounding does not cross it."""


@dataclass(frozen=True)
class Setup:
    """The device, whether sizes are small, and the approximate duration of each comparison in seconds."""

    device: torch.device
    quick: bool
    seconds: float

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def autocast(self, dtype: str) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if dtype == "bf16" else nullcontext()

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device)

    def release(self) -> None:
        """Frees the memory of a GPU; errors of earlier kernels were recorded already."""
        if self.cuda:
            gc.collect()
            with suppress(RuntimeError):
                torch.cuda.empty_cache()


def reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def attempt(row: Row, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function; if it raises, adds the refusal of a backend or the failure to the row and returns None."""
    try:
        return function(*arguments)
    except Exception as error:
        why = reason(error)
        _, refused, rest = why.partition(" cannot: ")
        if refused and isinstance(error, ValueError):
            row.setdefault("cannot", {})[name] = rest.removesuffix('; "auto" can.')
        else:
            row.setdefault("failed", {})[name] = why
            row.setdefault("traceback", {})[name] = traceback.format_exc()
        return None


def clock(setup: Setup, job: Job) -> float:
    """Times a job in milliseconds, from an idle device to an idle device."""
    if not setup.cuda:
        begin = time.perf_counter()
        job()
        return 1e3 * (time.perf_counter() - begin)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    job()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def peak(setup: Setup, job: Job) -> float:
    """Measures the MiB that a job adds to the memory of a GPU; the job runs twice and is warm afterwards."""
    job()
    if not setup.cuda:
        return 0.0
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    job()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - held) / 2**20, 1)


def compare(setup: Setup, jobs: dict[str, Job], base: str, row: Row | None = None) -> Row:
    """Times jobs that take turns: median milliseconds, ratios to one of them, and peaks of memory."""
    row = {**(row or {}), "base": base, "MiB": {}}
    for name, job in jobs.items():
        row["MiB"][name] = attempt(row, name, peak, setup, job)
        setup.release()
    jobs = {name: job for name, job in jobs.items() if row["MiB"][name] is not None}
    times: dict[str, list[float]] = {name: [] for name in jobs}
    once = 1e-3 * sum(clock(setup, job) for job in jobs.values())
    rounds = 2 if setup.quick else max(5, min(100, int(setup.seconds / (2 * once + 1e-6))))
    gc.disable()
    try:
        for _ in range(rounds):
            for name, job in jobs.items():
                job()  # untimed, to restore the caches
                times[name].append(clock(setup, job))
    finally:
        gc.enable()
    return {**row, "ms": medians(times), "to base": ratios(times, base) if base in times else {}, "rounds": rounds}


def job(
    setup: Setup, net: nn.Module, inputs: Sequence[Tensor], mode: str, backend: str = "", dtype: str = "float32"
) -> Job:
    """Makes a job of a forward pass, in training with the gradients of all parameters."""
    training = mode == "training step"

    def run() -> Any:
        net.train(training)
        with torch.set_grad_enabled(training):
            with setup.autocast(dtype), dynroute.backend(backend) if backend else nullcontext():
                output = net(*inputs)
            if training:
                return torch.autograd.grad(output.float().square().mean(), list(net.parameters()), allow_unused=True)
        return output

    return run


# The sections, each a function that returns its steps.


def small_nets(width: int) -> dict[str, RoutedGraph]:
    """Makes networks of every level, smooth so that rounding does not switch units on and off."""

    def normed(features: int) -> nn.Module:
        return nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width), nn.GELU())

    def layer(*gate: TopK) -> RoutedGraph:
        return LayerRouting.mlp(STATE, width, [4, 4, 4], OUT, TASKS, *gate, protect="rsg", activation=nn.Tanh)

    def module(protect: str) -> RoutedGraph:
        return ModuleRouting.mlp(STATE, width, 8, OUT, TASKS, TopK(2), protect=protect, activation=nn.Tanh)

    others = [normed(STATE), *[normed(width) for _ in range(5)], nn.Linear(width, OUT)]
    return {
        "output level": OutputRouting.mlp(STATE, width, TASKS, OUT, activation=nn.Tanh),
        "model level": ModelRouting.mlp(STATE, width, 4, OUT, TASKS, TopK(2), protect="sg", activation=nn.Tanh),
        "layer level soft": layer(),
        "layer level top-2": layer(TopK(2)),
        "module level": module("rsg"),
        "module level, released": module("input"),
        "module level, LayerNorm": ModuleRouting(others, TopK(2), LinearRouter(TASKS, Topology.dag(len(others)))),
    }


def draw(net: RoutedGraph, batch: int) -> list[Tensor]:
    """Draws input, context, path and gradient of the output for a float64 network on the CPU."""
    count = 4 * batch + 8
    output_level = isinstance(net, OutputRouting)
    context = torch.arange(count) % TASKS if output_level else 2 * torch.randn(count, TASKS).double()
    route = net.route(context, sample=False)
    threshold = 1 / (net.topology.allowed.sum(dim=-1, keepdim=True) + 1)
    gap = (route.logits.softmax(dim=-1) - threshold).abs().amin(dim=(-2, -1))
    clear = (gap > CLEAR).nonzero().squeeze(1)[:batch]
    assert len(clear) == batch, "too many samples lie at the threshold"
    return [torch.randn(batch, STATE).double(), context[clear], route.path[clear], torch.randn(batch, OUT).double()]


def evaluate(net: RoutedGraph, inputs: Sequence[Tensor], mode: str, backend: str, cast: Any) -> list[Tensor | None]:
    """Computes the output by a replayed path, and in training the gradients of the inputs and the parameters."""
    x, context, path, direction = inputs
    training = mode == "training step"
    net.train(training)
    x, context = (part.clone().requires_grad_(part.is_floating_point()) for part in (x, context))
    with torch.set_grad_enabled(training), cast, dynroute.backend(backend):
        output = net(x, context, path=path)
    if not training:
        return [output]
    wanted = [tensor for tensor in (x, context, *net.parameters()) if tensor.requires_grad]
    return [output, *torch.autograd.grad(output, wanted, direction.to(output.dtype), allow_unused=True)]


def deviation(results: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> float:
    """Computes the largest deviation of an element, relative to the largest one of its tensor plus 1."""
    worst = 0.0
    for actual, exact in zip(results, expected, strict=True):
        assert (actual is None) == (exact is None), "a gradient is None on one side and a tensor on the other"
        if actual is not None and exact is not None:
            assert actual.shape == exact.shape, f"shape {tuple(actual.shape)} instead of {tuple(exact.shape)}"
            gap = (actual.detach().double().cpu() - exact.detach()).abs().max() / (exact.detach().abs().max() + 1)
            worst = max(worst, float(gap.nan_to_num(nan=torch.inf)))
    return worst


def judge(
    row: Row, name: str, results: Callable[[], Sequence[Tensor | None]], expected: Sequence[Tensor | None]
) -> None:
    """Adds the deviation of results to a row, and a failure if it exceeds the tolerance."""
    gap = attempt(row, name, lambda: deviation(results(), expected))
    if gap is not None:
        row["deviation"][name] = max(gap, row["deviation"].get(name, 0.0))
        if gap > row["tolerance"]:
            row.setdefault("failed", {})[name] = f"deviates by {gap:.1e}"


def correctness(setup: Setup) -> Steps:
    """Every backend on the device beside the reference in float64 on the CPU."""

    def step(net: RoutedGraph, dtype: str, mode: str) -> Row:
        row: Row = {"tolerance": TOLERANCE[dtype], "deviation": {}}
        exact, net = copy.deepcopy(net).double(), copy.deepcopy(net).to(setup.device)
        for batch in (1, 16, 96 if setup.quick else 320):
            inputs = draw(exact, batch)
            wanted = evaluate(exact, inputs, mode, "reference", nullcontext())
            moved = [part.to(setup.device, torch.float32 if part.is_floating_point() else None) for part in inputs]
            for name in BACKENDS:
                judge(row, name, partial(evaluate, net, moved, mode, name, setup.autocast(dtype)), wanted)
        return row

    cases = product(small_nets(16 if setup.quick else 64).items(), TOLERANCE, MODES)
    return {f"{name}, {dtype}, {mode}": partial(step, net, dtype, mode) for (name, net), dtype, mode in cases}


def d2r(setup: Setup) -> Steps:
    """D2R's graph beside chained modules without routing, and its textbook form."""
    sizes = features, width, modules, _ = (STATE, 16, 4, OUT) if setup.quick else (400, 128, 16, OUT)
    routed = ModuleRouting.mlp(*sizes, 16, TopK(2), router_sizes=(), device=setup.device)
    textbook = TextbookModule(features, 16, width, modules, OUT, 2).to(setup.device)
    chained = plain_mlp(*sizes).to(setup.device)

    def step(batch: int, mode: str) -> Row:
        inputs = setup.randn(batch, features), 3 * setup.randn(batch, 16)
        jobs = {"chained": job(setup, chained, inputs[:1], mode), "textbook": job(setup, textbook, inputs, mode)}
        return compare(setup, jobs | {name: job(setup, routed, inputs, mode, name) for name in BACKENDS}, "chained")

    cases = product((64, 128) if setup.quick else (1280, 12800), MODES)
    return {f"{features}->{modules}x{width}->{OUT}, batch {batch}, {m}": partial(step, batch, m) for batch, m in cases}


def moe(setup: Setup) -> Steps:
    """A layer of experts beside a loop over the same experts, and a dense layer of the size of two experts."""
    experts, tokens, width, hidden = (4, 64, 16, 32) if setup.quick else (64, 16384, 1024, 2048)

    def perceptron(hidden: int) -> nn.Module:
        first, second = (nn.Linear(*pair, device=setup.device) for pair in ((width, hidden), (hidden, width)))
        return nn.Sequential(first, nn.GELU(), second)

    modules = [perceptron(hidden) for _ in range(experts)]
    router = LinearRouter(width, Topology.parallel(experts), device=setup.device)
    routed = ModelRouting(modules, TopK(2), router)
    loop = Loop(modules, nn.Sequential(router, nn.Flatten(-2)), 2)
    dense, inputs = perceptron(2 * hidden), (setup.randn(tokens, width),)

    def jobs(mode: str) -> dict[str, Job]:
        jobs = {
            "dense": job(setup, dense, inputs, mode, "", "bf16"),
            "loop": job(setup, loop, inputs, mode, "", "bf16"),
        }
        return jobs | {name: job(setup, routed, inputs, mode, name, "bf16") for name in BACKENDS}

    def agreement() -> Row:
        row: Row = {"tolerance": 0.01, "deviation": {}}  # outputs are a tenth of those of `TOLERANCE`
        contenders: dict[str, Any] = jobs("inference")
        expected = [contenders["loop"]().double().cpu()]
        for name in BACKENDS:
            judge(row, name, lambda name=name: [contenders[name]()], expected)
            setup.release()
        return row

    title = f"{experts} of {width}->{hidden}->{width} top-2, {tokens} tokens, bf16"
    timed = {f"{title}, {mode}": lambda mode=mode: compare(setup, jobs(mode), "loop") for mode in MODES}
    return {f"{title}, beside the loop": agreement, **timed}


def actors(setup: Setup) -> Steps:
    """The networks of the literature at their published sizes, beside that of MT-SAC."""
    batch = 40 if setup.quick else 1280
    inputs = setup.randn(batch, 39), torch.eye(10).repeat(batch // 10, 1).to(setup.device)

    def step(name: str) -> Row:
        net, base = (networks.build(network, 39, 10, OUT).to(setup.device) for network in (name, "mt-sac"))
        backends = ("auto",) if net.routed is None else ("auto", "reference")
        jobs = {"mt-sac": job(setup, base, inputs, MODES[0])}
        jobs |= {backend: job(setup, net, inputs, MODES[0], backend) for backend in backends}
        return compare(setup, jobs, "mt-sac")

    return {f"{name}, batch {batch}, {MODES[0]}": partial(step, name) for name in networks.available()}


class Update:
    """A complete training step: forward, backward and Adam, with fixed routing noise."""

    def __init__(self, setup: Setup, net: RoutedGraph, inputs: tuple[Tensor, ...]) -> None:
        self.net, self.inputs = copy.deepcopy(net).train(), inputs
        self.adam = torch.optim.Adam(self.net.parameters(), lr=3e-4, capturable=setup.cuda)

    def __call__(self) -> None:
        x, context, noise, target = self.inputs
        self.adam.zero_grad(set_to_none=True)
        loss = (self.net(x, context, noise=noise) - target).square().mean()
        loss.backward()
        self.adam.step()
        self.loss = loss.detach()


def captured(setup: Setup, update: Update) -> Job:
    """Captures an update as a CUDA graph after three eager ones on another stream; returns its replay."""
    if not setup.cuda:
        raise ValueError("a capture cannot: a CUDA graph needs a GPU")
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(3):
            update()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            update()
    except RuntimeError as error:  # the original error says more than that of the aborted capture
        raise ValueError(f"a capture cannot: {reason(error.__context__ or error)}") from error
    finally:
        torch.cuda.set_stream(current)  # a failed capture does not restore the stream
    return graph.replay


def capture(setup: Setup) -> Steps:
    """Updates per second of D2R's graph, eager and captured."""
    features, width, modules, batch = (STATE, 16, 4, 64) if setup.quick else (400, 128, 16, 1280)
    net = ModuleRouting.mlp(features, width, modules, OUT, 16, SampleK(2), router_sizes=(), device=setup.device)
    noise = gumbel_noise((batch, *net.topology.path_shape), device=setup.device)
    inputs = setup.randn(batch, features), setup.randn(batch, 16), noise, setup.randn(batch, OUT)

    def step(backend: str) -> Row:
        net.backend = backend
        eager, graphed = Update(setup, net, inputs), Update(setup, net, inputs)
        row: Row = {}
        replay = attempt(row, "captured", captured, setup, graphed)
        row = compare(setup, {"eager": eager} | ({"captured": replay} if replay else {}), "eager", row)
        return {**row, "updates a second": {name: 1e3 / ms for name, ms in row["ms"].items()}}

    def agreement() -> Row:
        net.backend = "reference"
        row: Row = {"tolerance": 5e-4, "deviation": {}}  # without the five replays the deviation is 1.4e-3
        eager, graphed = Update(setup, net, inputs), Update(setup, net, inputs)
        replay = attempt(row, "captured", captured, setup, graphed)
        for _ in range(8):
            eager()
        for _ in range(5 if replay else 0):  # three updates ran before the capture
            replay()
        if replay:
            states = [(update.loss, *update.net.parameters()) for update in (graphed, eager)]
            judge(row, "captured", lambda: states[0], [tensor.detach().double().cpu() for tensor in states[1]])
        return row

    # The reference comes first, since a failed capture may affect later ones.
    order = ["reference", *[name for name in BACKENDS if name not in ("reference", "skip")]]
    title = f"{features}->{modules}x{width}->{OUT} sample-2, batch {batch}"
    steps = {f"{title}, {name}": partial(step, name) for name in order}
    return {f"{title}, after eight updates": agreement, **steps}


SMALL: dict[str, dict[str, Any]] = {
    "mt-sac": {"hidden_sizes": (16, 16)},
    "d2r": {"trunk_sizes": (16, 16), "num_modules": 4, "width": 8, "router_sizes": (16,)},
}
UPDATES = 20
"""The number of consecutive updates of MultiTaskSAC in one timing, which do not wait for each other, as in training."""


def sac(setup: Setup) -> Steps:
    """Updates per second of MultiTaskSAC, eager and captured, at the sizes of MT10."""
    batch, count = (40, 2) if setup.quick else (1280, UPDATES)

    def make(network: str, precision: str, name: str) -> Any:
        try:
            from .sac import make  # only this section needs Stable-Baselines3
        except ImportError as error:
            raise ValueError(f"MultiTaskSAC cannot: {reason(error)}") from error
        if name != "eager" and not setup.cuda:
            raise ValueError("a capture cannot: a CUDA graph needs a GPU")
        sizes = SMALL[network] if setup.quick else None
        model = make(network, batch_size=batch, device=setup.device, sizes=sizes, precision=precision, seed=0)
        model.capture = name != "eager"
        model._learning = True  # as in learn(), which reads values only for the log
        return model

    def several(row: Row, network: str, precision: str, names: Sequence[str]) -> dict[str, Any]:
        return {name: attempt(row, name, make, network, precision, name) for name in names}

    def train(model: Any, backend: str) -> None:
        with dynroute.backend(backend):
            model.train(count, batch)

    def step(network: str, precision: str) -> Row:
        row: Row = {}
        contenders = {"eager": "auto", "captured": "auto"} | ({"captured, fused": "fused"} if network == "d2r" else {})
        models = several(row, network, precision, list(contenders))
        models = {name: model for name, model in models.items() if model is not None}
        jobs: dict[str, Job] = {name: partial(train, model, contenders[name]) for name, model in models.items()}
        row = compare(setup, jobs, "eager", row)
        row["updates a second"] = {name: round(1e3 * count / ms, 1) for name, ms in row["ms"].items()}
        for name, model in models.items():
            if model.capture and model._runs_eagerly:
                row.setdefault("failed", {})[name] = "the updates were not captured, a warning says why"
        return row

    def agreement(network: str) -> Row:
        row: Row = {"tolerance": 5e-4, "deviation": {}}
        eager, graphed = several(row, network, "float32", ("eager", "captured")).values()
        if eager is None or graphed is None:
            return row
        from dynroute_sb3.device_replay import DeviceReplay
        from dynroute_sb3.update import follow, update

        torch.manual_seed(1)
        graphed.train(5, batch)
        torch.manual_seed(1)
        eager.policy.set_training_mode(True)
        (replay := DeviceReplay(eager.replay_buffer, setup.device)).update()
        for _ in range(5):
            update(replay.sample(batch // TASKS), eager._networks(), eager._coefficients())
            follow(eager.critic_target, eager.critic, eager.tau)
        results, expected = (list(model.policy.state_dict().values()) for model in (graphed, eager))
        judge(row, "captured", lambda: results, [tensor.detach().double().cpu() for tensor in expected])
        return row

    cases = list(product(SMALL, ("float32", "bf16")))
    checks: Steps = {f"{name}, batch {batch}, after five updates": partial(agreement, name) for name in SMALL}
    return checks | {f"{count} updates of {name}, batch {batch}, {p}": partial(step, name, p) for name, p in cases}
