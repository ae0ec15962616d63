"""Adapters of trials: the SFT weights that they were trained on, and both stages' as one on the named model."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from slime_ray.config.settings import Settings
from slime_ray.errors import InputError
from slime_ray.model.files import ADAPTER, ADAPTER_WEIGHTS, FILE_REMEDY, FileFault, read_object
from slime_ray.model.loading import SFT_ADAPTER, find_parts, load_model
from slime_ray.model.quantized import keep_layout, quantization_options
from slime_ray.runs import results
from slime_ray.training.stages import MADE


def check_stage(adapter: Path, stage: Path) -> None:
    """Compare an SFT checkpoint's weights, by hash, with those an adapter was trained on.

    Neither of an earlier version, which recorded none, is refused.

    Raises:
        InputError: They are others, made elsewhere or again.
    """
    trained_hash, stage_hash = _trained_on(adapter, stage), _hash_in(stage)
    if trained_hash and stage_hash and trained_hash != stage_hash:
        raise InputError(
            f"{stage} holds other weights than those that {adapter} was trained on, which were made elsewhere or "
            "again. Put the `.stages` of that machine beside the run."
        )


def _trained_on(adapter: Path, stage: Path) -> str | None:
    """The hash that was saved with the adapter; of earlier versions, that of its run's base settings."""
    if recorded := _hash_in(adapter):
        return recorded
    run = adapter.absolute().parents[2] if len(adapter.absolute().parents) > 2 else adapter
    if adapter.name != results.MODEL or not (run / "manifest.json").is_file():
        return None
    hashes = results.read_manifest(run).get("hashes", {})
    # A trial may have had a stage of its own.
    of_run = hashes.get("sft_checkpoint") in (None, stage.name.rpartition("-")[2])
    return hashes.get("sft_weights") if of_run else None


def _hash_in(folder: Path) -> str | None:
    return read_whole(folder / MADE).get("sft_weights") if (folder / MADE).is_file() else None


def read_whole(file: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint. Raises InputError where it is damaged."""
    try:
        return read_object(file)
    except FileFault as error:
        raise InputError(f"{error}. {FILE_REMEDY}") from None


def why_merge(settings: Settings, checkpoint: Path, stage: Path | None) -> str | None:
    """Say why SFT and preference training are no adapter on the model that the user named; None where they are."""
    model, sft = settings.model, settings.sft
    if model.kept:
        # One adapter from the beginning, on its own base.
        return None
    if model.task:
        return f"its model {model.source} is made by this package, and no folder holds it"
    parts = find_parts(model)
    if parts.adapter or model.gguf_file or model.source.endswith(".gguf"):
        return f"its model {model.source} is an adapter or a GGUF file, which no adapter can name as its base"
    if sft is None or stage is None:
        return None
    if settings.sft_model.lora is None:
        return "its SFT stage trained every weight"
    if not (stage / SFT_ADAPTER / ADAPTER).is_file():
        return "its SFT stage was made by an earlier version, which kept no adapter of it"
    for adapter in (stage / SFT_ADAPTER, checkpoint):
        config = read_whole(adapter / ADAPTER)
        for key, words in (
            ("use_dora", "DoRA, whose updates do not add up"),
            ("modules_to_save", "a trained head"),
            ("target_parameters", "adapters on fused experts"),
        ):
            if config.get(key):
                return f"one of its stages has {words}"
    return None


def write_adapter(settings: Settings, checkpoint: Path, stage: Path | None, folder: Path) -> None:
    """Write an adapter on the model that the user named which does what both stages' adapters did.

    They are laid side by side: the ranks add up and scales are folded in, so nothing is approximated. Without an SFT
    stage, and with `lora: keep`, it is the trial's own.

    Args:
        settings: Of the trial; `why_merge` had nothing against them.
        checkpoint: The trial's adapter.
        stage: The SFT checkpoint that it was trained on; None with `lora: keep`.
        folder: A folder that is there, to write to.

    Raises:
        InputError: peft cannot lay them side by side.
    """
    from peft import PeftConfig, PeftModel

    source, revision = base_named(settings)
    if settings.sft is None or stage is None:
        config = PeftConfig.from_pretrained(str(checkpoint))
        config.base_model_name_or_path, config.revision = source, revision
        config.save_pretrained(str(folder))
        shutil.copy(checkpoint / ADAPTER_WEIGHTS, folder)
        return
    # In another dtype of the base peft would round the sum to it.
    lm = load_model(settings.sft_model.model_copy(update={"dtype": "float32"}), seed=settings.sft.seed)
    with warnings.catch_warnings():
        # peft warns of tied weights. What is written is compared.
        warnings.simplefilter("ignore")
        both = PeftModel.from_pretrained(lm, str(stage / SFT_ADAPTER), adapter_name="sft")
        both.load_adapter(str(checkpoint), "preference", torch_device="cpu")
        # The layers have their scales by now, and the sum has its own, 1.
        tuner: Any = both.base_model
        for config in tuner.peft_config.values():
            config.use_rslora = False
        try:
            tuner.add_weighted_adapter(["sft", "preference"], [1.0, 1.0], "default", combination_type="cat")
        except ValueError as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise InputError(
                f"{checkpoint} and the adapter of its SFT stage cannot be one adapter: {reason}. Give --merge."
            ) from None
        joint = both.peft_config["default"]
        joint.base_model_name_or_path, joint.revision = source, revision
        # "default" alone is saved into the folder itself.
        both.save_pretrained(str(folder), selected_adapters=["default"], save_embedding_layers=False)


def base_named(settings: Settings) -> tuple[str, str | None]:
    """Folder or Hub id, and revision, of the model that the user named; of an adapter that is kept, its base's."""
    if settings.model.kept:
        parts = find_parts(settings.model)
        return parts.source, parts.revision
    source = Path(settings.model.source)
    return (str(source.absolute()), None) if source.is_dir() else (settings.model.source, settings.model.revision)


def load_adapted(settings: Settings, folder: Path) -> Any:
    """An exported adapter on its base, in float32, by transformers and peft alone."""
    from peft import PeftModel

    source, revision = base_named(settings)
    stage = settings.sft_model if settings.sft else settings.model
    if stage.quantization:
        # What is quantized does not widen once it is loaded.
        stage = stage.model_copy(update={"dtype": "float32"})
    lm = AutoModelForCausalLM.from_pretrained(
        source,
        revision=revision,
        dtype=getattr(torch, stage.weights_dtype),
        trust_remote_code=settings.model.trust_remote_code,
        **quantization_options(stage),
    )
    keep_layout(lm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(lm if stage.quantization else lm.float(), str(folder))
