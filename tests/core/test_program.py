"""A program computes what its module did, comes from a file without its classes, and runs nothing but operations."""

import copy
import functools
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from dynroute import Hard, LayerRouting, ModelRouting, ModuleRouting, Program, Soft, TopK, TopP, extract, trace_program
from dynroute.networks import build

SIZES = {"num_modules": 4, "width": 8, "trunk_sizes": (8,), "router_sizes": (6,)}


class Texts(nn.Module):
    """Has operations with a text as an argument."""

    def forward(self, x: Tensor) -> Tensor:
        rounded = [torch.div(x, 0.3, rounding_mode=mode) for mode in ("floor", "trunc")]
        return nn.functional.gelu(x, approximate="tanh") + rounded[0] * rounded[1]


MODULES: dict[str, Callable[[], nn.Module]] = {
    "module": lambda: ModuleRouting.mlp(5, 8, 4, 3),
    "module hard": lambda: ModuleRouting.mlp(5, 8, 4, 3, gate=Hard()),
    "layer": lambda: LayerRouting.mlp(5, 8, [3, 2], 3, gate=Soft()),
    "model": lambda: ModelRouting.mlp(5, 8, 3, 3),
    "top-p": lambda: ModelRouting.ffn(5, 8, 4, gate=TopP(0.6)),
    "perceptron": lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 3)),
    "texts": lambda: Texts(),
    "extracted": lambda: extract(build("d2r", 5, 3, 2, **SIZES), torch.randn(32, 5), task=1),
    "extracted without a router": lambda: extract(
        build("d2r", 5, 3, 2, **SIZES, state_free=True), torch.randn(32, 5), task=1
    ),
    "normalized embedding": lambda: extract(
        build("scalemoe-output", 5, 3, 2, num_experts=3, width=8, blocks=1, embedding_features=4, router_sizes=(4,)),
        torch.randn(32, 5),
        task=1,
    ),
}


@functools.cache
def traced(name: str) -> tuple[nn.Module, Program]:
    """A module and its program, which tests look at and leave as they are."""
    module = MODULES[name]().eval()
    return module, trace_program(module, torch.randn(4, 5), notes={"name": name})


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_a_loaded_program_computes_what_its_module_did(name: str, tmp_path: Path) -> None:
    module, program = traced(name)
    program.save(tmp_path / "p.safetensors")
    loaded = Program.load(tmp_path / "p.safetensors")
    for count in (1, 2, 33):
        x = torch.randn(count, 5)
        torch.testing.assert_close(program(x), module(x), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(loaded(x), program(x), atol=1e-6, rtol=1e-5)
    assert loaded.notes == {"name": name}
    assert repr(loaded) == repr(program)
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program, path = traced("perceptron")[1], tmp_path / "p.safetensors"
    program.save(path)
    before = path.read_bytes()

    def fill_the_disk(_: Any, part: Path, **__: Any) -> None:
        part.write_bytes(b"half")
        raise OSError("no space is left")

    monkeypatch.setattr(safetensors.torch, "save_file", fill_the_disk)
    with pytest.raises(OSError, match="no space is left"):
        program.save(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_program_has_memory_of_its_own_and_leaves_the_module_as_it_was() -> None:
    module = MODULES["perceptron"]().train()
    x = torch.randn(4, 5)
    program = trace_program(module, x)
    assert module.training
    before = program(x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert torch.equal(program(x), before)
    assert torch.equal(program(x), before)  # no dropout


def test_a_program_takes_what_autocast_made_before_it() -> None:
    program = trace_program(nn.Sequential(nn.Linear(5, 3), nn.Tanh()), torch.randn(4, 5))
    x = torch.randn(4, 5).bfloat16()
    with pytest.raises(
        TypeError, match=r"`x` must be torch.float32 like the input that was traced, got torch.bfloat16"
    ):
        program(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = program(x)
    torch.testing.assert_close(found, program(x.float()))


def test_autocast_does_not_round_other_inputs() -> None:
    of_floats = trace_program(nn.Tanh(), torch.randn(4, 5))
    of_integers = trace_program(Returns(lambda x: 2 * x), torch.arange(20).view(4, 5))
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(TypeError, match=r"^`x` must be torch\.float32 like the .* traced, got torch\.float64; "):
            of_floats(torch.randn(4, 5, dtype=torch.float64))
        for dtype in (torch.bfloat16, torch.float32):
            with pytest.raises(TypeError, match=rf"^`x` must be torch\.int64 like the .* traced, got {dtype}; "):
                of_integers(torch.full((4, 5), 0.5, dtype=dtype))


def test_a_program_that_was_traced_in_inference_mode_has_gradients() -> None:
    module = nn.Sequential(nn.Linear(5, 3), nn.Tanh())
    with torch.inference_mode():
        copy_made_inside = nn.Sequential(nn.Linear(5, 3), nn.Tanh())
        copy_made_inside.load_state_dict(module.state_dict())
        programs = [trace_program(each, torch.randn(4, 5)) for each in (module, copy_made_inside)]
    x = torch.randn(4, 5, requires_grad=True)
    expected, *found = (torch.autograd.grad(of(x).sum(), x)[0] for of in (module, *programs))
    for each in found:
        torch.testing.assert_close(each, expected)


@pytest.mark.parametrize("inside", [False, True])
def test_an_example_may_come_from_inference_mode(inside: bool) -> None:
    module, x = MODULES["perceptron"]().eval(), torch.randn(4, 5)
    with torch.inference_mode():
        example = torch.randn(4, 5)
    assert example.is_inference()
    with torch.inference_mode(inside):
        program = trace_program(module, example)
    torch.testing.assert_close(program(x), module(x), atol=1e-6, rtol=1e-5)


def test_a_program_moves_and_takes_other_types(tmp_path: Path) -> None:
    program = traced("module")[1]
    program.save(tmp_path / "p.safetensors")
    for moved in (copy.deepcopy(program).to("meta"), Program.load(tmp_path / "p.safetensors", device="meta")):
        assert {tensor.device.type for tensor in moved.buffers()} == {"meta"}
        assert moved(torch.randn(7, 5, device="meta")).shape == (7, 3)
    double = ModuleRouting.mlp(5, 8, 3, 3, dtype=torch.float64)
    x = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(trace_program(double, x)(x), double.eval()(x))


def test_a_program_computes_in_the_types_that_were_traced(tmp_path: Path) -> None:
    program = traced("module")[1]
    program.save(tmp_path / "p.safetensors")
    x = torch.randn(4, 5)
    expected = program(x)
    for other in (copy.deepcopy(program).half(), Program.load(tmp_path / "p.safetensors").double()):
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(other(x), expected)
        with pytest.raises(TypeError, match=r"`x` must be torch\.float32 like the input that was traced, got tor"):
            other(x.double())
    assert {tensor.device.type for tensor in copy.deepcopy(program).to("meta", torch.float64).buffers()} == {"meta"}


def test_a_file_needs_neither_classes_nor_training(tmp_path: Path) -> None:
    program = traced("extracted")[1]
    program.save(tmp_path / "p.safetensors")
    x = torch.randn(3, 5)
    text = f"""
import sys, torch
from dynroute import Program
y = Program.load({str(tmp_path / "p.safetensors")!r})(torch.tensor({x.tolist()}))
assert not [name for name in sys.modules if name.startswith(("dynroute_", "stable_baselines3", "gymnasium"))]
print(y.tolist())
"""
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    torch.testing.assert_close(torch.tensor(json.loads(ended.stdout)), program(x))


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A file whose description was changed by hand."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    told = json.loads(metadata["program"])
    change(told)
    other = path.with_name("other.safetensors")
    safetensors.torch.save_file(tensors, other, metadata={**metadata, "program": json.dumps(told)})
    return other


def operation(told: dict[str, Any]) -> list[Any]:
    found: list[Any] = told["operations"][0]
    return found


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a file is read": (lambda told: operation(told).__setitem__(1, "from_file.default"), "'from_file.default' is no"),
    "a function of Python": (lambda told: operation(told).__setitem__(1, "__class__.mro"), "'__class__.mro' is no"),
    "another library": (lambda told: operation(told).__setitem__(1, "os.system"), "'os.system' is not an operation"),
    "no operation": (lambda told: operation(told).__setitem__(1, "linear"), "'linear' is not an operation"),
    "random": (lambda told: operation(told).__setitem__(1, "rand.default"), "'rand.default' draws random numbers"),
    "text": (lambda told: operation(told)[2].append("x"), "an argument must be a number, a value or a list, got 'x'"),
    "text as such": (
        lambda told: operation(told)[3].update(approximate={"text": "tanh'"}),
        r"an argument must be a number, a value or a list, got .*tanh",
    ),
    "no type": (lambda told: operation(told)[2].append({"dtype": "load"}), "'load' is not a dtype"),
    "a keyword": (lambda told: operation(told)[3].update({"a=b": 1}), "keywords must be names"),
    "a later value": (lambda told: operation(told)[2].__setitem__(0, {"value": "v5"}), "'v5'$"),
    "no output": (lambda told: told.update(output="y"), "'y'$"),
    "a tensor": (lambda told: told["tensors"].append("more"), "'more'$"),
    "no type of the input": (lambda told: told.update(dtype={"dtype": "load"}), "'load' is not a dtype"),
    "not a list": (lambda told: told.update(operations=3), "'int' object is not iterable$"),
    "nothing": (lambda told: told.clear(), "'tensors'$"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "p.safetensors"
    traced("perceptron")[1].save(path)
    return path


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_file_must_not_hold(name: str, saved: Path) -> None:
    change, message = CHANGES[name]
    path = rewritten(saved, change)
    with pytest.raises(ValueError, match=f"`path` must hold operations that this torch has, .* does not: {message}"):
        Program.load(path)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors must be a file that Program\.save wrote, there is"):
        Program.load(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match=r"`path` must be a whole safetensors file, .*text is not"):
        Program.load(tmp_path / "text")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "plain")
    with pytest.raises(ValueError, match=r"`path` must be a file that Program\.save wrote, .*plain is another one"):
        Program.load(tmp_path / "plain")


def test_bad_arguments() -> None:
    program = trace_program(MODULES["perceptron"](), torch.randn(4, 5))
    with pytest.raises(ValueError, match=r"`x` must have shape \(batch, 5\), got \(5,\)"):
        program(torch.randn(5))
    with pytest.raises(
        ValueError, match=r"`x` must have shape \(batch, features\) with at least two rows, got \(1, 5\)"
    ):
        trace_program(MODULES["perceptron"](), torch.randn(1, 5))
    with pytest.raises(TypeError, match="`module` must be a module, got 3"):
        trace_program(3, torch.randn(4, 5))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`notes` must be plain data with finite numbers, got "):
        trace_program(MODULES["perceptron"](), torch.randn(4, 5), notes={"a": float("nan")})


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.bernoulli(x.sigmoid())


class Counter(nn.Module):
    """Multiplies by the number of calls, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x * self.calls


def test_a_buffer_that_changes_must_not_matter() -> None:
    with pytest.raises(ValueError, match=r"^`module` must compute the same at each call, but it changes 1\.calls,"):
        trace_program(nn.Sequential(nn.Linear(5, 5), Counter()), torch.randn(4, 5))
    net = ModelRouting.ffn(5, 8, 4, gate=TopK(2, capacity=1.0)).eval()  # sets gate.dropped
    x = torch.randn(4, 5)
    torch.testing.assert_close(trace_program(net, x)(x), net(x))


class Returns(nn.Module):
    """Calls a function of its input."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: (x, x + 1), "tuple"),
        (lambda x: {"a": x + 1}, "dict"),
        (lambda x: None, "NoneType"),
        (lambda x: 3, "int"),
    ],
)
def test_a_module_that_returns_no_tensor_is_refused(function: Callable[[Tensor], Any], kind: str) -> None:
    with pytest.raises(TypeError, match=f"^`module` must return a tensor, got {kind}\\.$"):
        trace_program(Returns(function), torch.randn(4, 5))


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2 * x.shape[0], -1)


def test_what_is_no_basic_operation_is_refused_when_it_is_traced() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"is not an operation that a program may have"):
            trace_program(Random(), torch.randn(4, 5))
    with pytest.raises(
        ValueError, match=r"`module` must compute with tensors alone, but mul is applied to the size of the batch"
    ):
        trace_program(Halves(), torch.randn(4, 6))
    assert trace_program(nn.Identity(), torch.randn(4, 5)).operations == []


def test_without_safetensors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = trace_program(MODULES["perceptron"](), torch.randn(4, 5))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"`Program\.save` needs safetensors; type: pip install 'dynroute\[safetens"):
        program.save(tmp_path / "p.safetensors")
