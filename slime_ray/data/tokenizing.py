"""Conversations as token ids, within a run's limits.

A prompt is what the chat template writes up to where the assistant's answer begins; a completion is what it writes
after that, up to and including the end-of-turn token. Both are encoded by themselves, as generation sees them. Then
they are cut to `data.max_tokens` and its like, what cannot be used is dropped, and every cut and drop is counted.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from slime_ray.data.chat_template import ChatRenderer, Refusal
from slime_ray.data.forms import COLUMNS, Messages
from slime_ray.data.lost_text import TURN, LostText, one_line
from slime_ray.data.pairs import ID_COLUMNS
from slime_ray.data.preferences import RowTally, SkippedRows
from slime_ray.data.splits import rows_in
from slime_ray.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SEVERAL_MESSAGES = "several assistant messages in a completion"
PROMPT_CUT = "prompts cut at their start"
CHOSEN_CUT = "chosen completions cut at their end"
REJECTED_CUT = "rejected completions cut at their end"
CUTS = (PROMPT_CUT, CHOSEN_CUT, REJECTED_CUT)
SPECIAL_TEXT = "spell out a special token, which is encoded as plain text"
NO_ROOM = "prompt leaves no room for a completion within data.max_tokens"
SAME_TOKENS = "chosen and rejected have the same tokens"
SAME_ONCE_CUT = "chosen and rejected have the same tokens once cut"

UNKNOWN = "with text that the tokenizer has no token for but the unknown one"
LOST = "with text that the chat template leaves out or rewrites"

_BATCH = 1000
_SCHEMA = pa.schema(dict.fromkeys(ID_COLUMNS, pa.list_(pa.int32())))


@dataclass(frozen=True)
class TruncationReport:
    """What length limits and the template did. Rows count from 0; `changed` were kept, `dropped` were not."""

    rows_read: int
    changed: tuple[SkippedRows, ...]
    dropped: tuple[SkippedRows, ...]
    rows_with_lost_text: int = 0

    @property
    def rows_dropped(self) -> int:
        return sum(group.count for group in self.dropped)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values, for a run's manifest."""
        changed = {group.reason: group.count for group in self.changed}
        return {
            "rows_read": self.rows_read,
            "prompts_truncated": changed.get(PROMPT_CUT, 0),
            # Chosen and rejected are counted apart, so at most two for a row.
            "completions_truncated": changed.get(CHOSEN_CUT, 0) + changed.get(REJECTED_CUT, 0),
            "rows_with_special_text": changed.get(SPECIAL_TEXT, 0),
            "rows_with_lost_text": self.rows_with_lost_text,
            "rows_dropped": self.rows_dropped,
            "changed": [group.as_dict() for group in self.changed],
            "dropped": [group.as_dict() for group in self.dropped],
        }


@dataclass(frozen=True)
class TokenizedPairs:
    """`table` has the columns of ID_COLUMNS, and a row for each pair that was kept, in their order."""

    table: pa.Table
    truncation: TruncationReport


@dataclass(frozen=True)
class RenderedPair:
    """Token ids of one pair. Both completions end with the end-of-turn token unless they were cut.

    An SFT example has no rejected one. `lost` has the texts that the chat template left out or rewrote, by the part
    that they belong to: "prompt", "chosen" or "rejected".
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int] = field(default_factory=list)
    lost: tuple[tuple[str, LostText], ...] = ()


def render_prompts(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Messages]) -> list[list[int]]:
    """Token ids of conversations up to the answer. Raises InputError where one cannot be rendered."""
    renderer = ChatRenderer(tokenizer)
    texts = renderer.prompt_texts(prompts)
    for prompt, text in zip(prompts, texts, strict=True):
        if isinstance(text, Refusal):
            raise InputError(
                f"The prompt that ends with {prompt[-1]['content'][-60:]!r} cannot be rendered: {text.reason}. Change "
                "it or the chat template."
            )
    return renderer.encode([text for text in texts if isinstance(text, str)])


def render_pairs(
    renderer: ChatRenderer, prompts: list[Messages], *completions: list[Messages]
) -> list[RenderedPair | Refusal]:
    """Full-length pairs, or the reason where one cannot be rendered. `completions` are chosen and maybe rejected."""
    results: list[RenderedPair | Refusal] = [Refusal(SEVERAL_MESSAGES)] * len(prompts)
    single = [row for row in range(len(prompts)) if all(len(side[row]) == 1 for side in completions)]
    contexts = [prompts[row] for row in single]
    starts = renderer.prompt_texts(contexts)
    answers = [renderer.completion_texts(contexts, starts, [side[row] for row in single]) for side in completions]
    rendered: dict[int, list[str]] = {}
    for row, *texts in zip(single, starts, *answers, strict=True):
        refusal = next((text for text in texts if isinstance(text, Refusal)), None)
        if refusal is None:
            rendered[row] = [str(text) for text in texts]
        else:
            results[row] = refusal
    prompt_texts, *answer_texts = zip(*rendered.values(), strict=True) if rendered else [()] * (1 + len(completions))
    columns = [renderer.encode(prompt_texts), *(renderer.encode(texts, inner=True) for texts in answer_texts)]
    for (row, texts), *ids in zip(rendered.items(), *columns, strict=True):
        parts = zip(COLUMNS, (prompts, *completions), texts, strict=False)
        lost = tuple((name, each) for name, part, text in parts for each in renderer.lost_texts(part[row], text))
        results[row] = replace(RenderedPair(*ids), lost=lost)
    return results


def tokenize_pairs(
    dataset: Dataset,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_tokens: int,
    max_prompt_tokens: int | None = None,
    row_tokens: int | None = None,
    strict: bool = False,
    rejected: bool = True,
) -> TokenizedPairs:
    """Token ids of all pairs of `dataset` (columns prompt, chosen, rejected), no longer than allowed.

    A prompt longer than `max_prompt_tokens` keeps its end; a completion that does not fit into `max_tokens`
    together with its prompt keeps its start, and so loses its end-of-turn token. Where prompt and both completions
    together are more than `row_tokens`, the longer completion is cut down to the other, and then both alike. A pair is
    dropped where its prompt leaves no room for a completion, where chosen and rejected come out the same, where a
    completion is several messages, or where the template refuses the conversation. One warning says how many; the
    report says which. Without `rejected` they are SFT examples: that column is not looked at, and its ids are empty.

    Raises:
        InputError: the template does not serve, a prompt leaves no room in `row_tokens`, or no pair is left; with
            `strict`, one was cut or dropped.
    """
    if max_prompt_tokens is not None and max_prompt_tokens >= max_tokens:
        raise InputError(
            f"max_prompt_tokens {max_prompt_tokens} leaves no room for completions within max_tokens {max_tokens}. "
            "Lower data.max_prompt_tokens or raise data.max_tokens."
        )
    renderer = ChatRenderer(tokenizer)
    changed, dropped = RowTally(), RowTally()
    lossy = 0
    names = COLUMNS if rejected else COLUMNS[:2]
    source = dataset.select_columns(list(names)).with_format("arrow")
    batches: list[pa.RecordBatch] = []
    for first in range(0, len(dataset), _BATCH):
        rows = rows_in(source[first : first + _BATCH])
        rendered = render_pairs(renderer, *([row[name] for row in rows] for name in names))
        columns: list[list[np.ndarray]] = [[] for _ in ID_COLUMNS]
        for number, (row, pair) in enumerate(zip(rows, rendered, strict=True), start=first):
            place, words = f"row {number}", _words(row["prompt"])
            if any(renderer.has_special_text(row[name]) for name in names):
                changed.add(SPECIAL_TEXT, place, words)
            fitted = pair if isinstance(pair, Refusal) else _fit(pair, max_tokens, max_prompt_tokens, row_tokens)
            if isinstance(fitted, Refusal):
                dropped.add(fitted.reason, place, words)
                continue
            lossy += _count_lost(changed, place, fitted.lost)
            if any(renderer.unknown_id in getattr(fitted, name) for name in ID_COLUMNS):
                changed.add(UNKNOWN, place, words)
            for name, cut, column in zip(ID_COLUMNS, CUTS, columns, strict=True):
                ids = getattr(fitted, name)
                if len(ids) < len(getattr(pair, name)):
                    changed.add(cut, place, words)
                column.append(np.asarray(ids, dtype=np.int32))
        arrays = [pa.array(column, _SCHEMA.field(0).type) for column in columns]
        batches.append(pa.record_batch(arrays, schema=_SCHEMA))
    report = TruncationReport(len(dataset), changed.result(), dropped.result(), lossy)
    _say(report, "pairs" if rejected else "SFT examples", strict=strict)
    return TokenizedPairs(pa.Table.from_batches(batches, schema=_SCHEMA), report)


def tokenize_prompts(
    prompts: Sequence[Messages],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_prompt_tokens: int | None = None,
    strict: bool = False,
    what: str = "prompts",
) -> tuple[dict[int, list[int]], TruncationReport]:
    """Token ids of prompts by number, cut and refused exactly as in `tokenize_pairs`. what: their name."""
    renderer = ChatRenderer(tokenizer)
    changed, dropped = RowTally(), RowTally()
    lossy = 0
    texts = renderer.prompt_texts(prompts)
    encoded = iter(renderer.encode([text for text in texts if isinstance(text, str)]))
    token_ids: dict[int, list[int]] = {}
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        place, words = f"row {number}", _words(prompt)
        if isinstance(text, Refusal):
            dropped.add(text.reason, place, words)
            continue
        if renderer.has_special_text(prompt):
            changed.add(SPECIAL_TEXT, place, words)
        lossy += _count_lost(changed, place, [("prompt", each) for each in renderer.lost_texts(prompt, text)])
        full = next(encoded)
        if renderer.unknown_id in full:
            changed.add(UNKNOWN, place, words)
        token_ids[number] = _end_of(full, max_prompt_tokens)
        if len(token_ids[number]) < len(full):
            changed.add(PROMPT_CUT, place, words)
    report = TruncationReport(len(prompts), changed.result(), dropped.result(), lossy)
    _say(report, what, strict=strict)
    return token_ids, report


def tokenized_hash(table: pa.Table) -> str:
    """16 hexadecimal digits of SHA-256 over the token ids of every pair, in order.

    Two runs with equal hashes saw the same prompts and completions, whatever the template and tokenizer were
    called.
    """
    digest = hashlib.sha256()
    for first in range(0, len(table), _BATCH):
        for name in ID_COLUMNS:
            column = table.column(name).slice(first, _BATCH).combine_chunks()
            digest.update(column.value_lengths().to_numpy(zero_copy_only=False).astype("<i8").tobytes())
            digest.update(column.flatten().to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _words(prompt: Messages) -> str:
    """Quote a row by its prompt: its number is one of a part of the split data, and leads to no line of a file."""
    return one_line(prompt[-1]["content"])


def _count_lost(changed: RowTally, place: str, lost: Sequence[tuple[str, LostText]]) -> int:
    """Count a row's lost text, each kind once. Returns 1 for a row that has some, else 0."""
    firsts: dict[str, str] = {}
    for part, text in lost:
        what = f"{text.role} turns of prompts" if part == "prompt" else f"{part} completions"
        if text.part != TURN:
            what = f"{text.part} of {'prompts' if part == 'prompt' else what}"
        firsts.setdefault(f"{what} {LOST}", text.text)
    for reason, beginning in firsts.items():
        changed.add(reason, place, beginning)
    return int(bool(firsts))


def _fit(
    pair: RenderedPair, max_tokens: int, max_prompt_tokens: int | None, row_tokens: int | None
) -> RenderedPair | Refusal:
    """The pair within its limits, or the reason to drop it."""
    prompt = _end_of(pair.prompt_ids, max_prompt_tokens)
    room = max_tokens - len(prompt)
    if room < 1:
        return Refusal(NO_ROOM)
    if row_tokens is not None:
        room = min(room, _room_in_row(pair, len(prompt), row_tokens))
    chosen, rejected = pair.chosen_ids[:room], pair.rejected_ids[:room]
    if chosen == rejected:
        return Refusal(SAME_TOKENS if pair.chosen_ids == pair.rejected_ids else SAME_ONCE_CUT)
    return RenderedPair(prompt, chosen, rejected, pair.lost)


def _room_in_row(pair: RenderedPair, prompt: int, row_tokens: int) -> int:
    """Return the most tokens that each completion may keep for the pair to fit into a row."""
    room = row_tokens - prompt
    if room < 2:
        raise InputError(
            f"data.row_tokens is {row_tokens}, but a prompt has {prompt} tokens, which leaves no room for two "
            "completions. Raise data.row_tokens, or lower data.max_prompt_tokens."
        )
    shorter = min(len(pair.chosen_ids), len(pair.rejected_ids))
    return room - shorter if 2 * shorter <= room else room // 2


def _end_of(ids: list[int], limit: int | None) -> list[int]:
    return ids if limit is None or len(ids) <= limit else ids[len(ids) - limit :]


def _say(report: TruncationReport, what: str, *, strict: bool) -> None:
    """Warn in one line about everything that is not as it was given, or refuse."""
    lost = [*report.dropped, *(group for group in report.changed if group.reason != SPECIAL_TEXT)]
    summary = "; ".join(map(str, lost))
    ways = _ways_out({group.reason for group in lost})
    if report.rows_read and report.rows_dropped == report.rows_read:
        raise InputError(f"None of the {report.rows_read} {what} is left: {summary}. {ways}.")
    if lost and strict:
        raise InputError(
            f"Of {report.rows_read} {what} some do not fit or are changed: {summary}. {ways}, or set data.strict to "
            "false."
        )
    if report.dropped or report.changed:
        dropped, changed = ("; ".join(map(str, groups)) or "none" for groups in (report.dropped, report.changed))
        logger.warning("Of %d %s, dropped: %s. Changed: %s.", report.rows_read, what, dropped, changed)


def _ways_out(reasons: set[str]) -> str:
    """What can be done about rows that are cut, changed or dropped."""
    lengths = {*CUTS, NO_ROOM, SAME_ONCE_CUT}
    ways = ["raise data.max_tokens or data.max_prompt_tokens"] if reasons & lengths else []
    if reasons - lengths - {SAME_TOKENS, SEVERAL_MESSAGES, UNKNOWN}:
        ways.append("give a chat template that writes these rows as they are (model.chat_template)")
    text = ", ".join([*ways, "or change the rows" if ways else "change the rows"])
    return text[0].upper() + text[1:]
