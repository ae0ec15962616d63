"""Complaints of pydantic as sentences: what is wrong where in a file, and the way out."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from slime_ray.config.ablation import DESIGNS
from slime_ray.config.data_source import DataSource
from slime_ray.config.judge import JUDGE_SETTINGS
from slime_ray.config.model import PEFT_FIELDS
from slime_ray.config.settings import OBJECTIVE_SETTINGS
from slime_ray.config.space import Dimension
from slime_ray.config.yaml_source import Complaint, KeyPath, YamlSource
from slime_ray.errors import near


@dataclass(frozen=True)
class FilePart:
    """A part of a file, or all of it, whose complaints name their place in the file.

    at: where the part stands. elsewhere: places of what it takes from other parts, by a key on the way there.
    """

    source: YamlSource
    at: KeyPath = ()
    elsewhere: Mapping[str, KeyPath] = field(default_factory=dict)

    def place(self, keys: KeyPath) -> KeyPath:
        """Where a key of the part stands in the file."""
        return next((place for key, place in self.elsewhere.items() if key in keys), (*self.at, *keys))

    def error(self, keys: KeyPath, sentence: str) -> Complaint:
        """The error of what is wrong at a key of the part."""
        return self.source.error((self.place(keys), sentence))

    def check(self, model: Any, value: Any, keys: KeyPath, *, where: str = "") -> Any:
        """Validate a value that stands at a key of the part. Raises Complaint."""
        try:
            return TypeAdapter(model).validate_python(value)
        except ValidationError as error:
            at = self.place(keys)
            complaints = [((*at, *inner), where + sentence) for inner, sentence in explain(error, model)]
            raise self.source.error(*complaints) from None


def explain(error: ValidationError, model: Any) -> list[tuple[KeyPath, str]]:
    """Where each complaint of a validation lies and what it says, as `path: what is wrong. The way out`.

    Of several at one place, such as those of a union, the first is kept. Unknown keys come first.
    """
    complaints = sorted(error.errors(), key=lambda item: item["type"] not in ("extra_forbidden", "union_tag_invalid"))
    # A misspelt key leaves the right one missing.
    typo_places = {complaint["loc"][:-1] for complaint in complaints if complaint["type"] == "extra_forbidden"}
    sentences: dict[tuple[str | int, ...], tuple[KeyPath, str]] = {}
    for complaint in complaints:
        if complaint["type"] != "missing" or complaint["loc"][:-1] not in typo_places:
            place = _without_tags(key for key in complaint["loc"] if key not in _NOISE)
            sentences.setdefault(place, _sentence(complaint, place, model))
    return list(sentences.values())


def _sentence(complaint: Any, keys: KeyPath, model: Any) -> tuple[KeyPath, str]:
    path = ".".join(map(str, keys)) or "the file"
    value = complaint.get("input")
    kind, context = complaint["type"], complaint.get("ctx", {})
    if kind == "extra_forbidden":
        if (setting := FOREIGN_KEYS.get(str(keys[-1]))) is not None:
            return keys, f"{path}: unknown key. Here it is {setting}"
        allowed = _sibling_keys(model, complaint["loc"])
        return keys, f"{path}: unknown key{near(str(keys[-1]), allowed)}"
    if kind == "missing":
        return keys[:-1], f"{path} is missing. Add it, or a preset that has it"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag, options = (
            context["discriminator"].strip("'"),
            _TAGGED[[str(key) for key in keys if not isinstance(key, int)][-1]],
        )
        if kind == "union_tag_not_found":
            return keys, f"{path}.{tag} is missing. Give one of: {', '.join(options)}"
        return (*keys, tag), f"{path}.{tag} is {context['tag']!r}{near(context['tag'], options)}"
    if kind == "literal_error" and isinstance(value, str):
        return keys, f"{path} is {value!r}{near(value, re.findall(QUOTED_WORD, context['expected']))}"
    if kind == "value_error":
        message = str(context["error"])
        field = message.split(" ", 1)[0].rstrip(":")
        if keys and field.isidentifier() and keys[-1] != field and keys[-1] == "objective":
            return (*keys, field), f"{path}.{message}"
        return keys, f"{path}: {message}" if keys else message
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        example = _example_text(keys, value)
        return keys, f"{path} is {value!r:.200}, and a mapping of keys to values is expected{example}"
    text = f"{complaint['msg'][0].lower()}{complaint['msg'][1:]}"
    if kind in ("string_type", "literal_error") and isinstance(value, bool):
        return keys, f"{path} is {value}: {text}. YAML reads yes, no, on and off as true and false: put it in quotes"
    if kind == "too_short" and not value:
        return keys, f"{path} is {value!r}. Give it {context['min_length']} or more, or leave it out"
    if kind == "string_too_long":
        limit = context["max_length"]
        return keys, f"{path:.20}: {str(value)[:40]}... has {len(str(value))} characters, and {limit} are the limit"
    if kind == "string_pattern_mismatch":
        way_out = "Use letters, digits, dots, dashes and underscores, a letter or digit first"
        return keys, f"{path:.60} is {value!r:.200}. {way_out}"
    return keys, f"{path} is {value!r:.200}: {text}"


def _example_text(keys: KeyPath, value: Any) -> str:
    """An example of the mapping that is expected, made of the words of a list where these can be its keys."""
    key, parent = ([""] * 2 + [str(key) for key in keys])[:-3:-1]
    words = value if isinstance(value, list) and all(isinstance(word, str) for word in value) else []
    example = _MAPPINGS.get(key, _MAPPINGS.get(f"{parent}.", ""))
    if words and key in ("entries", "arms"):
        entries = [f"{word}: {'{}' if key == 'entries' else f'{{objective.name: {word}}}'}" for word in words]
        example = f"{{{', '.join(entries)}}}"
    return f", such as {key}: {example}" if example else ""


_MAPPINGS = {
    "entries": "{dpo: {}, ipo: {}}",
    "entries.": "{}",
    "arms": "{slime: {}, dpo: {objective.name: dpo}}",
    "arms.": "{objective.name: dpo}",
    "grid": "{objective.beta: [0.1, 0.5]}",
    "search": "{objective.beta: {log_uniform: [0.01, 1.0]}}",
    "across": "{sft.seed: [0, 1, 2]}",
    "goals": "{win_rate: maximize}",
    "set": "{objective.name: dpo}",
    "league": "{trials: 16, entries: {dpo: {}, ipo: {}}}",
    "base": "{data: {train: pairs.jsonl}}",
    "model": "{source: FOLDER}",
    "data": "{train: pairs.jsonl}",
    "lora": "{rank: 64}",
    "budget": "{trials: 16}",
    "objective": "{name: dpo}",
    "judge": "{name: exact}",
    "ablate": "{design: leave_one_out}",
}
"""Examples of mappings by their key; with a dot, of those that are below it."""


FOREIGN_KEYS = {
    **{peft_name: f"model.lora.{name}" for peft_name, name in PEFT_FIELDS.items()},
    "lora_r": "model.lora.rank",
    "lora_target_modules": "model.lora.targets",
    "modules_to_save": "model.lora.train_head",
    "model_name_or_path": "model.source",
    **dict.fromkeys(("torch_dtype", "bf16"), "model.dtype"),
    **dict.fromkeys(("load_in_4bit", "bnb_4bit_quant_type"), "model.quantization: nf4"),
    **dict.fromkeys(("use_bnb_nested_quant", "bnb_4bit_use_double_quant"), "model.double_quantization"),
    "attn_implementation": "model.attention",
    "dataset_name": "data.train",
    "dataset_config": "data.subset",
    "max_length": "data.max_tokens",
    "max_prompt_length": "data.max_prompt_tokens",
    **dict.fromkeys(
        ("per_device_train_batch_size", "gradient_accumulation_steps"),
        "training.pairs_per_update, over all workers; data.row_tokens limits a micro-batch",
    ),
    "num_train_epochs": "training.epochs",
    "max_steps": "training.updates",
    "lr": "training.learning_rate",
    "lr_scheduler_type": "training.schedule",
    "warmup_ratio": "training.warmup_fraction",
    "eval_steps": "training.evaluations, how many",
    "save_steps": "faults.checkpoint_minutes",
    "loss_type": "objective.name",
    "report_to": "trackers",
    "run_name": "name",
    "n_trials": "budget.trials",
    **dict.fromkeys(("direction", "directions"), "goals: {win_rate: maximize}"),
    "loguniform": "log_uniform: [low, high]",
    **dict.fromkeys(("low", "high"), "uniform: [low, high]"),
    "log": "log_uniform: [low, high]",
    "categorical": "choice: [a, b]",
}
"""Keys of TRL, transformers, peft, Ray Tune and Optuna, and what they are called here."""
QUOTED_WORD = r"'([^']*)'"
_NOISE = ("int", "float", "str", "bool", "[key]", "literal['auto']", "constrained-int")


_TAGGED: Mapping[str, Mapping[str, Any]] = {
    "objective": OBJECTIVE_SETTINGS,
    "judge": JUDGE_SETTINGS,
    "judges": {name: kind for name, kind in JUDGE_SETTINGS.items() if name not in ("none", "panel")},
    "ablate": DESIGNS,
    "train": {"list": DataSource},
}
"""Keys whose value is one of several models, by a word in it, which pydantic puts behind the key."""


def _without_tags(keys: Iterable[str | int]) -> KeyPath:
    path: list[str | int] = []
    last: str | int = ""
    for key in keys:
        if key not in _TAGGED.get(str(last), ()):
            path.append(key)
        # A place in a list stands for the list.
        last = last if isinstance(key, int) else key
    return tuple(path)


def _sibling_keys(model: Any, loc: tuple[Any, ...]) -> list[str]:
    """The keys that are allowed where the last key of `loc` stands."""
    # A place in a list stands for the list.
    loc = tuple(key for key in loc if not isinstance(key, int))
    for parent, key in zip(("", *loc), loc[:-1], strict=False):
        if key in _TAGGED.get(str(parent), ()):
            model = _TAGGED[str(parent)][str(key)]
            continue
        field = getattr(model, "model_fields", {}).get(key)
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((item for item in candidates if hasattr(item, "model_fields")), Dimension)
    return list(getattr(model, "model_fields", {}))
