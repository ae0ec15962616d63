"""Checkpoints of a trial in training: all that a process needs to repeat what an uninterrupted one would have computed.

    step-00000120/model.safetensors       trainable parameters
                  optimizer.safetensors   the optimizer's tensors
                  random.safetensors      random states of every rank
                  state.json              step, optimizer and scheduler numbers, counters, what the caller adds
                  best/model.safetensors  with training.keep, the trainable parameters that were best so far

A folder gets its name when everything in it is written, so that a half-written one is never read; the one before is
deleted after that. The sizes of its files are recorded in it, and one that is not whole is passed over. Nothing is
pickled.
"""

import json
import logging
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from slime_ray.errors import RunError, is_memory_error
from slime_ray.runs import files
from slime_ray.training.orders import Report
from slime_ray.training.outcome import one_sentence, patiently
from slime_ray.world import World

FORMAT = "trial-state-v1"
BEST = "best"
"""Folder of the best weights so far, beside the checkpoints, each of which has a copy of it."""
OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint. counters: as they were given to `save_checkpoint`."""

    path: Path
    step: int
    counters: dict[str, Any]


def save_checkpoint(
    folder: Path, *, step: int, model: Any, optimizer: Any, scheduler: Any, counters: Mapping[str, Any]
) -> bool:
    """Write a checkpoint into `folder` and delete older ones; every rank has to call it, rank 0 writes.

    counters: JSON values to give back with `latest`. Returns False on rank 0, after a warning, where the storage does
    not take it: training goes on, and what could be lost grows until one succeeds.
    """
    world = World.current()
    weights: Any = get_model_state_dict(model, options=OPTIONS)
    moments: Any = get_optimizer_state_dict(model, optimizer, options=OPTIONS)
    states = world.gather(random_states())
    if not world.main:
        return True
    name = f"step-{step:08d}"

    def fill(partial: Path) -> None:
        save_file(_once(weights), partial / "model.safetensors")
        save_file(
            {
                f"{kind}:{name}": value.contiguous()
                for name, kinds in moments["state"].items()
                for kind, value in kinds.items()
            },
            partial / "optimizer.safetensors",
        )
        save_file(
            {f"{rank}.{key}": value for rank, state in enumerate(states) for key, value in state.items()},
            partial / "random.safetensors",
        )
        content = {
            "format": FORMAT,
            "step": step,
            "ranks": world.size,
            "param_groups": moments["param_groups"],
            "scheduler": scheduler.state_dict(),
            "counters": dict(counters),
        }
        (partial / "state.json").write_text(json.dumps(content), encoding="utf-8")
        if (folder / BEST).exists():
            shutil.copytree(folder / BEST, partial / BEST)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.atomic_path(folder / name) as partial:
            partial.mkdir()
            fill(partial)
            # Hashes would take longer than the update that a checkpoint of a large model interrupts.
            files.seal(partial, digests=False)
    except Exception as error:
        refusal = error if isinstance(error, OSError) else files.storage_error(error)
        if refusal is None:
            raise
        logger.warning("No checkpoint at update %d: %s. Training goes on.", step, refusal)
        return False
    for path in folder.iterdir():
        if path.name not in (name, BEST):
            shutil.rmtree(path, ignore_errors=True)
    return True


def save_best(folder: Path, model: Any, report: Report, *, minutes: float) -> None:
    """Put the trainable parameters into `folder`, over those that were best before.

    Every rank has to call it; rank 0 writes, as `patiently` does.
    """
    weights: Any = get_model_state_dict(model, options=OPTIONS)

    def fill() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with files.atomic_path(folder / BEST) as partial:
            partial.mkdir()
            save_file(_once(weights), partial / "model.safetensors")

    if World.current().main:
        patiently(fill, report, minutes=minutes)


def take_up_best(folder: Path, saved: Saved | None) -> None:
    """Have the best weights be those that a checkpoint knows of, or none. Rank 0 calls it."""
    shutil.rmtree(folder / BEST, ignore_errors=True)
    if saved is not None and (saved.path / BEST).exists():
        with files.atomic_path(folder / BEST) as partial:
            shutil.copytree(saved.path / BEST, partial)


def _once(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tied weights under their first name alone, which a file of safetensors asks for; loading ties them again."""
    first: dict[tuple[int, torch.Size], str] = {}
    for name, value in weights.items():
        first.setdefault((value.data_ptr() or id(value), value.shape), name)
    return {name: weights[name].contiguous() for name in first.values()}


def latest(folder: Path) -> Saved | None:
    """The newest whole checkpoint in `folder`, or None. One that cannot be read is passed over."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            damaged = files.damage(path)
            content = json.loads((path / "state.json").read_text(encoding="utf-8"))
            if damaged is None and content["format"] == FORMAT:
                return Saved(path, int(content["step"]), content["counters"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            damaged = damaged or one_sentence(error)
        logger.warning("A checkpoint is passed over: %s.", damaged or f"{path} is of another version")
    return None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise whatever a checkpoint cannot be read for as a RunError: no trial fails for it."""
    try:
        yield
    except Exception as error:
        if is_memory_error(error):
            raise
        raise RunError(
            f"The checkpoint {path} cannot be read ({one_sentence(error)}). Delete it to train its trial anew."
        ) from error


def load_weights(path: Path, model: Any) -> None:
    """Put a checkpoint's trainable parameters into `model`, in place."""
    with _reading(path):
        weights: Any = load_file(path / "model.safetensors")
        if isinstance(model, FSDPModule):
            # After a pass without gradients the outermost parameters are whole, and cannot be copied into.
            model.reshard()
        set_model_state_dict(model, weights, options=OPTIONS)


def load_progress(path: Path, *, model: Any, optimizer: Any, scheduler: Any) -> None:
    """Put a checkpoint's moments and schedule back, in place."""
    with _reading(path):
        content = json.loads((path / "state.json").read_text(encoding="utf-8"))
        moments: dict[str, Any] = {}
        for key, value in load_file(path / "optimizer.safetensors").items():
            kind, name = key.split(":", 1)
            moments.setdefault(name, {})[kind] = value
        if moments:
            set_optimizer_state_dict(
                model, optimizer, {"state": moments, "param_groups": content["param_groups"]}, options=OPTIONS
            )
        else:
            # Plain SGD has none, which torch's function does not take.
            for group, saved_group in zip(optimizer.param_groups, content["param_groups"], strict=True):
                group |= {name: value for name, value in saved_group.items() if name != "params"}
        scheduler.load_state_dict(content["scheduler"])


def load_random_states(path: Path) -> None:
    """Go on with this rank's random numbers; with more ranks than were saved, some repeat another's."""
    with _reading(path):
        content = json.loads((path / "state.json").read_text(encoding="utf-8"))
        prefix = f"{World.current().rank % content['ranks']}."
        states = {
            key.removeprefix(prefix): value
            for key, value in load_file(path / "random.safetensors").items()
            if key.startswith(prefix)
        }
        set_random_states(states)


def set_random_states(states: Mapping[str, torch.Tensor]) -> None:
    """Go on with the random numbers of `random_states`."""
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    position, has_gauss, gauss = states["numpy_numbers"].tolist()
    np.random.set_state(("MT19937", states["numpy"].numpy().astype(np.uint32), int(position), int(has_gauss), gauss))
    version, *_ = random.getstate()
    *keys, gauss_next = states["python"].tolist()
    random.setstate((version, tuple(int(key) for key in keys), None if gauss_next != gauss_next else gauss_next))


def random_states() -> dict[str, torch.Tensor]:
    """This process's random states: torch's (and its GPU's), numpy's and Python's, as tensors."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    _, internal, gauss_next = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy_numbers": torch.tensor([float(position), float(has_gauss), float(gauss)], dtype=torch.float64),
        # Mersenne Twister's words fit a float64 exactly.
        "python": torch.tensor(
            [*map(float, internal), float("nan") if gauss_next is None else gauss_next], dtype=torch.float64
        ),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
