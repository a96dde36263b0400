"""Compares the extracted policy of each task of d2r runs with the whole network and an MLP of similar success.

The MLP has two hidden layers and clones the demonstrations of its task in the run, with as many updates and
samples. Its width is the smallest that solves as many episodes as the extracted policy at separate goals, or the
largest of the candidates. The table counts success at the goals of an evaluation of the run. Called again, the program
resumes with the missing tasks.
"""

import argparse
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynroute_metaworld import Run, collect, load_model
from dynroute_metaworld.imitation.cloning import one_cycle
from dynroute_metaworld.runs.evaluation import unseen
from dynroute_metaworld.runs.extraction import (
    ELSEWHERE,
    measure_in_turns,
    run_episodes,
    split_states,
    task_states,
)
from dynroute_metaworld.runs.policy_files import load_policy, save_policy
from dynroute_sb3 import extract_policy
from dynroute_sb3.normalizer import StateNormalizer
from dynroute_sb3.task_policy import whole_policy

from .outputs import file
from .rows import Rows

FORMAT = "dynroute extraction 1"


def numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def clone(run: Run, task: str, width: int, updates: int) -> nn.Sequential:
    """Trains an MLP for one task on demonstrations of a run; returns that with the smallest held-out error."""
    configuration = run.configuration
    demonstrations = collect(
        configuration.benchmark_or_tasks,
        episodes=configuration.demonstrations,
        noise=configuration.noise_levels,
        seed=configuration.seed,
        **configuration.problem,
    )
    index = configuration.tasks.index(task)
    parts = demonstrations.split(configuration.held_out)
    learned, held_out = (
        tuple(torch.as_tensor(array[index]).flatten(0, 1) for array in (part.observations, part.actions))
        for part in parts
    )
    torch.manual_seed(configuration.seed)
    normalizer = StateNormalizer(39)
    normalizer.fit(learned[0])
    layers = [nn.Linear(39, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4), nn.Tanh()]
    net = nn.Sequential(normalizer, *layers)
    optimizer = torch.optim.Adam(net.parameters(), lr=configuration.cloning_rate)
    best, least = net.state_dict(), float("inf")
    for update in range(1, updates + 1):
        for group in optimizer.param_groups:
            group["lr"] = configuration.cloning_rate * one_cycle((update - 1) / updates)
        rows = torch.randint(len(learned[0]), (configuration.cloning_batch_size,))
        loss = (net(learned[0][rows]) - learned[1][rows]).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if update % 100 == 0 or update == updates:
            with torch.no_grad():
                error = float((net(held_out[0]) - held_out[1]).square().mean())
            if error < least:
                best, least = {name: tensor.clone() for name, tensor in net.state_dict().items()}, error
    net.load_state_dict(best)
    return net.eval()


def compare(run: Run, task: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Measures the row of one task."""
    configuration, index = run.configuration, run.configuration.tasks.index(task)
    seed, episodes = unseen(configuration.goals, configuration.seed), settings["episodes"]

    def success(policy: Any, seed: int, episodes: int) -> float:
        return float(run_episodes(policy, configuration, task, episodes=episodes, seed=seed).solved.mean())

    model = load_model(run, "cpu")
    whole = whole_policy(model, task=index)
    made_for, others = split_states(task_states(run, whole, task, episodes=settings["states"]))
    small = extract_policy(model, made_for, task=index, coverage=settings["coverage"])
    with torch.no_grad():
        elsewhere = float((small(others) - whole(others)).abs().max()) if len(others) else None

    choosing = seed + 2 * ELSEWHERE  # separate goals
    wanted, plain, tried = success(small, choosing, settings["choosing"]), nn.Sequential(), {}
    for width in settings["widths"]:
        plain = clone(run, task, width, configuration.cloning_steps)
        tried[width] = success(plain, choosing, settings["choosing"])
        if tried[width] >= wanted:
            break
    policies: dict[str, nn.Module] = {"whole": whole, "extracted": small, "perceptron": plain}
    jobs: dict[str, Any] = {f"{name} module": policy for name, policy in policies.items()}
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, policy in policies.items():
            path = Path(folder) / f"{name}.safetensors"
            save_policy(policy, path, "torch", made_for[:2], {})
            sizes[name], jobs[f"{name} file"] = path.stat().st_size, load_policy(path, "torch")
    taken = measure_in_turns(jobs, made_for[:1], rounds=settings["rounds"])
    report = small.report
    counts = {"whole": report.parameters_before, "extracted": report.parameters, "perceptron": numbers(plain)}
    return {
        "run": run.folder.name,
        "task": task,
        "nodes": [len(whole.report.nodes), len(report.nodes)],
        "reads": report.reads,
        "deviation": report.deviation,
        "deviation elsewhere": elsewhere,
        "width": list(tried)[-1],
        "choosing": {"extracted": wanted, "perceptrons": {str(width): rate for width, rate in tried.items()}},
        **{
            name: {
                "parameters": counts[name],
                "bytes": sizes[name],
                "ms module": taken[f"{name} module"],
                "ms file": taken[f"{name} file"],
                "success": success(policy, seed, episodes),
            }
            for name, policy in policies.items()
        },
    }


def _origin(run: Run) -> dict[str, Any]:
    """The seed and the command of a run, without its folder."""
    session = run.sessions[0]
    words = shlex.split(session["command"])
    kept = [word for i, word in enumerate(words) if "--run" not in words[max(i - 1, 0) : i + 1]]
    return {"seed": run.configuration.seed, "session": {**session, "command": shlex.join(kept)}}


def measure(runs: Sequence[Path], tasks: Sequence[str] | None, settings: dict[str, Any], output: Path) -> None:
    torch.set_num_threads(1)
    rows = Rows(output, FORMAT, settings, program="benchmarks.extraction", key=("run", "task"))
    for folder in runs:
        run = Run.open(folder)
        rows.stored["runs"][run.folder.name] = _origin(run)
        for task in tasks or run.configuration.tasks:
            if {"run": run.folder.name, "task": task} in rows:
                continue
            row = compare(run, task, settings)
            cells = [
                f"{name} {row[name]['parameters']:,} {row[name]['ms module']:.3f}/{row[name]['ms file']:.3f} ms "
                f"{row[name]['success']:.2f}"
                for name in ("whole", "extracted", "perceptron")
            ]
            rows.keep(row, f"{run.folder.name} {task} ({row['reads']}): {'; '.join(cells)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="directories of imitation runs of one network")
    parser.add_argument("--output", type=file, required=True, help="the JSON file; existing rows are kept")
    parser.add_argument("--tasks", nargs="+", help="some tasks (all)")
    parser.add_argument("--coverage", type=float, default=1.0, help="share of states with complete routes (1)")
    parser.add_argument("--states", type=int, default=12, help="episodes of states, a fifth of them for checks (12)")
    parser.add_argument("--episodes", type=int, default=20, help="episodes of the table (20)")
    parser.add_argument("--choosing", type=int, default=20, help="episodes that choose the MLP (20)")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128, 256], help="of MLPs")
    parser.add_argument("--rounds", type=int, default=500, help="timings of each policy (500)")
    options = vars(parser.parse_args())
    runs, tasks, output = (options.pop(name) for name in ("runs", "tasks", "output"))
    measure(runs, tasks, options, output)


if __name__ == "__main__":
    main()
