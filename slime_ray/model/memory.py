"""The memory of a process's device: given back, and asked for in smaller rows where it runs out."""

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from slime_ray.errors import is_memory_error
from slime_ray.world import World

T = TypeVar("T")
logger = logging.getLogger(__name__)


def free_memory() -> None:
    """Give back memory that nothing uses but reference cycles, as Trainer makes them."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_rows_that_fit(work: Callable[[int], T], row_tokens: int, *, longest: int) -> T:
    """Do work that is cut into rows, with half the budget when memory runs out.

    Several ranks would have to cut alike, and one that has failed cannot tell the others: there the error is raised.

    Args:
        work: Called with the budget of a row, in tokens. What it comes to must not depend on that.
        row_tokens: The budget to begin with.
        longest: Tokens of the longest pair, which no row can be shorter than.

    Raises:
        torch.OutOfMemoryError: The longest pair alone does not fit.
    """
    while True:
        try:
            return work(row_tokens)
        except Exception as error:
            if not is_memory_error(error) or World.current().size > 1:
                raise
            if row_tokens <= longest:
                raise torch.OutOfMemoryError(
                    f"out of memory{_size()} with one pair of {longest} tokens in a row: lower data.max_tokens, set "
                    "training.gradient_checkpointing: true, or give it more memory"
                ) from error
        # Here, where the error's traceback does not hold what was computed.
        free_memory()
        logger.warning("Memory ran out with rows of %d tokens.", row_tokens)
        row_tokens = max(row_tokens // 2, longest)


def _size() -> str:
    if not torch.cuda.is_available():
        return ""
    return f" on a GPU of {torch.cuda.get_device_properties().total_memory / 2**30:.1f} GiB"
