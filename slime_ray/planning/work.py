"""What a trial or a shared stage computes, in amounts: updates, tokens, decoding steps, verdicts, and their FLOPs."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from slime_ray.config.experiment import PromptSet
from slime_ray.config.model import Model
from slime_ray.config.settings import Schedule, Settings
from slime_ray.model.flops import Layout, forward_flops, step_flops
from slime_ray.model.footprint import footprint
from slime_ray.planning.material import DataPart, Material, PromptCounts
from slime_ray.planning.rates import Ends, Work
from slime_ray.runs.results import RETENTION

CURVE_PAIRS = 128
"""Held-out pairs of a measurement during training, as `training.sentinel` has it."""


def joined(works: Iterable[Work]) -> dict[str, float | Ends]:
    """Add up works."""
    total: dict[str, float | Ends] = {}
    for work in works:
        for unit, amount in work.items():
            total[unit] = total.get(unit, 0.0) + amount
    return total


@dataclass(frozen=True)
class TrialWork:
    """A trial's work: its updates, all of training, which early stopping may cut, and what follows it.

    judged: answers that judges see, in these two parts.
    """

    updates: Work
    course: Work
    end: Work
    judged: tuple[int, int]


class Amounts:
    """Makes the work of trials and stages, for one configuration of model and data on so many workers."""

    def __init__(self, settings: Settings, material: Material, *, workers: int, gpu: bool):
        self.settings, self.material, self.workers = settings, material, workers
        self.model = footprint(settings.model)
        self.batch = settings.evaluation.decoding.batch_on(gpu=gpu)
        sentinel, selection = settings.sentinel, material.prompts["selection"]
        # Selection prompts that the sentinel has answered at every evaluation.
        self.watched = 0 if sentinel.action == "none" else min(sentinel.prompts, selection.count)

    def trial(self, prompts: PromptSet) -> TrialWork:
        """Return the work of a trial: training to its end, answers to a prompt set, verdicts."""
        settings, material, watched = self.settings, self.material, self.watched
        schedule, held_out, prompt_set = settings.training, material.held_out, material.prompts[prompts]
        training = self._training(material.train, schedule, schedule.pairs_per_update, settings.model)
        updates, evaluations = training["update"], schedule.evaluations
        marks = {round(updates * (number + 1) / evaluations) for number in range(evaluations)} - {0}
        judged = len(marks) * watched if settings.judged_on_the_way else 0
        evaluation = [
            self.reading(held_out, min(CURVE_PAIRS, held_out.count)),
            self.decoding(watched, material.prompts["selection"].tokens),
        ]
        compared = min(settings.evaluation.kl_prompts, prompt_set.turns)
        answer = DataPart(compared, prompt_set.tokens, material.answer)
        end = [
            self.reading(held_out, held_out.count),
            # The model and its reference read answers, and their divergence is measured.
            *[self.reading(answer, compared)] * 2,
            self.answering(prompt_set),
            *(self.answering(material.prompts[name]) for name in (RETENTION,) if name in material.prompts),
            self._verdicts(prompt_set.turns),
            # The divergence of a model without adapters is from a second one.
            {"load": 1 if settings.model.lora else 2, "save": 1, "saved_byte": self.model.saved},
        ]
        course = joined([training, *evaluation * len(marks), self._verdicts(judged)])
        return TrialWork(training, course, joined(end), (judged, prompt_set.turns))

    def _verdicts(self, answers: int) -> Work:
        """Return the work of verdicts in both orders, by a language model or here."""
        judge = self.settings.evaluation.judge
        scored = len(judge.members) - len(judge.endpoints) - (judge.name == "none")
        return {"verdict": 2 * answers * scored, "request": answers * requests_an_answer(self.settings)}

    def _training(self, part: DataPart, schedule: Schedule, per_update: int, model: Model) -> dict[str, float]:
        """Return the updates of one run over a part of the data; its last one of an epoch holds what is left."""
        from slime_ray.data.order import updates_of

        updates = updates_of(schedule, part.count, per_update)
        epochs, rest = divmod(updates, max(1, -(-part.count // per_update)))
        examples = epochs * part.count + rest * per_update
        head_trained = model.lora is None or model.lora.train_head
        flops = step_flops(footprint(model).sizes, Layout.of_packed([part.pair]), head_trained=head_trained)
        return {"update": updates, "token": examples * self._row(part), "flop": examples * flops}

    def reading(self, part: DataPart, count: int) -> Work:
        """Return the work of a forward pass over so many examples."""
        flops = forward_flops(self.model.sizes, Layout.of_packed([part.pair]))
        return {"read_token": count * self._row(part), "flop": count * flops}

    def answering(self, prompts: PromptCounts) -> Work:
        """Return the work of answering prompts, turn after turn."""
        later = self.decoding(prompts.turns - prompts.count, 2 * prompts.tokens + self.material.answer)
        return joined([self.decoding(prompts.count, prompts.tokens), later])

    def decoding(self, answers: int, prompt_tokens: float) -> Work:
        """Return the work of drawing answers in batches: whole ones, and a last smaller one."""
        whole, rest = divmod(answers, self.batch)
        parts: list[Work] = []
        for batches, batch in ((whole, self.batch), (1, rest)):
            if batches and batch:
                # Of several workers each draws its share of the batches; the slowest one is waited for.
                rounds = -(-batches // self.workers)
                steps, prompts = rounds * self._steps(batch), rounds * batch * prompt_tokens
                # One worker alone reads a batch's prompts.
                flops = prompts * 2 * self.model.sizes.linear * self.workers
                parts.append({"decode_step": steps, "decode_row": steps * batch, "read_token": prompts, "flop": flops})
        return joined(parts)

    def _steps(self, batch: int) -> Ends:
        """Return the steps of a batch: about its longest answer, which is as long as the data's completions."""
        limit = self.settings.evaluation.decoding.max_new_tokens
        longest = min(limit, self.material.longest(batch) + 1)
        return np.array([0.8 * longest, longest, limit])

    def _row(self, part: DataPart) -> float:
        """Return the mean tokens of an example; of a model whose pairs share no rows its prompt counts twice."""
        return part.tokens + (part.prompt if part.rejected and not self.model.packed else 0.0)

    def demonstrations(self) -> dict[str, float]:
        """Return the updates of the SFT stage."""
        sft = self.settings.sft
        return self._training(self.material.sft, sft, sft.examples_per_update, self.settings.sft_model) if sft else {}

    def stages(self) -> dict[str, Work]:
        """Return the work of the shared stages but the first, in the order of their run."""
        held_out, train, prompts = self.material.held_out, self.material.train, self.material.prompts.values()
        return {
            "sft": joined([{"load": 1, "save": 1, "saved_byte": self.model.merged}, self.demonstrations()]),
            "step0": joined([{"load": 1}, self.reading(held_out, held_out.count)]),
            "baseline": joined([{"load": 1}, *map(self.answering, prompts)]),
            # The training pairs' log-probabilities, for objectives with a reference.
            "reference": joined([{"load": 1}, self.reading(train, train.count)]),
        }


def requests_an_answer(settings: Settings, *, pairwise: bool | None = None) -> float:
    """Return the requests for each of a trial's answers: both orders of a comparison, or one rating.

    pairwise: of those judges alone that compare, or that rate. Of a judge with repeats it is the mean over prompts.
    """
    endpoints = settings.evaluation.judge.endpoints
    return sum(judge.requests_an_answer for judge in endpoints if pairwise in (None, judge.template.pairwise))
