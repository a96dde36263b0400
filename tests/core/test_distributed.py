"""Several processes: DDP, FSDP, sharded experts and checkpoints, against one process that has the whole batch.

Processes are started once for each number of them, and run all checks one after the other. A check that fails ends its
process, and so the others; the error names it. They import what only they need of torch: it takes most of a second, and
each process of tests reads this file.
"""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh

from dynroute import (
    BalancedTopK,
    ExpertChoice,
    Gate,
    Hard,
    LayerRouting,
    LinearBank,
    LinearRouter,
    ModelRouting,
    ModuleRouting,
    RoutedGraph,
    SampleK,
    Soft,
    TopK,
    Topology,
    TopP,
    backend,
    freeze_modules,
    grow,
    record,
)
from dynroute.distributed import (
    RemoteExpert,
    data_parallel,
    gather_state_dict,
    local_parameters,
    shard_experts,
    share_load,
)
from dynroute.functional import gumbel_noise

F64 = torch.float64
SPLITS = {2: [(3, 5), (0, 7)], 4: [(3, 5, 0, 4), (0, 0, 9, 1)]}  # how many samples each process has


def close(actual: Tensor, expected: Tensor, what: str = "") -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10, msg=lambda text: f"{what}: {text}")


def mixture(gate: Gate, experts: int = 8, **options: Any) -> ModelRouting:
    torch.manual_seed(0)
    return ModelRouting.ffn(6, 10, experts, gate, dtype=F64, **options)


def own(values: Tensor, split: Iterable[int]) -> Tensor:
    return values.split(list(split))[distributed.get_rank()]


def mean_over_processes(value: Tensor) -> Tensor:
    total = value.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def compare(layer: nn.Module, whole: nn.Module, split: Iterable[int], passes: int = 1, **keywords: Any) -> None:
    """Output and gradients of a layer, a share of the batch on each process, against one process."""
    split = list(split)
    for step in range(passes):
        torch.manual_seed(step)
        inputs = torch.randn(sum(split), 6, dtype=F64)
        mine = own(inputs, split).clone().requires_grad_()
        inputs.requires_grad_()
        layer.zero_grad()
        whole.zero_grad()
        shares = {name: own(value, split) for name, value in keywords.items()}
        output, expected = layer(mine, **shares), whole(inputs, **keywords)
        close(output, own(expected, split), "output")
        scale = distributed.get_world_size()  # the mean over the processes is the loss of the whole batch
        (output.square().sum() * scale).backward()
        expected.square().sum().backward()
        close(mine.grad / scale, own(inputs.grad, split), "gradient of the input")
    compare_gradients(layer, whole)


def compare_gradients(layer: nn.Module, whole: nn.Module) -> None:
    alone = local_parameters(layer)
    expected = dict(whole.named_parameters())
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, f"{name} must have a gradient, be it of zeros"
        gradient = parameter.grad if name in alone else mean_over_processes(parameter.grad)
        close(gradient, expected[name].grad, f"gradient of {name}")


# Data parallel -------------------------------------------------------------------------------------------------------


def ddp_needs_no_search_for_unused_experts() -> None:
    size, rank = distributed.get_world_size(), distributed.get_rank()
    for whole in (mixture(Hard(), shared=1), ModuleRouting.mlp(6, 8, 8, 3, gate=Hard(), dtype=F64)):
        net = nn.parallel.DistributedDataParallel(copy.deepcopy(whole))
        inputs = torch.randn(2 * size, 6, dtype=F64)
        route = whole(inputs, return_route=True)[1]
        assert not whole.topology.used(route.path[:2]).any(dim=0).all(), "some experts are not used"
        for _ in range(2):  # the second pass complains of parameters that the first left without a gradient
            net.zero_grad()
            net(inputs[2 * rank : 2 * rank + 2]).square().mean().backward()
        whole(inputs).square().mean().backward()
        for mine, expected in zip(net.parameters(), whole.parameters(), strict=True):
            close(mine.grad, expected.grad)


def _levels() -> dict[str, Callable[[], RoutedGraph]]:
    def banks() -> RoutedGraph:
        layers = [LinearBank(4, 6, 6, nn.ReLU, dtype=F64) for _ in range(2)]
        return LayerRouting(layers, Soft(), LinearRouter(6, Topology.layered([4, 4]), dtype=F64))

    return {
        "experts": lambda: mixture(TopK(2), shared=1),
        "hard": lambda: mixture(Hard()),
        "linear": lambda: ModelRouting([nn.Linear(6, 6, dtype=F64) for _ in range(4)], Hard()),
        "layer": banks,
        "module": lambda: ModuleRouting.mlp(6, 8, 6, 3, gate=Hard(), protect="rsg", dtype=F64),
    }


def fsdp_gives_the_same() -> None:
    from torch.distributed.fsdp import fully_shard

    size, rank = distributed.get_world_size(), distributed.get_rank()
    mesh = init_device_mesh("cpu", (size,))
    some = slice(None) if size == 2 else slice(2)  # more processes take more time, and do nothing else
    for name, make in list(_levels().items())[some]:
        for each in (False, True):
            for form, samples in (("auto", 150), ("auto", 2), ("sparse", 2), ("reference", 2))[some]:
                torch.manual_seed(1)
                whole = make()
                net = copy.deepcopy(whole)
                for node in list(net.nodes[:-1]) if each else []:
                    fully_shard(node, mesh=mesh)
                fully_shard(net, mesh=mesh)
                inputs = torch.randn(samples * size, 6, dtype=F64)
                mine = inputs[samples * rank : samples * (rank + 1)]
                with backend(form):
                    output = net(mine)
                    output.square().mean().backward()
                    gradients = [parameter.grad.full_tensor() for parameter in net.parameters()]
                    with torch.no_grad():  # processes need other experts, and wait for each other at all of them
                        evaluated = net.eval()(mine[: rank + 1])
                expected = whole(inputs)
                expected.square().mean().backward()
                close(output, expected[samples * rank : samples * (rank + 1)], f"{name} {each} {form}")
                close(evaluated, whole.eval()(mine[: rank + 1]), f"{name} {each} {form} in evaluation")
                for gradient, parameter in zip(gradients, whole.parameters(), strict=True):
                    close(gradient, parameter.grad, f"{name} {each} {form}")
                net.to(F64)


def load_is_shared_without_sharded_experts() -> None:
    split = SPLITS[distributed.get_world_size()][0]
    for gate in (BalancedTopK(2, rate=0.05), TopK(2, capacity=0.7), ExpertChoice(1.5)):
        whole = mixture(gate)
        layer = share_load(copy.deepcopy(whole))
        compare(layer, whole, split, passes=3)


# Sharded experts -----------------------------------------------------------------------------------------------------


def sharded_experts_give_the_same() -> None:
    gates = [Soft(), Hard(), TopK(2), TopP(0.4), TopK(9), ExpertChoice(1.5), BalancedTopK(2, rate=0.05)]
    limited = [TopK(2, capacity=0.7), Hard(capacity=0.5), BalancedTopK(3, rate=0.05, capacity=0.8)]
    for split in SPLITS[distributed.get_world_size()]:
        for gate in gates + limited:
            whole = mixture(copy.deepcopy(gate), shared=1)
            compare(shard_experts(copy.deepcopy(whole)), whole, split, passes=3)


def experts_need_not_be_divisible() -> None:
    size = distributed.get_world_size()
    for experts in (size, size + 1, 2 * size - 1):
        whole = mixture(TopK(2), experts=experts, gated=True, bias=False)
        layer = shard_experts(copy.deepcopy(whole))
        remote = sum(isinstance(node, RemoteExpert) for node in layer.nodes)
        assert experts - remote in (experts // size, -(-experts // size))
        compare(layer, whole, SPLITS[size][0])


def unsuitable_experts_are_stopped() -> None:
    whole = mixture(Soft(), protect="sg")
    compare(shard_experts(copy.deepcopy(whole)), whole, SPLITS[distributed.get_world_size()][0])


def paths_are_replayed_and_noise_is_handed_in() -> None:
    split = SPLITS[distributed.get_world_size()][0]
    whole = mixture(SampleK(2))
    noise = gumbel_noise((sum(split), 1, 8), generator=torch.Generator().manual_seed(3))
    layer = shard_experts(copy.deepcopy(whole))
    compare(layer, whole, split, noise=noise)
    path = whole(torch.randn(sum(split), 6, dtype=F64), return_route=True)[1].path
    distributed.broadcast(path, 0)
    compare(layer, whole, split, path=path)
    with record(layer) as routes:
        layer(torch.randn(2, 6, dtype=F64), path=path[:2])
    assert torch.equal(routes[""].route.path, path[:2])


def any_shape_and_mode() -> None:
    rank = distributed.get_rank()
    whole = mixture(TopK(2)).eval()
    layer = shard_experts(copy.deepcopy(whole))
    tokens = torch.randn(2, 3 + rank, 6, dtype=F64)
    close(layer(tokens), whole(tokens))
    with torch.no_grad():
        close(layer(tokens), whole(tokens))
        close(layer(tokens[0, 0]), whole(tokens[0, 0]))
        nobody = layer(tokens[:0])
    assert nobody.shape == (0, 3 + rank, 6)

    torch.manual_seed(0)
    convolutions = [nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten()) for _ in range(5)]
    pictures = ModelRouting([part.double() for part in convolutions], Hard(), context_features=4)
    pictures.router.double()
    spread = shard_experts(copy.deepcopy(pictures))
    x, context = torch.randn(rank, 2, 4, 4, dtype=F64), torch.randn(rank, 4, dtype=F64)
    close(spread(x, context), pictures(x, context))


def every_process_takes_part_whatever_learns() -> None:
    """Some have no samples, no gradient of the input, or experts that are frozen."""
    rank = distributed.get_rank()
    layer = shard_experts(mixture(Hard()))
    if rank == 0:
        freeze_modules(layer)
    layer(torch.randn(3 * rank, 6, dtype=F64, requires_grad=rank % 2 == 1)).sum().backward()
    gradients = [parameter.grad for parameter in local_parameters(layer).values()]
    assert all((gradient is None) == (rank == 0) for gradient in gradients)


def second_derivatives() -> None:
    split = SPLITS[distributed.get_world_size()][0]
    whole = mixture(TopK(2), activation=nn.Tanh)
    layer = shard_experts(copy.deepcopy(whole))

    torch.manual_seed(0)
    inputs = torch.randn(sum(split), 6, dtype=F64)
    mine = own(inputs, split).clone().requires_grad_()
    inputs.requires_grad_()
    scale = distributed.get_world_size()
    for net, x, factor in ((layer, mine, scale), (whole, inputs, 1)):
        (slope,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        (slope.square().sum() * factor).backward()
    close(mine.grad / scale, own(inputs.grad, split))
    compare_gradients(layer, whole)


def gradients_of_the_sum_of_losses() -> None:
    split, size = SPLITS[distributed.get_world_size()][0], distributed.get_world_size()
    torch.manual_seed(0)
    inputs = torch.randn(sum(split), 6, dtype=F64)
    whole = mixture(TopK(2))
    layer = shard_experts(copy.deepcopy(whole), average=False)
    layer(own(inputs, split)).square().sum().backward()
    whole(inputs).square().sum().backward()
    expected = dict(whole.named_parameters())
    for name, parameter in local_parameters(layer).items():
        close(parameter.grad, expected[name].grad, name)
    assert len(local_parameters(layer)) == 4 * 8 // size


def _model(gate: Gate | None = None) -> nn.Sequential:
    layer = mixture(BalancedTopK(2, rate=0.05) if gate is None else gate, shared=1)
    return nn.Sequential(nn.Linear(6, 6, dtype=F64), layer)


def _train(model: nn.Module, inputs: Iterable[Tensor], optimizer: torch.optim.Optimizer) -> None:
    for batch in inputs:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()


def a_model_trains_as_on_one_process() -> None:
    from torch.distributed.fsdp import fully_shard

    size, rank = distributed.get_world_size(), distributed.get_rank()
    torch.manual_seed(0)
    whole = _model()
    inputs = torch.randn(4, size, 3, 6, dtype=F64)
    shares = inputs[:, rank]
    single = torch.optim.Adam(whole.parameters(), 0.01)

    parallel = data_parallel(shard_experts(copy.deepcopy(whole)))
    sharded = shard_experts(copy.deepcopy(whole))
    sharded.register_forward_hook(lambda _, __, output: output * 1)
    fully_shard(sharded, ignored_params=set(local_parameters(sharded).values()))
    _train(parallel, shares, torch.optim.Adam(parallel.parameters(), 0.01))
    _train(sharded, shares, torch.optim.Adam(sharded.parameters(), 0.01))
    _train(whole, inputs.flatten(1, 2), single)
    expected = whole.state_dict()
    for model in (parallel.module, sharded):
        state = gather_state_dict(model)
        assert state.keys() == expected.keys()
        for name, value in state.items():
            close(value, expected[name], name)


def experts_are_sharded_one_way_and_copied_the_other() -> None:
    from torch.distributed.fsdp import fully_shard

    if distributed.get_world_size() != 4:
        return
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "experts"))
    torch.manual_seed(0)
    whole = _model()
    inputs = torch.randn(4, 4, 3, 6, dtype=F64)
    model = share_load(shard_experts(copy.deepcopy(whole), mesh["experts"].get_group()))
    layer = model[1]
    alone = set(local_parameters(model).values())
    for node in layer.nodes:
        if alone.intersection(node.parameters()):
            fully_shard(node, mesh=mesh["data"])
    model = data_parallel(model)
    _train(model, inputs[:, distributed.get_rank()], torch.optim.SGD(model.parameters(), 0.1))
    _train(whole, inputs.flatten(1, 2), torch.optim.SGD(whole.parameters(), 0.1))
    expected = whole.state_dict()
    for name, value in gather_state_dict(model.module).items():
        close(value, expected[name], name)


def state_dicts_fit_each_other() -> None:
    whole = mixture(BalancedTopK(2))
    layer = shard_experts(copy.deepcopy(whole))
    assert layer.state_dict().keys() < whole.state_dict().keys()
    torch.manual_seed(5)
    other = {name: torch.randn_like(value.double()).to(value.dtype) for name, value in whole.state_dict().items()}
    layer.load_state_dict(other)
    twin = copy.deepcopy(layer)
    assert twin._execute is layer._execute
    for state in (gather_state_dict(layer), gather_state_dict(twin)):
        assert state.keys() == other.keys()
        assert all(torch.equal(state[name], other[name]) for name in other)
    layer.load_state_dict(layer.state_dict())

    with torch.device("meta"):  # nobody ever has all experts
        light = mixture(Hard())
    light = shard_experts(light).to_empty(device="cpu")
    full = mixture(Hard())
    light.load_state_dict(full.state_dict())
    x = torch.randn(4, 6, dtype=F64)
    close(light(x), full(x))


def memory_of_other_experts_is_given_back() -> None:
    layer = shard_experts(ModelRouting(LinearBank(8, 6, 6), Hard()))
    for parameter in local_parameters(layer).values():
        assert parameter.untyped_storage().nbytes() == 4 * parameter.numel()


def errors_are_sentences() -> None:
    size, rank = distributed.get_world_size(), distributed.get_rank()
    with pytest.raises(TypeError, match=r"`model` must be a mixture or a model that contains some, got 3"):
        shard_experts(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`model` must contain a ModelRouting outside of other routed graphs"):
        shard_experts(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=rf"an expert for each of the {size} processes, got a mixture of 1;"):
        shard_experts(ModelRouting([nn.Linear(2, 2)], Hard()))
    with pytest.raises(
        TypeError, match=r"`group` must be a torch.distributed.ProcessGroup or None for all processes, got"
    ):
        shard_experts(mixture(Hard()), "all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`model` must contain a gate, a Linear has none"):
        share_load(nn.Linear(2, 2))
    first = distributed.new_group([0])
    if rank:
        with pytest.raises((ValueError, TypeError), match="`group` must"):
            shard_experts(mixture(Hard()), first)
    layer = shard_experts(mixture(Hard()))
    with pytest.raises(ValueError, match="sharded already"):
        shard_experts(layer)
    with pytest.raises(ValueError, match="must have all its modules on this process to change its size"):
        grow(layer, 1)
    with pytest.raises(RuntimeError, match=f"This expert lives on process {(rank + 1) % size} and runs there"):
        layer.nodes[8 // size * ((rank + 1) % size)](torch.zeros(2, 6))
    norms = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(size)]
    with pytest.raises(ValueError, match="treat each sample on its own where they are sharded, but module"):
        shard_experts(ModelRouting(norms, Hard()))(torch.randn(4, 2))


# Checkpoints ---------------------------------------------------------------------------------------------------------


def _trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model after three steps of one process."""
    model = _model()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    torch.manual_seed(0)
    _train(model, torch.randn(3, 8, 6, dtype=F64), optimizer)
    return model, optimizer


def save(folder: Path) -> None:
    """Trains on all processes, and saves."""
    import torch.distributed.checkpoint as dcp

    model = shard_experts(_model())
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    torch.manual_seed(0)
    inputs = torch.randn(3, 8, 6, dtype=F64).unflatten(1, (distributed.get_world_size(), -1))
    _train(data_parallel(model), inputs[:, distributed.get_rank()], optimizer)
    dcp.save(_state(model, optimizer), checkpoint_id=folder / "checkpoint")


def load(folder: Path, model: nn.Module) -> None:
    """Loads what any number of processes saved, and compares it with what one learnt."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    state = _state(model, optimizer)
    dcp.load(state, checkpoint_id=folder / "checkpoint")
    model.load_state_dict(state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])

    whole, of_whole = _trained()
    expected, parameters = whole.state_dict(), dict(whole.named_parameters())
    for name, value in model.state_dict().items():
        close(value, expected[name], name)
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            close(value, of_whole.state[parameters[name]][key], f"{key} of {name}")


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}


IMPORTED = ["torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp", "dynroute"]

CHECKS: list[Callable[[], None]] = [
    ddp_needs_no_search_for_unused_experts,
    fsdp_gives_the_same,
    load_is_shared_without_sharded_experts,
    sharded_experts_give_the_same,
    experts_need_not_be_divisible,
    unsuitable_experts_are_stopped,
    paths_are_replayed_and_noise_is_handed_in,
    any_shape_and_mode,
    every_process_takes_part_whatever_learns,
    second_derivatives,
    gradients_of_the_sum_of_losses,
    a_model_trains_as_on_one_process,
    experts_are_sharded_one_way_and_copied_the_other,
    state_dicts_fit_each_other,
    memory_of_other_experts_is_given_back,
    errors_are_sentences,
]


def _live(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting-{size}", rank=rank, world_size=size)
    try:
        for check in CHECKS:
            torch.manual_seed(0)
            check()
            with (folder / f"passed-{rank}-of-{size}").open("a") as passed:
                passed.write(f"{check.__name__}\n")
        if size == 4:
            save(folder)
        sharded = shard_experts(_model())
        load(folder, sharded)
    finally:
        distributed.destroy_process_group()
    _meet_fewer_processes(sharded, size)


def _meet_fewer_processes(sharded: nn.Module, size: int) -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    with pytest.raises(ValueError, match=f"`group` must have the {size} processes that the experts were sharded over"):
        sharded(torch.zeros(2, 6, dtype=F64))
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # loads into one process
def test_several_processes_are_as_one(tmp_path: Path) -> None:
    multiprocessing.set_forkserver_preload(IMPORTED)  # once, not by each process
    for size in (4, 2):
        multiprocessing.start_processes(_live, (size, tmp_path), nprocs=size, start_method="forkserver")  # type: ignore[no-untyped-call]
        passed = [(tmp_path / f"passed-{rank}-of-{size}").read_text().split() for rank in range(size)]
        assert passed == [[check.__name__ for check in CHECKS]] * size
    load(tmp_path, _model())


def test_a_group_must_exist() -> None:
    layer = ModelRouting.ffn(4, 4, 4)
    for function in (shard_experts, share_load, data_parallel):
        with pytest.raises(ValueError, match=r"`group` must be a group of processes, and there is none yet"):
            function(layer)
    assert gather_state_dict(layer).keys() == layer.state_dict().keys()
    with pytest.raises(RuntimeError, match="lives on process 2"):
        RemoteExpert(2)(torch.zeros(3))
