"""Low-rank adapters through peft: which weights get them, and tied weights that must be untied before."""

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from slime_ray.config.model import ALL_LINEAR, ATTENTION_AND_MLP, Lora
from slime_ray.errors import InputError
from slime_ray.model.decoder import decoder_of

READ_AS_EXPERTS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Names that peft reads as those of fused experts in some architectures, whatever layer is meant."""


@dataclass(frozen=True)
class AdaptedWeights:
    """Which weights of a model get adapters, by their full names.

    modules: layers that peft wraps. parameters: weights that peft adapts as parameters, such as fused experts. linear:
    elements of the decoder's linear layers, by name. unadapted: those of them that get no adapter. outside_decoder: how
    many layers of the same names are not the decoder's, such as those of a vision tower. unmatched: targets that name
    nothing. dropout_conflict: whether targets name weights that only `dropout: 0` can adapt.
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    linear: dict[str, int]
    unadapted: tuple[str, ...]
    outside_decoder: int
    unmatched: tuple[str, ...]
    dropout_conflict: bool

    def facts(self) -> dict[str, Any]:
        """Summarize for the manifest: the share of linear weights with adapters, by layer."""
        total = max(1, sum(self.linear.values()))
        gaps: Counter[str] = Counter()
        for name in self.unadapted:
            gaps[_name_in_layer(name)] += self.linear[name]
        return {
            "share": 1 - sum(gaps.values()) / total,
            "adapted": sorted(
                {_name_in_layer(name).removesuffix(".weight") for name in self.modules + self.parameters}
            ),
            "not_adapted": {name: elements / total for name, elements in gaps.most_common()},
            "outside": self.outside_decoder,
            "barred_by_dropout": self.dropout_conflict,
            "unmatched_targets": list(self.unmatched),
        }


class _Layers:
    """The layers that can have adapters: those of the text decoder, its output head and the input embeddings.

    linear, fused: elements of each weight by name; fused ones are parameters that hold the layers of several experts.
    """

    def __init__(self, lm: Any):
        self.names = {id(module): name for name, module in lm.named_modules()}
        self.head = self.names.get(id(lm.get_output_embeddings()))
        decoder_name = self.names[id(lm.get_decoder())]
        end_ids = {id(lm.get_output_embeddings()), id(lm.get_input_embeddings())}
        self.linear: dict[str, int] = {}
        self.fused: dict[str, int] = {}
        self.embeddings: set[str] = set()
        self.outside_decoder: set[str] = set()
        for name, module in lm.named_modules():
            if not (id(module) in end_ids or not decoder_name or name.startswith(f"{decoder_name}.")):
                self.outside_decoder |= {name} if _is_linear(module) else set()
            elif _is_linear(module):
                self.linear[name] = _weights_of(module)
            elif isinstance(module, nn.Embedding):
                self.embeddings.add(name)
            elif not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                for weight, parameter in module.named_parameters(recurse=False):
                    if parameter.ndim == 3 and min(parameter.shape) > 1:
                        self.fused[f"{name}.{weight}"] = parameter.numel()

    def find(self, target: str) -> set[str]:
        """Find the layers that a target names, by name or end of path; experts, which cost memory, need a path."""
        layers = {name for name in (*self.linear, *self.embeddings) if _ends_with(name, target)}
        return layers | {
            name
            for name in self.fused
            if ("." in target and _ends_with(name, target))
            or (name.endswith(".weight") and _ends_with(name.removesuffix(".weight"), target))
        }

    def as_parameter(self, name: str) -> bool:
        """Tell whether a weight is adapted as a parameter, which excludes dropout."""
        return name in self.fused or (bool(self.fused) and name.rsplit(".", 1)[-1] in READ_AS_EXPERTS)

    def target_names(self) -> str:
        """List all linear layers, as `targets` takes them."""
        names = {name.rsplit(".", 1)[-1] if not name[-1].isdigit() else _name_in_layer(name) for name in self.linear}
        return f"{sorted(names | {_name_in_layer(name) for name in self.fused})}"


def find_adapted(lm: Any, lora: Lora) -> AdaptedWeights:
    """Resolve `lora.targets` against a model, which may be on the meta device.

    Only layers of the text decoder, its head and its embeddings count. Raises InputError where targets name none of
    them: one of those that a user chose, or all of the default ones.
    """
    layers = _Layers(lm)
    matches: dict[str, set[str]]
    if lora.targets == ALL_LINEAR:
        matches = {ALL_LINEAR: {*layers.linear, *layers.fused} - {layers.head}}
    else:
        matches = {target: layers.find(target) for target in lora.targets}
    dropout_conflict = bool(lora.dropout) and any(map(layers.as_parameter, set().union(*matches.values())))
    if dropout_conflict:
        matches = {
            target: {name for name in names if not layers.as_parameter(name)} for target, names in matches.items()
        }
    if lora.train_head:
        matches = {target: names - {layers.head} for target, names in matches.items()}
    unmatched = [target for target, names in matches.items() if not names]
    if len(unmatched) == len(matches) or (unmatched and tuple(lora.targets) != ATTENTION_AND_MLP):
        raise _unmatched(layers, lora, unmatched)
    adapted: set[str] = set().union(*matches.values())
    body = {name: count for name, count in (layers.linear | layers.fused).items() if name != layers.head}
    parameters = {name for name in adapted if layers.as_parameter(name)}
    return AdaptedWeights(
        modules=tuple(sorted(adapted - parameters)),
        parameters=tuple(sorted(name if name in layers.fused else f"{name}.weight" for name in parameters)),
        linear=body,
        unadapted=tuple(name for name in body if name not in adapted),
        outside_decoder=sum(any(_ends_with(name, target) for target in matches) for name in layers.outside_decoder),
        unmatched=tuple(unmatched),
        dropout_conflict=dropout_conflict,
    )


def _unmatched(layers: _Layers, lora: Lora, unmatched: list[str]) -> InputError:
    reason = ""
    if lora.dropout and any(map(layers.find, unmatched)):
        reason = " that takes lora.dropout, which has to be 0 for experts"
    elif any(_ends_with(name, target) for target in unmatched for name in layers.outside_decoder):
        reason = "'s text decoder; outside it, where no text passes, layers get no adapters"
    return InputError(
        f"lora.targets {unmatched or lora.targets} name no layer of this model{reason}. Its linear layers are: "
        f"{layers.target_names()}. Name some of them, or give targets: {ALL_LINEAR}."
    )


def make_trainable(lm: Any, lora: Lora | None) -> Any:
    """Add fresh adapters to a model, unless its own is kept; without `lora`, train every weight of text.

    Returns the model, wrapped where it has adapters. Trained weights are held in float32 at least; the others are
    frozen. Raises InputError as `add_lora` does.
    """
    if lora is not None and lora.kept and hasattr(lm, "peft_config"):
        _hold_in_float32(lm)
        return lm
    if lora is not None:
        return add_lora(lm, lora)
    parts = (decoder_of(lm), lm.get_output_embeddings())
    text_weights = {id(parameter) for part in parts for parameter in part.parameters()}
    for parameter in lm.parameters():
        if id(parameter) not in text_weights:
            parameter.requires_grad_(False)
    _hold_in_float32(lm)
    return lm


def _hold_in_float32(lm: nn.Module) -> None:
    """Widen the trained weights: at 5e-7 an update is a hundredth of a bfloat16 step, and would be rounded away."""
    for parameter in lm.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


def add_lora(lm: Any, lora: Lora) -> Any:
    """Wrap a causal language model with fresh adapters.

    With B = 0 it computes what it did before. With `train_head` the output head is trained in full. A head that shares
    its weights with the input embeddings is untied first where either is trained: otherwise the saved model would
    differ from the trained one. What is trained is held in float32 at least. Raises InputError for targets that the
    model does not have, or that peft cannot adapt.
    """
    from peft import LoraConfig, get_peft_model

    adapted, layers = find_adapted(lm, lora), _Layers(lm)
    saved_modules = [layers.head] if lora.train_head and layers.head else []
    _untie(lm, {*adapted.modules, *saved_modules}, layers)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=_peft_targets(lm, lora, adapted),
        target_parameters=list(adapted.parameters) or None,
        modules_to_save=saved_modules or None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # peft asks for gradient checkpointing by the name that transformers is giving up.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            wrapped = get_peft_model(lm, config)
    except ValueError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"lora.targets {lora.targets} cannot be adapted by peft: {reason}. Linear layers are: "
            f"{layers.target_names()}."
        ) from None
    _hold_in_float32(wrapped)
    tuner: Any = wrapped.base_model
    mismatch = {*tuner.targeted_module_names, *tuner.targeted_parameter_names} ^ {
        *adapted.modules,
        *adapted.parameters,
    }
    if mismatch:
        raise InputError(
            f"lora.targets {lora.targets} mean other layers to peft, which differ in "
            f"{sorted({_name_in_layer(name) for name in mismatch})}. Name others of: {layers.target_names()}."
        )
    return wrapped


def _peft_targets(lm: Any, lora: Lora, adapted: AdaptedWeights) -> list[str]:
    """Return the targets as given, for other tools to read, where peft finds the same layers; else full names."""
    if lora.targets != ALL_LINEAR and not adapted.parameters:
        short = [target for target in lora.targets if target not in adapted.unmatched]
        if {name for name, _ in lm.named_modules() if any(_ends_with(name, target) for target in short)} == {
            *adapted.modules
        }:
            return short
    return list(adapted.modules)


def _untie(lm: Any, trained: Iterable[str], layers: _Layers) -> None:
    """Give trained layers weights of their own. Raises InputError where others than head and embeddings share them."""
    layers_by_weight: dict[int, set[str]] = defaultdict(set)
    for name, module in lm.named_modules():
        for parameter in module.parameters(recurse=False):
            layers_by_weight[id(parameter)].add(name)
    ends = {layers.head, layers.names.get(id(lm.get_input_embeddings()))}
    for names in layers_by_weight.values():
        if len(names) < 2 or names.isdisjoint(trained):
            continue
        if names != ends:
            raise InputError(
                f"lora.targets {sorted(names)} share their weights in this model, so that adapters could not be "
                f"merged into one of them alone. Name others of: {layers.target_names()}."
            )
        untie_head(lm)


def untie_head(lm: Any) -> None:
    """Give the output head weights of its own, equal to the embeddings it shared."""
    head, embeddings = lm.get_output_embeddings(), lm.get_input_embeddings()
    if head.weight is embeddings.weight:
        head.weight = nn.Parameter(embeddings.weight.detach().clone())
    for config in (lm.config, lm.config.get_text_config()):
        config.tie_word_embeddings = False
    lm.all_tied_weights_keys = {}


def _is_linear(module: nn.Module) -> bool:
    """Tell whether a layer maps vectors to vectors by a weight; some routers inherit from linear and do more."""
    if type(module) in (nn.Linear, Conv1D):
        return True
    if not isinstance(module, (nn.Linear, Conv1D)):
        return False
    if _is_packed(module):
        return True
    with torch.no_grad():
        probe = module.weight.new_zeros(1, module.weight.shape[0 if isinstance(module, Conv1D) else 1])
        return isinstance(module(probe), torch.Tensor)


def _is_packed(module: Any) -> bool:
    """Tell whether a layer's weights are quantized, in a tensor of another shape and number."""
    return not module.weight.is_floating_point()


def _weights_of(module: Any) -> int:
    count: int = module.in_features * module.out_features if _is_packed(module) else module.weight.numel()
    return count


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _name_in_layer(name: str) -> str:
    """Strip the layer's name and number: `self_attn.q_proj` of `model.layers.3.self_attn.q_proj`."""
    match = re.match(r".*?\.\d+\.(.+)", name)
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", match[1] if match else name)
