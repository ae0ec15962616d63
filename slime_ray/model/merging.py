"""Adapters of peft that are laid on the model they were trained on: whole, or not at all."""

import dataclasses
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoConfig

from slime_ray.errors import is_memory_error
from slime_ray.model.files import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    FileFault,
    check_adapter,
    check_folder,
    check_texts,
    read_object,
    weight_dtypes,
)
from slime_ray.model.lora import untie_head
from slime_ray.model.parts import Parts
from slime_ray.model.pretrained import (
    Note,
    errors_as_file_fault,
    load_whole,
    quote_names,
    reason_of,
    refuse_not_finite,
    rename_hint,
)

DEFAULT_ADAPTER, SFT = "default", "sft"
"""peft's names of an adapter, and of that of an SFT stage which stays next to it."""
CAUSAL, CLASSIFIER = "CAUSAL_LM", "SEQ_CLS"
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""How far merging may change the logits, as a share of their size: what rounding does, and not more."""

PROBE_TOKENS = 8
"""Tokens on which a merged model is compared with what it was merged of."""


def load_parts(kind: Any, parts: Parts, *, note: Note, task: str = CAUSAL, **options: Any) -> Any:
    """Load a whole model, and merge an adapter into it if there is one. options: see `load_whole`."""
    source, adapter = parts.source, parts.adapter
    if adapter is not None:
        check_texts(adapter)
        check_adapter(adapter)
    if Path(source).is_dir():
        check_folder(Path(source))
    adapter_modules = parts.adapter_modules
    options |= {"use_safetensors": True, "revision": parts.revision}
    try:
        lm = load_whole(kind, source, note=note, adapter_modules=adapter_modules, **options)
    except Exception as error:
        if not isinstance(error, FileFault):
            _find_culprit(kind, parts, bool(options.get("trust_remote_code")))
        if adapter is None or is_memory_error(error):
            raise
        raise FileFault(f"its base {source}: {reason_of(error)}") from None
    if getattr(lm.config, "quantization_config", None) and getattr(lm, "hf_quantizer", None) is None:
        raise FileFault(
            f"config.json has a quantization_config that transformers {version('transformers')} passes over; "
            "update it, or give the model as it was before"
        )
    if adapter is not None:
        with errors_as_file_fault(adapter):
            lm = merge_adapter(lm, adapter, task=task)
        note(f"The adapter {adapter} was merged into its base {source}.")
    return lm


def _find_culprit(kind: Any, parts: Parts, trust_remote_code: bool) -> None:
    """Raise FileFault where a local file of a whole model is to blame for what went wrong."""
    folder = _snapshot(parts.source, parts.revision) or Path(parts.source)
    if not folder.is_dir():
        return
    check_folder(folder)
    with errors_as_file_fault(folder / "config.json"), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        kind.from_config(config, trust_remote_code=trust_remote_code)


def _snapshot(source: str, revision: str | None) -> Path | None:
    """Return the folder of a Hub model in this machine's cache, or None."""
    try:
        if not Path(source).exists():
            return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except Exception:
        pass
    return None


def attach_adapter(
    lm: Any, folder: Path, *, task: str = CAUSAL, trainable: bool = False, name: str = DEFAULT_ADAPTER
) -> Any:
    """Lay an adapter on its base, not merged. Raises FileFault unless every weight of it finds its place.

    lm: may have an adapter of another name, which stays as it is. task, name: peft's names of what the model is for,
    and of the adapter. trainable: whether it goes on being trained.
    """
    from peft import PeftConfig, get_peft_model

    _refuse_unknown_options(folder)
    with warnings.catch_warnings():
        # What peft warns of is checked here.
        warnings.simplefilter("ignore")
        config = PeftConfig.from_pretrained(str(folder))
        if config.task_type not in (None, task):
            raise FileFault(f"the adapter {folder} is for {config.task_type}, not for {task}")
        if config.is_prompt_learning:
            kind = config.peft_type.value
            raise FileFault(f"the adapter {folder} is of type {kind}, which adds to prompts, not to weights")
        config.task_type, config.inference_mode = task, not trainable
        adapted: Any = lm
        if hasattr(lm, "peft_config"):
            lm.add_adapter(name, config)
        else:
            adapted = get_peft_model(lm, config, adapter_name=name)
        try:
            result = adapted.load_adapter(str(folder), name, torch_device="cpu", is_trainable=trainable)
        except KeyError as error:
            # peft asks the file for what `modules_to_save` names.
            raise FileFault(f"the adapter {folder} lacks {quote_names([str(error.args[0])], 'weight')}") from None
    missing = {weight.replace(f".{name}", "") for weight in result.missing_keys} | _biases(adapted, name) - set(
        weight_dtypes(folder / ADAPTER_WEIGHTS)
    )
    if missing:
        hint = rename_hint(missing, result.unexpected_keys)
        raise FileFault(f"the adapter {folder} lacks {quote_names(missing, 'weight')}{hint}")
    if result.unexpected_keys:
        unexpected = quote_names(result.unexpected_keys, "weight")
        raise FileFault(f"the adapter {folder} has {unexpected} that its base has no place for")
    return adapted


def attach_sft(lm: Any, folder: Path) -> Any:
    """Lay the adapter of an SFT stage on its base, frozen, next to a trial's where `lm` has one."""
    adapted = attach_adapter(lm, folder, name=SFT)
    tuner: Any = adapted.base_model
    tuner.set_adapter([SFT, *(name for name in adapted.peft_config if name != SFT)])
    for name, module in adapted.named_modules():
        if name.endswith(f".{SFT}"):
            module.requires_grad_(False)
    for module in adapted.modules():
        if SFT in getattr(module, "lora_dropout", ()):
            # It was trained with it, and is what it came to now.
            layer: Any = module
            layer.lora_dropout[SFT] = nn.Identity()
    return adapted


def _biases(adapted: Any, adapter: str) -> set[str]:
    """Name the base's biases that the adapter has trained, which peft does not report as missing."""
    from peft import get_peft_model_state_dict

    names = get_peft_model_state_dict(adapted, adapter_name=adapter, save_embedding_layers=False)
    return {name for name in names if name.endswith(".bias") and "lora_" not in name}


def _refuse_unknown_options(folder: Path) -> None:
    """Raise FileFault for an option that is on and that this peft would pass over, computing something else."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    content = read_object(folder / ADAPTER)
    kind = content.get("peft_type")
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise FileFault(f"{folder / ADAPTER} has peft_type {kind!r}, which peft {version('peft')} does not know")
    fields = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])}
    unknown = sorted(name for name, value in content.items() if value and name not in fields)
    if unknown:
        raise FileFault(
            f"{folder / ADAPTER} sets {', '.join(unknown)}, which peft {version('peft')} does not know; update peft"
        )


def merge_adapter(lm: Any, folder: Path, *, task: str = CAUSAL) -> Any:
    """Merge an adapter into its base, which then computes what the two did together.

    Head and embeddings that share their weights and of which the adapter changes one are untied, since the other would
    change with it. Raises FileFault for an adapter that does not fit or cannot be merged.
    """
    head, embeddings = lm.get_output_embeddings(), lm.get_input_embeddings()
    tied = heads_tied(lm)
    ids = torch.arange(min(PROBE_TOKENS, embeddings.weight.shape[0]))[None]
    dtypes = {name: parameter.dtype for name, parameter in lm.named_parameters()}
    adapted = attach_adapter(lm, folder, task=task).eval()
    if not hasattr(adapted.base_model, "merge_and_unload"):
        raise FileFault(
            f"the adapter {folder} is of type {adapted.active_peft_config.peft_type.value}, which cannot be merged"
        )
    expected = _logits(adapted, ids)
    if tied and (lm.get_output_embeddings() is not head or lm.get_input_embeddings() is not embeddings):
        head.weight = nn.Parameter(embeddings.weight.detach().clone())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = adapted.merge_and_unload()
    if tied and not heads_tied(merged):
        _tie_or_untie(merged)
    for name, parameter in merged.named_parameters():
        # What the adapter brings whole is in float32.
        parameter.data = parameter.data.to(dtypes.get(name, merged.dtype))
    merged.requires_grad_(True)
    refuse_not_finite(merged)
    share = float((_logits(merged, ids) - expected).norm() / expected.norm())
    if not share <= TOLERANCE.get(merged.dtype, 0.1):
        raise FileFault(
            f"{folder} computes something else once it is merged (its logits change by {share:.2g} of their size); "
            "merge it yourself and give the whole model"
        )
    return merged


def _tie_or_untie(lm: Any) -> None:
    """Share the weights of head and embeddings where they are still equal, else configure them as apart."""
    head, embeddings = lm.get_output_embeddings(), lm.get_input_embeddings()
    if torch.equal(head.weight, embeddings.weight):
        head.weight = embeddings.weight
        lm.config.tie_word_embeddings = True
    else:
        untie_head(lm)


@torch.no_grad()
def _logits(lm: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = lm(input_ids=ids.to(lm.device)).logits.float()
    return logits


def heads_tied(lm: Any) -> bool:
    """Tell whether a model's output head shares the weights of its embeddings."""
    head = lm.get_output_embeddings()
    return head is not None and head.weight is lm.get_input_embeddings().weight
