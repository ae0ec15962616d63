"""Models and tokenizers: embedded, from a local folder, an adapter with its base, a GGUF file, or a hub."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from slime_ray.config.model import Model
from slime_ray.config.yaml_source import load_yaml
from slime_ray.data.places import dangling_link
from slime_ray.data.tasks import load_task
from slime_ray.data.template_text import resolve_chat_template
from slime_ray.errors import InputError
from slime_ray.model.attention import why_no_varlen
from slime_ray.model.decoder import DECODER_NAMES, text_decoder
from slime_ray.model.files import ADAPTER, FileFault, check_adapter, check_gguf, read_object
from slime_ray.model.logprobs import Policy
from slime_ray.model.lora import find_adapted, untie_head
from slime_ray.model.merging import attach_adapter, attach_sft, heads_tied, load_parts, merge_adapter
from slime_ray.model.parts import Parts, parts_of
from slime_ray.model.pretrained import (
    Note,
    errors_as_file_fault,
    errors_as_input_error,
    load_whole,
    log_note,
    read_tokenizer,
)
from slime_ray.model.quantized import check_quantized, quantization_options
from slime_ray.model.tiny import tiny_model, tiny_tokenizer

KNOWN_MODELS = Path(__file__).with_name("known_models.yaml")
SFT_ADAPTER = "adapter"
"""Folder, in an SFT checkpoint, of the adapter that is merged into it: `lora: keep` and `export` go on from it. Into
4-bit weights none is merged: there it stays an adapter, and the checkpoint holds nothing else."""


def find_parts(model: Model, *, local_only: bool = False) -> Parts:
    """Look whether a real model is an adapter on another one. Raises InputError for an adapter without its base."""
    with _loading_errors("model", model.source):
        return parts_of(model.source, model.revision, local_only=local_only)


def weight_sources(model: Model) -> list[str]:
    """List the files, folders and Hub ids that a real model's weights come from, its own first."""
    parts = find_parts(model)
    return [model.source, parts.source] if parts.adapter else [model.source]


def load_tokenizer(model: Model) -> Any:
    """Load the tokenizer, with its chat template and a padding token. Raises InputError where there is none."""
    if model.task:
        return tiny_tokenizer(load_task(model.task))
    source, options = _tokenizer_source(model)
    with _loading_errors(
        "tokenizer", model.tokenizer or model.source, key="tokenizer" if model.tokenizer else "source"
    ):
        tokenizer: Any = read_tokenizer(source, **options)
        # Some settings, such as model_max_length, are not read before a text is encoded.
        tokenizer("")
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if getattr(getattr(backend, "model", None), "dropout", None):
        # BPE-dropout would draw other tokens for the same text whenever it is encoded.
        backend.model.dropout = None
    tokenizer.chat_template = resolve_chat_template(tokenizer, model.chat_template)
    if tokenizer.eos_token_id is None:
        raise InputError(f"{source}: the tokenizer has no end-of-sequence token, so no answer could ever end.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer_source(model: Model) -> tuple[str, dict[str, Any]]:
    """Return the tokenizer's folder or Hub id, an adapter's own before its base's, and options of `from_pretrained`."""
    options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    if model.tokenizer:
        return model.tokenizer, options
    if gguf := _gguf(model):
        return gguf[0], {"gguf_file": gguf[1], "revision": model.revision}
    source, revision = find_parts(model).tokenizer
    return source, options | {"revision": revision}


def load_model(model: Model, *, seed: int, note: Note = log_note) -> Any:
    """Load the pretrained causal language model; an embedded one gets random weights from `seed`.

    An adapter is merged into its base. Of a vision-language model that is known, only the text decoder is loaded, since
    no text passes through the rest; with an adapter, which names the parts of the whole, all of it is, and so it is in
    4 bits, on which adapters stay. `note` receives what a user should know of what was loaded. Raises InputError for a
    model that cannot be found or read, or whose files do not hold every weight of it.
    """
    if model.task:
        return tiny_model(load_task(model.task), seed=seed).to(getattr(torch, model.weights_dtype))
    with _loading_errors("model", model.source):
        lm = _load(model, model.weights_dtype, note, towers=model.quantization is not None)
        check_quantized(lm, model)
        return lm


def load_checkpoint(folder: Path, *, dtype: str, note: Note = log_note) -> Any:
    """Load what `save_pretrained` wrote, in safetensors alone: a model, or an adapter merged into its base.

    Raises InputError where it cannot be read, or does not hold every weight.
    """
    with _folder_errors(folder):
        return _load(Model(source=str(folder)), dtype, note)


def load_start(stage: Path, model: Model, *, whole: bool = True) -> Any:
    """Load what trials start from and are compared with: an SFT checkpoint, or a base with its kept adapter.

    Args:
        stage: The SFT checkpoint's folder.
        model: Of the trial.
        whole: Whether a 4-bit base has the adapter of its SFT stage on it. A trial lays its own on it first.
    """
    trained = stage / SFT_ADAPTER
    if model.kept:
        return load_kept(model, trained if trained.is_dir() else Path(model.source))
    if model.quantization is None:
        return load_checkpoint(stage, dtype=model.weights_dtype)
    lm = load_model(model, seed=0)
    # What adapters name as their base.
    lm.name_or_path = str(stage)
    return with_sft(lm, stage, model) if whole else lm


def with_sft(lm: Any, stage: Path, model: Model) -> Any:
    """Lay the adapter of the SFT stage on a 4-bit base, next to a trial's; anything else has it already."""
    folder = stage / SFT_ADAPTER
    if model.quantization is None or model.kept or not folder.is_dir():
        return lm
    with _folder_errors(folder):
        check_adapter(folder)
        return attach_sft(lm, folder)


def load_trained(stage: Path, model: Model, adapter: Path, *, note: Note = log_note) -> Any:
    """Load a trial's adapter on the SFT checkpoint that it was trained on. Raises InputError unless all of it fits."""
    if model.quantization is None:
        return load_adapter(load_checkpoint(stage, dtype=model.weights_dtype, note=note), adapter)
    return with_sft(load_adapter(load_start(stage, model, whole=False), adapter), stage, model)


def load_external(folder: Path, model: Model, *, note: Note = log_note) -> Any:
    """Load another's policy: a whole model, or an adapter, merged into its base or on a 4-bit one as `model` is."""
    if model.quantization is None or not (folder / ADAPTER).is_file():
        return load_checkpoint(folder, dtype=model.weights_dtype, note=note)
    with _folder_errors(folder):
        parts = parts_of(str(folder), None)
    base = model.model_copy(update={"source": parts.source, "revision": parts.revision})
    note(f"The adapter {folder} is measured on its base {parts.source} in 4 bits ({model.quantization}).")
    return load_adapter(load_model(base, seed=0, note=note), folder)


def load_kept(model: Model, folder: Path, *, note: Note = log_note) -> Any:
    """Load the base of the adapter `model.source`, with the adapter of `folder`, which training may have changed.

    Raises InputError where base or adapter cannot be loaded, or where it adapts other layers than can be trained here.
    """
    with _loading_errors("model", model.source):
        base = parts_of(model.source, model.revision)
        options = {"dtype": getattr(torch, model.weights_dtype), "trust_remote_code": model.trust_remote_code}
        options |= quantization_options(model)
        lm = load_parts(AutoModelForCausalLM, Parts(base.source, base.revision), note=note, **options)
        check_quantized(lm, model)
        lora: Any = model.lora
        expected = {*find_adapted(lm, lora).modules}
        end_modules = (lm.get_output_embeddings(), lm.get_input_embeddings())
        if end_names := [name for name, module in lm.named_modules() if name in expected and module in end_modules]:
            raise FileFault(f"it adapts {end_names[0]}; lora: keep takes adapters of the layers between alone")
        check_adapter(folder)
        adapted = attach_adapter(lm, folder, trainable=True)
    if mismatch := expected ^ {*adapted.base_model.targeted_module_names}:
        raise InputError(
            f"model.source {model.source}: the adapter is on {min(mismatch)}, outside the text decoder. Have it "
            "merged instead: give the settings of new adapters."
        )
    note(f"The adapter {model.source} goes on being trained on its base {base.source}.")
    return adapted


def load_adapter(lm: Any, folder: Path, *, merge: bool = False) -> Any:
    """Lay an adapter of peft's on the model it was trained on, or merge it. Raises InputError unless all of it fits."""
    with _folder_errors(folder):
        check_adapter(folder)
        return merge_adapter(lm, folder) if merge else attach_adapter(lm, folder)


def base_of(folder: Path) -> str:
    """Return the base that an adapter names: a path or a Hub id. Raises InputError for a damaged adapter."""
    with _folder_errors(folder):
        check_adapter(folder)
        return str(read_object(folder / ADAPTER).get("base_model_name_or_path"))


def _folder_errors(folder: Path) -> AbstractContextManager[None]:
    """Raise errors of reading one of our folders as an InputError that names it."""
    return errors_as_input_error(lambda reason: InputError(f"{folder} cannot be loaded: {reason}"))


def _load(model: Model, dtype: str, note: Note, *, towers: bool = True) -> Any:
    """Load a model; towers: with parts through which no text passes."""
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if gguf := _gguf(model):
        options |= {"gguf_file": gguf[1], "revision": model.revision}
        with errors_as_file_fault(Path(*gguf)):
            lm = load_whole(AutoModelForCausalLM, gguf[0], note=note, **options)
        # The weights are plain tensors by now; what says otherwise would forbid training and saving them.
        lm.hf_quantizer = None
        del lm.config.quantization_config
        return lm
    parts = parts_of(model.source, model.revision)
    options |= {"trust_remote_code": model.trust_remote_code} | quantization_options(model)
    if model.quantization and parts.adapter:
        raise InputError(
            f"model.source {model.source} is an adapter, and none is merged exactly into the 4-bit weights of "
            "model.quantization. Set lora: keep, give the merged model, or set model.quantization: null."
        )
    if not towers and parts.adapter is None:
        options |= _decoder_alone(parts, note, trust_remote_code=model.trust_remote_code)
    lm = load_parts(AutoModelForCausalLM, parts, note=note, **options)
    if "key_mapping" in options:
        # The same tensors in a model that was not loaded by that mapping, which saving would undo.
        lm = type(lm).from_pretrained(None, config=lm.config, state_dict=lm.state_dict(), dtype=options["dtype"])
    if getattr(lm.config.get_text_config(), "tie_word_embeddings", False) and not heads_tied(lm):
        untie_head(lm)
        note(f"Head and embeddings of {parts.source} differ, though its configuration ties them: they stay apart.")
    return lm


def _decoder_alone(parts: Parts, note: Note, **options: Any) -> dict[str, Any]:
    """Return options of `from_pretrained` for the text decoder alone; empty unless that is known to be the same."""
    try:
        config = AutoConfig.from_pretrained(parts.source, revision=parts.revision, **options)
    except Exception:
        # Loading the model says why.
        return {}
    if (text := text_decoder(config)) is config:
        return {}
    note(f"Of {parts.source} only the text decoder is loaded, and checkpoints and exports hold that alone.")
    return {"config": text, "key_mapping": DECODER_NAMES}


def load_config(model: Model) -> Any | None:
    """Return the configuration of what is loaded, from this machine; None where a Hub model is not in its cache.

    Raises InputError for a local model that cannot be read.
    """
    if model.task:
        return tiny_model(load_task(model.task), seed=0).config
    gguf, parts = _gguf(model), find_parts(model, local_only=True)
    source, file = gguf if gguf else (parts.source, None)
    try:
        whole = Path(source, file or "config.json")
        with (
            _loading_errors("configuration", model.source),
            errors_as_file_fault(whole) if whole.exists() else nullcontext(),
        ):
            config = AutoConfig.from_pretrained(
                source,
                gguf_file=file,
                revision=parts.revision,
                trust_remote_code=model.trust_remote_code,
                local_files_only=True,
            )
            return config if parts.adapter or model.quantization else text_decoder(config)
    except InputError:
        if Path(source).exists():
            raise
        return None


def find_config(model: Model) -> tuple[Any, str]:
    """Find the model's configuration, and where it comes from. Raises InputError where it is not known here."""
    if (config := load_config(model)) is not None:
        return config, f"the configuration of {model.source}"
    shapes = load_yaml(KNOWN_MODELS).data
    if (values := shapes.get(model.source.lower())) is None:
        raise InputError(
            f"model.source {model.source}: its shape is not known here: it is neither a local model nor in this "
            f"machine's cache, and not one of {', '.join(shapes)}. Download its config.json first "
            f"(hf download {model.source} config.json), or give a local folder."
        )
    return AutoConfig.for_model(**values), f"the known shape of {model.source}"


def make_policy(lm: Any, model: Model) -> Policy:
    """Build the policy as the settings describe it. Raises InputError for an attention that cannot be had."""
    config, dtype = lm.config.get_text_config(), getattr(torch, model.dtype)
    if model.attention == "varlen":
        size = getattr(config, "head_dim", None) or config.hidden_size // getattr(config, "num_attention_heads", 1)
        dropout = getattr(config, "attention_dropout", 0.0) if model.dropout else 0.0
        if requirement := why_no_varlen(dtype, size, dropout):
            raise InputError(f"model.attention is varlen, which needs {requirement}. Use auto or segments.")
    return Policy(lm, kernel=model.attention, chunk_logits=model.chunk_logits, fused=model.fused, dtype=dtype)


def _gguf(model: Model) -> tuple[str, str] | None:
    """Return (folder or repository, file) of a GGUF model; None for others."""
    path = Path(model.source)
    if model.gguf_file:
        folder, name = model.source, model.gguf_file
    elif path.suffix == ".gguf":
        folder, name = str(path.parent), path.name
    else:
        return None
    file = Path(folder, name)
    if (path.suffix == ".gguf" or path.is_dir()) and not file.is_file():
        raise InputError(f"model.source {file}: there is no such file. Check the path.")
    if find_spec("gguf") is None:
        raise InputError(
            f"model.source {model.source}: a GGUF file needs the package gguf, which is not installed. Install "
            "slime-ray[gguf]."
        )
    if file.is_file():
        with _loading_errors("model", model.source):
            check_gguf(file)
    return folder, name


@contextmanager
def _loading_errors(part: str, source: str, *, key: str = "source") -> Iterator[None]:
    """Raise errors of reading a part of the model as an InputError that names it."""

    def refusal(reason: str) -> InputError:
        return InputError(f"model.{key} {source}: the {part} cannot be loaded: {reason}")

    if link := dangling_link(Path(source)):
        raise InputError(f"model.{key} {source}: there is no such {part}: {link}. Correct the link or the path.")
    with errors_as_input_error(refusal):
        yield
