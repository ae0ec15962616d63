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

from slime_ray.config.adapters import kept_adapter
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


KEEP = "keep"
ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALL_LINEAR = "all-linear"


def _layers(value: Any) -> Any:
    """Names of layers, which a single word is not."""
    if isinstance(value, str) and value != ALL_LINEAR:
        raise ValueError(f"{value!r} is no list of layers. Give [{value}], or {ALL_LINEAR}")
    return value


class Lora(Strict):
    """Low-rank adapters on the linear layers (Hu et al. 2021); the update is scaled by alpha / rank."""

    rank: Positive = 64
    """Rank of the two factors that are added to each weight."""
    alpha: Annotated[float, Field(gt=0)] = 128.0
    """The update is scaled by `alpha / rank`."""
    rslora: bool = False
    """Whether it is scaled by `alpha / sqrt(rank)` instead (Kalajdzievski 2023), which keeps high ranks learning."""
    dora: bool = False
    """Whether magnitude and direction of each weight are trained apart (DoRA, Liu et al. 2024). Slower than LoRA."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a layer's input that the adapters do not see in training."""
    targets: Annotated[list[str] | Literal["all-linear"], BeforeValidator(_layers)] = list(ATTENTION_AND_MLP)
    """Names of the linear layers that have them, or `all-linear`. Fused experts are named with their path,
    `experts.down_proj`."""
    train_head: bool = False
    """Whether the output head is trained in full, beside the adapters."""
    kept: bool = False
    """Whether `model.source` is an adapter that goes on being trained instead of being merged. Written as `lora:
    keep`."""


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
    """A folder with `config.json` and safetensors, or of a peft adapter, which is merged into its base; a .gguf file, a
    Hub id, or `embedded/arithmetic` or `embedded/notes`."""
    tokenizer: Located | None = None
    """Folder or Hub id of the tokenizer and its chat template, such as an instruction-tuned sibling; null is
    `source`'s own."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; null is its main branch."""
    gguf_file: str | None = None
    """Name of the .gguf file, where `source` is a folder or repository that has one; needs the extra `gguf`."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run. Only for repositories that you trust."""
    dtype: Annotated[Literal["float32", "bfloat16"], BeforeValidator(_dtype)] = "float32"
    """Of the forward pass and of frozen weights. What is trained is held in float32."""
    quantization: Literal["nf4", "fp4"] | None = None
    """The 4-bit type of bitsandbytes that linear layers but the head are frozen in, under adapters (QLoRA, Dettmers et
    al. 2023); they compute in `dtype`. Null quantizes nothing. Needs a GPU and the extra `quantized`."""
    double_quantization: bool = True
    """Whether the scales of 4-bit weights are quantized as well."""
    chat_template: Annotated[str, AfterValidator(_located_template)] | None = None
    """A .jinja file, or `chatml` or `gemma`, instead of the tokenizer's own template."""
    lora: Annotated[
        Lora | None, BeforeValidator(lora_by_name, json_schema_input_type=Lora | Literal["keep"] | None)
    ] = None
    """Adapters that are trained; null trains every weight. `keep` goes on training the adapter that `source` is, with
    its own rank, scale and targets."""
    dropout: bool = False
    """Whether dropout of the model's own configuration is on in training. With it DPO's first loss is not ln 2."""
    attention: Literal["auto", "segments", "varlen"] = "auto"
    """Over packed rows: segment by segment, or FlashAttention in one call (`varlen`: a GPU and bfloat16); `auto` takes
    varlen where it can."""
    fused: bool = True
    """Whether norms, gated activations, rotary embedding and the head's softmax are compiled on a GPU; for the Llama,
    Mistral, Qwen2, Qwen3 and Gemma 3 families, with torch 2.13."""
    chunk_logits: Positive | None = None
    """Logits alive at a time, positions times vocabulary; null is right for the device."""

    @model_validator(mode="before")
    @classmethod
    def _keep(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("lora") == KEEP:
            return {**values, "lora": kept_adapter(located(str(values.get("source"))))}
        return values

    @model_validator(mode="after")
    def _as_its_adapter(self) -> "Model":
        # Where results are read the adapter may be gone.
        if self.kept and Path(self.source).exists() and (own := Lora(**kept_adapter(self.source))) != self.lora:
            raise ValueError(
                f"lora.kept is true, and other settings were given than those of the adapter {self.source}, which has "
                f"{own.model_dump()}. Leave them out, or set kept: false for new adapters on the merged model"
            )
        return self

    @model_validator(mode="after")
    def _can_be_quantized(self) -> "Model":
        if self.quantization is None:
            return self
        said = f"quantization is {self.quantization}"
        if self.task:
            raise ValueError(f"{said}, and {self.source} is a tiny model made by this package. Set quantization: null")
        if self.gguf_file or self.source.endswith(".gguf"):
            raise ValueError(
                f"{said}, and a GGUF file has a quantization of its own. Give the model as it was before, or set "
                "quantization: null"
            )
        if self.lora is None:
            raise ValueError(
                f"{said}, and lora is null, which trains every weight; 4-bit weights cannot be trained. Give settings "
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
