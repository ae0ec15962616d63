"""The memory that a model takes in training and in answering, from its own code run on tensors without data.

The policy is built from the model's configuration, and a packed row goes through it forward and backward as in
training: at two depths where all layers are alike, else at its own. So there is no table by architecture. What an
allocator takes besides is assumed.
"""

import copy
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch

from slime_ray.config.model import Model
from slime_ray.config.settings import ROW_MARGIN, Settings
from slime_ray.errors import InputError
from slime_ray.model.flops import Layout, Lengths, Sizes, linear_flops, sizes_of
from slime_ray.model.meter import Meter, strip, without_data

CONTEXT_BYTES = 1.0 * 2**30
"""Bytes that a GPU holds beside tensors: the context, libraries' workspaces."""
FRAGMENTS = 1.08
"""What an allocator takes over what it hands out."""
SAMPLING = 5
"""Copies of a decoding step's logits, in float32: they are scaled, sorted and drawn from."""
PROCESS_BYTES = 0.75 * 2**30
"""Bytes of a worker's process on a CPU with everything imported, as measured."""
STEP = 256
"""Tokens between two budgets of a row."""
USUAL_PAIR = (180, 250, 250)
"""Tokens of a pair's parts in UltraFeedback; the shape of pairs for which rows are chosen."""
SLACK = 0.02
"""Share by which the formula's FLOPs may differ from those that are counted."""
STAGE_ADAPTER = "the SFT stage's adapter"
"""Part of a worker's memory on a 4-bit base."""
SHALLOW_LAYERS = (2, 4)
"""Layers of the two models that stand for a deep one."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker's GPU, or of its process on a CPU.

    parts: of the peak, by name. answering: the peak while answers are drawn.
    """

    parts: Mapping[str, float]
    peak: float
    answering: float


class Footprint:
    """One model with its adapters, without data.

    source: where its shape comes from, in words. numbers, weights: all parameters, and those of matrices and tables.
    weight_bytes, trained, plain: bytes of all weights as they are trained, of those that training changes, and of the
    model's files without adapters. unpacked: bytes of the largest layer of a 4-bit base, which is unpacked to compute
    with it. tied: whether head and embeddings are one.
    """

    def __init__(self, model: Model):
        from slime_ray.model.loading import find_config

        self.model = model
        self.config, self.source = find_config(model)
        text = self.config.get_text_config()
        if any(getattr(text, key, None) for key in ("num_local_experts", "num_experts", "n_routed_experts")):
            raise InputError(f"A model of type {text.model_type} has experts, whose cost the formula does not know.")
        lm_without_adapters = self._build_model(text.num_hidden_layers)
        self.plain = _bytes(lm_without_adapters.parameters())
        self.numbers = sum(parameter.numel() for parameter in lm_without_adapters.parameters())
        self.weights = sum(parameter.numel() for parameter in lm_without_adapters.parameters() if parameter.ndim > 1)
        head = lm_without_adapters.get_output_embeddings().weight
        self.tied = head is lm_without_adapters.get_input_embeddings().weight
        self.layers: int = text.num_hidden_layers
        saved = self.unpacked = 0
        if model.quantization:
            from slime_ray.model.quantized import quantized_bytes, quantized_weights

            packed = quantized_weights(lm_without_adapters)
            self.unpacked = max((weight.nbytes for weight in packed), default=0)
            saved = _bytes(packed) - round(sum(quantized_bytes(model, weight.numel()) for weight in packed))
        lm = self._add_adapters(lm_without_adapters)
        self.weight_bytes = _bytes(lm.parameters()) - saved
        self.trained = _bytes(parameter for parameter in lm.parameters() if parameter.requires_grad)
        self.sizes: Sizes = sizes_of(lm)
        self._peaks: dict[Any, float] = {}

    @property
    def packed(self) -> bool:
        """Whether its pairs surely share rows and prompts."""
        from slime_ray.model.logprobs import EXACT_ARCHITECTURES

        return self.config.get_text_config().model_type in EXACT_ARCHITECTURES

    @property
    def trains_head(self) -> bool:
        """Whether the output head is trained."""
        return self.model.lora is None or self.model.lora.train_head

    @property
    def saved(self) -> int:
        """Bytes of a trained model as it is kept: what was trained, or all weights."""
        return self.trained if self.model.lora else self.weight_bytes

    @property
    def merged(self) -> int:
        """Bytes of the whole model after training, in float32; on a 4-bit base of its adapters alone."""
        if self.model.quantization:
            return self.trained
        untied = self.tied and self.model.lora is not None and self.trains_head
        return 4 * (self.numbers + (self.sizes.hidden * self.sizes.vocabulary if untied else 0))

    def step(self, row: int, pair: Lengths, *, gpu: bool, checkpointing: bool) -> float:
        """Measure the peak bytes of new tensors, without gradients, in a training step over a row of so many tokens.

        pair: mean lengths of the pairs in it. Raises InputError where the counted FLOPs are not the formula's.
        """
        key = (row, pair, gpu, checkpointing)
        if key not in self._peaks:
            lengths = fill_row(row, pair)
            self._peaks[key] = self._extrapolate(
                lambda lm: self._measure_step(lm, lengths, gpu=gpu, checkpointing=checkpointing)
            )
        return self._peaks[key]

    def answers(self, batch: int, prompt: int, answer: int, *, gpu: bool) -> float:
        """Measure the peak bytes of new tensors while answers are drawn: of reading prompts, or of the last step."""

        def measure_reading(lm: Any) -> float:
            with _without_data(), torch.no_grad():
                policy = self._policy(lm, gpu=gpu)
                with Meter() as meter, _autocast(policy):
                    policy.decoder(input_ids=torch.ones(batch, prompt, dtype=torch.long), use_cache=True)
            return meter.peak

        key = (batch, prompt, answer, gpu)
        if key not in self._peaks:
            with _without_data(), torch.no_grad():
                _, cache = self._fill_cache(1, prompt + answer, gpu=gpu)
            # A layer with a window gives back what lies before it.
            states = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
            size = _bytes(tensor for tensor in states if tensor is not None)
            last_step = batch * (size + SAMPLING * 4 * self.sizes.vocabulary)
            self._peaks[key] = max(self._extrapolate(measure_reading), last_step)
        return self._peaks[key]

    def decoding_meter(self, batch: int, length: int, *, record: Callable[[str, int, int], None]) -> Meter:
        """Count what a GPU runs to decode one token each of `batch` answers of `length` tokens with their prompts."""
        with _without_data(), torch.no_grad():
            policy, cache = self._fill_cache(batch, length, gpu=True)
            with Meter(record) as meter, _autocast(policy):
                ids = torch.ones(batch, 1, dtype=torch.long)
                hidden = policy.decoder(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
                policy.causal_lm.get_output_embeddings()(hidden)
        return meter

    def _fill_cache(self, batch: int, length: int, *, gpu: bool) -> tuple[Any, Any]:
        """Build the whole model, and the cache of so many sequences that it has read."""
        policy = self._policy(self.model_of(self.layers), gpu=gpu)
        with _autocast(policy):
            ids = torch.ones(batch, length, dtype=torch.long)
            return policy, policy.decoder(input_ids=ids, use_cache=True).past_key_values

    def _measure_step(self, lm: Any, lengths: list[Lengths], *, gpu: bool, checkpointing: bool) -> float:
        meter = self.meter(lm, lengths, gpu=gpu, checkpointing=checkpointing)
        layout, sizes = Layout.of_packed(lengths), sizes_of(lm)
        formula = linear_flops(sizes, layout, head_trained=self.trains_head)
        # A trained head computes its logits again where they do not fit one tile.
        recomputation = 2 * layout.logits * sizes.hidden * sizes.vocabulary if self.trains_head else 0
        counted = meter.products.flops
        comparable = gpu and self.packed and not checkpointing
        if comparable and not (1 - SLACK) * formula < counted < (1 + SLACK) * (formula + recomputation):
            raise InputError(
                f"model.source {self.model.source}: a step of it takes {counted / 1e9:,.1f} GFLOP, and the formula "
                f"says {formula / 1e9:,.1f}: its layers are built otherwise, which the formula does not know."
            )
        return meter.peak

    def meter(
        self,
        lm: Any,
        lengths: Sequence[Lengths],
        *,
        gpu: bool,
        checkpointing: bool = False,
        record: Callable[[str, int, int], None] = lambda name, size, flops: None,
    ) -> Meter:
        """Count what one micro-batch runs, forward and backward, with gradients to add to.

        lm: the model on the meta device, which is used up. record: as `Meter` takes it.
        """
        from slime_ray.data.packing import pack
        from slime_ray.data.pairs import TokenPair
        from slime_ray.model.fused_ops import compiled_by, fuse
        from slime_ray.model.train_mode import checkpoint_layers

        pairs = [TokenPair([1] * pair.prompt, [1] * pair.chosen, [1] * pair.rejected) for pair in lengths]
        with _without_data():
            policy = self._policy(lm, gpu=gpu)
            if checkpointing:
                checkpoint_layers(policy.causal_lm)
            rows = pack(pairs, shared_prompt=self.packed)
            for parameter in policy.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
            meter, fused = Meter(record), gpu and self.model.fused
            with compiled_by(meter.fused) if fused else nullcontext():
                if fused:
                    policy.fused = fuse(policy.causal_lm)
                with meter:
                    logps = policy(rows)
                    # The objective's own tensors are a few numbers a token.
                    (logps.chosen.sum() + logps.rejected.sum()).backward()
        return meter

    def model_of(self, layers: int) -> Any:
        """Build the model with its adapters and so many layers, on the meta device."""
        return self._add_adapters(self._build_model(layers))

    def _extrapolate(self, measure: Callable[[Any], float]) -> float:
        """Measure a figure of the whole model, by two shallow ones where every layer adds the same."""
        if self.layers <= SHALLOW_LAYERS[1] or not self._layers_alike:
            return measure(self.model_of(self.layers))
        shallow, deep = (measure(self.model_of(layers)) for layers in SHALLOW_LAYERS)
        return shallow + (deep - shallow) / (SHALLOW_LAYERS[1] - SHALLOW_LAYERS[0]) * (self.layers - SHALLOW_LAYERS[0])

    @cached_property
    def _layers_alike(self) -> bool:
        """Whether all layers have equally many weights."""
        shallow, deep = (_bytes(self._build_model(layers).parameters()) for layers in SHALLOW_LAYERS)
        return (deep - shallow) * (self.layers - SHALLOW_LAYERS[0]) == (self.plain - shallow) * (
            SHALLOW_LAYERS[1] - SHALLOW_LAYERS[0]
        )

    def _build_model(self, layers: int) -> Any:
        from transformers import AutoModelForCausalLM

        config = copy.deepcopy(self.config)
        text = config.get_text_config()
        if layers != text.num_hidden_layers:
            kinds, text.num_hidden_layers = getattr(text, "layer_types", None), layers
            if kinds:
                text.layer_types = kinds[:layers]
        try:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, self.model.weights_dtype))
        except (AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"model.source {self.model.source}: transformers makes no model of type {text.model_type} from its "
                f"configuration: {error}"
            ) from None

    def _add_adapters(self, lm: Any) -> Any:
        from slime_ray.model.lora import make_trainable
        from slime_ray.model.train_mode import set_train_mode

        with torch.device("meta"):
            lm = make_trainable(lm, self.model.lora)
        set_train_mode(lm, dropout=False)
        return lm

    def _policy(self, lm: Any, *, gpu: bool) -> Any:
        """Build the policy on the CPU; gpu: with attention and logits as on a GPU."""
        from slime_ray.model.attention import HEAD_SIZE, varlen_kernel
        from slime_ray.model.fused_lora import unfuse_lora
        from slime_ray.model.logprobs import CHUNK_LOGITS, Policy

        size = self.sizes.head_size
        fits = self.model.dtype == "bfloat16" and size <= HEAD_SIZE and not size % 8 and varlen_kernel() is not None
        policy = Policy(
            strip(lm),
            kernel="varlen" if gpu and fits and self.model.attention != "segments" else "segments",
            chunk_logits=self.model.chunk_logits or (CHUNK_LOGITS["cuda"] if gpu else None),
            dtype=getattr(torch, self.model.dtype),
        )
        if self.model.quantization:
            # On 4-bit layers adapters compute as peft's do.
            unfuse_lora(policy)
        return policy


@contextmanager
def _without_data() -> Iterator[None]:
    from slime_ray.model.attention import forget_masks

    try:
        with without_data():
            yield
    finally:
        # Masks without data are of no use to a run in this process.
        forget_masks()


def _autocast(policy: Any) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=policy.dtype == torch.bfloat16)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def fill_row(row: int, pair: Lengths) -> list[Lengths]:
    """Make pairs of about these lengths that fill a row of exactly so many tokens."""
    count = max(1, row // max(1, sum(pair)))
    prompt, chosen, rejected = (max(1, round(row / count * part / sum(pair))) if part else 0 for part in pair)
    rest = row - count * (prompt + chosen + rejected)
    return [Lengths(prompt, max(1, chosen + rest), rejected), *[Lengths(prompt, chosen, rejected)] * (count - 1)]


@lru_cache(maxsize=32)
def _footprint(key: str) -> Footprint:
    return Footprint(Model.model_validate_json(key))


def footprint(model: Model) -> Footprint:
    """Return the footprint of the settings' model, made once. Raises InputError where its shape is not known here."""
    return _footprint(model.model_dump_json())


def _fixed_bytes(settings: Settings, *, workers: int, sharded: bool) -> dict[str, float]:
    """Return the bytes of one worker that do not depend on the row, by part."""
    share, model = workers if sharded else 1, footprint(settings.model)
    # On a 4-bit base the adapter of the SFT stage stays next to a trial's.
    frozen = bool(settings.sft and settings.model.quantization and not settings.model.kept)
    return {
        "weights": model.weight_bytes / share,
        STAGE_ADAPTER: float(footprint(settings.sft_model).trained if frozen else 0),
        "an unpacked layer": float(model.unpacked),
        "gradients": model.trained / share,
        "moments": 2 * model.trained / share,
        "exchange": float(model.trained if workers > 1 and not sharded else 0),
        # A sharded model has two layers whole at a time: the one that computes, and the next.
        "gathered layers": 2 * model.weight_bytes / model.layers if sharded else 0.0,
    }


def gpu_row(settings: Settings, memory: float, *, workers: int = 1, sharded: bool = False, row: int = 0) -> int | None:
    """Return the budget of a row of the settings' model on a GPU, in tokens.

    Args:
        settings: Of the trial, or with the model of another stage.
        memory: Bytes of the GPU that one worker may take.
        workers: Of the trial.
        sharded: Whether the workers hold parts of the model.
        row: Tokens of a row that has to fit, such as that of the longest pair.

    Returns:
        `data.row_tokens` where it is given. Else the largest multiple of STEP, up to what `data.row_budget` gives, that
        fits ROW_MARGIN of the memory, at least `row`. None where `row`, or one STEP, does not fit all of the memory.

    Raises:
        InputError: Nothing is known of the model's memory.
    """
    model, budget = footprint(settings.model), settings.data.row_budget(gpu=True)
    fixed = sum(_fixed_bytes(settings, workers=workers, sharded=sharded).values())

    def peak(tokens: int) -> float:
        checkpointing = settings.training.gradient_checkpointing
        step = model.step(tokens, Lengths(*USUAL_PAIR), gpu=True, checkpointing=checkpointing)
        return FRAGMENTS * (fixed + step) + CONTEXT_BYTES

    smallest = max(row, min(STEP, budget))
    if peak(smallest) > memory:
        return None
    if settings.data.row_tokens:
        return budget
    if peak(budget) <= ROW_MARGIN * memory:
        return max(row, budget)
    budgets = range(STEP, budget, STEP)
    count = bisect_right(budgets, ROW_MARGIN * memory, key=peak)
    return max(row, budgets[count - 1] if count else STEP)


def peak_memory(
    settings: Settings, *, gpu: bool, workers: int, sharded: bool, row: int, pair: Lengths, prompt: int
) -> Memory:
    """Estimate the peak of one worker of a trial.

    row: tokens of the longest micro-batch. pair: mean lengths in it. prompt: tokens of the longest prompt that is
    answered. sharded: parameters, gradients and moments are divided among the workers.
    """
    model = footprint(settings.model)
    fixed = _fixed_bytes(settings, workers=workers, sharded=sharded)
    checkpointing = settings.training.gradient_checkpointing
    training = model.step(row, pair, gpu=gpu, checkpointing=checkpointing)
    decoding = settings.evaluation.decoding
    # A batch of null is halved until it fits, so what has to fit is the smaller one.
    batch = decoding.batch_on(gpu=False)
    answering = model.answers(batch, prompt, decoding.max_new_tokens, gpu=gpu)
    variable = {"activations and logits": training} if training >= answering else {"answers' cache": answering}
    parts = {name: size for name, size in (fixed | variable).items() if size}
    name, overhead = ("context", CONTEXT_BYTES) if gpu else ("process", PROCESS_BYTES)
    return Memory(
        parts=parts | {name: overhead},
        peak=FRAGMENTS * sum(parts.values()) + overhead,
        answering=FRAGMENTS * (sum(fixed.values()) + answering) + overhead,
    )
