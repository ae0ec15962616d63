"""What a trial or a shared stage computes, in amounts: updates, tokens, decoding steps, verdicts, and their FLOPs.

And what judging the answers takes: requests to language models, tokens, cost, and a budget that is too small.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

from slime_ray.config.judge import Llm
from slime_ray.config.model import Model
from slime_ray.config.settings import Schedule, Settings
from slime_ray.model.flops import Layout, Lengths, Sizes, forward_flops, step_flops
from slime_ray.model.footprint import Footprint
from slime_ray.planning.material import DataPart, Material, PromptCounts
from slime_ray.planning.plan import Judging
from slime_ray.planning.rates import ZERO, Range, Work
from slime_ray.runs.results import RETENTION

CURVE_PAIRS = 128
"""Held-out pairs of a measurement during training, as `training.sentinel` has it."""
CHARACTERS = 4.0
"""Of a token of a judge's template, about."""
SHOWN = Range(0.7, 1.0, 1.5)
"""What a judge may read, next to what the data's own tokenizer counts."""


def joined(works: Iterable[Work]) -> Work:
    """Add up works."""
    total: dict[str, float | Range] = {}
    for work in works:
        for unit, amount in work.items():
            total[unit] = total.get(unit, 0.0) + amount
    return total


@dataclass(frozen=True)
class TrainingWork:
    """Updates of one optimisation run. tokens: as the column of that name counts them. exact: whether to the token."""

    updates: int
    tokens: float
    flops: float
    exact: bool


@dataclass(frozen=True)
class TrialWork:
    """A trial's work: during training, which early stopping may cut, and what only trials do that are not stopped.

    requests: that a language model is asked, in these two parts.
    """

    training: TrainingWork
    course: Work
    end: Work
    requests: tuple[float, float]


class Amounts:
    """Makes the work of trials and stages, for one configuration of model and data on so many workers."""

    def __init__(self, settings: Settings, material: Material, model: Footprint, *, workers: int, gpu: bool = False):
        self.settings, self.material, self.model, self.workers = settings, material, model, workers
        self.batch = settings.evaluation.decoding.batch_on(gpu=gpu)

    @property
    def watched(self) -> int:
        """Selection prompts that the sentinel has answered at every evaluation."""
        sentinel = self.settings.sentinel
        return 0 if sentinel.action == "none" else min(sentinel.prompts, self.material.prompts["selection"].count)

    def trial(self, prompts: Literal["selection", "report"], *, seed: int) -> TrialWork:
        """Return the work of a trial: training to its end, answers to a prompt set, verdicts."""
        settings, material = self.settings, self.material
        schedule, evaluation = settings.training, settings.evaluation
        training = self._training(material.train, schedule, schedule.pairs_per_update, seed, settings.model)
        marks = {round(training.updates * (k + 1) / schedule.evaluations) for k in range(schedule.evaluations)} - {0}
        judged = len(marks) * self.watched if settings.judged_on_the_way else 0
        prompt_set, watched = material.prompts[prompts], self.watched
        evaluation_work = joined(
            [
                self.reading(material.held_out, min(CURVE_PAIRS, material.held_out.count)),
                self.decoding(watched, material.prompts["selection"].tokens),
            ]
        )
        updates = {"update": training.updates, "token": training.tokens, "flop": training.flops}
        course = joined([updates, *[evaluation_work] * len(marks), self._verdicts(judged)])
        last = joined(
            [
                self.reading(material.held_out, material.held_out.count),
                self._divergence(prompt_set, min(evaluation.kl_prompts, prompt_set.turns)),
                self.answering(prompt_set),
                *(self.answering(material.prompts[name]) for name in (RETENTION,) if name in material.prompts),
                self._verdicts(prompt_set.turns),
                # The divergence of a model without adapters is from a second one.
                {"load": 1 if settings.model.lora else 2, "save": 1, "saved_byte": self.model.saved},
            ]
        )
        requests_per_answer = requests_an_answer(settings)
        return TrialWork(training, course, last, (judged * requests_per_answer, prompt_set.turns * requests_per_answer))

    def _verdicts(self, answers: int) -> Work:
        """Return the work of verdicts in both orders, by a language model or here."""
        judge = self.settings.evaluation.judge
        scored = len(judge.members) - len(judge.endpoints) - (judge.name == "none")
        requests = {"request": answers * requests_an_answer(self.settings)} if judge.endpoints else {}
        return requests | ({"verdict": 2 * answers * scored} if scored else {})

    def _training(self, part: DataPart, schedule: Schedule, per_update: int, seed: int, model: Model) -> TrainingWork:
        """Return the updates of one run over a part of the data, token for token where all lengths are known."""
        from slime_ray.data.order import examples_by_update, updates_of

        updates = updates_of(schedule, part.count, per_update)
        if part.counted:
            order = examples_by_update(part.count, per_update, seed=seed, updates=updates)
            counts = Counter(member for members in order for member in members)
            examples = counts.total()
            tokens = float(sum(times * self._row(part.lengths[index]) for index, times in counts.items()))
        else:
            # The last update of an epoch holds what is left.
            epochs, rest = divmod(updates, max(1, -(-part.count // per_update)))
            examples = epochs * part.count + rest * per_update
            tokens = examples * self._mean_row(part)
        head_trained = model.lora is None or model.lora.train_head
        flops_per_example = _step_flops(self.model.sizes, part.lengths, head_trained) if examples else 0.0
        return TrainingWork(
            updates, tokens, examples * part.scale * flops_per_example, exact=part.counted or not updates
        )

    def reading(self, part: DataPart, count: int) -> Work:
        """Return the work of a forward pass over the first `count` examples."""
        flops = count * part.scale * _forward_flops(self.model.sizes, part.lengths) if count else 0.0
        return {"read_token": count * self._mean_row(part), "flop": flops}

    def answering(self, prompts: PromptCounts) -> Work:
        """Return the work of answering prompts, turn after turn."""
        later = self.decoding(prompts.turns - prompts.count, 2 * prompts.tokens + self.material.answer)
        return joined([self.decoding(prompts.count, prompts.tokens), later])

    def decoding(self, answers: int, prompt_tokens: float) -> Work:
        """Return the work of drawing answers in batches: whole ones, and a last smaller one."""
        size = self.batch
        whole, rest = divmod(answers, size)
        parts: list[Work] = []
        for batches, batch in ((whole, size), (1, rest)):
            if batches and batch:
                # Of several workers each draws its share of the batches; the slowest one is waited for.
                rounds = -(-batches // self.workers)
                steps, prompts = rounds * self._steps(batch), rounds * batch * prompt_tokens
                # One worker alone reads a batch's prompts.
                flops = prompts * 2 * self.model.sizes.linear * self.workers
                parts.append({"decode_step": steps, "decode_row": steps * batch, "read_token": prompts, "flop": flops})
        return joined(parts)

    def _steps(self, batch: int) -> Range:
        """Return the steps of a batch: about its longest answer, which is as long as the data's completions."""
        limit = self.settings.evaluation.decoding.max_new_tokens
        longest = min(limit, self.material.longest(batch) + 1)
        return Range(0.8 * longest, longest, limit)

    def _divergence(self, prompts: PromptCounts, count: int) -> Work:
        tokens = count * (prompts.tokens + self.material.answer)
        layout = Layout.of_packed([Lengths(round(prompts.tokens), round(self.material.answer), 0)])
        return {"compare_token": tokens, "flop": count * 2 * forward_flops(self.model.sizes, layout)}

    def _row(self, lengths: Lengths) -> int:
        return sum(lengths) + (0 if self.model.packed or not lengths.rejected else lengths.prompt)

    def _mean_row(self, part: DataPart) -> float:
        paired = any(each.rejected for each in part.lengths)
        return part.tokens + (part.prompt if paired and not self.model.packed else 0.0)

    def stages(self) -> dict[str, Work]:
        """Return the work of the shared stages but the first, in the order of their run."""
        held_out = self.material.held_out
        answers = joined(self.answering(prompts) for prompts in self.material.prompts.values())
        sft: dict[str, float] = {"load": 1, "save": 1, "saved_byte": self.model.merged}
        if training := self.demonstrations:
            sft |= {"sft_update": training.updates, "sft_token": training.tokens, "flop": training.flops}
        return {
            "sft": sft,
            "step0": joined([{"load": 1}, self.reading(held_out, held_out.count)]),
            "baseline": joined([{"load": 1}, answers]),
        }

    @cached_property
    def demonstrations(self) -> TrainingWork | None:
        """The SFT stage's updates."""
        sft = self.settings.sft
        if not sft:
            return None
        return self._training(self.material.sft, sft, sft.examples_per_update, sft.seed, self.settings.sft_model)

    def reference(self) -> Work:
        """Return the work of the training pairs' log-probabilities, for objectives with a reference."""
        train = self.material.train
        return joined([{"load": 1}, self.reading(train, train.count)])


@lru_cache(maxsize=64)
def _step_flops(sizes: Sizes, lengths: tuple[Lengths, ...], head_trained: bool) -> float:
    """Return the FLOPs of a training step, for each example on average."""
    return step_flops(sizes, Layout.of_packed(lengths), head_trained=head_trained) / len(lengths)


@lru_cache(maxsize=64)
def _forward_flops(sizes: Sizes, lengths: tuple[Lengths, ...]) -> float:
    """Return the FLOPs of a forward pass, for each example on average."""
    return forward_flops(sizes, Layout.of_packed(lengths)) / len(lengths)


def requests_an_answer(settings: Settings, *, pairwise: bool | None = None) -> float:
    """Return the requests for each of a trial's answers: both orders of a comparison, or one rating.

    pairwise: of those judges alone that compare, or that rate. Of a judge with repeats it is the mean over prompts.
    """
    endpoints = settings.evaluation.judge.endpoints
    return sum(judge.requests_an_answer for judge in endpoints if pairwise in (None, judge.template.pairwise))


def plan_judging(settings: Settings, requests: Range, material: Material) -> Judging:
    """Plan the cost of so many requests, in tokens of the data's tokenizer."""
    endpoints = settings.evaluation.judge.endpoints
    parts = [
        _judging_of(judge, requests * (judge.requests_an_answer / requests_an_answer(settings)), material)
        for judge in endpoints
    ]
    if not parts:
        return Judging(settings.judge_identity)
    costs = [part.cost for part in parts if part.cost]
    return Judging(
        settings.judge_identity,
        requests,
        sum((part.input_tokens for part in parts), ZERO),
        sum((part.output_tokens for part in parts), ZERO),
        sum(costs, ZERO) if len(costs) == len(parts) else None,
        next((part.budget for part in parts if part.budget), None),
    )


def _judging_of(judge: Llm, requests: Range, material: Material) -> Judging:
    """Return the cost of so many requests to one judge."""
    prompt_tokens = (len(judge.template.system) + len(judge.template.user)) / CHARACTERS
    prompt_tokens += material.prompts["report"].tokens + material.answer * (2 if judge.template.pairwise else 1)
    most = float(judge.max_tokens)
    answer = Range(min(100.0, most), min(400.0, most), most)
    read, written, prices = requests * prompt_tokens * SHOWN, requests * answer, judge.prices
    cost = (read * prices.input + written * prices.output) * 1e-6 if prices else None
    limits = (
        ("requests", judge.budget.requests, requests.expected),
        ("tokens", judge.budget.tokens, read.expected + written.expected),
        ("cost", judge.budget.cost, cost.expected if cost else 0.0),
    )
    short = [(limit / needed, name, limit) for name, limit, needed in limits if limit is not None and needed > limit]
    budget = None
    if short:
        share, name, limit = min(short)
        then = "trials stop with a checkpoint" if judge.on_failure == "stop" else "trials go on without verdicts"
        budget = (
            f"evaluation.judge.budget.{name} {limit:g} is spent after about {share:.0%} of the verdicts; then {then}. "
            "Raise it, or lower evaluation.prompts, evaluation.selection_prompts or evaluation.judge_first."
        )
    return Judging(judge.identity, requests, read, written, cost, budget)
