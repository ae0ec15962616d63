"""The two kinds of error a user meets. Each message is a sentence that names the place and the way out."""

import difflib
from collections.abc import Iterable


class SlimeRayError(Exception):
    """Base of the errors that the command line prints as one sentence, without a traceback."""

    exit_code = 1


class InputError(SlimeRayError):
    """Something the user gave is wrong: a file, a key, a value, a model, a run's name. Nothing was started."""

    exit_code = 2


class RunError(SlimeRayError):
    """A run ended without doing what was asked. What had finished is kept."""

    exit_code = 1


def near(word: str, options: Iterable[str]) -> str:
    """What follows a misspelt word in an error: the option that was meant, if one is like it, and all of them."""
    options = list(options)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    hint = f". Did you mean {close[0]!r}?" if close else "."
    return f"{hint} Allowed: {', '.join(sorted(options))}"


def is_memory_error(error: BaseException) -> bool:
    """Tell whether memory ran out, on a GPU or a CPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )
