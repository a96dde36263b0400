"""Training from a configuration, in the directory of a run."""

from typing import Any

import torch
from stable_baselines3.common.logger import Logger

from dynroute.networks import Network
from dynroute_sb3 import MultiTaskSAC, OverlappedSAC, latest_checkpoint

from .configuration import Configuration
from .metrics import MetricsFile, TensorBoardFolder
from .progress import Display
from .recorder import Recorder, Stopped, evaluate_run
from .result import EvaluationResult
from .run import Run
from .vec_env import MetaWorldVecEnv, make_envs

__all__ = ["environments", "load_model", "make_model", "train"]


def train(run: Run) -> EvaluationResult | None:
    """Trains until the steps of the configuration are done, from the last checkpoint if there is one.

    Returns:
        The evaluation at the end; None if the run was asked to stop before.
    """
    configuration = run.configuration
    with run.locked():
        threads = torch.get_num_threads()
        torch.set_num_threads(configuration.threads or threads)
        checkpoint = run.start_session()
        env = environments(configuration)
        try:
            if checkpoint is None:
                model = make_model(configuration, env)
            else:
                model = _algorithm(configuration).load_checkpoint(checkpoint, env, configuration.device)
            assert configuration.steps is not None
            total = configuration.steps * env.num_envs
            with Display(total, configuration.tasks) as display:
                board = TensorBoardFolder(run.tensorboard, model.num_timesteps)
                model.set_logger(Logger(str(run.folder), [MetricsFile(run.metrics), board]))
                recorder = Recorder(run, display)
                net = model.actor.net
                assert isinstance(net, Network)
                display.tell(f"{run.folder}: {configuration.method} on {model.device}, {net.describe()}")
                if checkpoint is not None:
                    display.tell(f"going on from {checkpoint.name}")
                try:
                    with recorder.stopping_on_signals():
                        if model.num_timesteps < total:
                            left = total - model.num_timesteps
                            model.learn(left, recorder, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
                except Stopped:
                    display.tell(f"stopped at {model.num_timesteps:,} steps; --resume goes on")
                    return None
                finally:
                    model.logger.close()
                if recorder.stopping:
                    display.tell("stopped before the evaluation at the end; --resume does it")
                    return None
                display.advance(total, "evaluating")
                result = evaluate_run(run, model, configuration.final_episodes)
                result.save(run.evaluations / "final.json")
            return result
        finally:
            torch.set_num_threads(threads)
            env.close()


def environments(configuration: Configuration) -> MetaWorldVecEnv:
    """The environments of a configuration."""
    return make_envs(
        configuration.benchmark_or_tasks,
        goals=configuration.goals,
        horizon=configuration.horizon,
        seed=configuration.seed,
        workers=configuration.workers,
        reward_version=configuration.reward_version,
    )


def make_model(configuration: Configuration, env: Any) -> MultiTaskSAC:
    """The algorithm of a configuration, untrained."""
    configuration = configuration.resolve()
    try:
        temperature: float | str = float(configuration.route_temperature)
    except ValueError:
        temperature = configuration.route_temperature
    ent_coef = configuration.ent_coef
    return _algorithm(configuration)(
        "MultiTaskPolicy",
        env,
        configuration.learning_rate,
        policy_kwargs={"network": configuration.method, "network_kwargs": configuration.network_kwargs},
        task_names=configuration.tasks,
        stats_window_size=configuration.window,
        train_freq=configuration.update_every,
        gradient_steps=configuration.updates,
        learning_starts=configuration.learning_starts * len(configuration.tasks),
        batch_size=configuration.batch_size * len(configuration.tasks),
        buffer_size=configuration.buffer_size,
        gamma=configuration.gamma,
        tau=configuration.tau,
        ent_coef=ent_coef if ent_coef.startswith("auto") else float(ent_coef),
        ent_coef_lr=configuration.ent_coef_lr,
        max_ent_coef=configuration.max_ent_coef,
        task_weights=configuration.task_weights or "none",
        max_task_loss=configuration.max_task_loss,
        max_grad_norm=configuration.max_grad_norm,
        reward_scale=configuration.reward_scale,
        actor_paths=configuration.actor_paths,
        critic_paths=configuration.critic_paths,
        route_temperature=temperature,
        compile_networks=configuration.compile,
        replay_buffer_kwargs={"handle_timeout_termination": configuration.bootstrap_timeouts},
        seed=configuration.seed,
        device=configuration.device,
    )


def load_model(run: Run, device: str = "auto") -> MultiTaskSAC:
    """The model of a run's last checkpoint, to predict with."""
    checkpoint = latest_checkpoint(run.checkpoints)
    if checkpoint is None:
        raise FileNotFoundError(f"{run.folder} has no checkpoint yet; it is written every so many steps, or on Ctrl-C.")
    return _algorithm(run.configuration).load_checkpoint(checkpoint, device=device)


def _algorithm(configuration: Configuration) -> type[MultiTaskSAC]:
    return OverlappedSAC if configuration.overlap else MultiTaskSAC
