"""The models that are run: random weights, with adapters as the recipes train them."""

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from .options import Shape

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers that get adapters: all of the body's."""


@dataclass(frozen=True)
class Case:
    """Random weights on a device, adapters on every linear layer of the body, and a head of its own.

    lm: the peft model; its head is a trained copy beside the original, which a switched-off adapter brings back. Every
    recipe gets a twin with the same weights. device, dtype: of the weights; in bfloat16 the adapters are float32 and a
    step runs under autocast, as Trainer's `bf16` does.
    """

    lm: Any
    device: torch.device
    dtype: torch.dtype

    @property
    def head(self) -> nn.Linear:
        """The output head that is trained, or frozen."""
        wrapper = self.lm.get_base_model().get_output_embeddings()
        head = wrapper.modules_to_save["default"]
        assert isinstance(head, nn.Linear)
        return head

    def train_head(self, trained: bool) -> None:
        """Let gradients reach the head's weights, or not."""
        self.head.weight.requires_grad_(trained)

    def twin(self) -> Any:
        """Copy the modules around the very same weight tensors, so that what changes the copy stays in it."""
        tensors = [*self.lm.parameters(), *self.lm.buffers()]
        twin = copy.deepcopy(self.lm, {id(tensor): tensor for tensor in tensors})
        assert all(
            parameter is twin_parameter
            for parameter, twin_parameter in zip(self.lm.parameters(), twin.parameters(), strict=True)
        )
        return twin

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a step's precision."""
        if self.dtype != torch.bfloat16:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def build_case(
    shape: Shape,
    *,
    vocabulary: int,
    shrink: int,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> Case:
    """Build a model of this shape with random weights that follow from `seed`."""
    config = shape.config(vocabulary=vocabulary, shrink=shrink)
    adapters = LoraConfig(
        r=shape.rank,
        lora_alpha=2 * shape.rank,
        lora_dropout=0.0,
        target_modules=list(TARGETS),
        modules_to_save=["lm_head"],
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        lm: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        lm = get_peft_model(lm, adapters)
        # What is trained is held in float32, as trials hold it.
        lm.get_base_model().get_output_embeddings().modules_to_save.float()
    return Case(lm.to(device).train(), device, dtype)
