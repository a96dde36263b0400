"""Logs, measures, evaluates and writes checkpoints during a run, at fixed numbers of steps."""

import signal
import time
import types
from contextlib import AbstractContextManager, suppress

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from dynroute.arguments import check_count
from dynroute_sb3 import CheckpointDirectory, MultiTaskSAC, PlasticityLogger, latest_checkpoint
from dynroute_sb3.growth import network_size

from ..envs.signals import handling
from ..envs.workers import with_restart
from .evaluation import evaluate, unseen
from .progress import Display
from .result import EvaluationResult
from .run import Run

__all__ = ["Recorder", "Stopped", "TimeIsUp", "evaluate_run"]


class TimeIsUp(Exception):  # noqa: N818 - it is not an error
    """The time of a run is up, and it has written a checkpoint."""


class Stopped(Exception):  # noqa: N818 - it is not an error
    """A run was asked to stop, and has written a checkpoint."""


class Recorder(BaseCallback):
    """Logs, measures, evaluates and writes checkpoints between rollouts, where a run can be interrupted and resumed.

    What is due depends only on the number of steps, so that an interruption changes nothing.
    """

    model: MultiTaskSAC

    def __init__(self, run: Run, display: Display) -> None:
        super().__init__()
        self.run, self.display = run, display
        self.checkpoints = CheckpointDirectory(1, run.checkpoints, notes=run.seal)
        self.plasticity = PlasticityLogger(1)
        self.stopping = False
        self.deadline = time.monotonic() + run.seconds_left()

    def _init_callback(self) -> None:
        self.checkpoints.init_callback(self.model)
        self.plasticity.init_callback(self.model)
        self.start, self.times_grown = self.model.num_timesteps, self._times_grown()

    def _on_step(self) -> bool:
        self.display.advance(self.num_timesteps)
        return True

    def _on_rollout_start(self) -> None:
        self._between(last=False)

    def _on_training_end(self) -> None:
        self._between(last=True)

    def _between(self, *, last: bool) -> None:
        configuration, steps = self.run.configuration, self.model.num_timesteps
        if (times := self._times_grown()) > self.times_grown:
            self.times_grown = times
            self.display.tell(f"{steps:>9,} steps: grown to {network_size(self.model.actor.net)[1]} modules")
        time_is_up = not last and time.monotonic() >= self.deadline
        # Otherwise it was done before an interruption, or will be done after it.
        if steps > self.run.logged and not self.stopping:
            with suppress(Stopped):
                evaluated = steps > 0 and self._is_due(configuration.evaluate_every)
                if evaluated:
                    self._evaluate()
                measured = self.model._n_updates > 0 and self._is_due(configuration.plasticity_every)
                if measured:
                    self.plasticity.write()
                if evaluated or measured or self._is_due(configuration.log_every):
                    # SB3 records it in updates, and right after an interruption there was none.
                    self.logger.record("train/learning_rate", self.model.actor.optimizer.param_groups[0]["lr"])
                    # SB3's own time begins anew in each session.
                    self.logger.record("time/minutes", self.run.minutes_used())
                    if configuration.grow_to is not None:
                        self.logger.record("growth/modules", network_size(self.model.actor.net)[1])
                    self.model.dump_logs()
                    self.run.logged = steps
                    self._show()
        due = last or self.stopping or time_is_up or self._is_due(configuration.checkpoint_every)
        if (steps > self.start and due) or (time_is_up and latest_checkpoint(self.run.checkpoints) is None):
            self.checkpoints.write()
            self.run.keep_minutes()
        if self.stopping and not last:
            raise Stopped
        if time_is_up:
            raise TimeIsUp

    def _times_grown(self) -> int:
        return 0 if self.model.growth_state is None else len(self.model.growth_state["grown_at"])

    def _is_due(self, every: int | None) -> bool:
        """Whether the steps of each task passed a multiple of `every` since the previous rollout; never, if None."""
        if every is None:
            return False
        steps = self.model.num_timesteps // self.model.n_envs
        return steps // every > (steps - self.run.configuration.update_every) // every

    def _evaluate(self) -> None:
        steps, episodes = self.model.num_timesteps, self.run.configuration.evaluation_episodes
        self.display.advance(steps, "evaluating")
        result = evaluate_run(self.run, self.model, episodes, progress=self.watch)
        result.save(self.run.evaluations / f"step_{steps}.json")
        for task, rate in zip(result.tasks, result.success_rates, strict=True):
            self.logger.record(f"evaluation/{task}", float(rate), exclude="stdout")
        self.logger.record("evaluation/success", float(result.mean_success))
        if result.modules_used is not None:
            self.logger.record("evaluation/modules_used", float(result.modules_used.mean()))
        self.display.tell(f"{steps:>9,} steps: evaluated with {result.mean_success:.1%} success")

    def watch(self, *_: int) -> None:
        """Ends an evaluation when the run is asked to stop; the resumed run repeats it."""
        if self.stopping:
            raise Stopped

    def _show(self) -> None:
        recent = [float(np.mean(kept)) if kept else None for kept in self.model.report.successes]
        self.display.show(self.num_timesteps, dict(zip(self.run.configuration.tasks, recent, strict=True)))

    def stopping_on_signals(self) -> AbstractContextManager[None]:
        """Makes Ctrl-C and SIGTERM end the run after the step it is in; a second one ends it at once."""

        def stop(number: int, frame: types.FrameType | None) -> None:
            if self.stopping:
                raise KeyboardInterrupt
            self.stopping = True
            self.display.tell("stopping with a checkpoint; Ctrl-C again stops at once")

        return handling(stop, signal.SIGINT, signal.SIGTERM)


def evaluate_run(run: Run, model: MultiTaskSAC, episodes: int, **options: object) -> EvaluationResult:
    """Evaluates a model on the problem it was trained on: fixed goals are the same, random goals are new."""
    check_count("episodes", episodes, at_least=1)
    configuration = run.configuration
    if options.get("goals", configuration.goals) == "fixed":
        episodes = 1  # all episodes would be equal
    usual = {"benchmark": configuration.benchmark_or_tasks, **configuration.problem}
    chosen = {**usual, **{name: value for name, value in options.items() if value is not None}}
    chosen.setdefault("seed", unseen(chosen["goals"], configuration.seed))
    return with_restart(lambda: evaluate(model, episodes=episodes, **chosen), restart=configuration.restart)
