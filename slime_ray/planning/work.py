"""What a trial or a shared stage computes, in amounts: updates, tokens, decoding steps, verdicts, and their FLOPs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from slime_ray.config.judge import Llm, NoJudge
from slime_ray.config.settings import Schedule, Settings
from slime_ray.planning.flops import Layout, Lengths, Sizes, forward_flops, step_flops
from slime_ray.planning.material import DataPart, Material, PromptCounts
from slime_ray.planning.ranges import Range
from slime_ray.planning.shapes import ModelShape

CURVE_PAIRS = 128
"""Held-out pairs of a measurement during training, as `training.course` has it."""
PACKED = frozenset({"gemma3_text", "llama", "mistral", "qwen2", "qwen3"})
"""Model types whose pairs surely share rows and prompts, as `model.logprobs` has it."""


@dataclass(frozen=True)
class TrainingWork:
    """Updates of one optimisation run. tokens: as the column of that name counts them. exact: whether to the token."""

    kind: Literal["sft", "preference"]
    updates: int
    tokens: float
    flops: float
    exact: bool = False


@dataclass(frozen=True)
class ReadingWork:
    """Tokens that go through the model without gradients. twice: under the reference as well, with whole vocabularies
    compared."""

    tokens: float
    flops: float
    twice: bool = False


@dataclass(frozen=True)
class DecodingWork:
    """Batches of answers drawn one after another, by each of the workers. steps: tokens of a batch's longest answer."""

    batches: float
    batch: int
    steps: Range
    prompt_tokens: float


@dataclass(frozen=True)
class Work:
    """Everything a trial or a stage computes.

    loads: times that the model is read. saved: bytes that are written at the end. verdicts: answers that are scored
    here. requests: that a language model is asked, one for each verdict.
    """

    training: TrainingWork | None = None
    readings: tuple[ReadingWork, ...] = ()
    decodings: tuple[DecodingWork, ...] = ()
    loads: int = 0
    saved: float = 0.0
    verdicts: int = 0
    requests: int = 0


@dataclass(frozen=True)
class TrialWork:
    """A trial's: during training, which early stopping may cut, and what only those do that are trained to the end."""

    course: Work
    end: Work

    @property
    def training(self) -> TrainingWork:
        """Its updates."""
        assert self.course.training is not None
        return self.course.training


class Amounts:
    """Makes the work of trials and stages, for one configuration of model and data on so many workers."""

    def __init__(self, settings: Settings, material: Material, shape: ModelShape, *, workers: int):
        self.settings, self.material, self.shape, self.workers = settings, material, shape, workers
        self.lora = settings.model.lora
        self.packed = shape.model_type in PACKED
        self.itemsize = 2 if settings.model.dtype == "bfloat16" else 4

    @property
    def sizes(self) -> Sizes:
        """Of the policy, adapters included."""
        return self.shape.sizes(self.lora)

    @property
    def saved_bytes(self) -> float:
        """Of a trained model as it is kept: adapters in float32 with the trained head, or all weights."""
        if self.lora is None:
            return self.shape.weights * self.itemsize
        head = self.shape.embeddings * self.itemsize if self.lora.train_head else 0
        return self.shape.adapters(self.lora) * 4 + head

    @property
    def checkpoint_bytes(self) -> float:
        """Of a whole model as the SFT stage saves it; a head that was trained is no longer that of the embeddings."""
        lora = self.settings.sft_model.lora
        untied = self.shape.tied and lora is not None and lora.train_head
        return (self.shape.weights + (self.shape.embeddings if untied else 0)) * self.itemsize

    @property
    def watched(self) -> int:
        """Selection prompts that the sentinel has answered at every evaluation."""
        sentinel = self.settings.sentinel
        return 0 if sentinel.action == "none" else min(sentinel.prompts, self.material.prompts["selection"].count)

    def trial(self, prompts: Literal["selection", "report"], *, seed: int) -> TrialWork:
        """A trial that is trained to its end, answers the prompts of a set and is judged on them."""
        settings, material = self.settings, self.material
        schedule, evaluation = settings.training, settings.evaluation
        training = self.training("preference", material.train, schedule, schedule.pairs_per_update, seed)
        updates = training.updates
        marks = {round(updates * (k + 1) / schedule.evaluations) for k in range(schedule.evaluations)} - {0}
        some = min(CURVE_PAIRS, material.held_out.count)
        judge, watched = evaluation.judge, self.watched
        judged = len(marks) * watched if settings.judged_on_the_way else 0
        course = Work(
            training=training,
            readings=tuple(self.reading(material.held_out, some) for _ in marks),
            decodings=self.decoding(watched, material.prompts["selection"].tokens) * len(marks),
            verdicts=0 if isinstance(judge, (NoJudge, Llm)) else 2 * judged,
            requests=judged * requests_an_answer(settings),
        )
        asked = material.prompts[prompts]
        end = Work(
            readings=(
                self.reading(material.held_out, material.held_out.count),
                self._divergence(asked, min(evaluation.kl_prompts, asked.turns)),
            ),
            decodings=self.answering(asked),
            # The divergence of a model without adapters is from a second one.
            loads=1 if self.lora else 2,
            saved=self.saved_bytes,
            verdicts=0 if isinstance(judge, (NoJudge, Llm)) else 2 * asked.turns,
            requests=asked.turns * requests_an_answer(settings),
        )
        return TrialWork(course, end)

    def training(
        self, kind: Literal["sft", "preference"], part: DataPart, schedule: Schedule, per_update: int, seed: int
    ) -> TrainingWork:
        """The updates of one run over a part of the data; token for token where all lengths are known."""
        from slime_ray.data.order import examples_by_update, updates_of

        updates = updates_of(schedule, part.count, per_update)
        seen = 0
        tokens = flops = 0.0
        counts = [0] * part.count if part.counted else []
        for members in examples_by_update(part.count, per_update, seed=seed, updates=updates) if counts else ():
            for member in members:
                counts[member] += 1
        if counts:
            tokens = float(sum(n * self._row(part.lengths[index]) for index, n in enumerate(counts) if n))
            seen = sum(counts)
        elif updates:
            # The last update of an epoch holds what is left.
            epochs, rest = divmod(updates, -(-part.count // per_update))
            seen = epochs * part.count + rest * per_update
            tokens = seen * self._row_mean(part)
        if seen:
            lora = self.lora if kind == "preference" else self.settings.sft_model.lora
            each = _step_flops(self.shape.sizes(lora), part.lengths, lora is None or lora.train_head)
            flops = seen * part.scale * each
        return TrainingWork(kind, updates, tokens, flops, exact=bool(counts) or not updates)

    def reading(self, part: DataPart, count: int) -> ReadingWork:
        """A forward pass over the first `count` examples."""
        flops = count * part.scale * _forward_flops(self.sizes, part.lengths) if count else 0.0
        return ReadingWork(count * self._row_mean(part), flops)

    def answering(self, asked: PromptCounts) -> tuple[DecodingWork, ...]:
        """Answers to a set of prompts; later turns come after the answers to the earlier ones."""
        first = self.decoding(asked.count, asked.tokens)
        later = asked.turns - asked.count
        return first + (self.decoding(later, 2 * asked.tokens + self.material.answer) if later else ())

    def decoding(self, answers: int, prompt_tokens: float) -> tuple[DecodingWork, ...]:
        """Batches of answers: whole ones, and what is left."""
        decoding = self.settings.evaluation.decoding
        whole, rest = divmod(answers, decoding.batch)
        parts = []
        for batches, batch in ((whole, decoding.batch), (1 if rest else 0, rest)):
            if batches:
                # Of several workers each draws its share of the batches; the slowest one is waited for.
                own = -(-batches // self.workers)
                parts.append(DecodingWork(own, batch, self._steps(batch), batch * prompt_tokens))
        return tuple(parts)

    def _steps(self, batch: int) -> Range:
        """From the longest of the data's completions of so many, up to the limit, which one answer may always reach."""
        limit = self.settings.evaluation.decoding.max_new_tokens
        longest = min(limit, self.material.longest(batch) + 1)
        return Range(0.8 * longest, longest, limit)

    def _divergence(self, asked: PromptCounts, count: int) -> ReadingWork:
        length = Lengths(round(asked.tokens), round(self.material.answer), 0)
        flops = 2 * forward_flops(self.sizes, Layout.of_packed([length])) if count else 0.0
        return ReadingWork(count * (asked.tokens + self.material.answer), count * flops, twice=True)

    def _row(self, lengths: Lengths) -> int:
        again = 0 if self.packed or not lengths.rejected else lengths.prompt
        return sum(lengths) + again

    def _row_mean(self, part: DataPart) -> float:
        return part.tokens + (0.0 if self.packed or not _paired(part.lengths) else part.prompt)


@lru_cache(maxsize=64)
def _step_flops(sizes: Sizes, lengths: tuple[Lengths, ...], head_trained: bool) -> float:
    """Of a training step, for each example on average."""
    return step_flops(sizes, Layout.of_packed(lengths), head_trained=head_trained) / len(lengths)


@lru_cache(maxsize=64)
def _forward_flops(sizes: Sizes, lengths: tuple[Lengths, ...]) -> float:
    """Of a forward pass, for each example on average."""
    return forward_flops(sizes, Layout.of_packed(lengths)) / len(lengths)


def requests_an_answer(settings: Settings) -> int:
    """What a language model is asked of each of a trial's answers: both orders of a comparison, or one rating."""
    judge = settings.evaluation.judge
    return (2 if judge.template.pairwise else 1) if isinstance(judge, Llm) else 0


def _paired(lengths: Sequence[Lengths]) -> bool:
    return any(each.rejected for each in lengths)


def stages(amounts: Amounts) -> dict[str, Work]:
    """The work of the shared stages but the first, in the order in which they are made."""
    settings, material = amounts.settings, amounts.material
    sft = settings.sft
    demonstrations = amounts.training("sft", material.sft, sft, sft.examples_per_update, sft.seed) if sft else None
    answers = [part for asked in material.prompts.values() for part in amounts.answering(asked)]
    return {
        "sft": Work(training=demonstrations, loads=1, saved=amounts.checkpoint_bytes),
        "step0": Work(readings=(amounts.reading(material.held_out, material.held_out.count),), loads=1),
        "baseline": Work(decodings=tuple(answers), loads=1),
    }


def reference(amounts: Amounts) -> Work:
    """The log-probabilities of the training pairs under the SFT checkpoint, for objectives that need them."""
    train = amounts.material.train
    return Work(readings=(amounts.reading(train, train.count),), loads=1)
