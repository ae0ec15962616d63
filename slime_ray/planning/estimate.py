"""The estimate itself: what an experiment's trials and stages come to, on a cluster, at a speed."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from slime_ray.config.experiment import Experiment
from slime_ray.config.settings import Settings, fingerprint
from slime_ray.planning.disk import plan_disk
from slime_ray.planning.judging import plan_judging
from slime_ray.planning.material import Material
from slime_ray.planning.memory import Memory, peak_memory
from slime_ray.planning.plan import GIB, Cluster, Plan, PlanRow, refusals, warnings
from slime_ray.planning.prices import Gpu, GpuPrices
from slime_ray.planning.ranges import NOTHING, Range, total
from slime_ray.planning.shapes import ModelShape
from slime_ray.planning.speed import AssumedSpeed, MeasuredRates, MeasuredSpeed, Speed, seconds
from slime_ray.planning.trials import WHOLE, Group, Shortened, extremes, groups_of, shortened
from slime_ray.planning.work import Amounts, TrialWork, reference, requests_an_answer, stages

HOUR = 3600.0


@dataclass(frozen=True)
class EstimateInputs:
    """Everything an estimate needs, and no more. materials: by `material_key`. gpu: None where trials use none, or an
    unknown one."""

    experiment: Experiment
    cluster: Cluster
    materials: dict[str, Material]
    shapes: dict[str, ModelShape]
    gpu: Gpu | None
    prices: GpuPrices
    measured: MeasuredRates | None = None


def material_key(settings: Settings) -> str:
    """Changes with whatever changes how much data a trial reads."""
    evaluation, model = settings.evaluation, settings.model
    asked = [evaluation.prompts, evaluation.selection_prompts, evaluation.questions]
    tokens = [model.source, model.tokenizer, model.revision, model.gguf_file, model.chat_template]
    return fingerprint([settings.data, asked, tokens, settings.sft is None])


def shape_key(settings: Settings) -> str:
    """Changes with the model."""
    return fingerprint([settings.model.source, settings.model.revision, settings.model.gguf_file])


def estimate(known: EstimateInputs) -> Plan:
    """The plan. Of the processor's time, too, where a probe has measured it."""
    return _Estimate(known).plan()


class _Estimate:
    def __init__(self, known: EstimateInputs):
        self.known, self.experiment = known, known.experiment
        self.base = known.experiment.settings
        self.wanted = known.experiment.resources
        self.groups = groups_of(self.experiment)
        # The trials of a search are many and alike.
        self.made: dict[tuple[str, int, int], TrialWork] = {}
        search = next((group for group in self.groups if group.phase == "search"), None)
        evaluations = self.base.training.evaluations
        self.short = shortened(
            self.experiment.early_stopping, trials=search.trials if search else 0, evaluations=evaluations
        )

    def amounts(self, settings: Settings) -> Amounts:
        material = self.known.materials[material_key(settings)]
        return Amounts(settings, material, self.known.shapes[shape_key(settings)], workers=self.wanted.workers)

    def plan(self) -> Plan:
        known, base = self.known, self.base
        measured = known.measured
        speeds: list[Speed] = []
        unknown = None
        if measured:
            speeds = [MeasuredSpeed(measured, rates, base) for rates in (measured.wall, measured.processor)]
        elif known.gpu and self.wanted.gpu_per_worker:
            share = self.wanted.gpu_per_worker
            shape = known.shapes[shape_key(base)]
            try:
                speeds = [AssumedSpeed(known.gpu, shape, base, workers=self.wanted.workers, share=share)]
            except ValueError as error:
                unknown = f"{error}. Set model.dtype: float32, or plan for another GPU."
        amounts = self.amounts(base)
        works = {group.name: [self._works(group, index) for index in range(group.trials)] for group in self.groups}
        rows = [self._row(group, works[group.name], speeds[0] if speeds else None) for group in self.groups]
        requests = self._requests(works)
        material = amounts.material
        memory = self._memory()
        disk = plan_disk(
            amounts,
            trials=sum(group.trials for group in self.groups),
            kept=self._kept(),
            side_by_side=known.cluster.trials,
            references=self._references(),
            free=known.cluster.disk_free,
        )
        plan = Plan(
            name=self.experiment.name,
            rows=tuple(rows),
            stages={},
            sft_tokens=sft.tokens if (sft := stages(amounts)["sft"].training) else 0.0,
            basis=speeds[0].basis if speeds else None,
            cluster=known.cluster,
            gpu=known.gpu,
            prices=known.prices,
            memory=memory,
            measured=measured,
            memory_limit=self._memory_limit(),
            disk=disk,
            judging=plan_judging(base, requests, prompt=material.prompts["report"].tokens, answer=material.answer),
            stopping=None if self.short is WHOLE else self.short.updates,
            told=self._told(material),
        )
        if speeds:
            plan = self._timed(plan, works, speeds[0])
        if len(speeds) > 1:
            plan = replace(plan, processor_seconds=self._processor(works, speeds[1]))
        return replace(
            plan,
            refusals=(*refusals(plan, self.experiment), *([unknown] if unknown else [])),
            warnings=tuple(warnings(plan, self.experiment)),
        )

    def _works(self, group: Group, index: int) -> TrialWork:
        number = index % len(group.settings)
        key = (group.name, number, group.seeds[index])
        if key not in self.made:
            amounts = self.amounts(group.settings[number])
            self.made[key] = amounts.trial(group.prompts, seed=group.seeds[index])
        return self.made[key]

    def _short(self, group: Group) -> Shortened:
        return self.short if group.phase == "search" else WHOLE

    def _row(self, group: Group, works: Sequence[TrialWork], speed: Speed | None) -> PlanRow:
        share = self._short(group).updates
        tokens = share * sum(work.training.tokens for work in works)
        updates = sum(work.training.updates for work in works) / len(works)
        each = [self._trial(group, work, speed) for work in works] if speed else None
        return PlanRow(
            name=group.name,
            phase=group.phase,
            trials=group.trials,
            updates=updates,
            tokens=tokens,
            exact=share.low == share.high and all(work.training.exact for work in works),
            flops=share.expected * sum(work.training.flops for work in works),
            seconds=total(each) * (1 / len(each)) if each else None,
        )

    def _trial(self, group: Group, work: TrialWork, speed: Speed) -> Range:
        short = self._short(group)
        whole = speed.loading() + speed.beside + (speed.process if self.wanted.workers > 1 else NOTHING)
        return whole + short.updates * seconds(work.course, speed) + short.finished * seconds(work.end, speed)

    def _stages(self, speed: Speed) -> dict[str, Range]:
        amounts = self.amounts(self.base)
        taken = {"tokens": speed.tokenizing(amounts.material)}
        taken |= {name: seconds(work, speed) for name, work in stages(amounts).items()}
        if self._references():
            taken["reference"] = seconds(reference(amounts), speed)
        return taken

    def _references(self) -> bool:
        every = [settings for group in self.groups for settings in group.settings]
        return any(settings.objective.build().needs_reference for settings in every)

    def _timed(self, plan: Plan, works: dict[str, list[TrialWork]], speed: Speed) -> Plan:
        taken = self._stages(speed)
        jobs = {group.name: [self._trial(group, work, speed) for work in works[group.name]] for group in self.groups}
        arms = [jobs[group.name] for group in self.groups if group.phase == "arm"]
        # Seed by seed, as they are handed out.
        first = [trial for seed in zip(*arms, strict=True) for trial in seed]
        first += [trial for group in self.groups if group.phase == "search" for trial in jobs[group.name]]
        last = [trial for group in self.groups if group.phase == "confirm" for trial in jobs[group.name]]
        slots = max(1, self.known.cluster.trials)
        one = self.wanted.workers == 1
        time = speed.around + speed.process + total(taken.values()) + (speed.process if one else NOTHING)
        time = time + speed.report(searched=self.experiment.search is not None)
        time = time + _schedule(first, slots) + _schedule(last, slots)
        busy = total([*taken.values(), *first, *last])
        held = busy * (self.wanted.workers * self.wanted.gpu_per_worker / HOUR)
        gpu, cluster = self.known.gpu, self.known.cluster
        return replace(
            plan,
            stages=taken,
            time=time,
            trial_seconds=total([*first, *last]),
            gpu_hours=held if self.wanted.gpu_per_worker else None,
            cost=held * gpu.usd_per_hour if gpu and self.wanted.gpu_per_worker else None,
            cluster_cost=time * (cluster.gpus * gpu.usd_per_hour / HOUR) if gpu and cluster.gpus else None,
        )

    def _processor(self, works: dict[str, list[TrialWork]], speed: Speed) -> Range:
        """Seconds of the processor that stages and trials take, with their processes' starts."""
        trials = [self._trial(group, work, speed) for group in self.groups for work in works[group.name]]
        count = sum(group.trials for group in self.groups)
        starts = 1 + (min(self.known.cluster.trials, count) if self.wanted.workers == 1 else 0)
        return total([*self._stages(speed).values(), *trials, speed.process * starts])

    def _requests(self, works: dict[str, list[TrialWork]]) -> Range:
        first = self.base.evaluation.judge_first
        parts = []
        rated: dict[str, int] = {}
        for group in self.groups:
            short, settings = self._short(group), group.settings[0]
            on_the_way = float(sum(work.course.requests for work in works[group.name]))
            parts.append(short.updates * on_the_way)
            asked = float(sum(work.end.requests for work in works[group.name]))
            share = short.finished
            if group.phase == "search" and first is not None and asked:
                few = min(1.0, first * requests_an_answer(self.base) * group.trials / asked)
                share = share * Range(few, (1 + few) / 2, 1.0)
            parts.append(share * asked)
            if asked and requests_an_answer(settings) == 1:
                # The baseline's answers are rated once, and found again by all later trials.
                rated[group.prompts] = works[group.name][0].end.requests
                if on_the_way:
                    rated.setdefault("selection", self.amounts(settings).watched)
        return total([*parts, Range.exactly(sum(rated.values()))])

    def _kept(self) -> int:
        budget = self.experiment.budget
        search = budget.trials if self.experiment.search else 0
        kept = search if budget.checkpoints is None else min(search, budget.checkpoints)
        return kept + sum(group.trials for group in self.groups if group.phase != "search")

    def _memory(self) -> Memory:
        """The highest peak of all trials and of the SFT stage."""
        found = []
        for settings in extremes(self.experiment):
            amounts = self.amounts(settings)
            material, data, sft = amounts.material, settings.data, settings.sft
            runs = [(settings, material.train, settings.training.pairs_per_update)]
            if sft is not None:
                stage = settings.model_copy(update={"model": settings.sft_model})
                runs.append((stage, material.sft, sft.examples_per_update))
            prompts = [each.prompt for each in material.train.lengths] or [0]
            for run, part, per_update in runs:
                longest = max((sum(each) for each in part.lengths), default=0) * part.scale
                own = per_update * part.tokens / self.wanted.workers
                memory = peak_memory(
                    run,
                    amounts.shape,
                    gpu=self.wanted.gpu_per_worker > 0,
                    workers=self.wanted.workers,
                    sharded=self.wanted.strategy == "fsdp2" and self.wanted.workers > 1,
                    # A whole update may be less than a row.
                    row=max(longest, min(data.row_budget(gpu=self.wanted.gpu_per_worker > 0), 1.2 * own)),
                    prompt=max(prompts) if material.train.counted else data.max_prompt_tokens or data.max_tokens,
                )
                found.append(memory)
        return max(found, key=lambda memory: memory.peak)

    def _memory_limit(self) -> float | None:
        """Bytes that one worker may take."""
        gpu, share = self.known.gpu, self.wanted.gpu_per_worker
        if not share:
            return self.known.cluster.memory
        return gpu.memory_gib * GIB * min(1.0, share) if gpu else None

    def _told(self, material: Material) -> tuple[str, ...]:
        shape = self.known.shapes[shape_key(self.base)]
        told = [
            f"The shape of the model is {shape.source}: {shape.weights / 1e9:.3g} billion weights.",
            material.told + ".",
        ]
        told.append(
            f"Answers are taken to be as long as the data's completions, {material.answer:.0f} tokens on average; a "
            "batch lasts as long as its longest."
        )
        if self.short is not WHOLE:
            told.append(
                "Early stopping: from every rung halved to its share, over random order, to none stopped at all."
            )
        return (*told, *self.known.cluster.told)


def _schedule(jobs: Sequence[Range], slots: int) -> Range:
    """Until the last is done when each starts as soon as one of the slots is free."""

    def span(lengths: Sequence[float]) -> float:
        free = [0.0] * min(slots, max(1, len(lengths)))
        for length in lengths:
            heapq.heapreplace(free, free[0] + length)
        return max(free)

    low, expected, high = ([getattr(job, end) for job in jobs] for end in ("low", "expected", "high"))
    # A later start can, rarely, end sooner.
    spans = sorted((span(low), span(expected), span(high)))
    return Range(*spans)
