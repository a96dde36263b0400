"""Checkpoints: everything that training depends on, as JSON, safetensors and .npy files, which cannot run code.

A folder is written under another name and renamed when it is complete. Its manifest holds the SHA-256 of each file.
"""

import contextlib
import inspect
import io
import json
import platform
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv

import dynroute
from dynroute.arguments import shown

from .archive import reading_archive, writing_archive
from .attributes import MultiTaskAttributes
from .demonstrations import DemonstrationBuffer
from .environments import environment_states, set_environment_states, unstored_states
from .options import OPTIONS, check_buffer_is_there, check_fixed
from .policies import POLICIES
from .randomness import random_state, set_random_state
from .replay import RouteReplayBuffer
from .storage import DamagedError, Member, check_folder, numbered, read_sealed, writing_folder
from .stored import check_buffer, check_network, check_state, restoring
from .tree import read_tree, write_tree
from .wrappers import own_attributes

__all__ = [
    "checkpoint_steps",
    "checkpoints",
    "latest_checkpoint",
    "load_buffer",
    "load_checkpoint",
    "read_notes",
    "save_buffer",
    "save_checkpoint",
]

Model = TypeVar("Model", bound=MultiTaskAttributes)

FORMAT = 3
NOTES = "notes.json"

BUFFERS: Mapping[Any, type[RouteReplayBuffer]] = {
    kind.__name__: kind for kind in (RouteReplayBuffer, DemonstrationBuffer)
}
"""The buffer classes that a checkpoint can name."""


def _label(value: Any) -> str:
    return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"


OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {
    _label(kind): kind for kind in (torch.optim.Adam, torch.optim.AdamW)
}
"""The optimizers that a checkpoint can name; others must be passed in `replace`."""

ELSEWHERE = ("replay_buffer_kwargs", "tensorboard_log", "verbose")
"""Options that may change when a checkpoint is loaded, for instance on another machine."""

PLACES = ("memory_map",)
"""The keywords of replay buffers among them; the others stay."""

PROGRESS = (
    "num_timesteps",
    "_total_timesteps",
    "_episode_num",
    "_n_updates",
    "_current_progress_remaining",
    "_last_obs",
    "_last_episode_starts",
    "_last_original_obs",
    "ep_info_buffer",
    "ep_success_buffer",
    "updates_due",  # of an OverlappedSAC
    "growth_state",  # of GrowOnDemand
)
"""The attributes that change while a model learns, beside its tensors."""


def save_checkpoint(model: MultiTaskAttributes, folder: Path, notes: Mapping[str, Any] | None = None) -> None:
    """Writes a model with everything that its training depends on to a new folder, and notes beside it."""
    check_buffer_is_there(model)
    check_fixed(model)
    if model._step_pending:
        raise RuntimeError(
            "a checkpoint must not be written between a step of the environments and its storage; "
            "write it before or after learn(), or by CheckpointDirectory, not in a callback's on_step."
        )
    states = None if model.env is None else environment_states(model.env)
    if model.env is not None and "states" not in (states or {}):
        warnings.warn(
            "a checkpoint cannot hold the states of environments without `get_state` and `set_state`: training resumed "
            "from it starts new episodes, and differs from training that was not broken off.",
            stacklevel=2,
        )
    elif model.env is not None:
        for name, attributes in unstored_states(model.env).items():
            warnings.warn(
                f"a checkpoint does not hold {', '.join(attributes)} of the wrapper {name}: if they change while it "
                "runs, give it the methods `get_state` and `set_state`, which also return and take the state inside.",
                stacklevel=2,
            )
    stored = {*OPTIONS, *PROGRESS, *model._excluded_save_params()}
    if dropped := [name for name in own_attributes(model) if name not in stored]:
        warnings.warn(
            f"a checkpoint does not hold {', '.join(dropped)} of the class {type(model).__name__}: set them after "
            "load_checkpoint(), or name them in `_excluded_save_params` if they are not needed.",
            stacklevel=2,
        )
    buffer = model.replay_buffer
    assert buffer is not None
    _warn_of_own_attributes(buffer, model.replay_buffer_kwargs)
    options = {name: getattr(model, name) for name in OPTIONS}
    if max(model.buffer_size // buffer.num_tasks, 1) != buffer.capacity:  # the model was given another buffer
        options["buffer_size"] = buffer.capacity * buffer.num_tasks
    frequency, unit = options["train_freq"]
    options["train_freq"] = (frequency, getattr(unit, "value", unit))
    buffers: dict[Any, str] = {kind: name for name, kind in BUFFERS.items()}
    options["replay_buffer_class"] = buffers.get(model.replay_buffer_class, model.replay_buffer_class)
    names = {id(policy): name for name, policy in POLICIES.items()}
    state = {
        "format": FORMAT,
        "versions": {
            "dynroute": dynroute.__version__,
            "stable_baselines3": stable_baselines3.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "policy": names.get(id(model.policy_class)) or _label(model.policy_class),
        "network": _describe(model.policy.actor.net),
        "critics": _describe(model.policy.critic.nets[0]),
        "options": _without_functions(options),
        "spaces": {name: _space(getattr(model, name)) for name in ("observation_space", "action_space")},
        "progress": {name: getattr(model, name) for name in PROGRESS if hasattr(model, name)},
        "report": vars(model.report),
        "parameters": model.get_parameters(),
        "log_ent_coef": model.log_ent_coef,
        "ent_coef_tensor": None if model.log_ent_coef is not None else model.ent_coef_tensor,
        "random": random_state(),
        "action_generator": model.action_space.np_random.bit_generator.state,
        "environments": states,
    }
    with writing_folder(folder) as temporary:
        write_tree(temporary, "model", {**state, "buffer": buffer.save(temporary)})
        if notes is not None:
            (temporary / NOTES).write_text(json.dumps(notes, indent=1))


def read_notes(folder: Path) -> dict[str, Any] | None:
    """Reads the notes of a checkpoint without its other files; None if there are none."""
    try:
        text = read_sealed(folder, NOTES)
        return None if text is None else dict(json.loads(text))
    except DamagedError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedError(f"{folder / NOTES} is damaged: {error}; take another checkpoint.") from error


def load_checkpoint(
    cls: type["Model"], folder: Path, env: GymEnv | None, device: torch.device | str, replace: Mapping[str, Any]
) -> "Model":
    """Restores what :func:`save_checkpoint` wrote."""
    if folder.is_file():
        raise ValueError(
            f"`folder` must be the folder of a checkpoint, got the file {folder}; `load` reads files of `save`."
        )
    if (newest := latest_checkpoint(folder)) is not None:
        raise ValueError(f"`folder` must be a checkpoint, got the folder {folder} of several; the newest is {newest}.")
    check_folder(folder)
    state = read_tree(folder, "model")
    version = state.get("format") if isinstance(state, dict) else None
    if version != FORMAT:
        raise ValueError(f"{folder} must have format {FORMAT}, got {version}; it was written by another version.")
    check_state(state, folder, PROGRESS)
    with restoring(folder):
        return _restore(cls, folder, state, env, device, replace)


def _restore(
    cls: type["Model"],
    folder: Path,
    state: dict[str, Any],
    env: GymEnv | None,
    device: torch.device | str,
    replace: Mapping[str, Any],
) -> "Model":
    options, policy = _with_functions(state["options"], state["policy"], replace, folder)
    model = cls(policy, env, device=device, _init_setup_model=False)  # type: ignore[arg-type]
    if "updates_due" in state["progress"] and not model.overlaps:
        raise ValueError(f"{folder} is of an OverlappedSAC; load it by OverlappedSAC.load_checkpoint.")
    saved_spaces = {name: _box(saved) for name, saved in state["spaces"].items()}
    for name, space in saved_spaces.items():
        if env is not None and getattr(model, name) != space:
            raise ValueError(
                f"{folder} needs environments with the {name.replace('_', ' ')} {space}, got {getattr(model, name)}."
            )
    if env is not None and model.n_envs != options["n_envs"]:
        raise ValueError(
            f"{folder} needs {options['n_envs']} environments to go on as before, got {model.n_envs}; "
            "save() and load() allow another number."
        )
    kwargs = options["policy_kwargs"]
    named = isinstance(kwargs.get("network", getattr(model.policy_class, "default_network", None)), str)
    # The meta device takes no memory, whatever the sizes; networks of user functions may not support it.
    with torch.device("meta") if named else contextlib.nullcontext():
        expected: Any = model.policy_class(*saved_spaces.values(), lambda _: 0.0, **kwargs)
    for part, net in (("network", expected.actor.net), ("critics", expected.critic.nets[0])):
        described = _describe(net)
        if state[part] != described:
            what = "another network" if part == "network" else "other critics"
            raise ValueError(f"{folder} holds {what}: {state[part]}, and not {described}.")
    check_network(state["parameters"].get("policy"), expected.state_dict(), folder)
    kind = options.get("replay_buffer_class")
    vars(model).update({**options, **saved_spaces, "replay_buffer_class": BUFFERS.get(kind, kind)})
    model._setup_model()
    model.set_parameters(state["parameters"], exact_match=True)
    if model.return_bounds is not None:  # with the episodes that the environments are in
        model.return_bounds.load_state_dict(state["parameters"]["return_bounds"])
    if model.log_ent_coef is not None:
        model.log_ent_coef.data.copy_(state["log_ent_coef"])
    else:
        model.ent_coef_tensor = state["ent_coef_tensor"].to(model.device)
    if env is None:
        model.replay_buffer = None  # the rows stay where they are, so the model can only predict
    else:
        assert model.replay_buffer is not None
        _load_rows(model.replay_buffer, folder, state["buffer"], "model.json")
    vars(model).update(state["progress"])
    model.report.restore(state["report"])
    model.action_space.np_random.bit_generator.state = state["action_generator"]
    if model.env is not None:
        saved = state["environments"]
        if saved is not None:
            set_environment_states(model.env, saved)
        if (saved is None or "statistics" in saved) and model._last_obs is not None:
            model._last_obs = None  # start new episodes, with another seed than at the beginning
            model.env.seed(None if model.seed is None else model.seed + model.num_timesteps)
    set_random_state(state["random"])
    return model


def latest_checkpoint(folder: str | Path) -> Path | None:
    """Returns the newest checkpoint that CheckpointDirectory wrote to a folder, or None.

    Example:
        >>> import tempfile
        >>> latest_checkpoint(tempfile.mkdtemp()) is None
        True
    """
    return next(reversed(checkpoints(Path(folder))), None)


def checkpoints(folder: Path) -> list[Path]:
    """Lists the checkpoints that CheckpointDirectory wrote to a folder, oldest first."""
    return list(numbered(folder, "step").values())


def checkpoint_steps(checkpoint: Path) -> int:
    """Returns the number of environment steps at which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step_"))


def save_buffer(buffer: RouteReplayBuffer, path: str | Path | io.BufferedIOBase) -> None:
    """Writes a replay buffer to a file, replacing an older one, or to a file object."""
    _warn_of_own_attributes(buffer)
    with writing_archive(_file(path), marker="buffer.json") as place:
        write_tree(place, "buffer", buffer.save(place))


def _warn_of_own_attributes(buffer: RouteReplayBuffer, given: Collection[str] = ()) -> None:
    """Warns of attributes that the class of a user adds to a replay buffer, unless it writes the buffer itself.

    Args:
        buffer: The buffer.
        given: The keywords that it gets again.
    """
    inherits = any(type(buffer).save is known.save for known in BUFFERS.values())
    if inherits and (dropped := [name for name in own_attributes(buffer) if name not in given]):
        warnings.warn(
            f"{', '.join(dropped)} of the replay buffer {type(buffer).__name__} will not be stored: if they change "
            "while it is used, write and read them in methods `save` and `load` which extend the inherited ones.",
            stacklevel=4,
        )


def load_buffer(buffer: RouteReplayBuffer, path: str | Path | io.BufferedIOBase) -> None:
    """Reads a file of :func:`save_buffer`."""
    with reading_archive(_file(path), what="a replay buffer", marker="buffer.json") as place, restoring(place):
        _load_rows(buffer, place, read_tree(place, "buffer"), "buffer.json")


def _load_rows(buffer: RouteReplayBuffer, folder: Path | Member, state: dict[str, Any], name: str) -> None:
    rings = [(buffer, state)]
    if isinstance(buffer, DemonstrationBuffer) and "shown" in state:
        rings.append((buffer.shown, state["shown"]))
    for ring, saved in rings:
        if saved.get("capacity") == ring.capacity and saved.get("num_tasks") == ring.num_tasks:  # else load() raises
            check_buffer(saved, ring.num_tasks, ring.capacity, folder / name)
    buffer.load(folder, state)


def _file(path: str | Path | io.BufferedIOBase) -> Path | io.BufferedIOBase:
    if isinstance(path, (str, Path)):
        return Path(path)
    if not isinstance(path, io.BufferedIOBase):
        raise TypeError(
            f"`path` must be the name of a file, or a file object of bytes such as open(..., 'rb') or io.BytesIO(), "
            f"got {type(path).__name__}."
        )
    return path


def _describe(net: Any) -> str:
    return str(net.describe() if hasattr(net, "describe") else type(net).__name__)


def _without_functions(tree: Any) -> Any:
    """Replaces each function or class by a label, since a file without code cannot hold it."""
    if isinstance(tree, dict):
        return {key: _without_functions(value) for key, value in tree.items()}
    # Action noise is callable too, but it has a state.
    return {"$missing": _label(tree)} if callable(tree) and not isinstance(tree, ActionNoise) else tree


def _with_functions(
    options: dict[str, Any], policy: str, replace: Mapping[str, Any], folder: Path
) -> tuple[dict[str, Any], Any]:
    """Returns the options and the policy with functions and classes filled in."""
    missing = dict(_missing(options)) | ({} if policy in POLICIES else {"policy": policy})
    names = {place: _short_name(place, missing) for place in missing}
    given: dict[str, Any] = {}
    for key, value in replace.items():
        places = _places(key, missing)
        if len(places) > 1:
            raise ValueError(
                f"`replace` must say which {key} of {folder} it is, by {' or '.join(repr(names[p]) for p in places)}, "
                f"got {key!r}, which is {len(places)} of them."
            )
        given |= dict.fromkeys(places, value)
    for place, label in missing.items():
        if place not in given and label in OPTIMIZERS:
            given[place] = OPTIMIZERS[label]
        if place not in given:
            raise ValueError(
                f"{folder} needs the {names[place]} {label}, which it does not hold: pass "
                f"replace={{{names[place]!r}: ...}}."
            )
    if extra := sorted(key for key in replace if key not in ELSEWHERE and not _places(key, missing)):
        raise ValueError(
            f"`replace` must name what {folder} could not hold, {sorted(names.values()) or 'which is nothing'}, or "
            f"what does not change results, {', '.join(ELSEWHERE)}, got {extra}."
        )

    def fill(tree: Any, place: str) -> Any:
        if not isinstance(tree, dict):
            return tree
        if "$missing" in tree:
            return given[place]
        return {key: fill(value, _join(place, key)) for key, value in tree.items()}

    options = fill(options, "")
    moved = {name: value for name, value in replace.items() if name in ELSEWHERE}
    if "replay_buffer_kwargs" in moved:
        kept = {name: value for name, value in options["replay_buffer_kwargs"].items() if name not in PLACES}
        moved["replay_buffer_kwargs"] = kept | _placed(options | kept, moved["replay_buffer_kwargs"] or {}, folder)
    return {**options, **moved}, given.get("policy", policy)


def _placed(kept: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the keywords of a replay buffer that replace its place; raises an error for one that changes results.

    Args:
        kept: The stored options of the model, and the stored keywords of its buffer.
        given: The keywords.
        folder: The checkpoint.
    """
    usual = {
        name: kept.get(name, keyword.default)
        for kind in BUFFERS.values()
        for name, keyword in inspect.signature(kind.__init__).parameters.items()
        if name in kept or keyword.default is not keyword.empty
    }
    for name in given.keys() & usual.keys() - {*PLACES}:  # those of a class of one's own may be places
        if not np.array_equal(stored := usual[name], value := given[name]):
            raise ValueError(
                f"`{name}` of `replay_buffer_kwargs` must stay {shown(stored)} as in {folder}, got {shown(value)}; of "
                f"these keywords only {', '.join(PLACES)} may differ, and the others can be left out."
            )
    return dict(given)


def _missing(tree: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """The places of functions and classes in stored options, with the labels that stand for them."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, dict) and "$missing" in value:
            yield _join(place, key), value["$missing"]
        else:
            yield from _missing(value, _join(place, key))


def _join(place: str, key: Any) -> str:
    return f"{place}.{key}" if place else f"{key}"


def _places(name: str, places: Collection[str]) -> list[str]:
    """The places that a name can mean: itself, or those that end with it."""
    return [name] if name in places else [place for place in places if place.endswith(f".{name}")]


def _short_name(place: str, places: Collection[str]) -> str:
    """The shortest end of a place that means no other."""
    parts = place.split(".")
    ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
    return next(end for end in ends if _places(end, places) == [place])


def _space(space: spaces.Space[Any]) -> dict[str, Any]:
    assert isinstance(space, spaces.Box)
    return {"low": space.low, "high": space.high, "dtype": str(space.dtype)}


def _box(saved: dict[str, Any]) -> spaces.Box:
    return spaces.Box(saved["low"], saved["high"], dtype=np.dtype(saved["dtype"]).type)
