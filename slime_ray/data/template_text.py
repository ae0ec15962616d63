"""The text of a chat template: the tokenizer's own, a file, or one that is shipped."""

import difflib
import hashlib
import logging
import re
from datetime import date
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from slime_ray.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TEMPLATE_DATE = date(2024, 7, 26)
"""The day that templates which print today's date are given: the one Llama 3's template falls back to."""

_STRFTIME = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")


def resolve_chat_template(tokenizer: "PreTrainedTokenizerBase", template: str | None) -> str:
    """The Jinja text of a chat template, to be set as `tokenizer.chat_template`.

    `template` is the path of a .jinja file, the name of a template shipped in slime_ray/presets/templates
    (`chatml`), or None for the tokenizer's own. One that prints today's date prints TEMPLATE_DATE instead, for a run
    repeated tomorrow would see other prompts.

    Raises:
        InputError: there is no such template, or the tokenizer has none.
    """
    text = _own_template(tokenizer) if template is None else read_template(template)
    pinned = _STRFTIME.sub(lambda call: repr(TEMPLATE_DATE.strftime(call[2])), text)
    if "strftime_now(" in pinned:
        logger.warning("The chat template prints today's date, so the same prompts differ from one day to the next.")
    return pinned


def template_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """16 hexadecimal digits of SHA-256 over the text of the tokenizer's chat template, as it is rendered."""
    return hashlib.sha256(resolve_chat_template(tokenizer, None).encode()).hexdigest()[:16]


def shipped_templates() -> tuple[str, ...]:
    """Names of the templates in slime_ray/presets/templates."""
    folder = resources.files("slime_ray.presets") / "templates"
    return tuple(sorted(file.name.removesuffix(".jinja") for file in folder.iterdir() if file.name.endswith(".jinja")))


def _own_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:  # none at all, or several and none of them the default
        raise no_template(tokenizer_name(tokenizer)) from error


def no_template(tokenizer: str) -> InputError:
    """The error of a tokenizer, called by its name, without a chat template."""
    return InputError(
        f"{tokenizer}: the model's tokenizer has no chat template, so conversations cannot be written as tokens. Set "
        "model.tokenizer to the instruction-tuned version of the model, or model.chat_template to a .jinja file or one "
        f"of {', '.join(shipped_templates())}."
    )


def read_template(template: str) -> str:
    """The text of a .jinja file or of a shipped template. Raises InputError where there is none."""
    if template in shipped_templates():
        return (resources.files("slime_ray.presets") / "templates" / f"{template}.jinja").read_text("utf-8")
    path = Path(template).expanduser()
    if path.suffix != ".jinja":
        near = difflib.get_close_matches(template, shipped_templates(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(
            f"chat template {template!r}: neither a .jinja file nor one of {', '.join(shipped_templates())}.{hint}"
        )
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise InputError(f"chat template {template}: cannot be read: {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"chat template {template}: not UTF-8. Save the file as UTF-8.") from error


def tokenizer_name(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What the tokenizer is called in messages."""
    return tokenizer.name_or_path or type(tokenizer).__name__
