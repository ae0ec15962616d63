"""How much data an experiment's trials read: counted and measured where the data is at hand, else taken from what is
given or known of it."""

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any

from slime_ray.config.settings import Data, Settings
from slime_ray.data.places import missing_file
from slime_ray.errors import InputError
from slime_ray.evaluation.questions import load_questions, load_retention
from slime_ray.model.flops import Lengths
from slime_ray.runs.notes import data_notes
from slime_ray.runs.results import RETENTION

MEASURED = 16_384
"""Examples of a part whose lengths are taken. Of larger parts these stand for all; their order is one of hashes."""
PROBED = 512
"""Pairs whose tokens are kept for a probe."""
SPREAD = 0.7
"""Width of the log-normal distribution that lengths are taken to have where only their mean is known; that of answers
in UltraFeedback, about."""
LONGEST = 10_000_000
"""Tokens of a prompt or a completion at most."""
KNOWN_PAIRS = {("huggingfaceh4/ultrafeedback_binarized", "train_prefs"): 61_135}
"""Rows of hub data, as their cards say."""
KNOWN_LENGTHS = {"huggingfaceh4/ultrafeedback_binarized": (180.0, 250.0, 250.0)}
"""Mean tokens of prompt, chosen and rejected in the tokens of a 3-4B model, about."""


Ids = tuple[list[int], list[int], list[int]]
"""Of prompt, chosen and rejected completion."""


@dataclass(frozen=True)
class DataAssumptions:
    """What the user says of data that is not at hand. pairs: of the whole data set, before it is split. lengths: mean
    tokens of prompt, chosen and rejected completion."""

    pairs: int | None = None
    lengths: tuple[float, float, float] | None = None


def parse_lengths(text: str) -> tuple[float, float, float]:
    """Parse three mean lengths, such as 180,250,250. Raises InputError."""
    try:
        prompt, chosen, rejected = (float(part) for part in text.split(","))
    except ValueError:
        prompt = chosen = rejected = math.nan
    if not all(1 <= length <= LONGEST for length in (prompt, chosen, rejected)):
        raise InputError(
            f"--lengths {text}: give three numbers of tokens, 1 to {LONGEST:,} each, for prompt, chosen and rejected, "
            "such as 180,250,250."
        )
    return prompt, chosen, rejected


@dataclass(frozen=True)
class DataPart:
    """Pairs, or examples without rejected completions. lengths: of all `count` of them, or of some that stand for
    all; a mean need not be a whole number of tokens, which `scale` makes up for."""

    count: int
    lengths: tuple[Lengths, ...]
    scale: float = 1.0

    @property
    def counted(self) -> bool:
        """Whether every example's own lengths are known."""
        return len(self.lengths) == self.count

    @cached_property
    def tokens(self) -> float:
        """Mean tokens of an example in a packed row, its prompt once."""
        return self.scale * sum(map(sum, self.lengths)) / max(1, len(self.lengths))

    @cached_property
    def prompt(self) -> float:
        """Mean tokens of a prompt."""
        return self.scale * sum(each.prompt for each in self.lengths) / max(1, len(self.lengths))


@dataclass(frozen=True)
class PromptCounts:
    """One set of prompts. turns: answers in all, several to a prompt of several turns. tokens: mean of a prompt."""

    count: int
    turns: int
    tokens: float


@dataclass(frozen=True)
class Sample:
    """Token ids of some of the data, for a probe: (prompt, chosen, rejected) of demonstrations and pairs, and prompts
    with their messages, which are empty where the tokens are made up."""

    sft: list[Ids]
    train: list[Ids]
    prompts: list[list[int]]
    messages: list[Any]


@dataclass(frozen=True)
class Material:
    """What trials and stages read. answers: lengths of completions, sorted, or their mean alone. seconds: that
    reading took here; sample: of it; both None where nothing was read. provenance: of the figures."""

    sft: DataPart
    train: DataPart
    held_out: DataPart
    prompts: Mapping[str, PromptCounts]
    answers: tuple[int, ...] | float
    provenance: str
    seconds: float | None = None
    sample: Sample | None = None

    def longest(self, answers: int) -> float:
        """Return the tokens of the longest of so many answers, taken as long as the data's completions."""
        quantile = 1 - 1 / (answers + 1)
        if isinstance(self.answers, float):
            return self.answers * math.exp(NormalDist(-(SPREAD**2) / 2, SPREAD).inv_cdf(quantile))
        return float(self.answers[min(len(self.answers) - 1, int(quantile * len(self.answers)))])

    @property
    def examples(self) -> int:
        """All of them."""
        return self.sft.count + self.train.count + self.held_out.count

    @property
    def answer(self) -> float:
        """Mean tokens of an answer, taken as long as the data's completions."""
        return self.answers if isinstance(self.answers, float) else sum(self.answers) / len(self.answers)


def find_material(settings: Settings, assumptions: DataAssumptions) -> Material:
    """Count the data if it is here and nothing is assumed of it. Raises InputError where not enough is known."""
    data = settings.data
    local = data.task is not None or all(Path(source.source).is_absolute() for source in data.sources)
    if local and assumptions == DataAssumptions():
        try:
            return read_material(settings)
        except InputError as error:
            raise InputError(f"{error} A plan can do without the data: --pairs N --lengths P,C,R.") from None
    lengths = assumptions.lengths or KNOWN_LENGTHS.get(data.label.lower())
    pairs = assumptions.pairs or KNOWN_PAIRS.get((data.label.lower(), data.split))
    if lengths is None or (pairs is None and data.pairs is None):
        complaints = (missing_file(source.source) for source in data.sources)
        missing = next((complaint for complaint in complaints if complaint is not None), None)
        lacking = "--lengths P,C,R" if lengths is None else "--pairs N, or data.pairs"
        raise InputError(
            f"data.train {data.label} is not read for a plan{'' if local else ', since it is not on this machine'}"
            f"{missing or ''}. {'Say' if missing is None else 'Correct it, or say'} how much it is with {lacking}."
        )
    provenance = "lengths of {:g}, {:g} and {:g} tokens".format(*lengths)
    provenance += " as given" if assumptions.lengths else ", about those of this data"
    provenance += f"; {pairs:,} pairs {'as given' if assumptions.pairs else 'as its card says'}" if pairs else ""
    provenance += "" if pairs else f"; data.pairs {data.pairs} of them"
    return assumed_material(settings, pairs, lengths, f"{data.label} was not read: {provenance}")


def assumed_material(
    settings: Settings, pairs: int | None, lengths: tuple[float, float, float], provenance: str
) -> Material:
    """Assume every example as long as the mean. pairs: None is just enough for data.pairs."""
    sft, train, held_out = _split(settings.data, pairs)
    evaluation = settings.evaluation
    prompt, chosen, rejected = lengths
    counts = {"selection": evaluation.selection_prompts, "report": evaluation.prompts}
    if (total := sum(counts.values())) > held_out:
        counts["selection"] = min(max(1, round(held_out * counts["selection"] / total)), held_out - 1)
        counts["report"] = held_out - counts["selection"]
    turns = dict(counts)
    files = [("report", load_questions)] if evaluation.questions else []
    files += [(RETENTION, load_retention)] if evaluation.retention else []
    for name, load in files:
        questions = load(settings)
        counts[name], turns[name] = len(questions), sum(len(question.turns) for question in questions)
    return Material(
        sft=_alike(sft if settings.sft else 0, prompt, chosen, 0.0),
        train=_alike(train, prompt, chosen, rejected),
        held_out=_alike(held_out, prompt, chosen, rejected),
        prompts={name: PromptCounts(count, turns[name], prompt) for name, count in counts.items()},
        answers=float(chosen + rejected) / 2,
        provenance=provenance,
    )


def _split(data: Data, pairs: int | None) -> tuple[int, int, int]:
    """Return how many examples `split_pairs` gives SFT, training and held-out pairs."""
    if pairs is None:
        train = data.pairs or 0
        sft = round(train * data.sft_fraction / (1 - data.sft_fraction)) if data.sft_fraction < 1 else 0
        return min(sft, data.sft_examples or sft), train, data.held_out_pairs
    rest = pairs - data.held_out_pairs
    if rest < 2:
        raise InputError(
            f"Of {pairs} pairs {data.held_out_pairs} are held out (data.held_out_pairs), which leaves none to train "
            "on. Lower it, or give more data."
        )
    sft = round(data.sft_fraction * rest)
    train = rest - sft
    if not train or not (sft or data.sft_fraction == 0):
        raise InputError(
            f"Of {pairs} pairs none would be left for {'SFT' if train else 'training'}: data.sft_fraction is "
            f"{data.sft_fraction:g}. Give another share, or more data."
        )
    return min(sft, data.sft_examples or sft), min(train, data.pairs or train), data.held_out_pairs


def _alike(count: int, prompt: float, chosen: float, rejected: float) -> DataPart:
    whole = Lengths(*(round(length) for length in (prompt, chosen, rejected)))
    return DataPart(count, (whole,), scale=(prompt + chosen + rejected) / max(1, sum(whole)))


def read_material(settings: Settings) -> Material:
    """Read, split and tokenize the data as the first stage does, all of it or enough to know the lengths.

    Raises InputError for data or a tokenizer that cannot be used.
    """
    from slime_ray.data.corpus import load_corpus
    from slime_ray.data.pairs import ID_COLUMNS
    from slime_ray.data.tokenizing import tokenize_pairs
    from slime_ray.model.loading import load_tokenizer
    from slime_ray.training.prompts import prompts_to_answer

    data = settings.data
    tokenizer = load_tokenizer(settings.model)
    clock = time.perf_counter()
    corpus = load_corpus(data, settings.evaluation)
    limits: dict[str, Any] = {
        name: getattr(data, name) for name in ("max_tokens", "row_tokens", "max_prompt_tokens", "strict")
    }

    def tokenized(part: Any, *, rejected: bool = True) -> tuple[DataPart, list[Ids]]:
        some = part if len(part) <= MEASURED else part.select(range(MEASURED))
        columns = tokenize_pairs(some, tokenizer, rejected=rejected, **limits).table.to_pydict()
        ids: list[Ids] = list(zip(*(columns[name] for name in ID_COLUMNS), strict=True))
        lengths = tuple(Lengths(*map(len, each)) for each in ids)
        # Some are dropped, such as those without room for a completion.
        count = len(ids) if len(some) == len(part) else round(len(part) * len(ids) / len(some))
        return DataPart(count, lengths), ids

    sft, sft_ids = tokenized(corpus.sft, rejected=False) if settings.sft else (DataPart(0, ()), [])
    train, train_ids = tokenized(corpus.train)
    held_out, _ = tokenized(corpus.held_out)
    prompts, _ = prompts_to_answer(settings, corpus.prompts, tokenizer)
    seconds = time.perf_counter() - clock
    _check_declared(settings, {"sft": sft_ids, "train": train_ids}, prompts)
    selection = prompts["selection"]
    all_counted = all(part.counted for part in (sft, train, held_out))
    method = "counted" if all_counted else f"from the lengths of {MEASURED:,} examples of each part"
    tokenizer_source = settings.model.tokenizer or settings.model.source
    provenance = f"{data.label} was read with the tokenizer of {tokenizer_source}: tokens are {method}"
    return Material(
        sft=sft,
        train=train,
        held_out=held_out,
        prompts={
            name: PromptCounts(
                len(some),
                sum(1 + len(each.later) for each in some),
                sum(len(each.token_ids) for each in some) / len(some),
            )
            for name, some in prompts.items()
        },
        answers=tuple(sorted(n for each in (*train.lengths, *held_out.lengths) for n in each[1:])),
        provenance=". ".join([provenance, *(line.removesuffix(".") for line in data_notes(corpus.read))]),
        seconds=seconds,
        sample=Sample(
            sft_ids[:PROBED],
            train_ids[:PROBED],
            [list(each.token_ids) for each in selection],
            [each.messages for each in selection],
        ),
    )


def _check_declared(settings: Settings, parts: Mapping[str, Sequence[Ids]], prompts: Mapping[str, Any]) -> None:
    """Raise InputError for ids and positions beyond the model's configuration, where that is here."""
    from slime_ray.model.limits import declared_limits
    from slime_ray.model.loading import load_config

    config = load_config(settings.model)
    if config is None:
        return
    limits = declared_limits(config)
    for name, pairs in parts.items():
        for number, (prompt, chosen, rejected) in enumerate(pairs):
            limits.check_ids(max(prompt + chosen + rejected), f"{name} row {number}")
            length = len(prompt) + max(len(chosen), len(rejected))
            limits.check_length(length, f"{name} row {number}", f"Set data.max_tokens to {limits.positions} or less.")
    answer = settings.evaluation.decoding.max_new_tokens
    for name, prompt_set in prompts.items():
        for number, prompt in enumerate(prompt_set):
            limits.check_ids(max(prompt.token_ids, default=0), f"{name} prompt {number}")
            limits.check_answer(len(prompt.token_ids), answer, f"{name} prompt {number}")


def random_sample(material: Material, vocabulary: int, prompts: int) -> Sample:
    """Draw random tokens of the material's mean lengths, for a probe without the data."""
    chance = random.Random(0)

    def some(part: DataPart, count: int) -> list[Ids]:
        mean = [round(part.scale * sum(lengths) / len(part.lengths)) for lengths in zip(*part.lengths, strict=True)]
        return [tuple(chance.choices(range(vocabulary), k=length) for length in mean) for _ in range(count)]  # type: ignore[misc]

    sft, train = (some(part, min(PROBED, part.count)) for part in (material.sft, material.train))
    return Sample(sft, train, [prompt for prompt, *_ in some(material.train, prompts)], [])
