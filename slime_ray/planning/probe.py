"""A probe: for about a minute, the work of one trial with its actual settings, each part by itself, on the clock.

It trains a few updates of both stages, reads and answers a few prompts, compares, scores, saves and loads, in the
processes and on the device that trials run on. Nothing of it is kept.
"""

import gc
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model

from slime_ray.config.evaluation import Decoding
from slime_ray.config.judge import JudgeSettings, Llm, RewardModel
from slime_ray.config.settings import Schedule, Settings
from slime_ray.data.pairs import TokenPair
from slime_ray.evaluation.generate import generate_answers
from slime_ray.evaluation.held_out import measure_held_out
from slime_ray.evaluation.judges import ScoringJudge, build_judge
from slime_ray.evaluation.stability import kl_to_reference
from slime_ray.evaluation.verdict_cache import Verdicts
from slime_ray.model.footprint import CONTEXT_BYTES
from slime_ray.model.loading import SFT_ADAPTER, load_checkpoint, load_model, load_tokenizer, make_policy, with_sft
from slime_ray.model.logprobs import Policy
from slime_ray.model.lora import make_trainable
from slime_ray.model.quantized import refuse_quantized
from slime_ray.model.sharding import is_sharded, whole_weights
from slime_ray.objectives import Objective, SftObjective
from slime_ray.planning.material import Sample
from slime_ray.planning.rates import MeasuredRates, ProbedRates
from slime_ray.training.policies import row_budget, to_device
from slime_ray.training.trainer import GO_ON, Metrics, Next, PreferenceTrainer
from slime_ray.training.worker import reset_process
from slime_ray.world import World

WARM = 2
"""Updates, and decoding steps, that are left out: the first ones take longer."""
SECONDS = 8.0
"""Of each of the runs of training, once they have made LEAST updates."""
LEAST, MOST = 2, 48
STEPS = 24
"""Tokens of each answer."""
COPIED = 4 * 2**30
"""Bytes of a model up to which a copy of it is saved and loaded; above, its first loading stands for the later ones."""
SCORED = 16


def now() -> float:
    """Return the clock's seconds, once the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def probe(
    settings: Settings, sample: Sample, *, scratch: Path, threads: int, sharded: bool, started: float
) -> MeasuredRates:
    """Measure on this process, or on all ranks of its group, which call it together; rank 0's clock counts.

    scratch: an empty folder. started: when the process began to import, by the clock. Raises InputError for a model
    that cannot be loaded.
    """
    reset_process(seed=0, threads=threads)
    refuse_quantized(settings.model)
    timed = {"process": now() - started}
    clock, model = now(), settings.model
    stage = settings.sft_model if settings.sft and not sharded else model
    lm = load_model(stage, seed=0)
    timed["load"] = now() - clock
    tokenizer = load_tokenizer(model)
    run = partial(_updates, settings=settings, scratch=scratch)

    lm = make_trainable(lm, stage.lora)
    policy = to_device(make_policy(lm, stage), sharded=sharded)
    if settings.sft and sample.sft:
        demonstrations = [TokenPair(*ids) for ids in sample.sft]
        timed["sft_update"], timed["sft_token"], _ = run(
            policy, SftObjective(), demonstrations, settings.sft, settings.sft.examples_per_update
        )
    if settings.sft and not sharded:
        # As a trial begins: from a plain model, with adapters of its own, or next to those of SFT.
        if model.quantization:
            lm.save_pretrained(scratch / SFT_ADAPTER, save_embedding_layers=False)
            base, copied = lm.unload(), None
        else:
            base, copied = _copied(lm.merge_and_unload() if stage.lora else lm, settings, scratch)
        timed["load"] = copied or timed["load"]
        del policy, lm
        lm = with_sft(make_trainable(base, model.lora), scratch, model)
        policy = to_device(make_policy(lm, model), sharded=False)
    # What follows is what a trial holds; the stage before held another model.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    pairs = [TokenPair(*ids) for ids in sample.train]
    row_tokens = row_budget(settings, policy)
    objective = settings.objective.build()
    if objective.needs_reference:
        pairs = [replace(pair, reference_chosen=-10.0, reference_rejected=-10.0) for pair in pairs]
    timed["update"], timed["token"], timed["setup"] = run(
        policy, objective, pairs, settings.training, settings.training.pairs_per_update
    )

    read = _fitting(pairs, 4 * row_tokens)
    timed["read_token"] = _took(lambda: measure_held_out(policy, read, row_tokens=row_tokens)) / _tokens(read)
    timed["decode_step"], timed["decode_row"], answers = _decoding(policy, tokenizer, settings, sample)
    compared = [TokenPair(pair.prompt_ids, pair.chosen_ids) for pair in read[: settings.evaluation.kl_prompts]]
    reference = None if model.lora else policy
    comparison = _took(lambda: kl_to_reference(policy, reference, compared, row_tokens=row_tokens))
    timed["compare_token"] = comparison / max(1, _tokens(compared))
    timed["verdict"] = _judging(settings, sample, answers, scratch)
    timed["save"] = _took(lambda: _save(policy, scratch / "model"))
    World.current().broadcast(None)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return MeasuredRates(ProbedRates(**timed), _peak_bytes(), device)


def _updates(
    policy: Policy,
    objective: Objective,
    pairs: Sequence[TokenPair],
    schedule: Schedule,
    per_update: int,
    *,
    settings: Settings,
    scratch: Path,
) -> tuple[float, float, float]:
    """Measure the seconds of an update next to its tokens, of each token, and of setting up.

    Updates run as they are and with half as many pairs: what one takes beside its tokens shows in the difference.
    """

    def train(pairs_per_update: int) -> tuple[float, float, float]:
        """Mean seconds and tokens of an update after the first ones, and seconds until these began."""
        started, world, ends, tokens = now(), World.current(), list[float](), list[int]()

        def after_update(step: int, metrics: Metrics) -> Next:
            ends.append(now())
            tokens.append(trainer.tokens_seen)
            enough = step >= WARM + LEAST and ends[-1] - started > SECONDS
            return Next(stop=True) if world.broadcast(enough) else GO_ON

        trainer = PreferenceTrainer(
            policy=policy,
            objective=objective,
            pairs=pairs,
            schedule=schedule.model_copy(update={"updates": WARM + MOST}),
            pairs_per_update=pairs_per_update,
            row_tokens=row_budget(settings, policy),
            seed=0,
            scratch=scratch / "trainer",
            after_update=after_update,
            gradient_checkpointing=settings.training.gradient_checkpointing,
            dropout=settings.model.dropout,
        )
        trainer.train()
        updates = len(ends) - WARM
        seconds = (ends[-1] - ends[WARM - 1]) / updates
        return seconds, (tokens[-1] - tokens[WARM - 1]) / updates, max(0.0, ends[0] - started - seconds)

    most, many, setup = train(per_update)
    least, few, _ = train(max(1, per_update // 2))
    return *_affine(most, many, least, few), setup


def _affine(most: float, many: float, least: float, few: float) -> tuple[float, float]:
    """Split seconds into a fixed part and one for each unit: `many` take `most`, and `few` take `least`."""
    slope = (most - least) / (many - few) if many > few else 0.0
    # Between all of it being the units' and none of it.
    slope = min(max(slope, 0.0), most / many)
    return most - slope * many, slope


def _decoding(policy: Policy, tokenizer: Any, settings: Settings, sample: Sample) -> tuple[float, float, list[str]]:
    """Measure a decoding step: its fixed seconds, those of each answer, and some answers."""
    evaluation, answers = settings.evaluation, list[str]()
    decoding = evaluation.decoding
    longest = max(2, min(STEPS, decoding.max_new_tokens))

    def draw(batch: int, steps: int) -> float:
        prompts = [sample.prompts[index % len(sample.prompts)] for index in range(batch)]
        short = Decoding(temperature=1.0, top_p=decoding.top_p, max_new_tokens=steps, batch=batch)
        clock = now()
        # A stop token that no vocabulary has: every answer is as long as may be.
        drawn = generate_answers(policy, tokenizer, prompts, decoding=short, stop_tokens=[2**31 - 1], seed=0)
        seconds = now() - clock
        answers[:] = [answer.text for answer in drawn]
        return seconds

    def step(batch: int) -> float:
        """Return the seconds of a step after the first, which reads the prompts."""
        short, long = draw(batch, 1), draw(batch, longest)
        # Noise may have cost the shorter one more; no step takes nothing.
        return (long - short) / (longest - 1) if long > short else long / longest

    batch = min(
        decoding.batch_on(gpu=policy.device.type == "cuda"), max(evaluation.prompts, evaluation.selection_prompts)
    )
    few = max(1, min(settings.sentinel.prompts, batch // 2))
    draw(few, 1)
    of_few, of_all = step(few), step(batch)
    return *_affine(of_all, batch, of_few, few), answers


def _judging(settings: Settings, sample: Sample, answers: list[str], scratch: Path) -> float:
    """Measure the seconds of an answer's score, the mean of the judges that score; no language model is asked."""
    scoring = [judge for judge in settings.evaluation.judge.members if not isinstance(judge, Llm)]
    if not (scoring and sample.messages):
        return 0.0
    return sum(_scoring(settings, judge, sample, answers, scratch) for judge in scoring) / len(scoring)


def _scoring(settings: Settings, judge: JudgeSettings, sample: Sample, answers: list[str], scratch: Path) -> float:
    evaluation = settings.evaluation.model_copy(update={"judge": judge})
    settings = settings.model_copy(update={"evaluation": evaluation})
    built = build_judge(settings, verdicts=Verdicts(scratch / "verdicts", run="probe"))
    if not isinstance(built, ScoringJudge):
        return 0.0
    count = min(len(answers), len(sample.messages), SCORED if isinstance(judge, RewardModel) else len(answers))
    answered = list(zip(sample.messages[:count], answers[:count], strict=True))
    return _took(lambda: built.scores(answered)) / max(1, count)


def _copied(lm: Any, settings: Settings, scratch: Path) -> tuple[Any, float | None]:
    """Load the model as a trial does from the stage's folder, and time that; a large one is returned as it is."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in lm.parameters())
    if size > COPIED:
        return lm, None
    # Each rank its own, while transformers lets one rank save only.
    folder = scratch / f"base-{World.current().rank}"
    lm.config.save_pretrained(folder)
    save_model(lm, str(folder / "model.safetensors"), metadata={"format": "pt"})
    clock = now()
    copy = load_checkpoint(folder, dtype=settings.model.weights_dtype)
    return copy, now() - clock


def _save(policy: Policy, folder: Path) -> None:
    weights = whole_weights(policy, trained_only=hasattr(policy.lm, "peft_config")) if is_sharded(policy) else None
    if World.current().main:
        policy.lm.save_pretrained(folder, **({} if weights is None else {"state_dict": weights}))


def _fitting(pairs: Sequence[TokenPair], tokens: int) -> Sequence[TokenPair]:
    """Return as many of the pairs as have so many tokens, at least one."""
    totals = accumulate(_tokens([pair]) for pair in pairs)
    return pairs[: max(1, sum(total <= tokens for total in totals))]


def _tokens(pairs: Sequence[TokenPair]) -> int:
    return sum(len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)


def _took(work: Callable[[], object]) -> float:
    clock = now()
    work()
    return now() - clock


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved() + CONTEXT_BYTES)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
