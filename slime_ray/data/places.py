"""Whether what a user names as data is a file here, or may be a data set on the Hub."""

import difflib
import re
from pathlib import Path

from slime_ray.config.strict import EMBEDDED

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz", ".tsv.gz")
"""Of the files that are read."""


def may_be_hub_id(source: str) -> bool:
    """Whether a name without a file could be one of the Hub's."""
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source) is not None and not source.lower().endswith(SUFFIXES)


def missing_file(source: str) -> str | None:
    """None for what is here, or need not be a file; else nothing, or what may be meant instead."""
    path = Path(source).expanduser()
    if path.exists() or source.startswith(EMBEDDED) or (may_be_hub_id(source) and not path.is_symlink()):
        return None
    return whereabouts(path)


def dangling_link(path: Path) -> str | None:
    """Tell which part of a path is a link that leads nowhere; None where none is."""
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            return f"{part} is a link to {part.readlink()}, which is not there"
    return None


def whereabouts(path: Path) -> str:
    """What follows the name of a missing file in a message: where its link leads, or which file beside it is there."""
    if link := dangling_link(path):
        return f"; {link}"
    try:
        siblings = [file.name for file in path.parent.iterdir() if file.exists()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; {path.with_name(near[0])} is" if near else ""
