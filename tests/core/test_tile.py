"""The kernels that walk all nodes of a graph: their cases in Triton's interpreter, and their code for a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dynroute
from dynroute import ModuleRouting, Topology
from dynroute.execution import Pass, Plan
from dynroute.execution.fused import linear_nodes, run_tile, tile, tiles

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is there for Linux alone")


@pytest.mark.slow
def test_the_cases_pass_in_the_interpreter() -> None:
    # Triton asks once, when it is imported; in this process torch.compile would find its kernels interpreted, too.
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "-o", "addopts=", "tests/shared/tile_cases.py"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^\d\d+ passed in", result.stdout, re.MULTILINE), result.stdout


class Recorder:
    """Stands for a kernel and keeps what it was started with."""

    def __init__(self) -> None:
        self.arguments: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int]) -> "Recorder":
        return self

    def __call__(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options = arguments, options


def make_pass(
    dtype: torch.dtype, width: int, batch: int, protect: str, activation: type[nn.Module], shortcut: bool
) -> Pass:
    topology = Topology.dag(4)
    modules = [
        nn.Sequential(activation(), nn.Linear(width if i else 9, width, dtype=dtype), activation()) for i in range(3)
    ]
    shape = (batch, *topology.path_shape)
    suitable = None if protect == "none" else torch.ones(shape, dtype=torch.bool)
    weights = torch.ones(shape).requires_grad_()
    x = torch.zeros(batch, 9, dtype=dtype, requires_grad=True)
    return Pass(
        Plan(topology, [False, shortcut, shortcut, False]), [*modules, nn.Identity()], x, weights, suitable, protect
    )


def compiled(kernel: Any, started: Recorder, capability: int) -> Any:
    """The code of a kernel for a GPU that need not be there."""
    import triton
    from triton.backends.compiler import GPUTarget

    options = dict(started.options)
    settings = {name: options.pop(name) for name in ("num_warps", "num_stages")}
    kinds = {
        torch.float32: "*fp32",
        torch.bfloat16: "*bf16",
        torch.bool: "*i1",
        torch.int32: "*i32",
    }
    signature = dict.fromkeys(options, "constexpr")
    attributes = {}
    for i, (name, value) in enumerate(zip(kernel.arg_names, started.arguments, strict=False)):
        if isinstance(value, Tensor):
            signature[name] = kinds[value.dtype]
            attributes[i,] = [["tt.divisibility", 16]]
        elif value == 1 and name != "batch":  # as when it is started
            signature[name], options[name] = "constexpr", 1
        else:
            signature[name] = "i32"
    signature = {name: signature[name] for name in kernel.arg_names}
    source = triton.compiler.ASTSource(kernel, signature, options, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "width", "batch", "protect", "activation", "shortcut", "capability"),
    [
        (torch.float32, 128, 5000, "rsg", nn.Tanh, True, 80),
        (torch.float32, 128, 100, "input", nn.Identity, True, 90),
        (torch.float32, 24, 100, "none", nn.Sigmoid, False, 80),
        (torch.bfloat16, 128, 5000, "input", nn.SiLU, True, 90),
        (torch.bfloat16, 40, 100, "sg", nn.ReLU, True, 80),
    ],
)
def test_a_gpu_would_get_code(
    dtype: torch.dtype,
    width: int,
    batch: int,
    protect: str,
    activation: type[nn.Module],
    shortcut: bool,
    capability: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # else Triton warns that its default will change
    from dynroute.execution.fused import tile_kernels

    kernels = tile_kernels.walk_forward, tile_kernels.walk_backward
    forward, backward = Recorder(), Recorder()
    monkeypatch.setattr(tile_kernels, "walk_forward", forward)
    monkeypatch.setattr(tile_kernels, "walk_backward", backward)
    call = make_pass(dtype, width, batch, protect, activation, shortcut)
    linear = linear_nodes(call)
    assert not isinstance(linear, str)
    assert tiles(call, linear) is None
    run_tile(call, linear).sum().backward()

    for kernel, started in zip(kernels, (forward, backward), strict=True):
        code = compiled(kernel, started, capability)
        assert code.metadata.shared < 48 * 1024  # any GPU has that much, for several programs at once
        # A load through another cache, or one issued early, would miss what the program wrote.
        assert not re.search(r"ld\.global\.nc|cp\.async", code.asm["ptx"])
        # The interpreter has no threads, so that it cannot miss the barriers between what one stores and another loads.
        assert code.asm["ttgir"].count("ttg.barrier all") == (3 if call.plan.shortcuts[1] else 2)
        assert len(code.asm["cubin"]) > 1000


def obstacle(net: dynroute.RoutedGraph, features: int = 4, dtype: torch.dtype = torch.float32) -> str | None:
    x = torch.zeros(3, features, dtype=dtype)
    weights = torch.ones(3, *net.topology.path_shape)
    call = Pass(net._plan, list(net.nodes), x, weights, None, "none")
    linear = linear_nodes(call)
    assert not isinstance(linear, str)
    return tiles(call, linear)


def test_what_the_kernel_cannot_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert obstacle(ModuleRouting.mlp(4, 128, 3, 2)) is None
    assert "at most 128 features, not 129" in str(obstacle(ModuleRouting.mlp(4, 129, 3, 2)))
    assert "not in torch.float64" in str(obstacle(ModuleRouting.mlp(4, 8, 3, 2).double(), dtype=torch.float64))
    assert "no node but the output" in str(obstacle(dynroute.ModelRouting.mlp(4, 8, 3, 2, depth=0)))

    net = ModuleRouting.mlp(4, 8, 3, 2)
    net.nodes[1] = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    assert "the nodes that read others differ" in str(obstacle(net))
    net.nodes[2] = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh())
    assert "or in having a bias" in str(obstacle(net))
    net = ModuleRouting.mlp(4, 8, 4, 2)
    net._plan = Plan(net.topology, [False, True, False, True, False])
    assert obstacle(net) == "only some nodes have a shortcut"

    monkeypatch.setattr(tile, "_has_triton", lambda: False)
    assert obstacle(ModuleRouting.mlp(4, 8, 3, 2)) == "Triton is not installed"


def test_an_old_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "cuda:0 has 7.5" in str(tile._no_kernel(torch.device("cuda:0")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert tile._no_kernel(torch.device("cuda:0")) is None
