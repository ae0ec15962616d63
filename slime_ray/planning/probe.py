"""A probe: for about a minute, the work of one trial with its actual settings, each part by itself, on the clock.

It trains a few updates, reads and answers a few prompts and saves, in the processes and on the device that trials run
on, over random tokens of the data's mean lengths. Nothing of it is kept.
"""

import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from slime_ray.config.evaluation import Decoding
from slime_ray.config.settings import Settings
from slime_ray.data.pairs import TokenPair
from slime_ray.evaluation.generate import generate_answers
from slime_ray.evaluation.held_out import measure_held_out
from slime_ray.model.footprint import CONTEXT_BYTES, footprint
from slime_ray.model.loading import load_model, load_tokenizer, make_policy
from slime_ray.model.logprobs import Policy
from slime_ray.model.lora import make_trainable
from slime_ray.model.quantized import refuse_quantized
from slime_ray.model.sharding import is_sharded, whole_weights
from slime_ray.planning.material import Material
from slime_ray.planning.rates import MeasuredRates
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
PAIRS = 512
"""Pairs that are made up, at most."""


def now() -> float:
    """Return the clock's seconds, once the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def probe(
    settings: Settings, material: Material, *, scratch: Path, threads: int, sharded: bool, started: float
) -> MeasuredRates:
    """Measure on this process, or on all ranks of its group, which call it together; rank 0's clock counts.

    scratch: an empty folder. started: when the process began to import, by the clock. Raises InputError for a model
    that cannot be loaded.
    """
    reset_process(seed=0, threads=threads)
    refuse_quantized(settings.model)
    timed = {"process": now() - started}
    clock, model = now(), settings.model
    lm = load_model(model, seed=0)
    timed["load"] = now() - clock
    tokenizer = load_tokenizer(model)
    policy = to_device(make_policy(make_trainable(lm, model.lora), model), sharded=sharded)
    row_tokens, vocabulary = row_budget(settings, policy), footprint(model).sizes.vocabulary

    part, needs_reference = material.train, settings.objective.build().needs_reference
    reference = -10.0 if needs_reference else math.nan

    def random_pair() -> TokenPair:
        prompt, chosen, rejected = (_random_tokens(length, vocabulary) for length in part.pair)
        return TokenPair(prompt, chosen, rejected, reference, reference)

    pairs = [random_pair() for _ in range(min(PAIRS, part.count))]
    timed["update"], timed["token"], timed["setup"] = _updates(policy, pairs, settings, scratch)
    read = pairs[: max(1, 4 * row_tokens // sum(part.pair))]
    timed["read_token"] = _took(lambda: measure_held_out(policy, read, row_tokens=row_tokens))
    timed["read_token"] /= len(read) * sum(part.pair)
    prompt = round(material.prompts["report"].tokens)
    timed["decode_step"], timed["decode_row"] = _decoding(policy, tokenizer, settings, prompt)
    timed["save"] = _took(lambda: _save(policy, scratch / "model"))
    World.current().broadcast(None)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return MeasuredRates(timed, _peak_bytes(), device)


def _random_tokens(count: int, vocabulary: int) -> list[int]:
    return torch.randint(vocabulary, (max(1, count),)).tolist()


def _updates(policy: Policy, pairs: list[TokenPair], settings: Settings, scratch: Path) -> tuple[float, float, float]:
    """Measure the seconds of an update next to its tokens, of each token, and of setting up.

    Updates run as they are and with half as many pairs: what one takes beside its tokens shows in the difference.
    """
    schedule = settings.training.model_copy(update={"updates": WARM + MOST})

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
            objective=settings.objective.build(),
            pairs=pairs,
            schedule=schedule,
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

    per_update = settings.training.pairs_per_update
    most, many, setup = train(per_update)
    least, few, _ = train(max(1, per_update // 2))
    return *_affine(most, many, least, few), setup


def _affine(most: float, many: float, least: float, few: float) -> tuple[float, float]:
    """Split seconds into a fixed part and one for each unit: `many` take `most`, and `few` take `least`."""
    slope = (most - least) / (many - few) if many > few else 0.0
    # Between all of it being the units' and none of it.
    slope = min(max(slope, 0.0), most / many)
    return most - slope * many, slope


def _decoding(policy: Policy, tokenizer: Any, settings: Settings, prompt: int) -> tuple[float, float]:
    """Measure a decoding step: its fixed seconds, and those of each answer. prompt: tokens of each."""
    evaluation, vocabulary = settings.evaluation, footprint(settings.model).sizes.vocabulary
    decoding = evaluation.decoding
    longest = max(2, min(STEPS, decoding.max_new_tokens))

    def draw(batch: int, steps: int) -> float:
        prompts = [_random_tokens(prompt, vocabulary) for _ in range(batch)]
        short = Decoding(temperature=1.0, top_p=decoding.top_p, max_new_tokens=steps, batch=batch)
        # A stop token that no vocabulary has: every answer is as long as may be.
        return _took(
            lambda: generate_answers(policy, tokenizer, prompts, decoding=short, stop_tokens=[2**31 - 1], seed=0)
        )

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
    return _affine(of_all, batch, of_few, few)


def _save(policy: Policy, folder: Path) -> None:
    weights = whole_weights(policy, trained_only=hasattr(policy.lm, "peft_config")) if is_sharded(policy) else None
    if World.current().main:
        policy.lm.save_pretrained(folder, **({} if weights is None else {"state_dict": weights}))


def _took(work: Callable[[], object]) -> float:
    clock = now()
    work()
    return now() - clock


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved() + CONTEXT_BYTES)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
