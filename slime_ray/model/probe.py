"""A look at a model before it is used: are its log-probabilities here those of its own forward pass?

Two made-up pairs run through the whole model one sequence at a time, and through `Policy` in both layouts. Adapters and
trained heads take part: it is the model as it is now.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig

from slime_ray.data.packing import pack
from slime_ray.data.pairs import TokenPair
from slime_ray.errors import InputError, device_error, is_memory_error
from slime_ray.model.attention import ROW_ATTENTION, local_setting
from slime_ray.model.decoder import WAY_OUT
from slime_ray.model.limits import Calls, record_rotary_calls, steady_length


@torch.no_grad()
def probe(policy: Any) -> tuple[str | None, int | None]:
    """Compare a Policy with its model's own logits, and measure code that came with the model.

    Args:
        policy: a Policy on the device where it will be used. All ranks of a sharded one call this together.

    Returns:
        What speaks against pairs that share a row, and completions that share a prompt; None where nothing does. And
        what `steady_length` says of such code.

    Raises:
        InputError: log-probabilities would not be those of the model. Names the architecture and what differs.
    """
    was_training = policy.training
    policy.eval()
    try:
        model_probe = _Probe(policy)
        return model_probe.run(), steady_length(model_probe.lm, model_probe.rotary)
    finally:
        policy.train(was_training)
        # A gathered parameter would be what an optimizer takes up, and the parts would never be updated.
        if isinstance(policy, FSDPModule):
            policy.reshard()


@torch.no_grad()
def why_not_padded(policy: Any) -> str | None:
    """Say what speaks against answering prompts of unequal lengths together, padded on the left; None for nothing.

    policy: a Policy that `probe` has passed. All ranks of a sharded one call this together.
    """
    short, long = (list(pair.prompt_ids) for pair in _synthetic_pairs(policy.causal_lm))
    options = GenerationConfig(
        do_sample=False, max_new_tokens=2, pad_token_id=0, output_logits=True, return_dict_in_generate=True
    )
    was_training = policy.training
    policy.eval()

    def steps(rows: list[list[int]], mask: list[list[int]]) -> list[torch.Tensor]:
        """Return the logits of the first row, a tensor for each token."""
        ids, attention_mask = (torch.tensor(batch, device=policy.device) for batch in (rows, mask))
        output: Any = policy.generate(input_ids=ids, attention_mask=attention_mask, generation_config=options)
        return [logits[0].double().log_softmax(-1) for logits in output.logits]

    padding = len(long) - len(short)
    try:
        with _errors_as_input_error(f"{type(policy.causal_lm).__name__} cannot answer prompts"):
            unpadded = steps([short], [[1] * len(short)])
        try:
            padded = steps([[0] * padding + short, long], [[0] * padding + [1] * len(short), [1] * len(long)])
        except (IndexError, RuntimeError, ValueError) as error:
            return f"prompts of unequal lengths together fail with {type(error).__name__}"
    finally:
        policy.train(was_training)
    likely = unpadded[0] > unpadded[0].max() - 10
    # The second token also shows whether what the model keeps of the first ones counts its padding.
    same_token = unpadded[0].argmax() == padded[0].argmax()
    pairs = list(zip(unpadded, padded, strict=False))[: 2 if same_token else 1]
    difference = max(float((logps - padded_logps)[likely].abs().max()) for logps, padded_logps in pairs)
    is_wide = policy.causal_lm.get_input_embeddings().weight.dtype in (torch.float32, torch.float64)
    if difference <= (1e-3 if is_wide else 0.5):
        return None
    return f"padding on the left changes log-probabilities by {difference:.2g}"


class _Probe:
    def __init__(self, policy: Any):
        self.policy, self.lm = policy, policy.causal_lm
        self.name = type(self.lm).__name__
        self.pairs = _synthetic_pairs(self.lm)
        # What speaks against our attention function.
        self.attention_fault: str | None = None
        self.rotary: Calls = {}
        sequences = [(pair.prompt_ids, pair.chosen_ids) for pair in self.pairs]
        self.sequences = sequences + [(pair.prompt_ids, pair.rejected_ids) for pair in self.pairs]
        with _errors_as_input_error(f"{self.name} computes no logits of text alone"):
            references = [self._model_logps(*sequence) for sequence in self.sequences]
        self.expected = torch.cat([logps for logps, _ in references])
        if not bool(self.expected.isfinite().all()):
            raise InputError(
                f"{self.name} gives logits that are not finite: its weights are damaged, or "
                f"{str(policy.dtype).removeprefix('torch.')} (model.dtype) is too narrow for it."
            )
        precision = policy.dtype
        self.is_wide = precision in (torch.float32, torch.float64)
        rounding = torch.finfo(torch.float32 if self.is_wide else precision).eps * max(top for _, top in references)
        self.tolerance = max(1e-4, 64 * rounding) if self.is_wide else max(0.1, rounding)

    def run(self) -> str | None:
        """Compare, in this order: the attention, the head, padded rows, packed rows."""
        self._check_attention()
        self._check_rows()
        return self._why_not_packed()

    def _model_logps(self, prompt: Sequence[int], completion: Sequence[int]) -> tuple[torch.Tensor, float]:
        """Compute one sequence's log-probabilities by the model itself, and its largest logit."""
        ids = torch.tensor([[*prompt, *completion]], device=self.policy.device)
        with record_rotary_calls(self.lm, self.rotary):
            logits = self.policy.own_logits(ids)[0, len(prompt) - 1 : -1].double()
        logps = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).squeeze(1)
        return logps, float(logits.detach().abs().max())

    def _policy_logps(self, pairs: list[TokenPair], *, shared_prompt: bool) -> torch.Tensor:
        logps = self.policy(pack(pairs, shared_prompt=shared_prompt).to(self.policy.device))
        return torch.cat([logps.chosen, logps.rejected]).double()

    def _difference(self, logps: torch.Tensor, expected: torch.Tensor) -> float:
        """Compare in nat: by the largest, or by the mean where rounding alone may set one token off by much."""
        difference = (logps - expected).abs()
        return float(difference.max() if self.is_wide else difference.mean())

    def _check_attention(self) -> None:
        """Compare `ROW_ATTENTION` with transformers' eager one, and go back to sdpa where they differ.

        Some of what an architecture needs may not come to it.
        """
        if not self.policy.takes_row_attention:
            return
        # The longest sequence.
        number = max(range(len(self.sequences)), key=lambda index: sum(map(len, self.sequences[index])))
        self.lm.set_attn_implementation("eager")
        try:
            plain, _ = self._model_logps(*self.sequences[number])
        finally:
            self.lm.set_attn_implementation(ROW_ATTENTION)
        # Two ways of computing, each with its own rounding in every layer.
        tolerance = 4 * self.tolerance
        lengths = [len(completion) for _, completion in self.sequences]
        difference = self._difference(self.expected.split(lengths)[number], plain)
        if difference <= tolerance:
            return
        self.policy.leave_attention()
        self.expected = torch.cat([self._model_logps(*sequence)[0] for sequence in self.sequences])
        self.attention_fault = f"its attention with the function of ours differs by {difference:.2g}"
        difference = self._difference(self.expected.split(lengths)[number], plain)
        if not difference <= tolerance:
            raise InputError(
                f"{self.name}: its attention called sdpa differs by {difference:.2g} nat from the one called eager, so "
                f"something that this architecture needs is left out. {WAY_OUT}"
            )

    def _check_rows(self) -> None:
        """Compare the head on sequences alone, and the same sequences padded to one length."""
        with _errors_as_input_error(f"{self.name} cannot be used as a decoder and an output head"):
            padded = self._policy_logps(self.pairs, shared_prompt=False)
        difference = self._difference(padded, self.expected)
        if difference <= self.tolerance:
            return
        single = [
            self._policy_logps([TokenPair(prompt, completion)], shared_prompt=False)
            for prompt, completion in self.sequences
        ]
        if self._difference(torch.cat(single), self.expected) <= self.tolerance:
            raise InputError(
                f"{self.name} gives a sequence other log-probabilities beside a longer one: they differ by "
                f"{difference:.2g} nat, so it sees the padding behind it. {WAY_OUT}"
            )
        raise InputError(
            f"{self.name}: log-probabilities from its hidden states and output head differ by {difference:.2g} nat "
            f"from those of its own logits{_logit_settings(self.lm.config)}, so it does more between the two than is "
            f"known here. {WAY_OUT}"
        )

    def _why_not_packed(self) -> str | None:
        config = self.lm.config.get_text_config()
        local = None if self.policy.exact else local_setting(config)
        if local is not None:
            return f"its {local} of {getattr(config, local)} positions is not known to be honoured in packed rows"
        if not self.policy.takes_row_attention:
            return self.attention_fault or "this architecture takes no attention function of ours"
        try:
            packed = self._policy_logps(self.pairs, shared_prompt=True)
        except Exception as error:
            # These say nothing about the architecture.
            if is_memory_error(error) or device_error(error):
                raise
            return f"packed rows fail with {type(error).__name__}"
        difference = self._difference(packed, self.expected)
        # A token that sees what it must not is off by far more than rounding.
        if difference <= self.tolerance:
            return None
        return f"packed rows give log-probabilities that differ by {difference:.2g}"


@contextmanager
def _errors_as_input_error(sentence: str) -> Iterator[None]:
    """Raise a model's own errors, lack of memory aside, as an InputError that starts with the sentence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        lines = str(error).strip().splitlines()
        detail = f" ({lines[0].rstrip('.')})" if lines else ""
        raise InputError(f"{sentence}: {type(error).__name__}{detail}. {WAY_OUT}") from None


def _logit_settings(config: Any) -> str:
    """Quote a configuration's settings of logits and the head, as a hint."""
    text = config.get_text_config()
    names = [
        name
        for name, value in text.to_dict().items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value != 1 and "logit" in name
    ]
    return f" (its configuration has {', '.join(f'{name} {getattr(text, name)}' for name in names)})" if names else ""


def _synthetic_pairs(lm: Any) -> list[TokenPair]:
    """Make pairs of unequal lengths, without ids that the configuration names, such as for images or padding."""
    configs = {id(config): config.to_dict() for config in (lm.config, lm.config.get_text_config())}
    special_ids = {
        number
        for settings in configs.values()
        for name, value in settings.items()
        if "token_i" in name
        for number in (value if isinstance(value, list) else [value])
    }
    size = min(lm.get_input_embeddings().weight.shape[0], lm.config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(1)
    ids = [number for number in torch.randint(size, (256,), generator=generator).tolist() if number not in special_ids]
    endless = cycle(ids or [0])
    samples = ([list(islice(endless, length)) for length in lengths] for lengths in ((5, 3, 8), (12, 14, 6)))
    return [TokenPair(prompt, chosen, rejected) for prompt, chosen, rejected in samples]
