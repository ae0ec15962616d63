"""Export a trained policy as a model folder that transformers loads without this package."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, GenerationConfig

from slime_ray.config.league import weights_at
from slime_ray.config.settings import Settings
from slime_ray.data.chat_template import stop_token_ids
from slime_ray.errors import InputError
from slime_ray.model.files import ADAPTER
from slime_ray.model.loading import base_of, load_adapter, load_checkpoint, load_tokenizer
from slime_ray.model.pretrained import read_tokenizer
from slime_ray.runs import files, results
from slime_ray.training.cache import STAGES
from slime_ray.training.stages import MADE

COMPARED = 16
"""Tokens on which the exported model is compared with the one that was exported."""

CARD = """\
---
{metadata}
---

# {title}

Trained by slime_ray {version}: trial `{trial}` of the run `{run}`.

| | |
| --- | --- |
{rows}

## Settings

```json
{settings}
```

## Use

```python
from transformers import pipeline

pipeline("text-generation", "{name}")([{{"role": "user", "content": "..."}}])
```
"""


def export_model(run: Path, trial_id: str, to: Path, *, dtype: str = "float32", facts: Mapping[str, str]) -> Path:
    """Write a trial's policy as one whole model with tokenizer, chat template, generation config and model card.

    The SFT checkpoint and the trial's adapter are merged in float32. The folder is written under another name and
    renamed once it was loaded again and computes the same.

    Args:
        run: The run's folder.
        trial_id: One of its trials that kept its model.
        to: The folder to make. It must not exist, or be empty.
        dtype: Of the weights, "float32" or "bfloat16". In bfloat16 small updates are rounded away.
        facts: Rows of the model card's table, such as the trial's row of the report.

    Returns:
        The folder.

    Raises:
        InputError: The trial or its model is not there, its SFT checkpoint is lost or another one, or `to` is taken.
    """
    folder = run / "trials" / trial_id
    row = results.finished_trial(folder) if folder.is_dir() else None
    if row is None:
        raise InputError(f"{run} has no finished trial {trial_id}. `slime-ray status {run}` lists its trials.")
    checkpoint = folder / results.MODEL
    if not checkpoint.is_dir():
        raise InputError(
            f"{trial_id} of {run} kept no model: budget.checkpoints keeps the best of a search. Run it again as an "
            "arm, with its knobs."
        )
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"--to {to}: is there already. Name a folder that is not.")
    settings = _settings(row, run)
    lm = _whole(checkpoint, run, settings)
    tokenizer = _tokenizer(checkpoint, settings)
    for parameter in lm.parameters():
        # Not the whole module: frequencies of rotary embeddings stay in float32, as they do when it is loaded.
        parameter.data = parameter.data.to(getattr(torch, dtype))
    lm.generation_config = stopping(tokenizer, stop_token_ids(tokenizer))
    to.parent.mkdir(parents=True, exist_ok=True)
    if to.is_dir():
        to.rmdir()
    with files.replacing(to) as partial:
        lm.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        _card(settings, run, trial_id, to.name, facts).save(partial / "README.md")
        _compare(lm, partial, dtype)
    return to


def _settings(row: Mapping[str, Any], run: Path) -> Settings:
    try:
        return Settings.model_validate_json(row["settings"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(
            f"{run}: its trials have settings that this version of slime_ray does not know "
            f"({'.'.join(map(str, first['loc']))}: {first['input']!r}). Export it with the version that wrote it."
        ) from None


def stopping(tokenizer: Any, stops: Sequence[int]) -> GenerationConfig:
    """Return a generation config that ends answers where this package's do, and says nothing else."""
    padding = tokenizer.pad_token_id
    return GenerationConfig(eos_token_id=list(stops), pad_token_id=stops[0] if padding is None else padding)


def _whole(checkpoint: Path, run: Path, settings: Settings) -> Any:
    """Load the trial's policy as one model in float32."""
    if not (checkpoint / ADAPTER).is_file():
        return load_checkpoint(checkpoint, dtype="float32")
    stage = run.parent / STAGES / Path(base_of(checkpoint)).name
    if not stage.is_dir():
        raise InputError(
            f"{checkpoint} is an adapter on the SFT checkpoint {stage.name}, which {run.parent / STAGES} lacks. "
            "Put the folder `.stages` back beside the run."
        )
    manifest = results.read_manifest(run) if (run / "manifest.json").is_file() else {}
    base = (manifest.get("experiment") or {}).get("base") or {}
    seed = settings.sft.seed if settings.sft else None
    own = seed is None or seed == (base.get("sft") or {}).get("seed", 0)
    expected = manifest.get("hashes", {}).get("sft_weights" if own or seed is None else weights_at(seed))
    made = json.loads((stage / MADE).read_text(encoding="utf-8")) if (stage / MADE).is_file() else {}
    if expected and made.get("sft_weights") != expected:
        raise InputError(
            f"{stage} holds other weights than those that {run.name} was trained on, which were made elsewhere or "
            "again. Put the `.stages` of that machine beside the run."
        )
    return load_adapter(load_checkpoint(stage, dtype="float32"), checkpoint, merge=True)


def _tokenizer(checkpoint: Path, settings: Settings) -> Any:
    """The tokenizer, with its chat template, that the trial was trained with."""
    if (checkpoint / "tokenizer_config.json").is_file():
        return read_tokenizer(str(checkpoint), local_files_only=True)
    return load_tokenizer(settings.model)


def _card(settings: Settings, run: Path, trial_id: str, name: str, facts: Mapping[str, str]) -> ModelCard:
    model, data = settings.model, settings.data
    source = None if model.task else model.source
    metadata = ModelCardData(
        base_model=source, library_name="transformers", pipeline_tag="text-generation",
        tags=["slime-ray", "preference-optimization", settings.objective.name],
    )  # fmt: skip
    rows = {
        "base model": model.source,
        "preference data": data.train,
        "objective": settings.objective.name,
        **facts,
        "versions": ", ".join(f"{package} {version(package)}" for package in ("slime-ray", "torch", "transformers")),
    }
    text = CARD.format(
        metadata=metadata.to_yaml(),
        title=name,
        version=version("slime-ray"),
        trial=trial_id,
        run=run.name,
        rows="\n".join(f"| {key} | {value} |" for key, value in rows.items()),
        settings=settings.model_dump_json(include={"objective", "training", "sft"}, indent=2),
        name=name,
    )
    return ModelCard(text)


@torch.no_grad()
def _compare(lm: Any, folder: Path, dtype: str) -> None:
    """Raise InputError unless the written model computes what the one in memory does."""
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True).eval()
    ids = torch.arange(min(COMPARED, again.get_input_embeddings().weight.shape[0]))[None]
    one, two = (model.eval()(input_ids=ids.to(model.device)).logits.float().cpu() for model in (lm, again))
    if not torch.equal(one, two):
        share = float((one - two).norm() / one.norm())
        if not share <= 1e-5:
            raise InputError(
                f"The exported model computes something else (its logits change by {share:.2g}). Report this."
            )
