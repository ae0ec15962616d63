"""4-bit base weights of bitsandbytes under adapters (QLoRA, Dettmers et al. 2023): how they are loaded, and where."""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from slime_ray.config.model import Model, lacking_bitsandbytes
from slime_ray.errors import InputError
from slime_ray.model.files import FileFault

BLOCK, SCALES = 64, 256
"""Weights that share a scale, and scales that share one where they are quantized as well: bitsandbytes' own."""


def refuse_quantized(model: Model) -> None:
    """Raise InputError where 4-bit weights are asked for and this process cannot train on them."""
    if model.quantization is None:
        return
    if not torch.cuda.is_available():
        raise InputError(
            f"model.quantization is {model.quantization}: 4-bit base weights need a GPU, and torch sees none. Use a "
            "machine with one, or set model.quantization: null."
        )
    if lack := lacking_bitsandbytes():
        raise InputError(f"model.quantization is {model.quantization}: {lack}")


def quantization_options(model: Model) -> dict[str, Any]:
    """Return options of `from_pretrained` for 4-bit weights; empty where `model.quantization` is null."""
    if model.quantization is None:
        return {}
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model.quantization,
        bnb_4bit_use_double_quant=model.double_quantization,
        bnb_4bit_compute_dtype=getattr(torch, model.dtype),
    )
    return {"quantization_config": config}


def check_quantized(lm: Any, model: Model) -> None:
    """Check that loaded weights are in 4 bits as the settings say, in the layout that has gradients.

    Raises FileFault for files that hold 4-bit weights of another kind, or any where the settings want none, and for
    experts that would not be quantized.
    """
    if not getattr(lm, "is_loaded_in_4bit", False):
        return
    file_config = lm.config.quantization_config
    if model.quantization is None:
        raise FileFault(
            f"its files hold 4-bit weights of bitsandbytes; set model.quantization: {file_config.bnb_4bit_quant_type}, "
            "or give the model as it was before"
        )
    model_config = quantization_options(model)["quantization_config"]
    for name in ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype"):
        if (file_value := getattr(file_config, name)) != (model_value := getattr(model_config, name)):
            raise FileFault(
                f"its files hold 4-bit weights with {name} {file_value}, and model.quantization, double_quantization "
                f"and dtype say {model_value}; set them as the files are, or give the model as it was before"
            )
    if fused := [name for name, weight in lm.named_parameters() if weight.ndim == 3 and min(weight.shape) > 1]:
        raise FileFault(
            f"its experts are one weight, {fused[0]}, which bitsandbytes leaves as it is; set model.quantization: null"
        )
    keep_layout(lm)


def keep_layout(lm: Any) -> None:
    """Have a CPU compute with the weights as a GPU holds them.

    Where it can, bitsandbytes packs them anew the first time that nothing needs a gradient, and has none from then on.
    """
    for module in lm.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quantized_weights(lm: Any) -> list[torch.Tensor]:
    """List the weights that bitsandbytes would quantize: all but the head's. lm: may be on the meta device."""
    linear = [module for module in lm.modules() if type(module) in (nn.Linear, Conv1D)]
    return [module.weight for module in linear if module is not lm.get_output_embeddings()]


def quantized_bytes(model: Model, weights: int) -> float:
    """Return the bytes of so many weights of a layer in 4 bits, with their scales."""
    scales = weights / BLOCK
    return weights / 2 + (scales + 4 * scales / SCALES if model.double_quantization else 4 * scales)
