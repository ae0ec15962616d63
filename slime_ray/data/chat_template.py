"""Chat templates: what one renders, and which tokens end an answer.

Everything here is found by rendering, never by searching a text for something that looks like a turn's end.
"""

import functools
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jinja2

from slime_ray.data.forms import TOOLS, Message, Messages
from slime_ray.data.lost_text import LostText, lost_texts
from slime_ray.data.messages import TOOL_FIELDS, tool_fields
from slime_ray.data.template_text import resolve_chat_template, shipped_templates, tokenizer_name
from slime_ray.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PROMPT_REWRITTEN = "prompts that the chat template writes otherwise once an answer follows"
END_REWRITTEN = "answers that the chat template ends otherwise than others"


def stop_token_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's, and the one that closes a template's turn.

    The last one matters for a pretrained model under the template of its instruction-tuned version, whose own
    end-of-sequence token that template never writes. In ascending order.
    """
    stops: set[int] = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    if tokenizer.chat_template is not None:
        stops.add(ChatRenderer(tokenizer).end_of_turn_id)
    if not stops:
        raise InputError(
            f"{tokenizer_name(tokenizer)}: the tokenizer has no end-of-sequence token, so no answer could ever end."
        )
    return tuple(sorted(stops))


@functools.cache
def _warn(sentence: str) -> None:
    """Log a warning once a process, however many tables and prompts are rendered."""
    logger.warning("%s", sentence)


@dataclass(frozen=True)
class Refusal:
    """Why a conversation could not be rendered."""

    reason: str


class ChatRenderer:
    """Renders prompts and completions with a tokenizer's chat template, and encodes them.

    How the template opens and closes the assistant's turn is learned once, by rendering two known answers.
    The same text always gives the same ids: nothing depends on what else is in the batch. A special token
    that is written out in a message's text is encoded as that text and never as the token.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Raises InputError where the template is missing, broken, or does not tell prompts from answers."""
        self.tokenizer = tokenizer
        self.template = resolve_chat_template(tokenizer, None)
        special = {str(token) for token in tokenizer.all_special_tokens}
        special |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        # Marks stand for special tokens in messages. A message may hold the mark itself: that has one too.
        self._literals = [*sorted((text for text in special if text.strip()), key=len, reverse=True), _MARK]
        self._numbers = {text: number for number, text in enumerate(self._literals)}
        self._literal = re.compile("|".join(map(re.escape, self._literals)))
        self._header: str | None = None
        self._learn_turn(special)
        self._newline: list[int] | None = None
        self._learn_joint()

    # What the template does

    def _learn_turn(self, special: set[str]) -> None:
        """Finds the text between a prompt and its answer, and the text after an answer."""
        prompt: Messages = [{"role": "user", "content": "Qq?"}]
        answers = [[{"role": "assistant", "content": text}] for text in ("Aa1.x", "Bb2.y")]
        try:
            bare, opened = self._render([prompt], False)[0], self._render([prompt], True)[0]
            first, second = self._render([prompt + answer for answer in answers], False)
        except jinja2.TemplateSyntaxError as error:
            raise self._broken(f"line {error.lineno}: {error.message}") from None
        except Exception as error:  # a template is somebody's code and may fail in any way
            raise self._broken(f"it does not render a question and an answer: {error}") from error
        if not ("Qq?" in first and "Aa1.x" in first and "Bb2.y" in second):
            raise self._broken("it leaves out what the user or the assistant says")
        if not first.startswith(opened) or (bare == opened and _common(first, second)[len(bare) :].strip()):
            self._header = self._learn_header(bare, opened, first, second)
        self._tail = _common(first[::-1], second[::-1])[::-1]
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        blank = {token for token in added if token.isspace()}  # Gemma's line breaks, for one
        end = _first_of(special, self._tail) or _first_of(added - blank, self._tail)
        if end is not None:
            self.end_of_turn = end
            self._closing = self._tail[: self._tail.index(end) + len(end)]
        elif self.tokenizer.eos_token is not None:
            self.end_of_turn = str(self.tokenizer.eos_token)
            self._closing = self._tail.rstrip() + self.end_of_turn
        else:
            raise self._broken(
                "it closes the assistant's turn with no special token, and the tokenizer has none for it"
            )

    def _learn_header(self, bare: str, opened: str, first: str, second: str) -> str:
        """What stands before an answer where the generation prompt is missing or says more than that."""
        header = _common(first, second)[len(bare) :]
        generation = opened[len(bare) :]
        continues = first.startswith(bare) and opened.startswith(bare)
        if not (continues and header and (not generation or generation.startswith(header))):
            raise self._broken(
                "a conversation with an answer does not begin with the same conversation's generation prompt, so "
                "prompts would differ between training and evaluation"
            )
        _warn(
            f"{tokenizer_name(self.tokenizer)}: the chat template's generation prompt is {generation!r}, but it writes "
            f"{header!r} before an answer. Prompts end with the latter, in training and in evaluation."
        )
        return header

    def _learn_joint(self) -> None:
        """Sees whether this tokenizer, asked to encode a completion by itself, puts a space in front of it.

        Tokenizers of the SentencePiece kind do, at the start of any text. Generation never sees that space.
        """
        prompt = self.prompt_texts([[{"role": "user", "content": "Qq?"}]])[0]
        assert isinstance(prompt, str)
        answer = "Aa1.x" + self._closing
        try:
            whole = self._decode(self.encode([prompt + answer])[0])
            start, newline = self.encode([prompt, "\n"])
        except Exception:  # a tokenizer that knows a few words only, and has no token for others
            return
        if self._decode(start + self.encode([answer])[0]) != whole:
            self._newline = newline
            if self._decode(start + self.encode([answer], inner=True)[0]) != whole:
                self._newline = None
                _warn(
                    f"{tokenizer_name(self.tokenizer)}: this tokenizer changes a completion that is encoded by itself, "
                    "so training sees other tokens at its start than generation writes."
                )

    @property
    def end_of_turn_id(self) -> int:
        """The token with which an assistant's turn ends."""
        token: Any = self.tokenizer.convert_tokens_to_ids(self.end_of_turn)
        return int(token)

    @functools.cached_property
    def unknown_id(self) -> int | None:
        """The token for text that the tokenizer has no other for; None where it also ends texts or begins them."""
        ends = (self.tokenizer.eos_token, self.tokenizer.bos_token, self.end_of_turn)
        number: Any = None if self.tokenizer.unk_token in ends else self.tokenizer.unk_token_id
        return None if number is None else int(number)

    # Texts

    def prompt_texts(self, prompts: Sequence[Messages]) -> list[str | Refusal]:
        """Each prompt up to where the assistant's answer begins, or why it cannot be rendered."""
        texts = self._rendered([self._marked(prompt) for prompt in prompts], self._header is None)
        return [text + (self._header or "") if isinstance(text, str) else text for text in texts]

    def completion_texts(
        self,
        prompts: Sequence[Messages],
        prompt_texts: Sequence[str | Refusal],
        completions: Sequence[Messages],
    ) -> list[str | Refusal]:
        """What the template writes after each prompt for its completion, end-of-turn token included.

        `prompt_texts` are those of `prompts`, as `prompt_texts` gave them. What the template writes after the
        end-of-turn token is left out, since generation stops there. Where the template writes a prompt otherwise when
        an answer follows, that is the reason: training and generation would see different prompts.
        """
        talks = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
        rendered = self._rendered([self._marked(talk) for talk in talks], False)
        texts: list[str | Refusal] = []
        for start, text in zip(prompt_texts, rendered, strict=True):
            if isinstance(start, Refusal) or isinstance(text, Refusal):
                texts.append(start if isinstance(start, Refusal) else text)
                continue
            if not text.startswith(start):
                texts.append(Refusal(PROMPT_REWRITTEN))
                continue
            if not text.endswith(self._tail):
                texts.append(Refusal(END_REWRITTEN))
                continue
            texts.append(text[len(start) : len(text) - len(self._tail)] + self._closing)
        return texts

    def conversation_texts(self, conversations: Sequence[Messages]) -> list[str | Refusal]:
        """Each whole conversation, with all that the template writes after its last turn."""
        return self._rendered([self._marked(conversation) for conversation in conversations], False)

    def lost_texts(self, messages: Messages, text: str) -> list[LostText]:
        """The messages whose text is not in what `prompt_texts` or `completion_texts` made of them."""
        lost = lost_texts(self._marked(messages), text)
        return [replace(each, text=_MARKED.sub(lambda mark: self._literals[int(mark[1])], each.text)) for each in lost]

    def has_special_text(self, messages: Messages) -> bool:
        """Whether a message spells out one of the tokenizer's special tokens."""
        return any(self._literal.search(text) for message in messages for text in message.values())

    def _marked(self, messages: Messages) -> Messages:
        """Puts marks in the place of special tokens that messages spell out, for `encode` to find."""
        if not self.has_special_text(messages):
            return messages

        def mark(hit: re.Match[str]) -> str:
            return f"{_MARK}{self._numbers[hit[0]]}{_MARK}"

        return [
            {name: text if name == "role" else self._literal.sub(mark, text) for name, text in message.items()}
            for message in messages
        ]

    def _rendered(self, conversations: list[Messages], generation: bool) -> list[str | Refusal]:
        try:
            return list(self._render(conversations, generation))
        except Exception:  # one bad conversation must not take the others with it: render one by one
            return [self._render_one(conversation, generation) for conversation in conversations]

    def _render_one(self, conversation: Messages, generation: bool) -> str | Refusal:
        try:
            return self._render([conversation], generation)[0]
        except Exception as error:  # a template is somebody's code and may fail in any way
            complaint = (str(error) or type(error).__name__).splitlines()[0]
            return Refusal(f"refused by the chat template: {complaint[:80]}")

    def _render(self, conversations: list[Messages], generation: bool) -> list[str]:
        # Tools are given for all conversations of a call.
        by_tools: dict[str, list[int]] = {}
        for index, conversation in enumerate(conversations):
            by_tools.setdefault(json.dumps(tool_fields(conversation[0]).get(TOOLS)), []).append(index)

        texts = [""] * len(conversations)
        for tools, members in by_tools.items():
            rendered: Any = self.tokenizer.apply_chat_template(
                [list(map(_template_message, conversations[index])) for index in members],
                tools=json.loads(tools),
                chat_template=self.template,
                add_generation_prompt=generation,
                tokenize=False,
            )
            for index, text in zip(members, rendered, strict=True):
                texts[index] = text
        if any(escaped in text for text in texts for escaped in _ESCAPED_MARKS):
            raise ValueError("it escapes letters of tool calls, among them a special token")
        return texts

    # Ids

    def encode(self, texts: Sequence[str], *, inner: bool = False) -> list[list[int]]:
        """Token ids of rendered texts. `inner`: each continues a text, as completions continue prompts."""
        plain = [text for text in texts if _MARK not in text]
        ids = iter(self._encode_inner(plain) if inner else self._encode(plain))
        return [self._encode_marked(text, inner) if _MARK in text else next(ids) for text in texts]

    def _encode_marked(self, text: str, inner: bool) -> list[int]:
        ids: list[int] = []
        for index, part in enumerate(_MARKED.split(text)):
            if index % 2:
                ids += self._encode_literal(self._literals[int(part)])
            elif part:
                ids += (self._encode_inner if inner or ids else self._encode)([part])[0]
        return ids

    def _encode_literal(self, text: str) -> list[int]:
        ids = self._encode_inner([text], split_special_tokens=True)[0]
        if self.tokenizer.convert_tokens_to_ids(text) in ids:
            # This tokenizer does not split special tokens. In two parts it is none.
            ids = [token for part in (text[:1], text[1:]) if part for token in self._encode_inner([part])[0]]
        return ids

    def _encode_inner(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        newline = self._newline
        if newline is None:
            return self._encode(texts, **options)
        # Behind a line break nothing is put in front of a text; the line break itself is cut off again.
        return [
            ids[len(newline) :] if ids[: len(newline)] == newline else self._encode([text], **options)[0]
            for text, ids in zip(texts, self._encode([f"\n{text}" for text in texts], **options), strict=True)
        ]

    def _encode(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **options,
        )
        ids: Any = encoded["input_ids"]
        return ids

    def _decode(self, ids: list[int]) -> str:
        text: Any = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _broken(self, problem: str) -> InputError:
        return InputError(
            f"{tokenizer_name(self.tokenizer)}: the chat template cannot be used: {problem}. Give another one as "
            f"model.chat_template: a .jinja file or one of {', '.join(shipped_templates())}."
        )


_MARK = "\U000f5a1e"  # a private-use character
_MARKED = re.compile(f"{_MARK}(\\d+){_MARK}")
_ESCAPED_MARKS = (json.dumps(_MARK)[1:-1], ascii(_MARK)[1:-1])


def _template_message(message: Message) -> dict[str, Any]:
    """Return a message as templates expect it."""
    if TOOL_FIELDS not in message:
        return dict(message)
    fields = {"role": message["role"], "content": message["content"], **tool_fields(message)}
    return {name: value for name, value in fields.items() if name != TOOLS and value is not None}


def _common(first: str, second: str) -> str:
    """Return the beginning that two texts share."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return first[:index]
    return min(first, second, key=len)


def _first_of(tokens: Iterable[str], text: str) -> str | None:
    """The token that stands first in the text, the longest if several begin there."""
    places = [(text.index(token), -len(token), token) for token in tokens if token in text]
    return min(places)[2] if places else None
