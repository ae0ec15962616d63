"""Low-rank adapters through peft, and the tied head that must be cut loose before it is trained."""

from typing import Any

from torch import nn

from slime_ray.errors import InputError
from slime_ray.settings import Lora


def add_lora(lm: Any, lora: Lora) -> Any:
    """Wrap a causal language model with fresh adapters (B = 0, so it computes what it did before).

    With `train_head` the output head is trained in full. A head that shares its weights with the input embeddings is
    untied first: otherwise the trained head and the saved model would disagree. Raises InputError for targets that the
    model does not have.
    """
    from peft import LoraConfig, get_peft_model

    modules_to_save = None
    if lora.train_head:
        untie_head(lm)
        head = lm.get_output_embeddings()
        modules_to_save = [next(name for name, module in lm.named_modules() if module is head).rsplit(".", 1)[-1]]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        modules_to_save=modules_to_save,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(lm, config)
    except ValueError:
        linear = sorted(
            {name.rsplit(".", 1)[-1] for name, module in lm.named_modules() if isinstance(module, nn.Linear)}
        )
        raise InputError(
            f"model.lora.targets {list(lora.targets)} name no layer of this model. Its linear layers are: {linear}."
        ) from None


def untie_head(lm: Any) -> None:
    """Give the output head weights of its own, equal to the embeddings it shared."""
    head, embeddings = lm.get_output_embeddings(), lm.get_input_embeddings()
    if head.weight is embeddings.weight:
        head.weight = nn.Parameter(embeddings.weight.detach().clone())
    lm.config.tie_word_embeddings = False
    lm._tied_weights_keys = {}
    lm.all_tied_weights_keys = {}
