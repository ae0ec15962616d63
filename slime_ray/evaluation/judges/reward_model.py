"""A reward model as judge: a sequence classifier of one label scores every answer, on a GPU if there is one."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from slime_ray.config.judge import RewardModel
from slime_ray.data.chat_template import ChatRenderer, Refusal
from slime_ray.data.messages import shown_text
from slime_ray.errors import InputError, RunError
from slime_ray.evaluation.judges.base import Messages, Progress, Prompted, ScoringJudge, Summary
from slime_ray.evaluation.verdict_cache import Verdicts
from slime_ray.evaluation.verdicts import read_score
from slime_ray.model.files import check_texts
from slime_ray.model.merging import CLASSIFIER, load_parts
from slime_ray.model.parts import check_model, parts_of
from slime_ray.model.pretrained import errors_as_input_error, log_note, read_tokenizer


class RewardModelJudge(ScoringJudge):
    """Scores conversations as the reward model's own chat template renders them. Scores are kept.

    The model is loaded for as long as a call lasts, and only where a score is not known yet. offline: never.
    """

    def __init__(
        self,
        settings: RewardModel,
        *,
        verdicts: Verdicts,
        offline: bool = False,
        progress: Progress = lambda done, of: None,
    ):
        """Raises InputError for what is no reward model, before its weights are read."""
        self.settings, self.verdicts, self.offline, self.progress = settings, verdicts, offline, progress
        self.name, self.tie_band = settings.identity, settings.tie_band
        with errors_as_input_error(self._not_loaded):
            check_model(Path(settings.model))
            self.parts = parts_of(settings.model, settings.revision)
        self.config = self._load(AutoConfig.from_pretrained, self.parts.source, self.parts.revision)
        if self.parts.adapter_modules:
            # The head is the adapter's, and its base may be no classifier at all.
            self.config.num_labels = 1
        if self.config.num_labels != 1:
            raise self._unusable(f"it has {self.config.num_labels} labels, and a reward model has one")
        self.key = f"{settings.scoring} {self._weights()}"

    def score_each(self, answers: Sequence[Prompted]) -> list[float | None]:
        """Score each answer. Raises InputError for a model that cannot be used."""
        keys = [self._key(prompt, answer) for prompt, answer in answers]
        cached = self.verdicts.find(sorted(set(keys)))
        uncached = [place for place, key in enumerate(keys) if key not in cached]
        if uncached and self.offline:
            raise RunError(
                f"{len(uncached)} of {len(keys)} scores of {self.name} are not in {self.verdicts.folder}, and offline "
                "the model is not asked. Judge online first."
            )
        missing: Counter[str] = Counter()
        new, shortened = 0, 0
        if uncached:
            tokenizer = self._load(read_tokenizer, *self.parts.tokenizer)
            conversations, shortened = self._encode(tokenizer, [answers[place] for place in uncached])
            rendered = [index for index, ids in enumerate(conversations) if ids]
            scores = self._score(tokenizer, [conversations[index] for index in rendered])
            new_scores = {
                keys[uncached[index]]: repr(score)
                for index, score in zip(rendered, scores, strict=True)
                if not math.isnan(score)
            }
            if scores and not new_scores and not cached:
                raise self._unusable(f"in {self.settings.dtype} all its scores are NaN")
            self.verdicts.keep(self.name, new_scores)
            cached |= new_scores
            new = len(new_scores)
            missing["the reward model's chat template refuses the conversation"] = len(uncached) - len(rendered)
            missing[f"in {self.settings.dtype} the reward model gave an answer NaN"] = len(scores) - new
        self.summary = Summary(
            new=new, cached=len(keys) - len(uncached), missing=dict(+missing), shortened=shortened, unit="scores"
        )
        return [self._read(cached[key]) if key in cached else None for key in keys]

    def _read(self, value: str) -> float | None:
        try:
            return read_score(float(value))
        except ValueError:
            raise self.verdicts.unreadable(value) from None

    def _encode(self, tokenizer: Any, answers: Sequence[Prompted]) -> tuple[list[list[int]], int]:
        """Token ids of each conversation, none where the template refuses it, and how many lost their start."""
        if tokenizer.chat_template is None:
            raise self._unusable("its tokenizer has no chat template")
        renderer = ChatRenderer(tokenizer)
        texts = renderer.conversation_texts(
            [[*prompt, {"role": "assistant", "content": answer}] for prompt, answer in answers]
        )
        sound = [index for index, text in enumerate(texts) if not isinstance(text, Refusal)]
        ids: list[list[int]] = [[] for _ in texts]
        for index, encoded in zip(sound, renderer.encode([str(texts[index]) for index in sound]), strict=True):
            ids[index] = encoded
        limits = (self.settings.max_tokens, getattr(self.config, "max_position_embeddings", None))
        limit = min((limit for limit in limits if limit), default=None)
        if limit is None:
            return ids, 0
        return [some[-limit:] for some in ids], sum(len(some) > limit for some in ids)

    def _score(self, tokenizer: Any, conversations: Sequence[list[int]]) -> list[float]:
        if not conversations:
            return []
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = self._model().to(device).eval()
        padding = _padding(model.config, tokenizer, conversations)
        order = sorted(range(len(conversations)), key=lambda index: len(conversations[index]))
        scores = [0.0] * len(conversations)
        batches = [order[start : start + self.settings.batch] for start in range(0, len(order), self.settings.batch)]
        for done, members in enumerate(batches, 1):
            width = len(conversations[members[-1]])
            ids = torch.full((len(members), width), padding, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(members):
                ids[row, : len(conversations[index])] = torch.tensor(conversations[index])
                mask[row, : len(conversations[index])] = 1
            with torch.inference_mode():
                logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            for index, score in zip(members, logits[:, 0].double().tolist(), strict=True):
                scores[index] = score
            self.progress(done, len(batches))
        return scores

    def _model(self) -> Any:
        settings = self.settings
        with errors_as_input_error(self._not_loaded):
            return load_parts(
                AutoModelForSequenceClassification,
                self.parts,
                task=CLASSIFIER,
                note=log_note,
                config=self.config,
                dtype=getattr(torch, settings.dtype),
                trust_remote_code=settings.trust_remote_code,
            )

    def _load(self, read: Callable[..., Any], source: str, revision: str | None) -> Any:
        with errors_as_input_error(self._not_loaded):
            if Path(source).is_dir():
                check_texts(Path(source))
            return read(source, revision=revision, trust_remote_code=self.settings.trust_remote_code)

    def _unusable(self, reason: str) -> InputError:
        return self._not_loaded(
            f"{reason}. Give a folder or hub id of a sequence classifier of one label, with safetensors and a chat "
            "template."
        )

    def _not_loaded(self, reason: str) -> InputError:
        return InputError(f"evaluation.judge.model {self.settings.model} cannot be used as a reward model: {reason}")

    def _weights(self) -> str:
        """Changes with the weights: the hub's commit, and sizes and times of the files of local folders."""
        commit: str | None = getattr(self.config, "_commit_hash", None)
        folders = [folder for folder in (self.parts.adapter, None if commit else Path(self.parts.source)) if folder]
        files = [file for folder in folders for file in sorted(folder.glob("*")) if file.is_file()]
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        local = hashlib.sha256(repr(stats).encode()).hexdigest()[:16] if folders else ""
        return f"{commit or ''}{local}"

    def _key(self, prompt: Messages, answer: str) -> str:
        turns = [[turn["role"], shown_text(turn)] for turn in prompt]
        return hashlib.sha256(json.dumps([self.key, turns, answer]).encode()).hexdigest()


def _padding(config: Any, tokenizer: Any, conversations: Sequence[list[int]]) -> int:
    """The token to pad with. Classifiers read the score at the last token that is not the configuration's own."""
    text = config.get_text_config()
    if text.pad_token_id is None:
        # The model was made for single rows, scored at their very last token.
        last = {ids[-1] for ids in conversations}
        text.pad_token_id = next(token for token in range(len(tokenizer)) if token not in last)
    return int(text.pad_token_id)
