"""The text of a first experiment on somebody's model and data, with a comment at every choice."""

import json
import re
from pathlib import Path

from slime_ray.config.model import lacks_template
from slime_ray.config.presets import load_preset, preset_names
from slime_ray.config.reference import LINE

MODEL = """\
  model:
    source: {model}
    dtype: {dtype}              # bfloat16 on a GPU, float32 on a CPU
    lora: {{rank: 64, alpha: 128}}   # leave it out to train every weight
"""
TEMPLATE = """\
    chat_template: chatml      # its tokenizer has none; or `tokenizer: ID` of the instruction-tuned version
"""
SFT = """\
  sft: {learning_rate: 2e-4, epochs: 1}   # stage 1 on part of the chosen answers; null starts from the model as it is
"""
FILE = """\
{line}
# {model} on {data}. `slime-ray check` validates it, `slime-ray plan` says what it takes, `slime-ray sweep` runs it.
name: {name}
preset: {preset}   # `slime-ray presets` lists them; `base` lies over it
base:
{base}\
  data:
    train: {data}
    split: train              # a file has this one split
    held_out_pairs: {held_out}       # measured on, never trained on; prompts to answer are theirs
  training: {{pairs_per_update: {per_update}, epochs: 1}}   # of one step of the optimizer; the paper's is 128
  evaluation:
    judge: none               # no win rate; see `slime-ray reference judge` for a reward model, an endpoint, a scorer
    prompts: {prompts}
    selection_prompts: {selection}
    decoding: {{temperature: 0.7, max_new_tokens: 512}}
arms:                         # rows of the table, each with every seed
  sft: {{training.updates: 0}}
  dpo: {{objective: {{name: dpo, beta: 0.1}}}}
  slime: {{}}
seeds: [0, 1]                 # five say something of the method, fewer of these checkpoints
search:                       # leave it out, and budget, to search nothing
  training.learning_rate: {{log_uniform: [1e-6, 1e-4]}}
  objective.anchor_weight: {{log_uniform: [0.01, 2.0]}}
  objective.stabilizer_strength: {{log_uniform: [1e-4, 0.3]}}
goals: {{preference_accuracy: maximize, stability: maximize}}   # win_rate needs a judge
budget: {{trials: 8, confirm: {{best: 1, seeds: 2}}}}
resources: {{gpu_per_worker: {gpus}}}   # of one trial
"""
FEWEST_PAIRS = 20
"""With fewer there is nothing to train on, hold out and answer."""


def first_experiment(model: str, data: str, *, name: str, pairs: int | None, gpu: bool) -> str:
    """Write a first experiment.

    Args:
        model: A folder, a .gguf file or a Hub id. A family that ships brings its preset.
        data: A file, a folder or a Hub id.
        name: Of the run.
        pairs: That the data has; None where it was not read.
        gpu: Whether trials have one.

    Returns:
        YAML that `slime-ray check` accepts.
    """
    family = next((preset for preset in preset_names() if _source(preset) == model), None)
    template = TEMPLATE if lacks_template(Path(model).expanduser()) else ""
    model_part = MODEL.format(model=_quote(model), dtype="bfloat16" if gpu else "float32") + template + SFT
    base = "" if family else model_part
    held_out = min(1000, (pairs or 5000) // 5)
    # Two dozen updates or more, where the data has pairs for them: a third of the others is for SFT.
    per_update = next((size for size in (128, 64, 32, 16) if pairs is None or pairs - held_out >= 36 * size), 8)
    return FILE.format(
        line=LINE, model=_quote(model), data=_quote(data), name=name, base=base,
        preset=f"{family}/paper" if family else "paper",
        held_out=held_out, per_update=per_update,
        prompts=min(512, held_out // 2), selection=min(256, held_out // 4), gpus=int(gpu),
    )  # fmt: skip


def run_name(data: str) -> str:
    """A name of the run that says which data it is about."""
    letters = (letter if letter.isalnum() and letter.isascii() else "-" for letter in Path(data).stem)
    return "".join(letters).strip("-") or "first"


def _quote(text: str) -> str:
    """As YAML has it: in quotes where that could read something else."""
    return text if re.fullmatch(r"[A-Za-z./~][\w./-]*", text) else json.dumps(text, ensure_ascii=False)


def _source(preset: str) -> str | None:
    model = load_preset(preset)["base"].get("model") or {}
    source = model.get("source")
    return str(source) if source else None
