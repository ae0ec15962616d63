"""Models and tokenizers: embedded, from a local folder, a GGUF file, or a hub."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from slime_ray.data.chat_template import resolve_chat_template
from slime_ray.data.tasks import load_task
from slime_ray.errors import InputError
from slime_ray.model.logprobs import Policy
from slime_ray.model.tiny import tiny_model, tiny_tokenizer
from slime_ray.settings import Model


def load_tokenizer(model: Model) -> Any:
    """The tokenizer with its chat template in place and a padding token. Raises InputError where there is none."""
    if model.task:
        return tiny_tokenizer(load_task(model.task))
    source = model.tokenizer or model.source
    options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    try:
        if model.tokenizer is None and (gguf := _gguf(model)):
            tokenizer = AutoTokenizer.from_pretrained(gguf[0], gguf_file=gguf[1])
        else:
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise _not_loaded("tokenizer", source, error) from None
    tokenizer.chat_template = resolve_chat_template(tokenizer, model.chat_template)
    if tokenizer.eos_token_id is None:
        raise InputError(f"{source}: the tokenizer has no end-of-sequence token, so no answer could ever end.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model: Model, *, seed: int) -> Any:
    """The pretrained causal language model; an embedded one gets random weights from `seed`.

    Raises InputError for a model that cannot be found or read.
    """
    if model.task:
        return tiny_model(load_task(model.task), seed=seed)
    dtype = getattr(torch, model.dtype)
    lm: Any
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    try:
        if gguf := _gguf(model):
            lm = AutoModelForCausalLM.from_pretrained(gguf[0], gguf_file=gguf[1], dtype=dtype)
            # The weights are plain tensors by now; what says otherwise would forbid training and saving them.
            lm.hf_quantizer = None
            del lm.config.quantization_config
        else:
            lm = AutoModelForCausalLM.from_pretrained(
                model.source, revision=model.revision, trust_remote_code=model.trust_remote_code, **options
            )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise _not_loaded("model", model.source, error) from None
    return lm


def load_config(model: Model) -> Any | None:
    """The model's configuration from this machine alone; None where a hub model is not in its cache.

    Raises InputError for a local model that cannot be read.
    """
    if model.task:
        return tiny_model(load_task(model.task), seed=0).config
    gguf = _gguf(model)
    options: dict[str, Any] = {"gguf_file": gguf[1]} if gguf else {"revision": model.revision}
    try:
        return AutoConfig.from_pretrained(
            gguf[0] if gguf else model.source,
            trust_remote_code=model.trust_remote_code,
            local_files_only=True,
            **options,
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        if Path(model.source).exists():
            raise _not_loaded("configuration", model.source, error) from None
        return None


def load_checkpoint(folder: Path, *, dtype: str) -> Any:
    """A model that a stage saved with `save_pretrained` (safetensors only)."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True
    )


def make_policy(lm: Any, model: Model) -> Policy:
    """The policy as the settings want it computed. Raises InputError for an attention that the device does not have."""
    policy = Policy(lm, kernel=None if model.attention == "auto" else model.attention, chunk_logits=model.chunk_logits)
    if policy.kernel == "flex" and not torch.cuda.is_available():
        raise InputError("model.attention is flex, which needs a GPU; this is a CPU. Use auto or segments.")
    return policy


def _gguf(model: Model) -> tuple[str, str] | None:
    """(folder or repository, file) of a GGUF model, or None."""
    if model.gguf_file:
        return model.source, model.gguf_file
    path = Path(model.source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"model.source {model.source}: there is no such file. Check the path.")
        return str(path.parent), path.name
    return None


def _not_loaded(what: str, source: str, error: Exception) -> InputError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    way_out = (
        "Check model.source: a folder with config.json and safetensors weights, a .gguf file, or a hub id that this "
        "machine can reach (HF_HUB_OFFLINE=1 allows only what is already downloaded)."
    )
    return InputError(f"model.source {source}: the {what} cannot be loaded: {reason.rstrip('.')}. {way_out}")
