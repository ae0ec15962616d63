"""The model card of an exported policy: what it is, what it measured, and an experiment that repeats it."""

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from slime_ray.config.model import Model
from slime_ray.config.settings import Settings
from slime_ray.data.places import may_be_hub_id
from slime_ray.runs.inputs import user_code_names
from slime_ray.runs.redaction import redact
from slime_ray.training.adapters import base_named

CARD = """\
---
{metadata}
---

# {title}

{kind} Trained by slime_ray {version}: trial `{trial}` of the run `{run}`.

| | |
| --- | --- |
{rows}

## Use

```python
{use}
```

## Repeat

With `pip install slime-ray=={version}` and this as `experiment.yaml`, `slime-ray train experiment.yaml` trains it
again. It looks for files by their names, in the folder where it is started.{notes}

```yaml
{experiment}```

## Cite

SLIME: Stabilized Likelihood Implicit Margin Enforcement for Preference Optimization, arXiv 2602.02383, is the paper of
the objective that slime_ray studies. Cite the software by its version, and the base model and the data by their own
cards.
"""


USE = """\
from transformers import pipeline

pipeline("text-generation", "{name}")([{{"role": "user", "content": "..."}}])"""
QUANTIZED = """\
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, BitsAndBytesConfig, pipeline

config = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="{type}", bnb_4bit_use_double_quant={double},
    bnb_4bit_compute_dtype=torch.{dtype},
)
lm = AutoPeftModelForCausalLM.from_pretrained("{name}", dtype=torch.{dtype}, quantization_config=config)
tokenizer = AutoTokenizer.from_pretrained("{name}")
pipeline("text-generation", lm, tokenizer=tokenizer)([{{"role": "user", "content": "..."}}])"""
"""On the base that it was trained on. On the unquantized one the adapter computes something else."""


def model_card(
    settings: Settings, row: Mapping[str, Any], *, run: str, name: str, adapter: bool, facts: Mapping[str, str]
) -> ModelCard:
    """Write the card of a trial's policy, without secrets and without folders of this machine.

    Args:
        settings: Of the trial.
        row: The trial's row of the results.
        run: The run's name.
        name: What the model is called.
        adapter: Whether an adapter is exported, instead of a whole model.
        facts: Rows of the card's table, such as the trial's row of the report.
    """
    model, data, objective = settings.model, settings.data, settings.objective.name
    base = base_named(settings)[0]
    names = _file_names([settings.model_dump(mode="json", exclude_unset=True), base])
    source, data_sets = _portable_value(base, names), [each.source for each in data.sources]
    on_hub = [name for name in data_sets if not data.task and _of_hub(name)]
    metadata = ModelCardData(
        # On the Hub these link to repositories, which local files and embedded tasks have none of.
        base_model=source if not model.task and _of_hub(base) else None,
        datasets=on_hub or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["slime-ray", "preference-optimization", objective, *(["lora"] if adapter else [])],
    )
    knobs = json.loads(row.get("overrides") or "{}")
    update = f"of update {row.get('kept_update')} of {row.get('updates')}" if settings.kept_by else ""
    packages = ["slime-ray", "torch", "transformers", "peft", *(["bitsandbytes"] if model.quantization else [])]
    rows = {
        "base model": source,
        **({"went on from": _portable_value(model.source, names)} if model.kept else {}),
        **({"base weights": _bits(model)} if model.quantization else {}),
        "preference data": ", ".join(_portable_value(data_sets, names)),
        "method": f"{'SFT, then ' if settings.sft else ''}{objective}",
        **{f"`{knob}`": f"`{json.dumps(_portable_value(value, names))}`" for knob, value in knobs.items()},
        **({"weights": f"{update}, whose {settings.kept_by[0]} was best"} if settings.kept_by else {}),
        **facts,
        "versions": ", ".join(f"{package} {version(package)}" for package in packages),
    }
    kind = f"A LoRA adapter on {source} (peft)." if adapter else "A whole model."
    if adapter and settings.sft:
        kind = f"A LoRA adapter on {source} (peft): SFT and preference training in one."
    return ModelCard(
        CARD.format(
            metadata=metadata.to_yaml(),
            title=name,
            kind=kind,
            version=version("slime-ray"),
            trial=row["trial_id"],
            run=run,
            rows="\n".join(f"| {key} | {value} |" for key, value in rows.items()),
            use=(QUANTIZED if model.quantization else USE).format(
                name=name, type=model.quantization, double=model.double_quantization, dtype=model.dtype
            ),
            notes="".join(f" {note}" for note in _notes(settings, names)),
            experiment=_experiment(settings, row, names),
        )
    )


def _bits(model: Model) -> str:
    double = " with double quantization" if model.double_quantization else ""
    return f"4-bit {model.quantization}{double}, by bitsandbytes"


def _notes(settings: Settings, names: Mapping[str, str]) -> Iterator[str]:
    if any(Path(path).name != file_name for path, file_name in names.items()):
        yield "Different files of one name are numbered."
    if code := sorted(user_code_names(settings)):
        yield f"It imports {', '.join(f'`{name}`' for name in code)} from there, too."


def _experiment(settings: Settings, row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    base = _portable_value(settings.model_dump(mode="json", exclude_unset=True), names, here="./")
    arm = row["label"] if row.get("phase") == "arm" else "policy"
    content = {"name": "repeated", "base": base, "arms": {arm: {}}, "seeds": [row["seed"]]}
    if settings.evaluation.judge.name == "none":
        # The goals that are set by default need one.
        content["goals"] = {"preference_accuracy": "maximize", "stability": "maximize"}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _of_hub(source: str) -> bool:
    return may_be_hub_id(source) and not Path(source).exists()


def _file_names(value: Any) -> dict[str, str]:
    """The names of all files of this machine in a setting, by path. A further one of the same name gets a number."""
    names: dict[str, str] = {}
    for path in dict.fromkeys(_paths(value)):
        stem, dot, suffix = Path(path).name.partition(".")
        numbered = (f"{stem}{'' if number == 1 else f'-{number}'}{dot}{suffix}" for number in count(1))
        names[path] = next(name for name in numbered if name not in names.values())
    return names


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, (Mapping, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _paths(item)
    elif isinstance(value, str) and Path(value).is_absolute():
        yield value


def _portable_value(value: Any, names: Mapping[str, str], *, here: str = "") -> Any:
    """Return a setting without secrets, and with files by their `names` alone, after `here`."""
    if isinstance(value, Mapping):
        return redact({key: _portable_value(item, names, here=here) for key, item in value.items()})
    if isinstance(value, list):
        return [_portable_value(item, names, here=here) for item in value]
    if isinstance(value, str):
        # Of a searched knob's value, such as another model, the name is no setting's.
        text = redact(names.get(value, Path(value).name if Path(value).is_absolute() else value))
        return f"{here}{text}" if Path(value).is_absolute() else text
    return value
