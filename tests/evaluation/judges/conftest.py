"""A judge that asks the test server, and a reward model with random weights."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from slime_ray.data.tasks import load_task
from slime_ray.evaluation.judges import asking
from slime_ray.evaluation.judges.asking import Asker
from slime_ray.evaluation.judges.base import Judge
from slime_ray.evaluation.judges.batches import BatchAsker
from slime_ray.evaluation.judges.endpoint import Endpoint
from slime_ray.evaluation.judges.llm import PairwiseLlmJudge, RatingLlmJudge
from slime_ray.evaluation.verdict_cache import Verdicts
from slime_ray.model.tiny import tiny_tokenizer

from .judge_server import KEY, VARIABLE, JudgeServer, serving, settings

LlmJudge = Callable[..., Judge]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setattr(asking, "FIRST_WAIT", 1e-3)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with serving() as server:
        yield server


@pytest.fixture
def verdicts(tmp_path: Path) -> Verdicts:
    return Verdicts(tmp_path / ".verdicts", run="first")


@pytest.fixture
def llm(verdicts: Verdicts) -> LlmJudge:
    def build(server: JudgeServer | str, *, offline: bool = False, kept: Verdicts = verdicts, **changes: Any) -> Judge:
        chosen = settings(server, **changes)
        asking = BatchAsker if chosen.mode == "batch" else Asker
        asker = asking(chosen, verdicts=kept, endpoint=None if offline else Endpoint(chosen))
        return PairwiseLlmJudge(chosen, asker) if chosen.template.pairwise else RatingLlmJudge(chosen, asker)

    return build


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with one label, and the tokenizer of the embedded arithmetic task. It knows 256 positions."""
    folder = tmp_path_factory.mktemp("reward")
    tokenizer = tiny_tokenizer(load_task("arithmetic"))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
