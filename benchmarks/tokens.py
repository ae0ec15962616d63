"""What processes cost on many pairs: a plan, the first trial, the next, and one of DPO, which needs a reference."""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from slime_ray.bench.machine import Say
from slime_ray.bench.report import Report, machine
from slime_ray.errors import RunError

from .common import run

WORDS = 4000
VOCABULARY = 4096
LENGTHS = (90, 140, 140)
"""Mean words of a prompt, a chosen and a rejected completion; a word is about a token."""
EXPERIMENT = """\
name: {name}
base:
  model: {{source: {folder}/model, chat_template: chatml}}
  data: {{train: {folder}/pairs.jsonl, sft_fraction: 0.0, held_out_pairs: 256}}
  objective: {{name: {objective}}}
  training: {{learning_rate: 1.0e-4, updates: 2, pairs_per_update: 16, evaluations: 1}}
  sentinel: {{action: none}}
  evaluation: {{prompts: 2, selection_prompts: 2, kl_prompts: 2, decoding: {{max_new_tokens: 4}}}}
arms: {{only: {{}}}}
seeds: [0]
goals: {{stability: maximize}}
"""


def measure_pairs(pairs: int, say: Say) -> Iterator[Report]:
    """Make up pairs and a tiny model, plan and train on them in processes, one after the other."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, rows = Path(scratch), []
        say(f"writing {pairs:,} pairs")
        write_pairs(folder / "pairs.jsonl", pairs)
        write_model(folder / "model", folder / "pairs.jsonl")
        # The first trial makes the stages that the later ones find.
        for name, objective in (("plan", "slime"), ("first", "slime"), ("next", "slime"), ("dpo", "dpo")):
            say(f"running: {name}")
            rows.append({"process": name, "pairs": pairs, **_run(folder, name, objective)})
    yield Report("processes on many pairs", machine(), rows)


def write_pairs(path: Path, pairs: int) -> None:
    """Write pairs of made-up words, of lengths about those of answers to instructions."""
    chance = random.Random(0)
    syllables = [first + second for first in "bcdfghklmnprstvz" for second in "aeiou"]
    words = ["".join(chance.choices(syllables, k=chance.randint(1, 4))) for _ in range(WORDS)]
    weights = [1 / (rank + 10) for rank in range(WORDS)]

    def text(mean: int) -> str:
        return " ".join(chance.choices(words, weights, k=max(2, round(mean * chance.lognormvariate(-0.245, 0.7)))))

    with path.open("w", encoding="utf-8") as file:
        for number in range(pairs):
            prompt, chosen, rejected = map(text, LENGTHS)
            file.write(json.dumps({"prompt": f"{number} {prompt}", "chosen": chosen, "rejected": rejected}) + "\n")


def write_model(folder: Path, text: Path) -> None:
    """Write a Llama of two narrow layers, and a byte-level tokenizer trained on the beginning of a file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with text.open(encoding="utf-8") as file:
        tokenizer.train_from_iterator((line for line, _ in zip(file, range(3000), strict=False)), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def _run(folder: Path, name: str, objective: str) -> dict[str, float]:
    """Run one trial, or plan it, in a process of its own, with the stages of those before it."""
    file = folder / f"{name}.yaml"
    file.write_text(EXPERIMENT.format(name=name, folder=folder, objective=objective), encoding="utf-8")
    doing = ["plan", str(file)] if name == "plan" else ["train", str(file), "--storage", str(folder / "runs")]
    command, clock = [sys.executable, "-m", "slime_ray", *doing], time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RunError(f"The trial {name} ended with status {process.returncode}.")
    cpu, wall = usage.ru_utime + usage.ru_stime, time.perf_counter() - clock
    return {"CPU seconds": cpu, "wall seconds": wall, "peak MiB": usage.ru_maxrss / 1024}


if __name__ == "__main__":
    run("tokens", __doc__ or "", {"pairs": (61_135, 512, "pairs of the file")}, measure_pairs)
