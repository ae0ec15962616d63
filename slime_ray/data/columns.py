"""Columns that preference data has besides prompt, chosen and rejected: which hold text, which may be misnamed."""

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from slime_ray.data.forms import COLUMNS, TOOLS, Pair
from slime_ray.data.messages import ROLES

UNREAD = "(bytes, not read)"
"""Stands for a cell with images or other bytes, which are not loaded."""

COLUMN = "with a column "

_METADATA = re.compile(
    r"id|ids|idx|index|key|uid|uuid|guid|hash|source|sources|dataset|data_source|origin|split|subset|category|categories"
    r"|topics?|domain|tags?|task_(type|name|category)|language|lang|locale|country|license|url|link|timestamp|date|time"
    r"|created|created_at|models?|model_(name|version|a|b)|generator|annotators?|authors?|scores?|ratings?|rewards?"
    r"|margin|quality|difficulty|preference|preference_strength|label|winner|meta|metadata|turn|__index_level_\d+__"
    r"|unnamed:.*"
    r"|.+[_-](ids?|idx|hash|scores?|ratings?|rewards?|models?|source|lang|language|tokens|length|len|count|time|date)"
    r"|(id|scores?|ratings?|rewards?|num|n|len|length)[_-].+",
    re.IGNORECASE,
)
"""Names of columns and fields that describe a row, and hold none of its text."""

_ALIASES = {
    "prompt": (
        "question", "instruction", "query", "input", "problem", "user", "context", "conversations", "conversation",
        "messages", "text",
    ),
    "chosen": (
        "chosen_response", "chosen_answer", "response_chosen", "answer_chosen", "preferred", "preferred_output",
        "preferred_response", "accepted", "good", "better", "best", "winner", "win", "positive", "pos", "y_w", "yw",
        "response_j", "correct",
    ),
    "rejected": (
        "rejected_response", "rejected_answer", "response_rejected", "answer_rejected", "dispreferred",
        "non_preferred_output", "non_preferred", "nonpreferred", "refused", "bad", "worse", "worst", "loser", "lose",
        "negative", "neg", "y_l", "yl", "response_k", "incorrect",
    ),
}  # fmt: skip
"""What data sets call the three, the most telling first."""


def is_metadata(name: str, declared: Collection[str] = ()) -> bool:
    """Whether a column or field describes its row. declared: further names, which the user gave."""
    return name in declared or _METADATA.fullmatch(name) is not None


def untrained_text(row: Mapping[Any, Any], pair: Pair, declared: Collection[str] = ()) -> list[str]:
    """Name the columns and fields of a row whose text is in none of the pair's messages.

    Numbers and names of metadata are passed over, and so is a column that repeats the pair's own messages. In fields of
    messages numbers count, since `weight` and its like change what is trained on.
    """
    columns = [name for name in row if name not in (*COLUMNS, TOOLS) and not is_metadata(str(name), declared)]
    if columns:
        trained = {message["content"].strip() for part in (pair.prompt, pair.chosen, pair.rejected) for message in part}
        columns = [name for name in columns if any(text not in trained for text in _texts(row[name]))]
    fields = sorted(name for name in pair.fields if not is_metadata(name, declared))
    return [*(f"{COLUMN}{name}" for name in columns), *(f"with a field {name} of messages" for name in fields)]


def _texts(value: Any) -> Iterator[str]:
    """Every text in a cell that is no role, blanks around it removed."""
    if isinstance(value, str):
        if (text := value.strip()) and text not in ROLES:
            yield text
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, bytes):
        yield UNREAD


def may_hold_text(kind: Any) -> bool:
    """Whether cells of this Arrow type can hold text."""
    return any(
        pa.types.is_string(leaf) or pa.types.is_large_string(leaf) or pa.types.is_string_view(leaf)
        for leaf in _leaves(kind)
    )


def holds_bytes(kind: Any) -> bool:
    """Whether cells of this Arrow type hold bytes, as images do."""
    return any(pa.types.is_binary(leaf) or pa.types.is_large_binary(leaf) for leaf in _leaves(kind))


def _leaves(kind: Any) -> Iterator[Any]:
    if isinstance(kind, pa.DictionaryType):
        yield from _leaves(kind.value_type)
    elif isinstance(kind, pa.BaseExtensionType):
        yield from _leaves(kind.storage_type)
    elif pa.types.is_nested(kind):
        for index in range(kind.num_fields):
            yield from _leaves(kind.field(index).type)
    else:
        yield kind


def renaming(columns: Iterable[Any]) -> str:
    """Say which of `columns` the missing ones may be, by name alone."""
    names = [str(name) for name in columns]
    missing = [column for column in COLUMNS if column not in names]
    candidates = [name for name in names if name not in COLUMNS]
    renames: dict[str, str] = {}
    for column in missing:
        near = _nearest(column, [name for name in candidates if name not in renames.values()])
        if near is not None:
            renames[column] = near
    if not renames:
        return "Rename the columns"
    pairs = ", ".join(f"{near} to {column}" for column, near in renames.items())
    absent = [column for column in missing if column not in renames and column != "prompt"]
    rest = f"; no column looks like {' or '.join(absent)}" if absent else ""
    return f"Rename {pairs}, if that is what they hold{rest}"


def _nearest(column: str, names: list[str]) -> str | None:
    """Find the column whose name is most like `column` or one of its aliases."""
    by_name = {name.strip().lower(): name for name in names}
    for alias in (column, *_ALIASES[column]):
        if alias in by_name:
            return by_name[alias]
    containing = [lower for lower in by_name if column in lower and not is_metadata(lower)]
    near = containing or difflib.get_close_matches(column, by_name, n=1, cutoff=0.75)
    return by_name[near[0]] if near else None
