"""A plan that reads data refuses ids and positions that the model's configuration does not have."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config

from slime_ray.config.settings import Settings
from slime_ray.data.tasks import load_task
from slime_ray.errors import InputError
from slime_ray.model.tiny import tiny_tokenizer
from slime_ray.planning.material import read_material

TOKENIZER = tiny_tokenizer(load_task("arithmetic"))
IDS = len(TOKENIZER)


def settings_of(folder: Path, config: Any, **decoding: Any) -> Settings:
    """Settings for a model without weights, and for thirty short pairs."""
    config.save_pretrained(folder / "m")
    TOKENIZER.save_pretrained(folder / "m")
    rows = [{"prompt": f"{n % 10} + {n // 10}", "chosen": "1 + 2 + 3", "rejected": "4"} for n in range(30)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Settings.model_validate(
        {
            "model": {"source": str(folder / "m")},
            "data": {"train": str(folder / "pairs.jsonl"), "held_out_pairs": 4},
            "objective": {"name": "slime"},
            "sft": None,
            "training": {"learning_rate": 1e-3, "updates": 1},
            "evaluation": {"judge": "none", "prompts": 2, "selection_prompts": 2, "decoding": decoding},
        }
    )


@pytest.mark.parametrize(
    ("config", "answer", "message"),
    [
        ({"vocab_size": IDS, "n_positions": 64}, 32, None),
        ({"vocab_size": 9}, 4, r"train row 0: a token has id \d+, and the model has 9 ids, 0 to 8"),
        ({"vocab_size": IDS, "n_positions": 8}, 4, r"train row 0 has \d+ tokens, more than the model's 8 positions"),
        ({"vocab_size": IDS, "n_positions": 40}, 39, "prompt 0 with an answer of 39 tokens has .* the model's 40"),
    ],
    ids=["what fits", "ids", "pairs", "answers"],
)
def test_what_the_model_lacks_is_refused(tmp_path, config, answer, message):
    settings = settings_of(tmp_path, GPT2Config(**config, n_embd=8, n_layer=1, n_head=1), max_new_tokens=answer)
    with pytest.raises(InputError, match=message) if message else nullcontext():
        assert read_material(settings).train.count > 10
