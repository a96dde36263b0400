"""A net that is loaded from a folder computes the same, and nothing of the folder can run."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from small_networks import OUT, SMALL, STATE, TASKS
from torch import Tensor, nn

from dynroute import (
    BalancedTopK,
    Budget,
    CascadeRouter,
    CompositionalLinear,
    ExpertChoice,
    Extracted,
    Extraction,
    Gate,
    Hard,
    LayerRouting,
    LinearBank,
    LinearRouter,
    MLPRouter,
    ModelRouting,
    ModuleRouting,
    OutputRouting,
    RoutedGraph,
    SampleK,
    Soft,
    TableRouter,
    TopK,
    Topology,
    TopP,
    distributed,
    extract,
    from_pretrained,
    grow,
    networks,
    save_pretrained,
)
from dynroute.banks import are_adjacent
from dynroute.networks import Network
from dynroute.routers import TaskRouter

GATES: dict[str, Callable[[], Gate]] = {
    "soft": Soft,
    "hard": lambda: Hard(capacity=1.5),
    "topk": lambda: TopK(2),
    "samplek": lambda: SampleK(3, capacity=2.0),
    "topp": lambda: TopP(0.7),
    "balanced": lambda: BalancedTopK(2, 0.01),
    "expert choice": lambda: ExpertChoice(1.5),
}
NETS: dict[str, Callable[[], nn.Module]] = {
    "module": lambda: ModuleRouting.mlp(5, 8, 4, 2, shortcut=True, protect="input", backend="reference"),
    "layer": lambda: LayerRouting.mlp(5, 8, [3, 2], 2, router_sizes=(6,)),
    "model": lambda: ModelRouting.mlp(5, 8, 3, 2, activation=nn.Tanh),
    "output": lambda: OutputRouting.mlp(5, 8, 5, 2),
    "ffn": lambda: ModelRouting.ffn(5, 8, 4, shared=2, gated=True, activation=lambda: nn.GELU("tanh")),
    "half": lambda: ModelRouting.ffn(5, 8, 4, dtype=torch.bfloat16),
    "double": lambda: LayerRouting.mlp(5, 8, [2, 2], 2, dtype=torch.float64),
    "graph": lambda: RoutedGraph(
        [nn.Linear(5, 4), nn.Sequential(nn.Linear(4, 4, bias=False), nn.LeakyReLU(0.3)), nn.Identity()],
        Topology([[], [0], [0, 1]]),
        TopK(2),
        LinearRouter(5, Topology([[], [0], [0, 1]]), jitter=0.1, noise=0.5, dropout=0.1),
    ),
    "table": lambda: ModelRouting([nn.Linear(5, 2)] * 2, Soft(), TableRouter(3, Topology.parallel(2), noise=0.1)),
    "cascade": lambda: LayerRouting(
        [[nn.Linear(5, 4), nn.Linear(5, 4)], [nn.Linear(4, 4), nn.Linear(4, 4)]],
        Soft(),
        CascadeRouter(5, Topology.layered([2, 2]), (6,), cascade="logits", score_output=False),
    ),
    "parts of torch": lambda: nn.Sequential(
        nn.Conv2d(3, 4, (3, 1), padding=(1, 0), bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.3)
    ),
    "inside": lambda: nn.Sequential(
        nn.LayerNorm((5,), eps=1e-3), ModelRouting.ffn(5, 8, 3), nn.ModuleList([nn.ReLU()])
    ),
    "bank": lambda: LinearBank(3, 5, 4, nn.GELU),
    "bank with two activations": lambda: LinearBank(3, 5, 4, lambda: nn.Sequential(nn.GELU(), nn.Tanh())),
    "bank without a bias": lambda: LinearBank(2, 5, 4, bias=False),
    "budget": lambda: Budget(3.0, 4, initial=0.1),
    "extracted": lambda: extract(ModelRouting.ffn(5, 8, 4, shared=1), torch.randn(9, 5)),
    "compositional": lambda: nn.ModuleList([CompositionalLinear(2, 3, 4), TaskRouter(3)]),
}


@pytest.mark.parametrize("name", NETS)
def test_what_is_loaded_is_what_was_saved(name: str, tmp_path: Path) -> None:
    net = NETS[name]()
    state = torch.get_rng_state()
    save_pretrained(net, tmp_path / "deep" / "folder")
    twin = from_pretrained(tmp_path / "deep" / "folder")
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(twin) == repr(net)
    assert not twin.training
    for (key, mine), (other, theirs) in zip(net.state_dict().items(), twin.state_dict().items(), strict=True):
        assert key == other
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
    if isinstance(net, RoutedGraph):
        assert net._banks == twin._banks
        x = torch.randn(6, 5, dtype=next(net.parameters()).dtype)
        context = torch.arange(6) % 3 if name in ("output", "table") else None
        assert torch.equal(twin(x, context), net.eval()(x, context))
    if isinstance(net, LinearBank):
        assert are_adjacent(list(twin))
    if isinstance(net, Extracted):
        assert twin.report == net.report
        assert isinstance(twin.report, Extraction)


def test_a_part_that_is_shared_behind_made_activations_is_found_again(tmp_path: Path) -> None:
    act, lin = nn.Tanh(), nn.Linear(3, 3)
    save_pretrained(nn.Sequential(LinearBank(4, 5, 5, nn.ReLU), nn.Sequential(nn.Linear(5, 5), act), act), tmp_path)
    twin = from_pretrained(tmp_path)
    assert twin[2] is twin[1][1]
    assert isinstance(twin[2], nn.Tanh)
    assert len({id(member[1]) for member in twin[0]}) == 4

    mlp = networks.build("mt-sac", STATE, TASKS, OUT, hidden_sizes=(8, 8, 8))
    save_pretrained(nn.ModuleList([mlp, lin, lin]), tmp_path)
    twin = from_pretrained(tmp_path)
    assert twin[1] is twin[2]


def test_integers_of_numpy_are_numbers(tmp_path: Path) -> None:
    save_pretrained(MLPRouter(np.int32(4), Topology.dag(3), (np.int64(5),)), tmp_path)  # type: ignore[arg-type]
    twin = from_pretrained(tmp_path)
    assert (twin.context_features, twin.hidden_sizes) == (4, (5,))


@pytest.mark.parametrize("name", GATES)
def test_gates_come_back(name: str, tmp_path: Path) -> None:
    net = ModelRouting.ffn(5, 8, 4, GATES[name]())
    for _ in range(4):
        net(torch.randn(8, 5))
    net.save_pretrained(tmp_path)
    twin = ModelRouting.from_pretrained(tmp_path)
    assert repr(twin.gate) == repr(net.gate)
    x = torch.randn(6, 5)
    assert torch.equal(twin(x), net.eval()(x))


def test_a_capacity_comes_back_that_a_gate_was_given(tmp_path: Path) -> None:
    net = ModelRouting.ffn(5, 8, 4, Soft())
    net.gate.capacity = 1.5
    net.save_pretrained(tmp_path)
    assert ModelRouting.from_pretrained(tmp_path).gate.capacity == 1.5
    hard = networks.build("hard", STATE, TASKS, OUT, **SMALL["hard"])
    assert isinstance(hard, networks.HardRouting)
    hard.modular.gate.capacity = 1.5  # the network has no argument for it
    with pytest.raises(ValueError, match=r"`modular\.gate` differs; was a part changed after it was made"):
        save_pretrained(hard, tmp_path / "none")


class Expert(nn.Module):
    def __init__(self, width: int, *, slope: float = 0.5, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.width, self.slope, self.inner = width, slope, inner
        self.weight = nn.Parameter(torch.randn(width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.leaky_relu(x @ self.weight, self.slope)
        return y if self.inner is None else self.inner(y)


class Forgetful(nn.Linear):
    def __init__(self, secret: int) -> None:
        super().__init__(secret, secret)


class Mixture(ModelRouting):
    """A class of a user's own with another constructor."""

    def __init__(self, width: int, count: int) -> None:
        self.width, self.count = width, count
        super().__init__([Expert(width) for _ in range(count)], TopK(2), context_features=width)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value) if name in ("width", "count") else super().__setattr__(name, value)

    def constructor_arguments(self) -> dict[str, Any]:
        return {"width": self.width, "count": self.count}


def test_classes_of_ones_own(tmp_path: Path) -> None:
    net = ModelRouting([Expert(5, slope=0.1, inner=nn.Tanh()) for _ in range(3)], TopK(2), context_features=5)
    net.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`classes` must hold Expert, which the folder has parts of; only classes of"):
        from_pretrained(tmp_path)
    twin = from_pretrained(tmp_path, classes=[Expert])
    x = torch.randn(4, 5)
    assert torch.equal(twin(x), net.eval()(x))

    mine = Mixture(5, 3).eval()
    mine.save_pretrained(tmp_path)
    assert torch.equal(Mixture.from_pretrained(tmp_path, classes=[Expert])(x), mine(x))


class Scaled(nn.Module):
    """Keeps an argument with a default under another name."""

    def __init__(self, n: int, scale: float = 1.0) -> None:
        super().__init__()
        self.n, self.factor = n, scale


def test_arguments_with_defaults_must_be_kept_too(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"`scale` of Scaled must be kept as an attribute of that name to be saved;"):
        save_pretrained(Scaled(3, scale=0.5), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def loaded(net: Network, folder: Path) -> nn.Module:
    """The network saved and loaded, which must be as it was."""
    save_pretrained(net, folder)
    twin = from_pretrained(folder)
    assert type(twin) is type(net)
    assert repr(twin) == repr(net)
    assert twin.constructor_arguments().keys() == net.constructor_arguments().keys()
    assert net.state_dict().keys() == twin.state_dict().keys()
    for name, value in net.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value)
    state = torch.randn(9, STATE, dtype=next(net.parameters()).dtype)
    task = torch.arange(9) % TASKS
    assert torch.equal(twin(state, task), net.eval()(state, task))
    return twin


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in networks.available()},
    "no SampleK": ("d2r", {"gate": "top-2", "protect": "none"}),
    "options": ("d2r", {"gate": TopP(0.6), "shortcut": False, "state_free": True, "hidden_init": "released"}),
    "residual layers": ("d2r-layer", {"module_kind": "residual", "output_init": None, "backend": "reference"}),
    "layers in double": ("d2r-layer", {"layer_sizes": (2, 3), "dtype": torch.float64}),
    "deep models": ("d2r-model", {"num_models": 3, "model_depth": 2, "module_kind": "layer-norm"}),
    "paper": ("sm", {"equations": "paper", "layer_sizes": (2, 3), "state_free": True, "output_init": None}),
    "tanh": ("mt-sac", {"hidden_sizes": (6,), "activation": lambda: nn.LeakyReLU(0.3)}),
    "linear": ("mt-sac", {"hidden_sizes": ()}),
    "normalized": ("mt-sac", {"layer_norm": True, "activation": nn.Tanh}),
    "normalized heads": ("mh-sac", {"layer_norm": True, "activation": nn.Tanh}),
    "heads": ("mh-sac", {"hidden_sizes": (6, 7), "activation": nn.PReLU}),
    "released": ("mt-sac", {"hidden_init": "released", "output_init": 3e-3}),
    "released heads": ("mh-sac", {"hidden_init": "released", "output_init": 3e-3}),
    "released sets": ("paco", {"hidden_init": "released", "output_init": 3e-3}),
    "metadata": ("care", {"metadata": torch.arange(TASKS * 5.0).reshape(TASKS, 5), "attention": "dot"}),
    "no task": ("care", {"num_encoders": 3, "task_in_trunk": False, "gate": "hard"}),
    "sets": ("paco", {"num_sets": 3}),
    "learned elsewhere": ("brc", {"learn_embedding": False, "blocks": 3, "embedding_features": 7}),
    "experts": ("scalemoe-output", {"num_experts": 3, "router_sizes": (5,), "gate": Hard(capacity=1.5)}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_networks_come_back(name: str, tmp_path: Path) -> None:
    network, sizes = OTHERS[name]
    net = networks.build(network, STATE, TASKS, OUT, **{**SMALL[network], **sizes})
    assert isinstance(net, Network)
    net.become_actor()
    loaded(net, tmp_path)


@pytest.mark.parametrize("name", ["d2r", "d2r-model", "moe", "scalemoe-output"])
def test_networks_that_grew_come_back(name: str, tmp_path: Path) -> None:
    net = networks.build(name, STATE, TASKS, OUT, **SMALL[name])
    assert isinstance(net, Network)
    grow(net, 2)
    twin = loaded(net, tmp_path)
    assert isinstance(twin, Network)
    assert twin.topology == net.topology


@pytest.mark.parametrize("net", [ModuleRouting.mlp(5, 8, 1, 2), LayerRouting.mlp(5, 8, [2], 2, shortcut=True)])
def test_shortcuts_come_back_where_no_node_has_one_yet(net: RoutedGraph, tmp_path: Path) -> None:
    net.save_pretrained(tmp_path)
    assert from_pretrained(tmp_path).constructor_arguments()["shortcut"]
    assert not net.shortcut
    if isinstance(net, ModuleRouting):
        twin = ModuleRouting.from_pretrained(tmp_path)
        grow(twin, [nn.Linear(8, 8)])
        assert twin.shortcut


def test_networks_that_share_a_table_are_not_saved_together(tmp_path: Path) -> None:
    actor = networks.build("paco", STATE, TASKS, OUT, **SMALL["paco"])
    critic = networks.build("paco", STATE, TASKS, 1, **SMALL["paco"], **actor.shared)
    with pytest.raises(ValueError, match="but other parameters are shared"):
        save_pretrained(nn.ModuleList([actor, critic]), tmp_path)


def test_shared_parts_stay_shared(tmp_path: Path) -> None:
    expert = nn.Linear(5, 5)
    save_pretrained(nn.Sequential(expert, nn.ReLU(), expert), tmp_path)
    twin = from_pretrained(tmp_path)
    assert twin[0] is twin[2]


def test_a_device_is_where_it_goes(tmp_path: Path, device: torch.device) -> None:
    ModelRouting.ffn(5, 8, 3).save_pretrained(tmp_path)
    for load in (ModelRouting.from_pretrained, from_pretrained):
        for there in (device, torch.device("meta")):
            assert {p.device.type for p in load(tmp_path, device=there).parameters()} == {there.type}


def test_what_cannot_be_made_again_is_not_saved(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    tied[1].weight = tied[0].weight
    changed = nn.Sequential(nn.Linear(5, 5))
    changed[0].weight = nn.Parameter(torch.zeros(3, 5))
    uneven = LinearBank(3, 5, 5, nn.ReLU)
    uneven[1][1] = nn.Tanh()
    for module, error, message in [
        (
            tied,
            ValueError,
            "`module` must be what its classes make of their arguments, but other parameters",
        ),
        (changed, ValueError, "`module` must be what its classes make .*, but `0.weight` differs; was a part changed"),
        (uneven, ValueError, "`module` must be what its classes make of their arguments, but `1.1` differs"),
        (Forgetful(3), TypeError, "`secret` of Forgetful must be kept as an attribute of that name to be saved"),
        (Expert(3, slope=torch.zeros(2)), TypeError, r"`module\.slope` must be a number, text, a module, .* got a ten"),
        (Expert(3, slope=float("nan")), TypeError, r"`module\.slope` must be a number, .* got nan"),
        (nn.GRU(3, 4), ValueError, "`module` must be of classes that can be made again .* cannot: torch.nn.GRU: .*"),
        (3, TypeError, "`module` must be a module, got 3"),
    ]:
        with pytest.raises(error, match=message):
            save_pretrained(module, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(TypeError, match="`folder` must be a path, got 3"):
        save_pretrained(nn.ReLU(), 3)


def test_a_mixture_with_experts_on_other_processes_is_not_saved(tmp_path: Path) -> None:
    layer = ModelRouting.ffn(8, 16, 4)
    distributed._shard(layer, distributed._Sharded(None, 0, distributed._shares(4, 2), average=True))
    with pytest.raises(ValueError, match=r"^`module` must have all .* to be saved, .*gather_state_dict` and load"):
        save_pretrained(nn.Sequential(layer), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_text("kept")
    for folder in (file, file / "inside" / "it"):
        message = f"`folder` must be a folder, or a new name, got {folder}, and {file} is a file."
        with pytest.raises(FileExistsError, match=f"^{re.escape(message)}$"):
            save_pretrained(nn.ReLU(), folder)
    assert file.read_text() == "kept"


def damaged(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    ModelRouting.ffn(5, 8, 3).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def part(name: str, **arguments: object) -> dict[str, Any]:
    return {"class": f"torch.nn.{name}", "arguments": arguments}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="other"), "`folder` must hold what `save_pretrained` wrote, but"),
        (lambda c: c.update(module=3), "`folder` must describe a module by its class and arguments, got 3"),
        (lambda c: c.update(module={"again": 7}), "`folder` must describe a module by its class and arguments"),
        (lambda c: c["module"].update({"class": "os.system"}), "`classes` must hold os.system, which the folder"),
        (lambda c: c["module"].update({"class": "dynroute.save_pretrained"}), "`classes` must hold dynroute.save_pre"),
        (lambda c: c["module"].update({"class": "dynroute.Gate", "arguments": {}}), "the arguments of dynroute.Gate"),
        (lambda c: c["module"].update({"class": "torch.nn.Linear", "arguments": {}}), "the arguments of torch.nn.Lin"),
        (lambda c: c.update(module=part("MultiheadAttention", embed_dim=3, num_heads=2)), "torch.nn.Mult.*divisible"),
        (lambda c: c.update(module=part("GroupNorm", num_groups=0, num_channels=4)), "the arguments of torch.nn.Group"),
        (lambda c: c.update(module={"class": "torch.nn.Sequential", "children": {"a.b": part("ReLU")}}), "got 'a.b'"),
        (lambda c: c.update(module={"class": "torch.nn.Sequential", "children": {"": part("ReLU")}}), "names, got ''"),
        (lambda c: c["module"]["arguments"].update(gate={"topology": 3}), "`folder` must describe arguments, got 3: "),
        (lambda c: c["module"]["arguments"].update(gate={"filled": ["a"]}), "`folder` must describe arguments, got"),
        (lambda c: c["module"]["arguments"]["gate"].update(capacity="a"), "of dynroute.TopK, but: `capacity`"),
        (lambda c: c.update(module={"class": "torch.nn.ReLU", "children": {}}), "must describe torch.nn.ReLU by its"),
        (lambda c: c["module"]["arguments"].update(gate={"odd": 1}), "`folder` must describe arguments, got"),
        (lambda c: c["module"]["arguments"].update(shared=[{"class": "torch.nn.ReLU", "arguments": {}}] * 2, models=[
            {"class": "torch.nn.Linear", "arguments": {"in_features": 5, "out_features": 5}}] * 3), "does not fit"),
    ],
)  # fmt: skip
def test_altered_configurations_are_refused(change: Callable[[Any], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        from_pretrained(damaged(tmp_path, change))


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`folder` must hold config.json and model.safetensors, but .* is missing"):
        from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="`folder` must be a path, got None"):
        from_pretrained(None)
    with pytest.raises(TypeError, match="`classes` must list classes of modules, got 3"):
        from_pretrained(tmp_path, classes=[3])
    ModelRouting.ffn(5, 8, 3).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="`folder` must hold a ModuleRouting, got a ModelRouting; load it with"):
        ModuleRouting.from_pretrained(tmp_path)
    safetensors.torch.save_file({"odd": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"`folder` must hold the parameters of a module, but .* does not fit"):
        from_pretrained(tmp_path)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes(b"\xff\xff not it")
        with pytest.raises(ValueError, match="`folder` must hold files that can be read, but"):
            from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="`folder` must hold files that can be read, but"):
        from_pretrained(tmp_path)


def test_types_of_buffers_come_back(tmp_path: Path) -> None:
    net = networks.build("care", 5, 3, 2, metadata=torch.randn(3, 7), gate=BalancedTopK(2), dtype=torch.float64)
    save_pretrained(net, tmp_path)
    loaded = from_pretrained(tmp_path)
    types = [{name: value.dtype for name, value in each.state_dict().items()} for each in (net, loaded)]
    assert types[0] == types[1]
    assert {torch.float32, torch.float64} <= set(types[0].values())
    x, task = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 3
    assert torch.equal(loaded.eval()(x, task), net.eval()(x, task))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_banks_of_other_types_come_back_beside_a_bias_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    net = LayerRouting.mlp(5, 8, [3, 2], 2, gate=BalancedTopK(2), dtype=dtype)
    save_pretrained(net, tmp_path)
    twin = LayerRouting.from_pretrained(tmp_path)
    assert net.has_bank
    assert twin.has_bank
    assert {parameter.dtype for parameter in twin.parameters()} == {dtype}
    assert twin.gate.bias.dtype == torch.float32


def test_a_bank_of_another_type_than_the_router_comes_back(tmp_path: Path) -> None:
    router = LinearRouter(5, Topology.parallel(3))
    net = ModelRouting(LinearBank(3, 5, 2, dtype=torch.float64), Soft(), router)
    save_pretrained(net, tmp_path)
    twin = ModelRouting.from_pretrained(tmp_path)
    assert net.has_bank
    assert twin.has_bank
    x, context = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5)
    assert torch.equal(twin(x, context), net(x, context))


class Moved(nn.Linear):
    """Counts how often its parameters were moved or converted."""

    moves = 0

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.moves += 1
        return super()._apply(*args, **kwargs)


def test_a_module_is_converted_at_most_once_while_it_is_loaded(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float64):
        save_pretrained(Moved(3, 2, dtype=dtype), tmp_path)
        loaded = from_pretrained(tmp_path, classes=[Moved])
        assert loaded.weight.dtype == dtype
        assert loaded.moves == (1 if dtype == torch.float64 else 0)


def test_a_failure_leaves_both_files_that_were_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = ModelRouting.ffn(5, 8, 3)
    net.save_pretrained(tmp_path)

    done = iter(range(1))

    def fail_later(descriptor: int) -> None:
        if next(done, None) is None:
            raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail_later)  # for the second of the two files
    with pytest.raises(OSError, match="no space left"):
        ModelRouting.ffn(5, 8, 4).save_pretrained(tmp_path)
    assert torch.equal(from_pretrained(tmp_path).eval()(torch.ones(2, 5)), net.eval()(torch.ones(2, 5)))
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_without_safetensors_one_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ModelRouting.ffn(5, 8, 3).save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (lambda: save_pretrained(nn.ReLU(), tmp_path), lambda: from_pretrained(tmp_path)):
        with pytest.raises(ImportError, match=r"needs safetensors; type: pip install 'dynroute\[safetensors\]'"):
            call()


class Hub:
    """Does to a class as huggingface_hub's ModelHubMixin does, without a network."""

    def save_pretrained(self, save_directory: str, *, config: object = None, model_card_kwargs: object = None) -> str:
        self._save_pretrained(Path(save_directory))
        return "pushed"

    @classmethod
    def from_pretrained(cls, name: str, *, revision: str | None = None, **model_kwargs: Any) -> Any:
        options = dict.fromkeys(("cache_dir", "token"), None) | {"force_download": False, "local_files_only": False}
        return cls._from_pretrained(model_id=str(name), revision=revision, **options, **model_kwargs)


class Shared(ModelRouting, Hub):
    """A mixture that can be pushed to a hub."""


def test_the_mixin_of_huggingface_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Shared([nn.Linear(5, 2) for _ in range(3)], TopK(2)).eval()
    assert net.save_pretrained(tmp_path, model_card_kwargs={}) == "pushed"
    x = torch.randn(4, 5)
    twin = Shared.from_pretrained(tmp_path)
    assert isinstance(twin, Shared)
    assert torch.equal(twin(x), net(x))
    assert Shared.from_pretrained(tmp_path, device="meta").nodes[0].weight.is_meta

    asked: list[Any] = []

    class Library:
        @staticmethod
        def snapshot_download(name: str, **options: Any) -> str:
            asked.append((name, options["revision"], options["allow_patterns"]))
            return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Library)
    assert torch.equal(Shared.from_pretrained("someone/mixture", revision="v1")(x), net(x))
    assert asked == [("someone/mixture", "v1", ["config.json", "model.safetensors"])]
    with pytest.raises(TypeError, match="`revision` is an option of huggingface_hub, whose mixin this class lacks"):
        ModelRouting.from_pretrained(tmp_path, revision="v1")
    with pytest.raises(TypeError, match="`config` is an option of huggingface_hub, whose mixin this class lacks"):
        ModelRouting.ffn(5, 8, 3).save_pretrained(tmp_path, config={})
