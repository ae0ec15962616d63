"""The estimate itself: what an experiment's trials and stages come to, on a cluster, at a speed."""

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from slime_ray.config.experiment import Experiment
from slime_ray.config.settings import Settings, fingerprint
from slime_ray.model.flops import Lengths
from slime_ray.model.footprint import STEP, Footprint, Memory, footprint, gpu_row, peak_memory
from slime_ray.planning.material import DataAssumptions, Material, Sample, find_material, random_sample
from slime_ray.planning.plan import GIB, Cluster, Disk, Plan, PlanRow, refusals, warnings
from slime_ray.planning.prices import GpuPrices, load_prices
from slime_ray.planning.rates import ZERO, End, MeasuredRates, Range, Rates, assumed_rates, measured_rates, seconds_of
from slime_ray.planning.trials import WHOLE, Group, Shortened, extremes, groups_of, shortened
from slime_ray.planning.work import Amounts, TrialWork, plan_judging, requests_an_answer

HOUR = 3600.0
ID_BYTES = 2.5
"""Of a token id in a parquet file, about."""
ANSWER_BYTES = 6.0
"""Of a token of a prompt, an answer or the baseline's in answers.parquet, about."""
TRIAL_BYTES = 120_000.0
"""Of a trial's other files, about: curves, pairs, its row, a model's configuration."""


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
        self.materials: dict[str, Material] = {}
        group_settings = [settings for group in groups_of(experiment) for settings in group.settings]
        for settings in [experiment.settings, *group_settings, *extremes(experiment)]:
            footprint(settings.model)
            if (key := material_key(settings)) not in self.materials:
                self.materials[key] = find_material(settings, assumptions)

    def probed_sample(self) -> Sample:
        """Return a sample of the data, or random tokens where the data was not read."""
        settings = self.experiment.settings
        material = self.materials[material_key(settings)]
        batch = settings.evaluation.decoding.batch_on(gpu=self.experiment.resources.gpu_per_worker > 0)
        return material.sample or random_sample(material, footprint(settings.model).sizes.vocabulary, batch)

    def plan(self, cluster: Cluster, measured: MeasuredRates | None = None) -> Plan:
        """Plan the experiment on a cluster; the plan's refusals say what does not fit.

        measured: what a probe found; without it times follow from the formula, on GPUs of the table alone.
        """
        return _Estimate(self, cluster, measured).plan()


def material_key(settings: Settings) -> str:
    """Return a key that changes with whatever changes how much data a trial reads."""
    evaluation, model = settings.evaluation, settings.model
    prompts: list[object] = [evaluation.prompts, evaluation.selection_prompts, evaluation.questions]
    prompts += [evaluation.retention.prompts] if evaluation.retention else []
    tokens = [model.source, model.tokenizer, model.revision, model.gguf_file, model.chat_template]
    return fingerprint([settings.data, prompts, tokens, settings.sft is None])


class _Estimate:
    def __init__(self, planner: Planner, cluster: Cluster, measured: MeasuredRates | None):
        self.planner, self.experiment, self.cluster, self.measured = planner, planner.experiment, cluster, measured
        self.base, self.resources = planner.experiment.settings, planner.experiment.resources
        self.uses_gpu = self.resources.gpu_per_worker > 0
        self.gpu = planner.prices.find(cluster.gpu) if self.uses_gpu and cluster.gpu else None
        self.groups = groups_of(self.experiment)
        self.works = {group.name: self._works(group) for group in self.groups}
        self.short = shortened(
            self.experiment.early_stopping,
            trials=sum(group.trials for group in self.groups if group.phase == "search"),
            evaluations=self.base.training.evaluations,
        )

    def plan(self) -> Plan:
        material, measured = self.amounts(self.base).material, self.measured
        rates, basis = None, None
        if measured:
            rates, basis = measured_rates(measured, self.base, material), measured.basis
        elif self.gpu and self.gpu.peak(self.base.model.dtype):
            share, model = min(1.0, self.resources.gpu_per_worker), footprint(self.base.model)
            rates, basis = assumed_rates(self.gpu, model, self.base, workers=self.resources.workers, share=share)
        memory, limit, row = self._memory(), self._memory_limit(), self._row_budget(self.base)
        sft = self.amounts(self.base).demonstrations
        plan = Plan(
            name=self.experiment.name,
            rows=tuple(self._row(group, rates) for group in self.groups),
            sft_tokens=sft.tokens * len(self.experiment.bases) if sft else 0.0,
            cluster=self.cluster,
            gpu=self.gpu,
            prices=self.planner.prices,
            memory=memory,
            memory_limit=limit,
            row_that_fits=self._row_that_fits(limit) if limit and memory.peak > limit >= memory.answering else None,
            disk=self._disk(),
            judging=plan_judging(self.base, self._requests(), material),
            measured=measured,
            stopping=None if self.short is WHOLE else self.short.updates,
            basis=basis,
            row_tokens=row,
            row_reason=self.base.data.row_reason(row, limit if self.uses_gpu else None),
            stages=self._stages(rates) if rates else {},
            assumptions=self._assumptions(material),
        )
        if rates:
            plan = self._timed(plan, rates)
        return replace(plan, refusals=refusals(plan, self.experiment), warnings=warnings(plan, self.experiment))

    def amounts(self, settings: Settings) -> Amounts:
        material = self.planner.materials[material_key(settings)]
        model, workers = footprint(settings.model), self.resources.workers
        return Amounts(settings, material, model, workers=workers, gpu=self.uses_gpu)

    def _works(self, group: Group) -> list[TrialWork]:
        """Return the work of each trial of a group; of the many that are alike it is computed once."""
        amounts = [self.amounts(settings) for settings in group.settings]
        work = lru_cache(maxsize=None)(lambda number, seed: amounts[number].trial(group.prompts, seed=seed))
        return [work(index % len(amounts), seed) for index, seed in enumerate(group.seeds)]

    def _short(self, group: Group) -> Shortened:
        return self.short if group.phase == "search" else WHOLE

    def _row(self, group: Group, rates: Rates | None) -> PlanRow:
        share, works = self._short(group).updates, self.works[group.name]
        tokens = sum(work.training.tokens for work in works)
        return PlanRow(
            name=group.name,
            phase=group.phase,
            trials=group.trials,
            updates=sum(work.training.updates for work in works) / len(works),
            tokens=share * tokens,
            exact=share.low == share.high and all(work.training.exact for work in works),
            flops=share.expected * sum(work.training.flops for work in works),
            seconds=sum(self._trials(group, rates), ZERO) / group.trials if rates else None,
        )

    def _trials(self, group: Group, rates: Rates) -> list[Range]:
        """Return the seconds of each trial."""
        short, before = self._short(group), rates["load"] + rates["setup"]
        if self.resources.workers > 1:
            before += rates["process"]
        return [
            before + short.updates * seconds_of(work.course, rates) + short.finished * seconds_of(work.end, rates)
            for work in self.works[group.name]
        ]

    def _stages(self, rates: Rates) -> dict[str, Range]:
        amounts, checkpoints = self.amounts(self.base), len(self.experiment.bases)
        tokens = seconds_of({"example": amounts.material.examples}, rates)
        works = amounts.stages() | ({"reference": amounts.reference()} if self._references() else {})
        # Each SFT checkpoint has all stages of its own but the tokens.
        return {"tokens": tokens} | {name: seconds_of(work, rates) * checkpoints for name, work in works.items()}

    def _references(self) -> bool:
        group_settings = [settings for group in self.groups for settings in group.settings]
        return any(settings.objective.build().needs_reference for settings in group_settings)

    def _timed(self, plan: Plan, rates: Rates) -> Plan:
        slots, single_worker = max(1, self.cluster.trials), self.resources.workers == 1
        jobs = [(group.phase, self._trials(group, rates)) for group in self.groups]
        # Arms go seed by seed.
        arms = zip(*(trials for phase, trials in jobs if phase == "arm"), strict=True)
        first = [trial for seed in arms for trial in seed]
        first += [trial for phase, trials in jobs if phase == "search" for trial in trials]
        confirmations = [trial for phase, trials in jobs if phase == "confirm" for trial in trials]
        stages = sum(plan.stages.values(), ZERO)
        time = rates["around"] + rates["process"] * (2 if single_worker else 1) + stages
        time += rates["report"] * (2 if self.experiment.searches else 1)
        time = time + schedule(first, slots) + schedule(confirmations, slots)
        busy = sum(first, ZERO) + sum(confirmations, ZERO)
        gpu, gpu_hours_per_second = self.gpu, self.resources.workers * self.resources.gpu_per_worker / HOUR
        price = gpu.usd_per_hour if gpu else 0.0
        hours = sum(plan.stages.values(), busy) * gpu_hours_per_second
        return replace(
            plan,
            time=time,
            trial_seconds=busy,
            gpu_hours=hours if gpu_hours_per_second else None,
            cost=hours * price if gpu and gpu_hours_per_second else None,
            cluster_cost=time * (self.cluster.gpus * price / HOUR) if gpu and self.cluster.gpus else None,
        )

    def _requests(self) -> Range:
        """Return the number of requests to a language model."""
        first, requests_per_answer = self.base.evaluation.judge_first, requests_an_answer(self.base)
        requests, rated = ZERO, dict[str, float]()
        for group in self.groups:
            short, works = self._short(group), self.works[group.name]
            during, last = (float(sum(work.requests[part] for work in works)) for part in (0, 1))
            share = short.finished
            if group.phase == "search" and first is not None and last:
                few = min(1.0, first * requests_per_answer * group.trials / last)
                share *= Range(few, (1 + few) / 2, 1.0)
            requests += short.updates * during + share * last
            ratings_per_answer = requests_an_answer(group.settings[0], pairwise=False)
            if last and ratings_per_answer:
                # The baseline's answers are rated once, and found again by all later trials.
                rated[group.prompts] = works[0].requests[1] * ratings_per_answer / requests_an_answer(group.settings[0])
                if during:
                    rated.setdefault("selection", self.amounts(group.settings[0]).watched * ratings_per_answer)
        return requests + sum(rated.values())

    def _disk(self) -> Disk:
        """Return the bytes that the run may take on disk.

        A trial in training holds its last checkpoint and writes the next one, each its trained weights with two
        moments, and the best weights where those are kept.
        """
        amounts, budget = self.amounts(self.base), self.experiment.budget
        material, model, trials = amounts.material, amounts.model, sum(group.trials for group in self.groups)
        searched = sum(group.trials for group in self.groups if group.phase == "search")
        saved_models = trials - searched + min(searched, searched if budget.checkpoints is None else budget.checkpoints)
        prompt_sets = material.prompts.values()
        held_out = material.held_out.count * material.held_out.tokens
        tokens = sum(part.count * part.tokens for part in (material.sft, material.train)) + held_out
        tokens += sum(each.count * each.tokens for each in prompt_sets)
        answers = len(self.experiment.bases) * sum(each.turns for each in prompt_sets) * material.answer
        answers += trials * max(each.turns * (each.tokens + 2 * material.answer) for each in prompt_sets)
        checkpoints = len(self.experiment.bases)
        copies = 6 + 3 * any(each.kept_by for group in self.groups for each in group.settings)
        step0 = checkpoints * (4 * 8 * held_out + 16.0 * material.train.count * self._references())
        # Of a 4-bit base nothing but adapters is written.
        plain = 0 if self.base.model.quantization else model.plain
        weights = footprint(self.base.sft_model).merged if self.base.sft else plain
        return Disk(
            {
                "tokens and step 0": ID_BYTES * tokens + step0,
                "the SFT checkpoint": checkpoints * weights,
                "answers": ANSWER_BYTES * answers,
                "trained models": saved_models * model.saved,
                "checkpoints": min(self.cluster.trials, trials) * copies * model.trained,
                "other results": trials * TRIAL_BYTES,
            },
            self.cluster.disk_free,
        )

    def _row_budget(self, settings: Settings) -> int:
        """Return the tokens of a row as a trial chooses them; one pair's where the GPU is too small for any."""
        limit = self._memory_limit()
        if not self.uses_gpu or limit is None:
            return settings.data.row_budget(gpu=self.uses_gpu)
        fitting = gpu_row(settings, limit, workers=self.resources.workers, sharded=self._sharded)
        return STEP if fitting is None else fitting

    @property
    def _sharded(self) -> bool:
        return self.resources.strategy == "fsdp2" and self.resources.workers > 1

    def _memory(self, row_budget: int | None = None) -> Memory:
        """Return the highest peak of all trials and the SFT stage. row_budget: of all; None for each one's own."""
        peaks = []
        for settings in extremes(self.experiment):
            material, data, sft = self.amounts(settings).material, settings.data, settings.sft
            runs = [(settings, material.train, settings.training.pairs_per_update)]
            # With the same adapters a row of demonstrations has fewer logits and nothing else.
            if sft is not None and settings.sft_model != settings.model and material.sft.lengths:
                stage = settings.model_copy(update={"model": settings.sft_model})
                runs.append((stage, material.sft, sft.examples_per_update))
            prompts = [each.prompt for each in material.train.lengths] or [0]
            for run, part, per_update in runs:
                longest = max((sum(each) for each in part.lengths), default=0) * part.scale
                # A whole update may be less than a row.
                share = 1.2 * per_update * part.tokens / self.resources.workers
                peaks.append(
                    peak_memory(
                        run,
                        gpu=self.uses_gpu,
                        workers=self.resources.workers,
                        sharded=self._sharded,
                        row=round(max(longest, min(row_budget or self._row_budget(run), share))),
                        pair=_mean(part.lengths),
                        prompt=max(prompts) if material.train.counted else data.max_prompt_tokens or data.max_tokens,
                    )
                )
        return max(peaks, key=lambda memory: memory.peak)

    def _row_that_fits(self, limit: float) -> int | None:
        """Return the tokens of a micro-batch that would fit; None where none would."""
        rows = range(STEP, self._row_budget(self.base), STEP)
        fits = bisect_right(rows, limit, key=lambda row: self._memory(row).peak)
        return rows[fits - 1] if fits else None

    def _memory_limit(self) -> float | None:
        """Return the bytes that one worker may take."""
        if not self.uses_gpu:
            return self.cluster.memory
        return self.gpu.memory_gib * GIB * min(1.0, self.resources.gpu_per_worker) if self.gpu else None

    def _assumptions(self, material: Material) -> tuple[str, ...]:
        model: Footprint = footprint(self.base.model)
        assumptions = [
            f"The shape of the model is {model.source}: {model.weights / 1e9:.3g} billion weights.",
            material.provenance + ".",
            f"Answers are taken to be as long as the data's completions, {material.answer:.0f} tokens on average; a "
            "batch lasts as long as its longest.",
        ]
        if not model.packed:
            assumptions.append(
                "Its pairs are taken for sequences of their own; where they can share rows it takes less."
            )
        if self.short is not WHOLE:
            assumptions.append(
                "Early stopping: from every rung halved to its share, over random order, to none stopped at all."
            )
        if any(judge.mode == "batch" for judge in self.base.evaluation.judge.endpoints):
            assumptions.append("Waiting for batches of the judge, up to a day each, is not counted.")
        return (*assumptions, *self.cluster.notes)


def _mean(lengths: Sequence[Lengths]) -> Lengths:
    return Lengths(*(round(sum(parts) / len(lengths)) for parts in zip(*lengths, strict=True)))


def schedule(jobs: Sequence[Range], slots: int) -> Range:
    """Return the seconds until the last job ends, each starting as soon as a slot is free."""

    def last(end: End) -> float:
        free = [0.0] * min(slots, max(1, len(jobs)))
        for length in jobs:
            heapq.heapreplace(free, free[0] + length.at(end))
        return max(free)

    return Range.of(last)
