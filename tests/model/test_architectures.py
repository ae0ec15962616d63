"""Every causal family of transformers: log-probabilities and answers are transformers' own in every state, or refused.

The reference is transformers alone: the same weights loaded anew, eager attention, one unpadded sequence at a time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from slime_ray.config.evaluation import Decoding
from slime_ray.config.model import Model
from slime_ray.config.settings import Schedule
from slime_ray.data.packing import pack
from slime_ray.data.pairs import TokenPair
from slime_ray.errors import InputError
from slime_ray.evaluation.generate import generate_answers
from slime_ray.model.decoder import decoder_of
from slime_ray.model.loading import load_checkpoint, load_model
from slime_ray.model.logprobs import Policy
from slime_ray.objectives import SftObjective, SlimeObjective
from slime_ray.training.trainer import GO_ON, PreferenceTrainer

from .conftest import all_alone
from .families import FAMILIES, VOCABULARY, Family, families_table, tiny_family

FAST = ("granite", "cohere2", "gemma2", "gpt2")
DECODING = Decoding(temperature=0.0, max_new_tokens=4, batch=4)


class NoTokenizer:
    """What answering asks of a tokenizer."""

    pad_token_id = 0
    all_special_ids = ()

    def decode(self, ids: Any, **options: Any) -> str:
        return ""


def draw(count: int, seed: int) -> list[TokenPair]:
    """Pairs of lengths far apart, longer and shorter than the windows."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    return [TokenPair(ids(2, 15), ids(1, 30), ids(1, 20)) for _ in range(count)]


PAIRS = draw(5, seed=3)


def reference(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


@torch.no_grad()
def ours(policy: Policy) -> torch.Tensor:
    policy.eval()
    logps = policy(pack(PAIRS, shared_prompt=policy.shares_prompts))
    return torch.cat([logps.chosen, logps.rejected])


def difference(policy: Policy, lm: Any) -> float:
    """The largest, in nat a token, between a policy and a model's own logits."""
    return float((ours(policy) - theirs(lm)).abs().max())


@torch.no_grad()
def theirs(lm: Any) -> torch.Tensor:
    return all_alone(lm, PAIRS)


def train(policy: Policy, objective: Any, scratch: Path) -> None:
    PreferenceTrainer(
        policy=policy,
        objective=objective,
        pairs=draw(8, seed=4),
        schedule=Schedule(learning_rate=1e-3, updates=2),
        pairs_per_update=4,
        row_tokens=120,
        seed=0,
        scratch=scratch,
        after_update=lambda step, metrics: GO_ON,
    ).train()


@torch.no_grad()
def plain_loop(lm: Any, prompt: Sequence[int], stop: int) -> tuple[int, ...]:
    """The likeliest token, again and again: no padding, no cache."""
    ids: list[int] = []
    while len(ids) < DECODING.max_new_tokens:
        token = int(lm(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, -1].argmax())
        if token == stop:
            break
        ids.append(token)
    return tuple(ids)


def save(lm: Any, folder: Path) -> Path:
    lm.save_pretrained(folder)
    return folder


def outcome(family: Family, tmp_path: Path) -> tuple[str, float]:
    """Lead one family through all states; returns what became of it, and the largest difference seen."""
    first = save(tiny_family(family.model_type, **family.settings), tmp_path / "first")
    try:
        lm = load_model(Model(source=str(first)), seed=0)
        policy = Policy(lm)
        reason = policy.why_not_packed
    except InputError:
        return "refused", 0.0
    found = [difference(policy, reference(first))]
    train(policy, SftObjective(), tmp_path / "scratch")
    sft = save(lm, tmp_path / "sft")
    found.append(difference(policy, reference(sft)))
    policy = Policy(load_checkpoint(sft, dtype="float32"))
    found.append(difference(policy, reference(sft)))
    train(policy, SlimeObjective(), tmp_path / "scratch")
    slime = save(policy.lm, tmp_path / "slime")
    trained = reference(slime)
    found.append(difference(policy, trained))

    prompts = [pair.prompt_ids for pair in draw(6, seed=5)]
    answers = generate_answers(policy, NoTokenizer(), prompts, decoding=DECODING, stop_tokens=[7], seed=0)
    assert [answer.token_ids for answer in answers] == [plain_loop(trained, prompt, 7) for prompt in prompts]
    size = policy.prompts_at_a_time(10, max_new_tokens=4, batch=4)
    rows = "packed" if reason is None else "alone"
    return rows if size == 4 else f"{rows}, one at a time", max(found)


def adapted_difference(family: Family, tmp_path: Path) -> float:
    """The difference of a trained policy with adapters from the merged model, loaded anew."""
    lm = tiny_family(family.model_type, **family.settings)
    inside = decoder_of(lm)
    linear = [name for name, module in inside.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    # peft takes the first two in no state space model; a router may be a linear layer with more than one result.
    apart = ("out_proj", "conv1d", "router")
    targets = [name for name in linear if name.rsplit(".", 1)[-1] not in apart] or linear
    lm = get_peft_model(lm, LoraConfig(r=2, target_modules=targets))
    policy = Policy(lm)
    train(policy, SlimeObjective(), tmp_path / "scratch")
    adapted = ours(policy)
    merged = reference(save(lm.merge_and_unload(), tmp_path / "merged"))
    return float((adapted - theirs(merged)).abs().max())


@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=() if family.model_type in FAST else pytest.mark.slow) for family in FAMILIES],
    ids=lambda family: family.model_type,
)
def test_log_probabilities_and_answers_are_transformers_own_in_every_state(family, tmp_path):
    became, largest = outcome(family, tmp_path)
    assert became == family.outcome
    assert largest <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [family for family in FAMILIES if family.outcome != "refused"],
    ids=lambda family: family.model_type,
)
def test_adapters_compute_what_the_merged_model_computes(family, tmp_path):
    assert adapted_difference(family, tmp_path) <= 1e-5


def test_the_docs_list_what_is_tested_here():
    page = Path(__file__).parents[2] / "docs" / "models.md"
    assert families_table() in page.read_text(encoding="utf-8")
    assert len({family.model_type for family in FAMILIES}) == len(FAMILIES)
