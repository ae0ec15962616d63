"""One rank of a training run over gloo; started by test_ranks.py. Prints nothing; rank 0 writes what it saw."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback

from slime_ray.config.settings import Schedule
from slime_ray.data.pairs import TokenPair
from slime_ray.model.logprobs import Policy
from slime_ray.model.sharding import shard
from slime_ray.objectives import DpoObjective, DpoShiftObjective, ReleasedSlimeObjective, SlimeObjective
from slime_ray.training.trainer import Metrics, Next, PreferenceTrainer

CONFIG = LlamaConfig(
    vocab_size=41, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, head_dim=8
)


def draw_pairs(count: int) -> list[TokenPair]:
    generator = torch.Generator().manual_seed(0)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(1, 41, (length,), generator=generator).tolist()

    return [TokenPair(ids(3, 8), ids(1, 9), ids(1, 9), -3.0 - n, -4.0 - n) for n in range(count)]


class KeepGradients(TrainerCallback):
    """Copies the gradients that each optimizer step is about to use."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.kept.append(torch.cat([parameter.grad.flatten().clone() for parameter in model.parameters()]))


def run(row_tokens: int, scratch: Path, *, sharded: bool = False) -> dict[str, torch.Tensor]:
    """Losses and gradient norms of each update. 19 pairs at 8 an update: the last holds 3, fewer than 4 ranks.

    Gradients themselves are added where every rank holds all of them.
    """
    found: dict[str, torch.Tensor] = {}
    scheduled = DpoShiftObjective(shift=0.5, schedule="linear")
    for objective in (SlimeObjective(), DpoObjective(), ReleasedSlimeObjective(micro_batch_pairs=3), scheduled):
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(CONFIG, attn_implementation="sdpa").double()
        policy = Policy(lm)
        if sharded:
            shard(policy)
        seen: list[list[float]] = []
        gradients = KeepGradients()

        def after_update(step: int, metrics: Metrics, seen: list[list[float]] = seen) -> Next:
            seen.append([metrics["loss"], metrics["grad_norm"]])
            return Next()

        trainer = PreferenceTrainer(
            policy=policy,
            objective=objective,
            pairs=draw_pairs(19),
            schedule=Schedule(learning_rate=1e-6, updates=3),
            pairs_per_update=8,
            row_tokens=row_tokens,
            seed=0,
            scratch=scratch,
            after_update=after_update,
        )
        if not sharded:
            trainer.add_callback(gradients)
        trainer.train()
        losses, norms = torch.tensor(seen, dtype=torch.float64).T
        found[f"{objective.name} loss"], found[f"{objective.name} norm"] = losses, norms
        if not sharded:
            found[f"{objective.name} gradients"] = torch.stack(gradients.kept)
        found[f"{objective.name} seen"] = torch.tensor([trainer.pairs_seen, trainer.tokens_seen])
    return found


if __name__ == "__main__":
    folder, how, sizes = Path(sys.argv[1]), sys.argv[2], map(int, sys.argv[3:])
    torch.set_num_threads(1)
    if how == "fsdp2":
        torch.distributed.init_process_group("gloo")
    results = {row_tokens: run(row_tokens, folder / "scratch", sharded=how == "fsdp2") for row_tokens in sizes}
    if os.environ["RANK"] == "0":
        torch.save(results, folder / "found.pt")
    torch.distributed.destroy_process_group()
