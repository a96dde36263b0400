"""A sentence on each task of Meta-World, and vectors made from such sentences (CARE's metadata)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dynroute_command.choices import task_names

__all__ = ["read_metadata", "task_descriptions"]

_DESCRIPTIONS: Mapping[str, str] = {
    "assembly": "Pick up a ring with a handle and put it over a peg.",
    "basketball": "Lift a ball and drop it into a basket.",
    "bin-picking": "Take a block out of one bin and put it into the other.",
    "box-close": "Pick up a lid and put it on its box.",
    "button-press-topdown": "Press a button down from above.",
    "button-press-topdown-wall": "Reach over a wall and press a button down from above.",
    "button-press": "Push a button in from the front.",
    "button-press-wall": "Reach around a wall and push a button in from the front.",
    "coffee-button": "Press the button of a coffee machine.",
    "coffee-pull": "Pull a mug away from a coffee machine to a goal.",
    "coffee-push": "Push a mug under the spout of a coffee machine.",
    "dial-turn": "Turn a dial by half a circle.",
    "disassemble": "Lift a ring off the peg that it hangs on.",
    "door-close": "Push an open door until it is shut.",
    "door-lock": "Turn a lock down so that its door is locked.",
    "door-open": "Pull a door open by its handle.",
    "door-unlock": "Turn a lock back so that its door is unlocked.",
    "hand-insert": "Lower the gripper into a hole in the table.",
    "drawer-close": "Push an open drawer until it is shut.",
    "drawer-open": "Pull a drawer open by its handle.",
    "faucet-open": "Turn the handle of a faucet counterclockwise until it is open.",
    "faucet-close": "Turn the handle of a faucet clockwise until it is closed.",
    "hammer": "Grasp a hammer and drive a nail into a wall with it.",
    "handle-press-side": "Reach from the side and press a handle down.",
    "handle-press": "Press a handle down.",
    "handle-pull-side": "Reach from the side and pull a handle up.",
    "handle-pull": "Pull a handle up.",
    "lever-pull": "Swing a lever up until it stands upright.",
    "pick-place-wall": "Pick up a puck, carry it over a wall and hold it at a goal.",
    "pick-out-of-hole": "Lift a puck out of a hole and hold it at a goal.",
    "pick-place": "Pick up a puck and hold it at a goal in the air.",
    "plate-slide": "Slide a plate forward into a cabinet.",
    "plate-slide-side": "Slide a plate sideways into a cabinet.",
    "plate-slide-back": "Slide a plate back out of a cabinet.",
    "plate-slide-back-side": "Slide a plate sideways out of a cabinet.",
    "peg-insert-side": "Grasp a peg and put it into a hole in the side of a box.",
    "peg-unplug-side": "Pull a peg sideways out of its hole.",
    "soccer": "Kick a ball into a goal.",
    "stick-push": "Grasp a stick and push a thermos to a goal with it.",
    "stick-pull": "Grasp a stick, hook it into a thermos and pull it to a goal.",
    "push": "Push a puck along the table to a goal.",
    "push-wall": "Push a puck around a wall to a goal.",
    "push-back": "Push a block back to a goal near the robot.",
    "reach": "Move the gripper to a goal.",
    "reach-wall": "Move the gripper around a wall to a goal.",
    "shelf-place": "Pick up a block and put it on a shelf.",
    "sweep-into": "Sweep a block along the table into a hole.",
    "sweep": "Sweep a block off the table.",
    "window-open": "Slide a window open by its handle.",
    "window-close": "Slide a window shut by its handle.",
}


def task_descriptions(benchmark: str | Sequence[str]) -> dict[str, str]:
    """Describes each task of a benchmark in a sentence, by its name, in the order of the one-hot.

    The sentences are ours. Any sentence encoder makes vectors of them, the metadata that CARE attends to. Neither
    library nor a run needs the encoder: the vectors are kept in a file of safetensors, under the names of the tasks,
    which ``dynroute train --method care --metadata FILE`` reads.

    Args:
        benchmark: ``"MT10"``, ``"MT25"``, ``"MT50"``, a task, or a list of tasks.

    Example:
        >>> from dynroute_metaworld import task_descriptions
        >>> task_descriptions(["push", "window-open"])
        {'push': 'Push a puck along the table to a goal.', 'window-open': 'Slide a window open by its handle.'}
    """
    return {name: _DESCRIPTIONS[name] for name in task_names(benchmark)}


def read_metadata(path: str | Path, benchmark: str | Sequence[str]) -> Tensor:
    """The vectors of the tasks of a benchmark from a file of safetensors, with shape ``[num_tasks, m]``, in float32.

    Args:
        path: The file: a vector for each task under its name. Further vectors are not read.
        benchmark: As :func:`task_descriptions` takes it.
    """
    names = task_names(benchmark)
    try:
        with safe_open(path, "pt") as file:
            stored = {name: file.get_tensor(name) for name in {*names} & {*file.keys()}}
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"`metadata` must be a file of safetensors with a vector for each task, got {path}: {error}"
        ) from error
    vectors: list[Tensor] = []
    for name in names:
        if name not in stored:
            raise ValueError(f"`metadata` must have a vector for each task by its name, {path} has none for {name}.")
        vector = stored[name]
        found = f"for {name} in {path}"
        if vector.dim() != 1 or not len(vector) or vector.is_complex():
            kind = f"{vector.dtype} of shape {tuple(vector.shape)}"
            raise ValueError(f"`metadata` must have a vector of real numbers for each task, got {kind} {found}.")
        vectors.append(vector := vector.float())
        if not vector.isfinite().all():
            raise ValueError(f"`metadata` must have numbers that are finite in float32, got NaN or inf {found}.")
        if len(vector) != len(vectors[0]):
            raise ValueError(
                f"`metadata` must have vectors of one length, got {len(vectors[0])} and then {len(vector)} {found}."
            )
    return torch.stack(vectors)
