"""The two kinds of error a user meets. Each message is a sentence that names the place and the way out."""

import difflib
import re
from collections.abc import Iterable

_MEMORY = re.compile(r"out of memory|can't allocate memory|_status_alloc_failed", re.IGNORECASE)
_DEVICE = re.compile(
    r"\b(cuda|hip)\b.{0,20} (error|failure)|error \[cuda\]|\bcu(blas|dnn|sparse|solver|fft)\w{0,2}(_status| error)"
    r"|uncorrectable ecc|device-side assert|illegal memory access|launch failure|out of resource|no cuda gpus",
    re.IGNORECASE,
)


class SlimeRayError(Exception):
    """Base of the errors that the command line prints as one sentence, without a traceback."""

    exit_code = 1


class InputError(SlimeRayError):
    """Something the user gave is wrong: a file, a key, a value, a model, a run's name. Nothing was started."""

    exit_code = 2


class RunError(SlimeRayError):
    """A run ended without doing what was asked. What had finished is kept."""


class Interrupted(RunError):
    """A person ended the run. What had finished is kept."""

    exit_code = 130
    """As shells have it: 128 and the number of the signal."""


INTERRUPTED = "it was interrupted"
"""Why trials leave then."""


MAX_OPTIONS = 60
"""Options that are listed where a word is none of them; a run may have a thousand trials."""


def near(word: str, options: Iterable[str]) -> str:
    """Return the end of an error about a misspelt word: the nearest option, and all."""
    options = list(options)
    matches = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    hint = f". Did you mean {matches[0]!r}?" if matches else "."
    ellipsis = f" and {len(options) - MAX_OPTIONS} more" if len(options) > MAX_OPTIONS else ""
    return f"{hint} Allowed: {', '.join(sorted(options)[:MAX_OPTIONS])}{ellipsis}"


def is_memory_error(error: BaseException) -> bool:
    """Tell whether memory ran out, on a GPU or a CPU."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error))))


def device_error(error: BaseException) -> BaseException | None:
    """Find the error of a GPU, after which no call on it works, in this one or its causes; lack of memory is none."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for cause in chain:
        # Triton's OutOfResources is no RuntimeError.
        is_candidate = isinstance(cause, RuntimeError) or type(cause).__name__ == "OutOfResources"
        if is_candidate and _DEVICE.search(str(cause)) and not is_memory_error(cause):
            return cause
    return None
