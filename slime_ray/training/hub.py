"""Push an exported model to the Hub, with the token of HF_TOKEN or of `hf auth login`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils import logging as hub_logging

from slime_ray.errors import InputError, RunError
from slime_ray.runs.redaction import redact_sentence

NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)
"""ORG/NAME."""
T = TypeVar("T")


def check_push(name: str) -> None:
    """Ask the Hub whether the token here may write to a namespace; nothing is made.

    Args:
        name: ORG/NAME.

    Raises:
        InputError: There is no token, no Hub, or the token is of somebody else.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"--push-to-hub {name}: a repository is called ORG/NAME.")
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"--push-to-hub {name}: HF_HUB_OFFLINE is set. Unset it to reach the Hub.")
    if get_token() is None:
        raise InputError(f"--push-to-hub {name}: there is no token. Set HF_TOKEN, or log in with `hf auth login`.")
    try:
        user = HfApi().whoami()
    except Exception as error:
        raise InputError(f"--push-to-hub {name}: the Hub does not take the token: {_reason(error)}.") from None
    mine = [str(user["name"]), *(str(org["name"]) for org in user.get("orgs") or [])]
    owner = name.partition("/")[0]
    if owner.lower() not in {namespace.lower() for namespace in mine}:
        raise InputError(
            f"--push-to-hub {name}: the token is of {mine[0]}, who may write to {', '.join(mine)} and not to {owner}. "
            "Name one of these, or log in as somebody else."
        )


def push(folder: Path, name: str, *, private: bool) -> str:
    """Upload a folder as one commit to a repository, which is made if it is not there.

    Args:
        folder: The exported model, which is kept.
        name: ORG/NAME.
        private: Whether a new repository is private.

    Returns:
        Its address.

    Raises:
        RunError: The Hub refused something, or failed.
    """
    disable_progress_bars()
    hub_logging.set_verbosity_error()
    api = HfApi()

    def ask(what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except Exception as error:
            raise RunError(
                f"The model is in {folder}, but not on the Hub: {what} {name} failed: {_reason(error)}. Once that is "
                f"mended, `hf upload {name} {folder}` pushes it."
            ) from None

    # None leaves a repository that is there as it is.
    url = ask("making", lambda: api.create_repo(name, private=private or None, exist_ok=True))
    ask("the upload to", lambda: api.upload_folder(repo_id=name, folder_path=folder, commit_message="Add the model"))
    return str(url)


def _reason(error: Exception) -> str:
    """An error of the Hub's in a line, without the token."""
    text = str(getattr(error, "server_message", None) or error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    line = next((" ".join(line.split()) for line in text.splitlines() if line.strip()), type(error).__name__)
    return redact_sentence(f"{line} (HTTP {status})" if status and str(status) not in line else line).rstrip(". ")
