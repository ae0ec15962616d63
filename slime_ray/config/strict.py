"""What the parts of an experiment's schema are made of."""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

EMBEDDED = "embedded/"
"""Prefix of `model.source` and `data.train` that names an embedded task, as in `embedded/arithmetic`."""


class Strict(BaseModel):
    """A frozen model that refuses unknown keys and does not turn text into numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


_ON_HUB = re.compile(r"(?:hf://|https?://(?:huggingface\.co|hf\.co)/)(?:datasets/)?([\w-][\w.-]*/[\w-][\w.-]*)")


def located(value: str) -> str:
    """A local file or folder by its absolute path, since trials run in other folders; anything else as it was given.

    Raises ValueError for an address, which is not repeated: it may hold a password. So it does for what can be no path.
    """
    if "://" in value:
        hub = _ON_HUB.match(value)
        way_out = f"Give the Hub id {hub[1]}" if hub else "Download it and give its path"
        scheme = value.partition("://")[0]
        raise ValueError(f"a file, a folder or a Hub id is read, and no address such as {scheme:.9}://. {way_out}")
    try:
        path = Path(value).expanduser()
        return str(path.absolute()) if not value.startswith(EMBEDDED) and path.exists() else value
    except PermissionError:
        return value
    except (OSError, RuntimeError) as error:
        # Of a name that is too long, and of a home that nobody has.
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ValueError(f"{value:.60} is no path of this machine: {reason}. Correct it") from None


LONGEST_NAME = 100
LONGEST_LABEL = 120
"""Together with what stands around them they are the names of folders and files, which have 255 bytes at most."""
LARGEST_SEED = 2**32 - 1
"""The largest that NumPy takes."""
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_LABEL)]
"""A name that may stand in a path."""
RunName = Annotated[Label, Field(max_length=LONGEST_NAME)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Located = Annotated[str, AfterValidator(located)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


SFT_SEED = "sft.seed"
"""The only path of the key `across`."""


def at_checkpoint(label: str, seed: int) -> str:
    """The label of an entry, arm or center that starts from the SFT checkpoint of this seed, one of several.

    What is run from it says so in its label alone, so that ids, resuming and the plan need to know nothing of it.
    """
    return f"{label}-sft{seed}"


def _once(values: list[Any]) -> list[Any]:
    """Refuse values that are equal: a sampler cannot tell 1 from 1.0, nor either from true."""
    first: dict[Any, Any] = {}
    for value in values:
        if value in first:
            raise ValueError(f"{first[value]!r} and {value!r} are equal. Remove one of them")
        first[value] = value
    return values


Once = AfterValidator(_once)
"""Each value of a list is there once."""


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that change with any part of `value` (pydantic models and plain JSON values)."""

    def plain(item: Any) -> Any:
        return item.model_dump(mode="json") if isinstance(item, BaseModel) else str(item)

    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
