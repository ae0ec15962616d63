"""One rank that trains a model with a vision tower in bfloat16; started by test_precision.py. Rank 0 writes losses."""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma3Config

from slime_ray.config.model import Lora, Model
from slime_ray.config.settings import Schedule
from slime_ray.model.loading import make_policy
from slime_ray.model.lora import make_trainable
from slime_ray.objectives import SlimeObjective
from slime_ray.training.policies import to_device
from slime_ray.training.trainer import Metrics, Next, PreferenceTrainer
from slime_ray.world import World
from tests.training.rank_worker import draw_pairs

TEXT: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
IMAGES: dict[str, Any] = {
    "mm_tokens_per_image": 4,
    "image_token_index": 47,
    "boi_token_index": 46,
    "eoi_token_index": 45,
}


def tower_model() -> Any:
    """A tiny Gemma3ForConditionalGeneration in bfloat16."""
    torch.manual_seed(0)
    config = Gemma3Config(text_config=TEXT, vision_config=VISION, **IMAGES)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def losses(lora: Lora | None, scratch: Path, *, sharded: bool = False) -> torch.Tensor:
    """Train two updates."""
    settings = Model(source="x", dtype="bfloat16", lora=lora)
    policy = to_device(make_policy(make_trainable(tower_model(), lora), settings), sharded=sharded)
    seen: list[float] = []

    def after_update(step: int, metrics: Metrics) -> Next:
        seen.append(metrics["loss"])
        return Next()

    trainer = PreferenceTrainer(
        policy=policy,
        objective=SlimeObjective(),
        pairs=draw_pairs(8),
        schedule=Schedule(learning_rate=1e-3, updates=2),
        pairs_per_update=8,
        row_tokens=32,
        seed=0,
        scratch=scratch,
        after_update=after_update,
    )
    trainer.train()
    return torch.tensor(seen)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    lora = Lora(rank=2, alpha=4.0, train_head=True)
    found = {
        "ddp": losses(lora, folder / "scratch"),
        "fsdp2": losses(lora, folder / "scratch", sharded=True),
        "ddp, whole": losses(None, folder / "scratch"),
        "fsdp2, whole": losses(None, folder / "scratch", sharded=True),
    }
    if World.current().main:
        torch.save(found, folder / "losses.pt")
    torch.distributed.destroy_process_group()
