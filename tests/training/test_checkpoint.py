"""What a checkpoint holds, beside what trials that go on from one show."""

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from slime_ray.training import checkpoint


class Training:
    """A few steps of a model on one batch."""

    def __init__(self, *, seed: int, tied: bool):
        torch.manual_seed(seed)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                tie_word_embeddings=tied,
            )
        )  # fmt: skip
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-2)
        self.scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer)

    def step(self) -> None:
        tokens = torch.arange(12).reshape(2, 6)
        self.model(input_ids=tokens, labels=tokens).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_model_goes_on_from_its_checkpoint_whether_its_embeddings_are_tied_or_not(tmp_path, tied):
    first, again = Training(seed=0, tied=tied), Training(seed=1, tied=tied)
    first.step()
    assert checkpoint.save_checkpoint(
        tmp_path,
        step=1,
        model=first.model,
        optimizer=first.optimizer,
        scheduler=first.scheduler,
        counters={},
    )
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    with safe_open(saved.path / "model.safetensors", "pt") as file:
        assert len(list(file.keys())) == len(list(first.model.parameters()))
    checkpoint.load_weights(saved.path, again.model)
    checkpoint.load_progress(saved.path, model=again.model, optimizer=again.optimizer, scheduler=again.scheduler)
    for training in (first, again):
        training.step()
    assert (again.model.lm_head.weight is again.model.model.embed_tokens.weight) == tied
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
