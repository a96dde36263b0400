"""One task of Meta-World: its goals, its horizon, its state."""

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.types import Task
from numpy.typing import NDArray

__all__ = ["STATE_FEATURES", "FastMethods", "TaskEnvironment", "fast_class"]

STATE_FEATURES = 39
"""The width of an observation without the one-hot."""

CAMERA = "corner2"
STATE = mujoco.mjtState.mjSTATE_INTEGRATION
PLAIN = (bool, int, float, str, np.generic, np.ndarray, type(None))


class FastMethods:
    """Faster methods with the same results as Meta-World's, mixed into the class of a task.

    A step of Meta-World takes longer in Python than in the simulator. These methods save time and give the same bits,
    which tests compare.
    """

    data: Any
    still = False
    """Whether an episode starts without the steps that move the hand to its place."""

    def reset(self: Any, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Starts an episode. Meta-World does this twice; the first time only has to draw the goal and place objects."""
        self.curr_path_length = 0
        self.still = True
        try:
            self.reset_model()
        finally:
            self.still = False
        observation, info = MujocoEnv.reset(self)
        self._prev_obs = observation[:18].copy()
        observation[18:36] = self._prev_obs
        return observation.astype(np.float64), info

    def _reset_hand(self: Any, steps: int = 50) -> None:
        if self.still:
            self.init_tcp = self.tcp_center
        else:
            super()._reset_hand(steps)  # type: ignore[misc]

    def set_xyz_action(self: Any, action: NDArray[Any]) -> None:
        """Moves the point that the hand follows."""
        position = self.data.mocap_pos[0] + np.minimum(np.maximum(action, -1), 1) * self.action_scale
        self.data.mocap_pos[0] = np.minimum(np.maximum(position, self.mocap_low), self.mocap_high)
        self.data.mocap_quat[0] = 1, 0, 1, 0

    def touching_object(self: Any, object_geom_id: int) -> bool:
        """Whether both fingers press on an object. Mostly nothing touches it, which is checked first."""
        contacts, forces = self.data.contact, []
        touched = (contacts.geom == object_geom_id).any(axis=1)
        if not touched.any():
            return False
        for pad in ("leftpad_geom", "rightpad_geom"):
            rows = touched & (contacts.geom == self.data.geom(pad).id).any(axis=1)
            forces.append(sum(self.data.efc_force[address] for address in contacts.efc_address[rows]))
        return bool(forces[0] > 0 and forces[1] > 0)

    def _get_curr_obs_combined_no_goal(self: Any) -> NDArray[np.float64]:
        apart = self.data.body("rightclaw").xpos - self.data.body("leftclaw").xpos
        positions, quaternions = self._get_pos_objects(), self._get_quat_objects()
        observation = np.zeros(18)
        observation[:3] = self.get_endeff_pos()
        observation[3] = min(max(math.sqrt(apart.dot(apart)) / 0.1, 0.0), 1.0)
        for i in range(len(positions) // 3):
            observation[4 + 7 * i : 7 + 7 * i] = positions[3 * i : 3 * i + 3]
            observation[7 + 7 * i : 11 + 7 * i] = quaternions[4 * i : 4 * i + 4]
        return observation

    def _get_obs(self: Any) -> NDArray[np.float64]:
        goal = np.zeros(3) if self._partially_observable else self._get_pos_goal()
        now = self._get_curr_obs_combined_no_goal()
        observation = np.concatenate((now, self._prev_obs, goal))
        self._prev_obs = now
        return observation


@functools.cache
def fast_class(name: str) -> Any:
    """The class of a task with :class:`FastMethods` mixed in; Meta-World's class stays as it is."""
    kind = ALL_V3_ENVIRONMENTS[f"{name}-v3"]
    return type(kind.__name__, (FastMethods, kind), {})


class TaskEnvironment:
    """An environment of Meta-World with goals of one kind and a horizon.

    Args:
        name: The task, without "-v3".
        tasks: The goals that the benchmark drew for it.
        goals: Where the goal of an episode comes from, one of :data:`dynroute_command.choices.GOALS`.
        horizon: The number of steps of an episode.
        reward_version: "v2" for rewards of at most 10 a step, "v1" for the older ones.
        render_mode: "rgb_array" for :meth:`frame`.
    """

    def __init__(
        self,
        name: str,
        tasks: Sequence[Task],
        *,
        goals: str,
        horizon: int,
        reward_version: str,
        render_mode: str | None = None,
    ) -> None:
        self.name, self.tasks, self.goals, self.horizon = name, tasks, goals, horizon
        self.env = fast_class(name)(reward_function_version=reward_version, render_mode=render_mode, camera_name=CAMERA)
        self.env.set_task(tasks[0])
        self.seed(0)
        self.observation = np.zeros(STATE_FEATURES, dtype=np.float32)
        self.steps, self.total, self.success = 0, 0.0, False
        if render_mode is not None:
            self.frame()  # if OpenGL is missing, the error comes now

    def seed(self, seed: int) -> None:
        """Seeds the generators of goals."""
        self.rng = np.random.default_rng(seed)
        self.env.seed(seed)
        self.order: list[int] = []

    def reverse_goals(self) -> None:
        """Reverses the order in which the benchmark's goals come once; other kinds of goals do not change."""
        self.order = self.rng.permutation(len(self.tasks)).tolist()[::-1]

    def reset(self) -> NDArray[np.float32]:
        """Starts an episode with its goal."""
        if self.goals == "benchmark":
            # Every goal is used once before any is used again.
            self.order = self.order or self.rng.permutation(len(self.tasks)).tolist()
            self.env.set_task(self.tasks[self.order.pop()])
        elif self.goals == "random":
            self.env._freeze_rand_vec = False
            self.env.seeded_rand_vec = True
        self.steps, self.total, self.success = 0, 0.0, False
        observation, _ = self.env.reset()
        self.observation = observation.astype(np.float32)
        return self.observation

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool]:
        """Makes a step.

        Returns:
            The observation, the reward, whether the horizon is reached, and whether the task is solved at this step.
        """
        observation, reward, _, _, info = self.env.step(action)
        self.observation = observation.astype(np.float32)
        solved = bool(info["success"])
        self.steps += 1
        self.total += float(reward)
        self.success |= solved
        return self.observation, float(reward), self.steps >= self.horizon, solved

    def frame(self) -> NDArray[np.uint8]:
        """A picture of the scene; drawing it changes nothing that steps depend on."""
        try:
            if (viewer := self.env.mujoco_renderer.viewer) is not None:
                viewer.make_context_current()  # another environment of this process may have drawn last
            picture = self.env.render()
        except Exception as error:
            raise RuntimeError(
                'render_mode="rgb_array" needs OpenGL, which MuJoCo could not use here; without a display set '
                "MUJOCO_GL=egl (a graphics driver, or Debian's libegl1) or MUJOCO_GL=osmesa (Debian's libosmesa6) "
                "before Python starts."
            ) from error
        return np.ascontiguousarray(picture[::-1, ::-1])  # the cameras in the corners hang upside down

    def get_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, as plain data and arrays."""
        env = self.env
        integration = np.empty(mujoco.mj_stateSize(env.model, STATE))
        mujoco.mj_getState(env.model, env.data, integration, STATE)
        return {
            "task": self.name,
            "integration": integration,
            # Meta-World changes these two when an episode starts.
            "body_pos": env.model.body_pos.copy(),
            "site_pos": env.model.site_pos.copy(),
            "attributes": copy.deepcopy({name: value for name, value in vars(env).items() if _is_kept(name, value)}),
            "generator": env.np_random.bit_generator.state,
            "own": {"steps": self.steps, "total": self.total, "success": self.success, "order": list(self.order)},
            "observation": self.observation.copy(),
            "own_generator": self.rng.bit_generator.state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`get_state` returned, in an environment of the same task."""
        if state["task"] != self.name:
            raise ValueError(f"`state` must be a state of task {self.name!r}, got one of {state['task']!r}.")
        env = self.env
        env.model.body_pos[:], env.model.site_pos[:] = state["body_pos"], state["site_pos"]
        for name, value in state["attributes"].items():
            if _is_kept(name, vars(env).get(name)):
                vars(env)[name] = copy.deepcopy(value)
        for _ in range(2):  # mj_forward computes what depends on the state, and changes the start of the solver
            mujoco.mj_setState(env.model, env.data, state["integration"], STATE)
            mujoco.mj_forward(env.model, env.data)
        mujoco.mj_setState(env.model, env.data, state["integration"], STATE)
        env.np_random.bit_generator.state = state["generator"]
        self.steps, self.total, self.success = (state["own"][name] for name in ("steps", "total", "success"))
        self.order, self.observation = list(state["own"]["order"]), state["observation"].copy()
        self.rng.bit_generator.state = state["own_generator"]

    def close(self) -> None:
        """Frees what the simulator holds."""
        self.env.close()


def _is_kept(name: str, value: Any) -> bool:
    """Whether an attribute of an environment belongs to its state; `render_mode` and `still` do not."""
    return name not in ("render_mode", "still") and _is_plain(value)


def _is_plain(value: Any) -> bool:
    """Whether a value is plain data with its own memory; views of the simulator's memory need no copy."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, np.ndarray):
        base: Any = value
        while isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        return isinstance(base, np.ndarray) and value.dtype != object
    return isinstance(value, PLAIN)
