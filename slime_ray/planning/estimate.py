"""The estimate itself: what an experiment's trials and stages come to, on a cluster, at a speed."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import numpy as np

from slime_ray.config.experiment import Experiment
from slime_ray.config.settings import Settings, fingerprint
from slime_ray.model.footprint import STEP, Memory, footprint, gpu_row, peak_memory
from slime_ray.planning.material import DataAssumptions, Material, find_material
from slime_ray.planning.plan import GIB, Cluster, Judging, Plan, PlanRow, Range, refusals, warnings
from slime_ray.planning.prices import GpuPrices, load_prices
from slime_ray.planning.rates import NONE, Ends, MeasuredRates, Rates, rates_of, seconds_of
from slime_ray.planning.trials import WHOLE, Group, Shortened, extremes, groups_of, shortened
from slime_ray.planning.work import Amounts, TrialWork, requests_an_answer

ID_BYTES = 2.5
"""Of a token id in a parquet file, about."""
ANSWER_BYTES = 6.0
"""Of a token of a prompt, an answer or the baseline's in answers.parquet, about."""
TRIAL_BYTES = 120_000.0
"""Of a trial's other files, about: curves, pairs, its row, a model's configuration."""
CHARACTERS = 4.0
"""Of a token of a judge's template, about."""
SHOWN = np.array([0.7, 1.0, 1.5])
"""What a judge may read, next to what the data's own tokenizer counts."""
VERDICT_TOKENS = np.array([100.0, 400.0, np.inf])
"""That a judge writes, at most up to its limit."""


class Planner:
    """What is known of an experiment's data and models, read once: for a plan, for a probe, and for the plan after it.

    assumptions: of data that is not here. prices: None is the table that ships. Nothing is started, and nothing is
    downloaded. Raises InputError for data or a model of which too little is known here.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        assumptions: DataAssumptions = DataAssumptions(),  # noqa: B008
        prices: GpuPrices | None = None,
    ):
        self.experiment, self.prices = experiment, prices or load_prices()
        self.base, self.resources = experiment.settings, experiment.resources
        self.uses_gpu = self.resources.gpu_per_worker > 0
        self.sharded = self.resources.strategy == "fsdp2" and self.resources.workers > 1
        self.groups, self.extremes = groups_of(experiment), extremes(experiment)
        self.trials = sum(group.trials for group in self.groups)
        self.searched = sum(group.trials for group in self.groups if group.phase == "search")
        self._materials: dict[str, Material] = {}
        group_settings = [settings for group in self.groups for settings in group.settings]
        self.references = any(settings.objective.build().needs_reference for settings in group_settings)
        for settings in [self.base, *group_settings, *self.extremes]:
            footprint(settings.model)
            if (key := material_key(settings)) not in self._materials:
                self._materials[key] = find_material(settings, assumptions)
        self.works = {group.name: self._works(group) for group in self.groups}
        evaluations = self.base.training.evaluations
        self.short = shortened(experiment.early_stopping, trials=self.searched, evaluations=evaluations)

    def material(self, settings: Settings) -> Material:
        """Return what is known of the settings' data."""
        return self._materials[material_key(settings)]

    def plan(self, cluster: Cluster, measured: MeasuredRates | None = None) -> Plan:
        """Plan the experiment on a cluster; the plan's refusals say what does not fit.

        measured: what a probe found; without it times follow from the formula, on GPUs of the table alone.
        """
        gpu, material = (
            self.prices.find(cluster.gpu) if self.uses_gpu and cluster.gpu else None,
            self.material(self.base),
        )
        share, workers = min(1.0, self.resources.gpu_per_worker), self.resources.workers
        limit = cluster.memory
        if self.uses_gpu:
            limit = gpu.memory_gib * GIB * share if gpu else None
        rates, basis = rates_of(self.base, material, gpu, measured, workers=workers, share=share) or (None, None)
        row = self._row_budget(self.base, limit)
        plan = Plan(
            name=self.experiment.name,
            rows=tuple(self._row(group, rates) for group in self.groups),
            sft_tokens=self._amounts(self.base).demonstrations().get("token", 0.0) * len(self.experiment.bases),
            cluster=cluster,
            gpu=gpu,
            prices=self.prices,
            memory=self._memory(limit),
            memory_limit=limit,
            disk=self._disk(cluster),
            judging=self._judging(),
            measured=measured,
            stopping=None if self.short is WHOLE else Range.of(self.short.updates),
            basis=basis,
            row_tokens=row,
            row_reason=self.base.data.row_reason(row, limit if self.uses_gpu else None),
            assumptions=self._assumptions(cluster),
        )
        if rates:
            plan = self._timed(plan, rates)
        return replace(plan, refusals=refusals(plan, self.experiment), warnings=warnings(plan, self.experiment))

    def _amounts(self, settings: Settings) -> Amounts:
        return Amounts(settings, self.material(settings), workers=self.resources.workers, gpu=self.uses_gpu)

    def _works(self, group: Group) -> list[TrialWork]:
        """Return the work of each trial of a group."""
        works = [self._amounts(settings).trial(group.prompts) for settings in group.settings]
        return list(islice(cycle(works), group.trials))

    def _short(self, group: Group) -> Shortened:
        return self.short if group.phase == "search" else WHOLE

    def _row(self, group: Group, rates: Rates | None) -> PlanRow:
        works, share = self.works[group.name], self._short(group).updates
        updates, tokens, flops = (sum(work.updates[unit] for work in works) for unit in ("update", "token", "flop"))
        return PlanRow(
            name=group.name,
            phase=group.phase,
            trials=group.trials,
            updates=float(updates) / group.trials,
            tokens=Range.of(share * tokens),
            flops=float(share[1] * flops),
            seconds=Range.of(sum(self._trials(group, rates), NONE) / group.trials) if rates else None,
        )

    def _trials(self, group: Group, rates: Rates) -> list[Ends]:
        """Return the seconds of each trial."""
        short = self._short(group)
        before = seconds_of({"load": 1, "setup": 1, "process": int(self.resources.workers > 1)}, rates)
        return [
            before + short.updates * seconds_of(work.course, rates) + short.finished * seconds_of(work.end, rates)
            for work in self.works[group.name]
        ]

    def _timed(self, plan: Plan, rates: Rates) -> Plan:
        amounts, checkpoints, slots = self._amounts(self.base), len(self.experiment.bases), max(1, plan.cluster.trials)
        # Each SFT checkpoint has all stages of its own but the tokens.
        stages = {"tokens": seconds_of({"example": amounts.material.examples}, rates)}
        for name, work in amounts.stages().items():
            if name != "reference" or self.references:
                stages[name] = seconds_of(work, rates) * checkpoints
        jobs = [(group.phase, self._trials(group, rates)) for group in self.groups]
        # Arms go seed by seed.
        first = [
            trial for seed in zip(*(each for phase, each in jobs if phase == "arm"), strict=True) for trial in seed
        ]
        first += [trial for phase, trials in jobs if phase == "search" for trial in trials]
        confirmations = [trial for phase, trials in jobs if phase == "confirm" for trial in trials]
        held = sum(stages.values(), NONE)
        busy = sum((*first, *confirmations), NONE)
        # The making of stages has one of its own.
        whole = {
            "around": 1,
            "process": 1 + (self.resources.workers == 1),
            "report": 1 + bool(self.experiment.searches),
        }
        time = held + seconds_of(whole, rates)
        time += schedule(first, slots) + schedule(confirmations, slots)
        hours = (held + busy) * self.resources.workers * self.resources.gpu_per_worker / 3600
        price = plan.gpu.usd_per_hour if plan.gpu else None
        return replace(
            plan,
            stages={name: Range.of(seconds) for name, seconds in stages.items()},
            time=Range.of(time),
            trial_seconds=Range.of(busy),
            gpu_hours=Range.of(hours) if self.uses_gpu else None,
            cost=None if price is None else Range.of(hours * price),
            cluster_cost=None if price is None else Range.of(time * plan.cluster.gpus * price / 3600),
        )

    def _requests(self) -> Ends:
        """Return the number of requests to a language model."""
        first, an_answer = self.base.evaluation.judge_first, requests_an_answer(self.base)
        ratings = requests_an_answer(self.base, pairwise=False)
        requests, ratings_by_prompts = NONE, dict[str, float]()
        for group in self.groups:
            short, works = self._short(group), self.works[group.name]
            during, last = (sum(work.judged[part] for work in works) for part in (0, 1))
            share = short.finished
            if group.phase == "search" and first is not None and last:
                few = min(1.0, first * group.trials / last)
                share = share * np.array([few, (1 + few) / 2, 1.0])
            requests = requests + (short.updates * during + share * last) * an_answer
            # The baseline's answers are rated once, and found again by all later trials.
            ratings_by_prompts[group.prompts] = works[0].judged[1] * ratings
            if during:
                ratings_by_prompts.setdefault("selection", self._amounts(self.base).watched * ratings)
        return requests + sum(ratings_by_prompts.values())

    def _judging(self) -> Judging:
        """Return what language models are asked, in tokens of the data's tokenizer."""
        endpoints, material = self.base.evaluation.judge.endpoints, self.material(self.base)
        read = written = cost = NONE
        requests = self._requests()
        for judge in endpoints:
            shown_requests = requests * judge.requests_an_answer / requests_an_answer(self.base)
            prompt = (len(judge.template.system) + len(judge.template.user)) / CHARACTERS
            prompt += material.prompts["report"].tokens + material.answer * (2 if judge.template.pairwise else 1)
            tokens = shown_requests * prompt * SHOWN, shown_requests * np.minimum(VERDICT_TOKENS, judge.max_tokens)
            read, written = read + tokens[0], written + tokens[1]
            if judge.prices:
                cost = cost + (tokens[0] * judge.prices.input + tokens[1] * judge.prices.output) * 1e-6
        priced = endpoints and all(judge.prices for judge in endpoints)
        return Judging(
            self.base.judge_identity,
            Range.of(requests),
            Range.of(read),
            Range.of(written),
            Range.of(cost) if priced else None,
        )

    def _row_budget(self, settings: Settings, limit: float | None) -> int:
        """Return the tokens of a row as a trial chooses them; one pair's where the GPU is too small for any."""
        if not self.uses_gpu or limit is None:
            return settings.data.row_budget(gpu=self.uses_gpu)
        return gpu_row(settings, limit, workers=self.resources.workers, sharded=self.sharded) or STEP

    def _memory(self, limit: float | None) -> Memory:
        """Return the highest peak of all trials and the SFT stage."""
        peaks, workers = [], self.resources.workers
        for settings in self.extremes:
            material, sft = self.material(settings), settings.sft
            runs = [(settings, material.train, settings.training.pairs_per_update)]
            # With the same adapters a row of demonstrations has fewer logits and nothing else.
            if sft is not None and settings.sft_model != settings.model and material.sft.count:
                stage = settings.model_copy(update={"model": settings.sft_model})
                runs.append((stage, material.sft, sft.examples_per_update))
            for run, part, per_update in runs:
                # A whole update may be less than a row.
                share = 1.2 * per_update * part.tokens / workers
                row = round(max(part.longest, min(self._row_budget(run, limit), share)))
                shape: dict[str, Any] = {"row": row, "pair": part.pair, "prompt": material.longest_prompt}
                peaks.append(peak_memory(run, gpu=self.uses_gpu, workers=workers, sharded=self.sharded, **shape))
        return max(peaks, key=lambda memory: memory.peak)

    def _disk(self, cluster: Cluster) -> Mapping[str, float]:
        """Return the bytes that the run may take on disk, by what they are of.

        A trial in training holds its last checkpoint and writes the next one, each its trained weights with two
        moments, and the best weights where those are kept.
        """
        material, model, kept = self.material(self.base), footprint(self.base.model), self.experiment.budget.checkpoints
        saved_models = self.trials - self.searched + min(self.searched, self.searched if kept is None else kept)
        prompt_sets, checkpoints = material.prompts.values(), len(self.experiment.bases)
        held_out = material.held_out.count * material.held_out.tokens
        tokens = sum(part.count * part.tokens for part in (material.sft, material.train)) + held_out
        tokens += sum(each.count * each.tokens for each in prompt_sets)
        answers = checkpoints * sum(each.turns for each in prompt_sets) * material.answer
        answers += self.trials * max(each.turns * (each.tokens + 2 * material.answer) for each in prompt_sets)
        copies = 6 + 3 * any(settings.kept_by for group in self.groups for settings in group.settings)
        step0 = checkpoints * (4 * 8 * held_out + 16.0 * material.train.count * self.references)
        # Of a 4-bit base nothing but adapters is written.
        plain = 0 if self.base.model.quantization else model.plain
        return {
            "tokens and step 0": ID_BYTES * tokens + step0,
            "the SFT checkpoint": checkpoints * (footprint(self.base.sft_model).merged if self.base.sft else plain),
            "answers": ANSWER_BYTES * answers,
            "trained models": saved_models * model.saved,
            "checkpoints": min(cluster.trials, self.trials) * copies * model.trained,
            "other results": self.trials * TRIAL_BYTES,
        }

    def _assumptions(self, cluster: Cluster) -> tuple[str, ...]:
        material, model = self.material(self.base), footprint(self.base.model)
        batches = any(judge.mode == "batch" for judge in self.base.evaluation.judge.endpoints)
        stopping = "Early stopping: from every rung halved to its share, over random order, to none stopped at all."
        return (
            f"The shape of the model is {model.source}: {model.weights / 1e9:.3g} billion weights.",
            material.provenance + ".",
            "Tokens and FLOP are those of average pairs, whichever a seed draws.",
            f"Answers are taken to be as long as the data's completions, {material.answer:.0f} tokens on average; a "
            "batch lasts as long as its longest.",
            *(["Its pairs are taken for sequences of their own, which takes more than rows."] * (not model.packed)),
            *([stopping] * (self.short is not WHOLE)),
            *(["Waiting for batches of the judge, up to a day each, is not counted."] * batches),
            *cluster.notes,
        )


def material_key(settings: Settings) -> str:
    """Return a key that changes with whatever changes how much data a trial reads."""
    return fingerprint(
        [settings.data, settings.evaluation, settings.model.model_copy(update={"lora": None}), settings.sft is None]
    )


def schedule(jobs: Sequence[Ends], slots: int) -> Ends:
    """Return the seconds until the last job ends, each starting as soon as a slot is free."""
    ends = []
    for lengths in np.reshape(jobs, (-1, 3)).T:
        free = [0.0] * slots
        for length in lengths:
            heapq.heapreplace(free, free[0] + length)
        ends.append(max(free))
    return np.array(ends)
