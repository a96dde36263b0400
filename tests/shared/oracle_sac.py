"""One update of multi-task SAC as its specification says it: loops over tasks and samples, autograd, plain Adam.

Nothing here calls the algorithm. Networks are callables `net(x, one_hot, path=, sample=, temperature=)` of the library,
copied; oracle_networks.py is about those. What an update draws is handed in: the noise of the actions, and the state of
the generator where a path is sampled, so that a path comes out right only at the right temperature.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Batch:
    """Rows in any order."""

    state: Tensor
    action: Tensor
    next_state: Tensor
    reward: list[float]
    done: list[float]
    task: list[int]
    path: Tensor | None = None
    wanted: Tensor | None = None
    """The actions that a demonstrator wanted in the first rows."""
    discount: list[float] | None = None
    """The discounts of the values behind rewards of several steps."""


@dataclass
class Draws:
    """The random numbers of an update: the noises of a and a', and the generators before forwards that sample paths."""

    noise: Tensor
    next_noise: Tensor
    actor_generator: Tensor
    critic_generators: list[Tensor]


@dataclass
class Options:
    """The keywords of the algorithm, and what it derives from the environments."""

    num_tasks: int
    target_entropy: float
    learning_rate: float = 3e-4
    ent_coef_lr: float | None = None
    ent_coef: float | None = None
    """None where it is learned."""
    max_ent_coef: float | None = None
    gamma: float = 0.99
    tau: float = 0.005
    task_weights: str = "none"
    max_task_loss: float | None = None
    max_grad_norm: float | None = None
    reward_scale: float = 1.0
    actor_paths: str = "replayed"
    critic_paths: str = "sampled"
    route_temperature: float | str = "inverse-alpha-sum"
    actor_starts: int = 0
    demonstration_weight: float = 0.0
    demonstration_decay: int | None = None
    joint_update: bool = False
    ent_coef_after_step: bool = False
    max_ent_coef_grad_norm: float | None = None
    mask_rule: str = "each"
    shared_lr: float | None = None
    router_lr: float | None = None
    log_prob_epsilon: float = 0.0
    critic_loss: str = "mse"
    bins: int = 101
    value_range: tuple[float, float] = (-10.0, 10.0)
    q_target: str = "min"
    normalize_returns: bool = False
    returns: list[tuple[float, float]] = field(default_factory=list)
    """The smallest and the largest return of each task, where rewards are normalized."""
    route_balance: float = 0.0
    shared_ent_coef: bool = False
    ent_coef_beta1: float = 0.9
    log_std: str = "clamp"
    log_std_range: tuple[float, float] = (-20.0, 2.0)
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam
    adam: dict[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """The losses of the tasks, and which of them were left out."""

    actor_loss: list[float]
    critic_loss: list[float]
    ent_coef_loss: list[float]
    entropy: list[float]
    masked: list[bool]
    outside_range: list[float]


def spread(kind: str, alpha: Sequence[float]) -> list[float]:
    """The weights of tasks by "[inverse-]alpha-sum" and "[inverse-]alpha-mean" (Eq. 15)."""
    scores = [1 / a if kind.startswith("inverse-") else math.exp(-a) for a in alpha]  # exp(-log a) = 1 / a
    total = sum(scores)
    return [score / total * (len(alpha) if kind.endswith("mean") else 1) for score in scores]


def squash(mean: Tensor, log_std: Tensor, noise: Tensor, epsilon: float = 0.0) -> tuple[Tensor, Tensor]:
    """The action of one sample and its log-probability."""
    std = log_std.exp()
    u = mean + std * noise
    normal = -(((u - mean) / std) ** 2) / 2 - log_std - math.log(2 * math.pi) / 2
    # 1 - tanh(u)^2 = 4 / (e^u + e^-u)^2, which does not cancel
    change = math.log(4) - 2 * torch.logaddexp(u, -u)
    if epsilon:
        change = (1 - u.tanh() ** 2 + epsilon).log()
    return u.tanh(), (normal - change).sum()


def bin_values(bins: int, ends: tuple[float, float]) -> list[float]:
    return [ends[0] + (ends[1] - ends[0]) * k / (bins - 1) for k in range(bins)]


def to_bins(
    probabilities: Sequence[float], values: Sequence[float], ends: tuple[float, float], bins: int
) -> list[float]:
    """The probabilities of the bins, one value after the other; it lies between two bins, nearer to one of them."""
    z, found = bin_values(bins, ends), [0.0] * bins
    for p, y in zip(probabilities, values, strict=True):
        if not y > z[0]:
            found[0] += p if y == y else math.nan
        elif y >= z[-1]:
            found[-1] += p
        else:
            right = next(k for k in range(bins) if z[k] >= y)
            width = z[right] - z[right - 1]
            found[right - 1] += p * (z[right] - y) / width
            found[right] += p * (y - z[right - 1]) / width
    return found


def returns_of_an_episode(rewards: Sequence[float], gamma: float, truncated: bool) -> list[float]:
    """The return of every step, each as a sum; a truncated episode goes on with its mean reward for ever."""
    n, found = len(rewards), []
    for t in range(n):
        total = sum(gamma ** (k - t) * rewards[k] for k in range(t, n))
        if truncated:
            total += gamma ** (n - t) * (sum(rewards) / n) * (1 / (1 - gamma))
        found.append(total)
    return found


def number(x: Tensor) -> float:
    return float(x.detach())


def clip(gradients: list[Tensor], limit: float | None) -> list[Tensor]:
    if limit is None:
        return gradients
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    factor = min(1.0, limit / (norm + 1e-6))  # the 1e-6 is that of torch
    return [gradient * factor for gradient in gradients]


@dataclass
class _Waiting:
    """The results that the first half of an update leaves to the second before anything has stepped."""

    action: list[Tensor]
    log_prob: list[Tensor]
    mean_action: Tensor
    alpha: list[float]
    weight: list[float]
    ent_coef_loss: list[float]
    mean_log_prob: list[float]
    outside: list[float]


class SAC:
    """The algorithm.

    Args:
        actor: The network of the actor.
        critics: The networks of the critics; what they share with the actor is one tensor in all.
        targets: Those of their targets.
        log_ent_coef: The logarithm of the coefficient of each task, where it is learned.
        options: The options.
    """

    def __init__(
        self,
        actor: nn.Module,
        critics: Sequence[nn.Module],
        targets: Sequence[nn.Module],
        log_ent_coef: Tensor | None,
        options: Options,
    ) -> None:
        nets = copy.deepcopy([actor, *critics])  # one copy, so that what is shared stays so
        self.actor, self.critics = nets[0].train(), [net.train() for net in nets[1:]]
        self.targets = [copy.deepcopy(net).train() for net in targets]
        self.options = options
        self.updates = 0
        self.shared = [p for p in self.actor.parameters() if any(p is q for q in self.critics[0].parameters())]
        self.actor_own, *self.critics_own = (
            [p for p in net.parameters() if not any(p is q for q in self.shared)] for net in (self.actor, *self.critics)
        )
        self.actor_adam = self._adam(self.actor_own)
        self.critic_adam = self._adam([p for own in self.critics_own for p in own])
        self.shared_adam = self._adam(self.shared, options.shared_lr) if self.shared else None
        self.log_ent_coef = None if options.ent_coef else log_ent_coef.detach().clone().requires_grad_()
        if self.log_ent_coef is not None:
            rate = options.ent_coef_lr or options.learning_rate
            betas = (options.ent_coef_beta1, 0.999)
            self.ent_coef_adam = torch.optim.Adam([self.log_ent_coef], lr=rate, **{"betas": betas, **options.adam})

    def _adam(self, parameters: list[Tensor], lr: float | None = None) -> torch.optim.Optimizer:
        rates = {}
        for net in (self.actor, *self.critics):
            for name, parameter in net.named_parameters():
                if self.options.router_lr is not None and "router" in name.split("."):
                    rates[parameter] = self.options.router_lr
        usual = lr or self.options.learning_rate
        groups = [{"params": [parameter], "lr": rates.get(parameter, usual)} for parameter in parameters]
        return self.options.optimizer(groups, **self.options.adam)

    def log_alpha(self, task: int) -> Tensor:
        """The logarithm of a task's coefficient, or of the one of all tasks."""
        return self.log_ent_coef[0 if self.options.shared_ent_coef else task]

    def limit_alpha(self) -> None:
        for i in range(len(self.log_ent_coef)):
            self.log_ent_coef.data[i] = min(number(self.log_ent_coef[i]), math.log(self.options.max_ent_coef))

    def value(self, output: Tensor) -> Tensor:
        """The value that a critic's output for one sample stands for."""
        if self.options.critic_loss == "mse":
            return output[0]
        z = bin_values(self.options.bins, self.options.value_range)
        return sum((p * y for p, y in zip(output.exp() / output.exp().sum(), z, strict=True)), torch.zeros(()))

    def judge(self, outputs: Sequence[Tensor]) -> Tensor:
        """The value of one sample by all critics."""
        values = [self.value(output) for output in outputs]
        return sum(values) / len(values) if self.options.q_target == "mean" else min(values, key=number)

    def target(self, outputs: Sequence[Tensor], reward: float, follows: float, cost: float) -> tuple[Any, float]:
        """The target of the critics for one sample, and how much of it lies outside of the range."""
        o = self.options
        if o.critic_loss == "mse":
            return reward + follows * (number(self.judge(outputs)) - cost), 0.0
        each = [(output.exp() / output.exp().sum()).tolist() for output in outputs]
        if o.q_target == "mean":
            probabilities = [sum(of_bin) / len(each) for of_bin in zip(*each, strict=True)]
        else:
            probabilities = each[min(range(len(each)), key=lambda i: number(self.value(outputs[i])))]
        moved = [reward + follows * (z - cost) for z in bin_values(o.bins, o.value_range)]
        low, high = o.value_range
        outside = sum(p for p, y in zip(probabilities, moved, strict=True) if y < low or y > high)
        return to_bins(probabilities, moved, o.value_range, o.bins), outside

    def critic_loss(self, output: Tensor, target: Any) -> Tensor:
        """The loss of one critic for one sample."""
        if self.options.critic_loss == "mse":
            return (output[0] - target) ** 2
        total = output.exp().sum().log()
        return sum((-q * (output[k] - total) for k, q in enumerate(target)), torch.zeros(()))

    def reward(self, batch: Batch, i: int, alpha: Sequence[float]) -> float:
        """The reward of a sample, scaled and normalized."""
        o, task = self.options, batch.task[i]
        if not o.normalize_returns:
            return o.reward_scale * batch.reward[i]
        smallest, largest = (o.reward_scale * r for r in o.returns[task])
        assert o.value_range[0] == -o.value_range[1]
        horizon = 1 / (1 - o.gamma)
        scale = (max(largest, abs(smallest)) - alpha[task] * horizon * o.target_entropy / 2) / o.value_range[1]
        return o.reward_scale * batch.reward[i] / scale

    def update(self, batch: Batch, draws: Draws) -> Result:
        o, tasks = self.options, range(self.options.num_tasks)
        rows = [[i for i, task in enumerate(batch.task) if task == t] for t in tasks]
        alpha = [o.ent_coef if o.ent_coef else math.exp(number(self.log_alpha(t))) for t in tasks]
        rewards = [self.reward(batch, i, alpha) for i in range(len(batch.task))]
        weight = [1.0 for _ in tasks] if o.task_weights == "none" else spread(o.task_weights, alpha)
        self.temperature = (
            spread(o.route_temperature, alpha)  # Eq. 14
            if isinstance(o.route_temperature, str)
            else [o.route_temperature for _ in tasks]
        )

        def mean_by_task(values: Sequence[Tensor]) -> list[Tensor]:
            """The mean over the samples of each task, 0 where it has none."""
            return [sum((values[i] for i in rows[t]), torch.zeros(())) / max(len(rows[t]), 1) for t in tasks]

        def total(losses: Sequence[Tensor], left_out: Sequence[bool]) -> Tensor:
            kept = [t for t in tasks if rows[t] and not left_out[t]]
            return sum((weight[t] * losses[t] for t in kept), torch.zeros(())) / max(len(kept), 1)

        def exceeds(losses: Sequence[Tensor]) -> list[bool]:
            return [o.max_task_loss is not None and not number(loss) <= o.max_task_loss for loss in losses]  # NaN does

        # The actor.
        self.routes: list[Any] = []
        output = self._run(self.actor, batch.state, batch, o.actor_paths, draws.actor_generator, keep=True)
        actor_balance, self.routes = self.balance(), []
        waits = self.updates < o.actor_starts
        action, log_prob = self._act(output, draws.noise)
        mean_action = torch.tanh(output[:, : output.shape[1] // 2])
        mean_log_prob = [number(x) for x in mean_by_task(log_prob)]

        # The coefficients of entropy.
        ent_coef_loss = [0.0 for _ in tasks]
        if self.log_ent_coef is not None:
            losses = [-self.log_alpha(t) * (mean_log_prob[t] + o.target_entropy) for t in tasks]
            ent_coef_loss = [number(losses[t]) if rows[t] else 0.0 for t in tasks]
            # A task without samples has no expectation to follow.
            present = [losses[t] for t in tasks if rows[t]]
            (gradient,) = torch.autograd.grad(sum(present) / len(tasks), [self.log_ent_coef])
            if waits:
                ent_coef_loss = [0.0 for _ in tasks]
            elif not o.joint_update or o.ent_coef_after_step:
                self._step(self.ent_coef_adam, [self.log_ent_coef], clip([gradient], o.max_ent_coef_grad_norm))
            if o.max_ent_coef is not None and (o.ent_coef_after_step or not o.joint_update):
                self.limit_alpha()

        if o.ent_coef_after_step:
            alpha = [math.exp(number(self.log_alpha(t))) for t in tasks]
            weight = [1.0 for _ in tasks] if o.task_weights == "none" else spread(o.task_weights, alpha)

        # The critics.
        with torch.no_grad():
            output = self._run(self.actor, batch.next_state, batch, "topk")
            next_action, next_log_prob = self._act(output, draws.next_noise)
            inputs = torch.cat([batch.next_state, torch.stack(next_action)], dim=1)
            following = [self._run(net, inputs, batch, "topk") for net in self.targets]
            targets = [
                self.target(
                    [outputs[i] for outputs in following],
                    rewards[i],
                    (batch.discount[i] if batch.discount else o.gamma) * (1 - batch.done[i]),
                    alpha[t] * number(next_log_prob[i]),
                )
                for i, t in enumerate(batch.task)
            ]
            y = [target for target, _ in targets]
            outside = [
                number(x) for x in mean_by_task([torch.tensor(share, dtype=torch.float64) for _, share in targets])
            ]
        inputs = torch.cat([batch.state, batch.action], dim=1)
        values = [
            self._run(net, inputs, batch, o.critic_paths, generator, keep=True)
            for net, generator in zip(self.critics, draws.critic_generators, strict=True)
        ]
        by_critic = [mean_by_task([self.critic_loss(q[i], y[i]) for i in range(len(y))]) for q in values]
        critic_loss = [sum(losses[t] for losses in by_critic) for t in tasks]
        if o.joint_update:
            self.balances = (self.balance(), actor_balance)
            waiting = _Waiting(action, log_prob, mean_action, alpha, weight, ent_coef_loss, mean_log_prob, outside)
            return self._together(batch, rows, critic_loss, waiting, waits)
        left_out = exceeds(critic_loss)
        gradients = self._gradients(
            total(critic_loss, left_out) + self.balance(), [*self.critic_adam_parameters, *self.shared]
        )
        steps: list[Tensor] = []
        for own in self.critics_own:
            of_critic, gradients = gradients[: len(own)], gradients[len(own) :]
            steps += clip(of_critic, o.max_grad_norm)
        shared_gradients = gradients
        self._step(self.critic_adam, self.critic_adam_parameters, steps)

        # The actor, against the critics as they now are. The loss reaches it only by a and log pi.
        a, log_pi = (torch.stack(x).detach().requires_grad_() for x in (action, log_prob))
        inputs = torch.cat([batch.state, a], dim=1)
        by_critic = [self._run(net, inputs, batch, "topk") for net in self.critics]
        values = [self.judge([outputs[i] for outputs in by_critic]) for i in range(len(batch.task))]
        actor_loss = mean_by_task([alpha[t] * log_pi[i] - values[i] for i, t in enumerate(batch.task)])
        if waits:
            actor_loss = [torch.zeros(()) for _ in tasks]
        left_out = [x or y for x, y in zip(left_out, exceeds(actor_loss), strict=True)]
        to_action, to_log_pi = self._gradients(total(actor_loss, left_out), [a, log_pi])
        reached = (torch.stack(action) * to_action).sum() + (torch.stack(log_prob) * to_log_pi).sum()
        if batch.wanted is not None:
            # A row of the batch is a demonstration or is not; the mean is over all rows of the task.
            fall = 1.0 if o.demonstration_decay is None else 1 - (self.updates - o.actor_starts) / o.demonstration_decay
            distances = [
                ((mean_action[i] - batch.wanted[i]) ** 2).sum() if i < len(batch.wanted) else torch.zeros(())
                for i in range(len(batch.task))
            ]
            scale = [sum(abs(number(values[i])) for i in rows[t]) / max(len(rows[t]), 1) for t in tasks]
            cloning = [loss * s for loss, s in zip(mean_by_task(distances), scale, strict=True)]
            reached = reached + o.demonstration_weight * min(max(fall, 0), 1) * total(cloning, left_out)
        gradients = self._gradients(reached + actor_balance, [*self.actor_own, *self.shared])
        n = len(self.actor_own)
        self.updates += 1
        if not waits:
            self._step(self.actor_adam, self.actor_own, clip(gradients[:n], o.max_grad_norm))
        if self.shared_adam is not None and not waits:
            both = [x + y for x, y in zip(shared_gradients, gradients[n:], strict=True)]
            self._step(self.shared_adam, self.shared, clip(both, o.max_grad_norm))

        return Result(
            [number(x) for x in actor_loss],
            [number(x) for x in critic_loss],
            ent_coef_loss,
            [-x for x in mean_log_prob],
            left_out,
            outside,
        )

    def _together(
        self, batch: Batch, rows: list[list[int]], critic_loss: list[Tensor], first: _Waiting, waits: bool
    ) -> Result:
        """The second half in the order of released code: the losses of all tasks, one sum, and then all steps."""
        o, tasks = self.options, [t for t in range(self.options.num_tasks) if rows[t]]
        everything, limit = range(o.num_tasks), math.inf if o.max_task_loss is None else o.max_task_loss

        # The actor, against constants: the critics as they were.
        a, log_pi = (torch.stack(x).detach().requires_grad_() for x in (first.action, first.log_prob))
        inputs = torch.cat([batch.state, a], dim=1)
        by_critic = [self._run(net, inputs, batch, "topk") for net in self.critics]
        values = [self.judge([outputs[i] for outputs in by_critic]) for i in range(len(batch.task))]
        actor_loss = [torch.zeros(()) for _ in everything]
        for t in [] if waits else tasks:
            losses = [first.alpha[t] * log_pi[i] - values[i] for i in rows[t]]
            actor_loss[t] = sum(losses) / len(losses)

        # Which tasks are left out of what, and over how many the mean is.
        learns_alpha = self.log_ent_coef is not None and not waits and not o.ent_coef_after_step
        if o.mask_rule == "total":
            sums = {
                t: first.ent_coef_loss[t] + first.weight[t] * (number(critic_loss[t]) + number(actor_loss[t]))
                for t in tasks
            }
            without = without_actor = without_alpha = {t for t in tasks if not sums[t] <= limit}
            count = count_actor = len(tasks)
        else:
            without = {t for t in tasks if not number(critic_loss[t]) <= limit}
            without_actor = without | {t for t in tasks if not number(actor_loss[t]) <= limit}
            without_alpha = set()
            count, count_actor = (max(len(tasks) - len(out), 1) for out in (without, without_actor))

        nothing = torch.zeros(())
        of_critics = sum((first.weight[t] * critic_loss[t] / count for t in tasks if t not in without), nothing)
        of_actor = sum(
            (first.weight[t] * actor_loss[t] / count_actor for t in tasks if t not in without_actor), nothing
        )
        to_action, to_log_pi = self._gradients(of_actor, [a, log_pi])
        of_actor = (torch.stack(first.action) * to_action).sum() + (torch.stack(first.log_prob) * to_log_pi).sum()
        if batch.wanted is not None and o.demonstration_weight:
            for t in tasks:
                if t not in without_actor:
                    scale = sum(abs(number(values[i])) for i in rows[t]) / len(rows[t])
                    shown = [i for i in rows[t] if i < len(batch.wanted)]
                    distance = sum(
                        (((first.mean_action[i] - batch.wanted[i]) ** 2).sum() for i in shown), nothing
                    ) / len(rows[t])
                    of_actor = of_actor + o.demonstration_weight * scale * first.weight[t] * distance / count_actor

        # One gradient of the sum, clipped network by network.
        own = [*self.critic_adam_parameters, *self.actor_own, *self.shared]
        whole = of_critics + self.balances[0]
        whole = whole if waits else whole + of_actor + self.balances[1]
        gradients = iter(self._gradients(whole, own))
        steps: list[Tensor] = []
        for parameters in self.critics_own:
            steps += clip([next(gradients) for _ in parameters], o.max_grad_norm)
        self._step(self.critic_adam, self.critic_adam_parameters, steps)
        of_net = [next(gradients) for _ in self.actor_own]
        self.updates += 1
        if not waits:
            self._step(self.actor_adam, self.actor_own, clip(of_net, o.max_grad_norm))
            if self.shared_adam is not None:
                self._step(self.shared_adam, self.shared, clip(list(gradients), o.max_grad_norm))
        if learns_alpha:
            slope = torch.zeros_like(self.log_ent_coef)
            for t in tasks:
                if t not in without_alpha:
                    slope[0 if o.shared_ent_coef else t] += -(first.mean_log_prob[t] + o.target_entropy) / o.num_tasks
            self._step(self.ent_coef_adam, [self.log_ent_coef], clip([slope], o.max_ent_coef_grad_norm))
            if o.max_ent_coef is not None:
                self.limit_alpha()

        return Result(
            [number(x) for x in actor_loss],
            [number(x) for x in critic_loss],
            first.ent_coef_loss,
            [-x for x in first.mean_log_prob],
            [t in without_actor for t in everything],
            first.outside,
        )

    def follow(self) -> None:
        """Moves the targets after their critics, the copy of what is shared included."""
        for target, critic in zip(self.targets, self.critics, strict=True):
            for ours, theirs in zip(target.parameters(), critic.parameters(), strict=True):
                ours.data = ours.data + self.options.tau * (theirs.data - ours.data)

    @property
    def critic_adam_parameters(self) -> list[Tensor]:
        return [p for own in self.critics_own for p in own]

    def balance(self) -> Tensor:
        """The weighted loss of the load of the routes that were kept, one node of one network after the other."""
        found = torch.zeros((), dtype=torch.float64)
        for path, logits in self.routes if self.options.route_balance else []:
            samples, nodes, _ = path.shape
            for node in range(nodes):
                sources = [s for s in range(path.shape[2]) if logits[0, node, s] > -math.inf]
                choices = sum(int(path[i, node, s]) for i in range(samples) for s in sources)
                for s in sources:
                    share = sum(int(path[i, node, s]) for i in range(samples)) / choices
                    scores = [logits[i, node, sources].exp() for i in range(samples)]
                    mean = sum(score[sources.index(s)] / score.sum() for score in scores) / samples
                    found = found + self.options.route_balance * len(sources) * share * mean / nodes
        return found

    def _run(
        self,
        net: nn.Module,
        x: Tensor,
        batch: Batch,
        paths: str,
        generator: Tensor | None = None,
        *,
        keep: bool = False,
    ) -> Tensor:
        one_hot = torch.eye(self.options.num_tasks, dtype=x.dtype)[batch.task]
        keywords: dict[str, Any] = {"replayed": {"path": batch.path}, "topk": {"sample": False}}.get(paths, {})
        with torch.random.fork_rng(devices=[]):
            if paths == "sampled":
                torch.set_rng_state(generator)
                tau = torch.tensor([self.temperature[t] for t in batch.task], dtype=x.dtype)
                keywords = {"sample": True, "temperature": tau}
            if not (keep and self.options.route_balance):
                return net(x, one_hot, **keywords)
            output, route = net(x, one_hot, return_route=True, **keywords)
        self.routes.append((route.path, route.logits))
        return output

    def _act(self, output: Tensor, noise: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        n = output.shape[1] // 2
        epsilon = self.options.log_prob_epsilon
        low, high = self.options.log_std_range

        def limit(x: Tensor) -> Tensor:
            # (1 + tanh x) / 2 is the logistic function of 2 x
            return low + (high - low) * torch.sigmoid(2 * x) if self.options.log_std == "tanh" else x.clamp(low, high)

        pairs = [squash(row[:n], limit(row[n:]), eps, epsilon) for row, eps in zip(output, noise, strict=True)]
        return [action for action, _ in pairs], [log_prob for _, log_prob in pairs]

    def _gradients(self, loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The gradient of a loss; that of a constant, where all tasks are left out, is 0."""
        if not loss.requires_grad:
            return [torch.zeros_like(p) for p in parameters]
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]

    def _step(self, adam: torch.optim.Adam, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        adam.step()
