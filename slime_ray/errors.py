"""The two kinds of error a user meets. Each message is a sentence that names the place and the way out."""


class SlimeRayError(Exception):
    """Base of the errors that the command line prints as one sentence, without a traceback."""

    exit_code = 1


class InputError(SlimeRayError):
    """Something the user gave is wrong: a file, a key, a value, a model, a run's name. Nothing was started."""

    exit_code = 2


class RunError(SlimeRayError):
    """A run ended without doing what was asked. What had finished is kept."""

    exit_code = 1
