"""The schema of `base.model`: which model is trained, and its adapters."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)

from slime_ray.config.strict import EMBEDDED, Located, Positive, Strict, located


def _located_template(value: str) -> str:
    """A chat template's file by its absolute path; it may also be the name of a shipped one."""
    return located(value) if value.endswith(".jinja") else value


def lacks_template(folder: Path) -> bool:
    """Whether a folder has a tokenizer without a chat template, which a run would refuse.

    Where a file is broken, or Mistral's own tokenizer needs none, it is not said to lack one.
    """
    config = folder / "tokenizer_config.json"
    if not config.is_file() or any((folder / name).is_file() for name in ("chat_template.jinja", "tekken.json")):
        return False
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("chat_template") is None
    except (OSError, ValueError, AttributeError):
        return False


PEFT_FIELDS = {
    "r": "rank", "lora_alpha": "alpha", "use_rslora": "rslora", "use_dora": "dora", "lora_dropout": "dropout",
    "target_modules": "targets",
}  # fmt: skip
"""peft's names and ours."""
IGNORED_FIELDS = frozenset(
    {
        "base_model_name_or_path", "revision", "auto_mapping", "peft_type", "task_type", "peft_version",
        "inference_mode", "fan_in_fan_out", "megatron_core", "qalora_group_size",
    }
)  # fmt: skip
"""What says nothing of what is trained, or is looked at when the adapter is laid on its base."""
NEUTRAL_INITS = (True, False, "gaussian", "orthogonal")
"""Ways to begin that leave the base as it is."""


def read_adapter(source: str) -> dict[str, Any]:
    """Read the settings of `lora: keep`.

    Args:
        source: The adapter's folder.

    Raises:
        ValueError: There is no such adapter, or it trains what these settings do not say. Without a full stop.
    """
    file = Path(source) / "adapter_config.json"
    if not file.is_file():
        raise ValueError(
            f"lora is keep, and model.source {source} is no adapter's folder: it has no {file.name}. Give one "
            "(download an adapter that is on a hub), or the settings of new adapters"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind, targets = content.get("peft_type"), content.get("target_modules")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"lora is keep, and {file} cannot be read: {error}. Copy the adapter again") from None
    supported = {*PEFT_FIELDS, *IGNORED_FIELDS}
    unsupported = {name: value for name, value in content.items() if value and name not in supported}
    if unsupported.get("bias") == "none":
        del unsupported["bias"]
    if content.get("init_lora_weights", True) in NEUTRAL_INITS:
        unsupported.pop("init_lora_weights", None)
    reason = f"it sets {', '.join(sorted(unsupported))}" if unsupported else ""
    if not isinstance(targets, list):
        reason = "its target_modules are no list of layers"
    if kind != "LORA":
        reason = f"it is of type {kind}"
    if reason:
        raise ValueError(
            f"lora is keep, and {file} is of an adapter that cannot go on being trained here: {reason}. Have it merged "
            "instead: give the settings of new adapters"
        )
    values = {name: content[peft_name] for peft_name, name in PEFT_FIELDS.items() if peft_name in content}
    return {**values, "alpha": float(values.get("alpha", 8)), "targets": sorted(targets), "kept": True}


KEEP = "keep"
ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALL_LINEAR = "all-linear"


def _layers(value: Any) -> Any:
    """Names of layers, which a single word is not."""
    if isinstance(value, str) and value != ALL_LINEAR:
        raise ValueError(f"{value!r} is no list of layers. Give [{value}], or {ALL_LINEAR}")
    return value


class Lora(Strict):
    """Low-rank adapters on linear layers (Hu et al. 2021)."""

    rank: Positive = 64
    """Rank of the two factors."""
    alpha: Annotated[float, Field(gt=0)] = 128.0
    """The update is scaled by `alpha / rank`."""
    rslora: bool = False
    """Whether it is scaled by `alpha / sqrt(rank)` instead (Kalajdzievski 2023)."""
    dora: bool = False
    """Whether magnitude and direction are trained apart (Liu et al. 2024)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a layer's input hidden from the adapters in training."""
    targets: Annotated[list[str] | Literal["all-linear"], BeforeValidator(_layers)] = list(ATTENTION_AND_MLP)
    """Names of the linear layers that get adapters, or `all-linear`. Fused experts have a path, `experts.down_proj`."""
    train_head: bool = False
    """Whether the output head is trained in full."""
    kept: bool = False
    """Whether `model.source` is an adapter to train further; written `lora: keep`."""


def lora_by_name(value: Any) -> Any:
    """`keep` has been replaced by what it stands for, where the adapter is known."""
    if isinstance(value, str):
        raise ValueError(f"{value!r} is neither settings of adapters nor keep")
    return value


def _dtype(value: Any) -> Any:
    if value == "float16":
        raise ValueError(
            "float16 holds no gradient below 6e-8 and nothing above 65504, and losses are not scaled here. Give "
            "bfloat16, which has the range of float32, or float32"
        )
    return value


def lacking_bitsandbytes() -> str | None:
    """Say that what 4-bit weights need is not installed, and the way out; None where it is."""
    if find_spec("bitsandbytes") is not None:
        return None
    return "4-bit base weights need the package bitsandbytes, which is not installed. Install slime-ray[quantized]."


class Model(Strict):
    """The pretrained model."""

    source: Located
    """A folder with `config.json` and safetensors or with a peft adapter, a .gguf file, a Hub id, `embedded/arithmetic`
    or `embedded/notes`."""
    tokenizer: Located | None = None
    """Folder or Hub id of tokenizer and chat template; null is `source`'s own."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; null is the main branch."""
    gguf_file: str | None = None
    """Name of the .gguf file in `source`; needs the extra `gguf`."""
    trust_remote_code: bool = False
    """Whether the model's own code may run. Only for repositories that you trust."""
    dtype: Annotated[Literal["float32", "bfloat16"], BeforeValidator(_dtype)] = "float32"
    """Type of the forward pass and of frozen weights; what is trained is float32."""
    quantization: Literal["nf4", "fp4"] | None = None
    """4-bit type of frozen linear layers under adapters (QLoRA); null quantizes none. Needs a GPU and the extra
    `quantized`."""
    double_quantization: bool = True
    """Whether the scales of 4-bit weights are quantized too."""
    chat_template: Annotated[str, AfterValidator(_located_template)] | None = None
    """A .jinja file, `chatml` or `gemma`; null is the tokenizer's own."""
    lora: Annotated[
        Lora | None, BeforeValidator(lora_by_name, json_schema_input_type=Lora | Literal["keep"] | None)
    ] = None
    """Adapters to train; null trains every weight, `keep` continues the adapter in `source`."""
    dropout: bool = False
    """Whether the model's own dropout is on in training."""
    attention: Literal["auto", "segments", "varlen"] = "auto"
    """FlashAttention over the whole row (`varlen`: a GPU and bfloat16), or `segments`; `auto` is varlen where
    possible."""
    fused: bool = True
    """Whether elementwise work is compiled on a GPU."""
    chunk_logits: Positive | None = None
    """Logits alive at a time, positions times vocabulary; null is right for the device."""

    @model_validator(mode="before")
    @classmethod
    def _read_kept_adapter(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("lora") == KEEP:
            return {**values, "lora": read_adapter(located(str(values.get("source"))))}
        return values

    @model_validator(mode="after")
    def _check_adapter(self) -> "Model":
        # Where results are read the adapter may be gone.
        if self.kept and Path(self.source).exists() and (adapter := Lora(**read_adapter(self.source))) != self.lora:
            raise ValueError(
                f"lora.kept is true, and other settings were given than those of the adapter {self.source}, which has "
                f"{adapter.model_dump()}. Leave them out, or set kept: false for new adapters on the merged model"
            )
        return self

    @model_validator(mode="after")
    def _check_quantization(self) -> "Model":
        if self.quantization is None:
            return self
        fact = f"quantization is {self.quantization}"
        if self.task:
            raise ValueError(f"{fact}, and {self.source} is a tiny model made by this package. Set quantization: null")
        if self.gguf_file or self.source.endswith(".gguf"):
            raise ValueError(
                f"{fact}, and a GGUF file has a quantization of its own. Give the model as it was before, or set "
                "quantization: null"
            )
        if self.lora is None:
            raise ValueError(
                f"{fact}, and lora is null, which trains every weight; 4-bit weights cannot be trained. Give settings "
                "of adapters, or set quantization: null"
            )
        return self

    @property
    def kept(self) -> bool:
        """Whether an adapter goes on being trained."""
        return self.lora is not None and self.lora.kept

    def float32_cost(self, gpu: str) -> str | None:
        """Say what float32 costs on a GPU that could compute in bfloat16; None in bfloat16 and for embedded models."""
        if self.dtype != "float32" or self.task:
            return None
        return (
            f"On {gpu}, model.dtype float32 takes twice the memory and computes several times slower than bfloat16. "
            "Set model.dtype: bfloat16; what is trained stays in float32."
        )

    @property
    def weights_dtype(self) -> Literal["float32", "bfloat16"]:
        """Of the weights in memory. What is trained is held in float32: an update is far below a bfloat16 step."""
        return self.dtype if self.lora else "float32"

    @property
    def task(self) -> str | None:
        """Name of the embedded task whose tiny model this is, or None for a real model."""
        return self.source.removeprefix(EMBEDDED) if self.source.startswith(EMBEDDED) else None
