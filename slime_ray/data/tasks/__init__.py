"""Embedded tasks: small enough for a CPU, judged exactly, made from nothing but a seed."""

import difflib

from slime_ray.data.tasks.arithmetic import Arithmetic
from slime_ray.data.tasks.base import PIECE, Rubric, Task
from slime_ray.data.tasks.notes import Notes
from slime_ray.errors import InputError

TASKS: dict[str, Task] = {task.name: task for task in (Arithmetic(), Notes())}
"""The embedded tasks by name. A new one is a file beside `arithmetic.py` and a place in this line."""

__all__ = ["PIECE", "TASKS", "Rubric", "Task", "load_task"]


def load_task(name: str) -> Task:
    """The embedded task of this name. Raises InputError that names the nearest."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(f"There is no embedded task {name!r}.{hint} There are: {', '.join(TASKS)}.")
    return TASKS[name]
