"""Training from a configuration, in the directory of a run."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import nn

from dynroute.growth import CLOSED
from dynroute.networks import Network
from dynroute_sb3 import GrowOnDemand, MultiTaskSAC, latest_checkpoint
from dynroute_sb3.growth import network_size, open_newest
from dynroute_sb3.randomness import random_state, set_random_state

from ..envs.vec_env import MetaWorldVecEnv, make_envs
from .configuration import NETWORK_FLAGS, Configuration
from .learner import algorithm, model_options
from .methods import build_actor
from .metrics import MetricsFile, TensorBoardFolder
from .progress import Display
from .provenance import versions
from .recorder import Recorder, Stopped, TimeIsUp, evaluate_run
from .result import EvaluationResult
from .run import Run, RunError
from .seals import advising
from .start import describe, start_from_demonstrations
from .threads import describe_threads

__all__ = ["check_device", "check_start", "environments", "load_model", "make_model", "train"]

GROW_EVERY = 10_000
"""The default number of steps from one check for stalled tasks to the next."""

LEARNING = ("protect", "hidden_init", "output_init", "learn_embedding", "backend")
"""The keywords of networks that do not change what a trained actor computes, and may differ from those of its start."""


def train(run: Run, *, rebuild: bool = False) -> EvaluationResult | None:
    """Trains until the steps of the configuration are done, from the last checkpoint if there is one.

    Args:
        run: The run.
        rebuild: Whether to collect demonstrations anew, although they are stored.

    Returns:
        The final evaluation; None if the run was stopped before.
    """
    configuration, threads = run.configuration, torch.get_num_threads()
    with run.locked(), contextlib.ExitStack() as ending:
        ending.callback(run.forget)
        check_device(configuration.device)
        checkpoint = run.last_checkpoint()
        starts = checkpoint is None and configuration.demonstrations > 0
        if rebuild and not starts:
            why = "no demonstrations" if checkpoint is None else "used its demonstrations already"
            raise ValueError(f"`rebuild` must be left out: {run.folder} has {why}.")
        seal, remarks = None, []
        missing: list[str] = []
        if checkpoint is not None:
            seal, missing = run.check_files(checkpoint)
            if (result := run.done()) is not None:
                return result
            remarks = _remarks(run, checkpoint, missing)
        if damaged := run.read_sessions()[1]:
            lines = ", ".join(map(str, damaged))
            remarks.append(f"going on without damaged lines of sessions.jsonl, whose minutes do not count: {lines}")
        ending.callback(torch.set_num_threads, threads)
        torch.set_num_threads(configuration.threads or threads)
        remarks.append(describe_threads(configuration, torch.get_num_threads()))
        env = environments(configuration)
        ending.callback(env.close)
        model = make_model(configuration, env) if checkpoint is None else _load(configuration, checkpoint, env)
        run.start_session(checkpoint, seal, missing)  # after all checks
        ending.callback(run.end_session)
        if starts:
            model = _load(configuration, start_from_demonstrations(run, model, rebuild=rebuild), env)
        elif checkpoint is None and configuration.warm_start is not None:
            model.save_checkpoint(run.checkpoints / "step_0", run.seal())  # from now on the other run is not needed
        return _learn(run, model, remarks)


def _load(configuration: Configuration, checkpoint: Path, env: Any) -> MultiTaskSAC:
    with advising(checkpoint, "--resume goes on from the one before"):
        return algorithm(configuration).load_checkpoint(checkpoint, env, configuration.device)


def _remarks(run: Run, checkpoint: Path, missing: Sequence[str]) -> list[str]:
    """Remarks on a run that goes on from a checkpoint."""
    remarks = []
    if missing:
        remarks.append(f"going on without files from before {checkpoint.name}, which are missing: {', '.join(missing)}")
    if (changes := _changes(run)) is not None:
        remarks.append(f"results may differ in their last bits, since versions changed: {changes}")
    return remarks


def _changes(run: Run) -> str | None:
    """The versions that differ from the last session, which may change results in their last bits."""
    sessions, now = run.sessions, versions()
    before = sessions[-1].get("versions", {}) if sessions else {}
    changed = [f"{name} {old} -> {now.get(name)}" for name, old in before.items() if now.get(name) != old]
    return ", ".join(changed) or None


def check_device(name: str) -> None:
    """Raises an error unless torch knows a device and can use it."""
    if name == "auto":
        return
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(f"`device` must be cpu, cuda or auto, got {name!r}.") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"`device` must be available, got {name!r}: torch finds no GPU.")
    try:  # which error torch raises depends on the device
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"`device` must be available, got {name!r}: {reason}") from error


def _learn(run: Run, model: MultiTaskSAC, remarks: Sequence[str]) -> EvaluationResult | None:
    """Learns by SAC until the steps are done, and evaluates."""
    configuration = run.configuration
    assert configuration.steps is not None
    total, before = configuration.steps * model.n_envs, model.num_timesteps
    with Display(max(total, before), configuration.tasks) as display:
        display.tell(
            f"{run.folder}: {describe(model)}" if before == 0 else f"{run.folder}: going on from step_{before}"
        )
        for remark in remarks:
            display.tell(remark)
        model.set_logger(
            Logger(str(run.folder), [MetricsFile(run.metrics), TensorBoardFolder(run.tensorboard, before)])
        )
        recorder = Recorder(run, display)
        callbacks: list[BaseCallback] = [recorder]
        if configuration.grow_to is not None:  # before the recorder, which then saves the grown networks
            callbacks.insert(
                0, GrowOnDemand((configuration.grow_every or GROW_EVERY) * model.n_envs, configuration.grow_to)
            )
        try:
            with recorder.stopping_on_signals():
                if total:  # even if all steps are done: the last log or checkpoint may be missing
                    model.learn(total - before, callbacks, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
        except TimeIsUp:
            total = model.num_timesteps
            display.tell(f"the time is up at {total:,} steps; --resume with more --hours goes on")
        except Stopped:
            display.tell(f"stopped at {model.num_timesteps:,} steps; --resume goes on")
            return None
        finally:
            model.logger.close()
        if latest_checkpoint(run.checkpoints) is None:  # there were no steps
            model.save_checkpoint(run.checkpoints / "step_0", run.seal())
        display.advance(max(total, before), "evaluating")
        try:
            with recorder.stopping_on_signals():
                recorder.watch()
                result = evaluate_run(run, model, configuration.final_episodes, progress=recorder.watch)
                result.save(run.evaluations / "final.json")
        except Stopped:
            display.tell("stopped before the evaluation at the end; --resume does it")
            return None
    return result


def environments(configuration: Configuration) -> MetaWorldVecEnv:
    """The environments of a configuration."""
    return make_envs(
        configuration.benchmark_or_tasks,
        seed=configuration.seed,
        restart=configuration.restart,
        **configuration.problem,
    )


def make_model(configuration: Configuration, env: Any) -> MultiTaskSAC:
    """A new model with the options of a configuration."""
    configuration = configuration.resolve()
    other = None if configuration.warm_start is None else _start(configuration)
    options = model_options(configuration)
    if other is not None:
        options["policy_kwargs"] = _grown_kwargs(configuration, other)
    model = algorithm(configuration)("MultiTaskPolicy", env, **options)
    if other is not None:
        _take_actor(model, other, grows=configuration.grow_to is not None)
    return model


def _start(configuration: Configuration) -> MultiTaskSAC:
    """The model whose actor a run starts from."""
    assert configuration.warm_start is not None
    run = Run.open(configuration.warm_start)
    check_start(configuration, run)
    return _load_start(run, configuration.device)


def _load_start(run: Run, device: str) -> MultiTaskSAC:
    before = random_state()
    model = load_model(run, device)
    set_random_state(before)  # otherwise all runs that start from it draw the same numbers
    return model


def load_model(run: Run, device: str = "auto") -> MultiTaskSAC:
    """The model of a run's last checkpoint, to predict with."""
    check_device(device)
    checkpoint = latest_checkpoint(run.checkpoints)
    if checkpoint is None:
        run.last_checkpoint()  # an error tells if checkpoints were removed
        why = "; training writes one every --checkpoint-every steps, and on Ctrl-C."
        if run.configuration.cloning_steps:
            command = "train" if run.configuration.steps else "imitate"
            why = f": its cloning has not ended; `dynroute {command} --run {run.folder} --resume` goes on with it."
        raise FileNotFoundError(f"{run.folder} has no checkpoint yet{why}")
    with advising(checkpoint, "the one before is taken"):
        return algorithm(run.configuration).load_checkpoint(checkpoint, device=device)


def _grown_kwargs(configuration: Configuration, other: MultiTaskSAC) -> dict[str, Any]:
    """The keywords of the policy, with the number of modules that the network of another model has grown to."""
    kwargs = configuration.policy_kwargs
    try:
        keyword, modules = network_size(other.actor.net)
    except ValueError:  # it cannot grow
        return kwargs
    if modules == network_size(build_actor(configuration))[1]:
        return kwargs
    if configuration.grow_to is not None and configuration.grow_to <= modules:
        raise RunError(
            f"`grow_to` must be more than the {modules} modules that the network of `warm_start` has grown to, got "
            f"{configuration.grow_to}."
        )
    return {**kwargs, "network_kwargs": {**kwargs["network_kwargs"], keyword: modules}}


def _take_actor(model: MultiTaskSAC, other: MultiTaskSAC, *, grows: bool) -> None:
    """Gives a model the actor of another one, and its normalization of states.

    If the other model was still opening modules, a model that grows goes on opening them; otherwise they open at once.
    """
    model.actor.load_state_dict(other.actor.state_dict())
    model.critic.normalizer.load_state_dict(other.actor.normalizer.state_dict())
    if (state := other.growth_state) is not None:
        missing, critics = CLOSED - state["raised"], model.critic.nets
        open_newest(critics if grows else [model.actor.net], len(state["nodes"]), by=-missing if grows else missing)
        model.growth_state = {**state, "measured": []} if grows else None
    model.critic_target.load_state_dict(model.critic.state_dict())  # with what the critics share with the actor


def check_start(configuration: Configuration, run: Run) -> None:
    """Raises an error unless a run with this configuration can start from the actor of another run."""
    own, other = configuration, run.configuration
    same = (own.tasks, own.method) == (other.tasks, other.method)
    if same and (own.metadata is None) != (other.metadata is None):
        raise RunError(
            f"`warm_start` must be a run with the same `metadata`, {own.metadata}, got {run.folder} with "
            f"{other.metadata}; repeat the --metadata of that run, or leave it out if that run had none."
        )
    if same:
        other = dataclasses.replace(other, metadata=own.metadata)  # its vectors are compared below, without its file
    if not same or _shapes(own) != _shapes(other):
        raise RunError(
            f"`warm_start` must be a run with the same tasks, method and sizes, {own.method} on "
            f"{', '.join(own.tasks)} with {own.network_kwargs or 'the usual sizes'}, got {run.folder} with "
            f"{other.method} on {', '.join(other.tasks)} with {run.configuration.network_kwargs or 'the usual sizes'}."
        )
    wanted, found = (_choices(build_actor(each)) for each in (own, other))
    for name in wanted | found:
        # In evaluation SampleK takes the best sources, as TopK does.
        if wanted.get(name, "").replace("SampleK", "TopK") != found.get(name, "").replace("SampleK", "TopK"):
            flag = f"--{name.replace('_', '-')}" if name in NETWORK_FLAGS else f"--network {name}=VALUE"
            raise RunError(
                f"`warm_start` must be a run with the same `{name}`, {wanted.get(name)}, got {run.folder} with "
                f"{found.get(name)}; repeat the {flag} of that run, or leave it out if that run had none."
            )
    heads = [{"log_std": (each.log_std, each.log_std_low, each.log_std_high)} for each in (own, other)]
    if heads[0] != heads[1]:
        raise RunError(
            "`warm_start` must be a run with the same range of deviations, since they scale the actor's outputs, "
            f"{heads[0]['log_std']}, got {run.folder} with {heads[1]['log_std']}; give the --log-std, --log-std-low "
            "and --log-std-high of that run."
        )
    if run.done() is None:
        earlier = ", and --steps N lets it end earlier" if other.steps else ""
        raise RunError(
            f"`warm_start` must be a finished run, got {run.folder}, which has not reached its evaluation at the end; "
            f"`dynroute train --run {run.folder} --resume` finishes it{earlier}."
        )
    if own.metadata is not None and not torch.equal(
        own.given_kwargs["metadata"], _load_start(run, "cpu").actor.net.get_buffer("metadata")
    ):
        raise RunError(
            f"`warm_start` must be a run with the same vectors of tasks, those in {own.metadata}, got {run.folder} "
            "with others; give the --metadata of that run."
        )


def _choices(actor: nn.Module) -> dict[str, str]:
    """The keywords of an actor that change what it computes; sizes are left out, which its shapes show."""
    assert isinstance(actor, Network)
    return {
        name: repr(value)
        for name, value in actor.constructor_arguments().items()
        if name not in LEARNING and (isinstance(value, bool) or not isinstance(value, int | tuple | list | None))
    }


def _shapes(configuration: Configuration) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in build_actor(configuration).state_dict().items()}
