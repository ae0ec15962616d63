"""Shapes of models: what a formula needs of them, from their configuration, or from a small table of known ones."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from slime_ray.config.settings import ALL_LINEAR, Lora, Model
from slime_ray.errors import InputError
from slime_ray.planning.flops import Sizes

FIRST_TO_READ = ("q_proj", "k_proj", "v_proj")
"""Of a layer's linear parts, those that read what comes into it."""

SLACK = 0.03
"""Share of a model's weights by which the formula may be off, as it is for biases, norms and position tables."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a causal language model with gated feed-forward layers.

    source: where they come from, in words. windows: each layer's window in positions, None for full attention. tied:
    whether the output head is the input embeddings. beside: weights of other towers, which are held and not used.
    """

    source: str
    model_type: str
    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    windows: tuple[int | None, ...]
    tied: bool = True
    beside: int = 0

    @property
    def linear(self) -> Mapping[str, tuple[int, int]]:
        """A layer's linear parts: what each reads and writes."""
        queries, keys = self.heads * self.head_size, self.key_heads * self.head_size
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def body(self) -> int:
        """Weights of the linear parts of all layers."""
        return self.layers * sum(read * written for read, written in self.linear.values())

    @property
    def embeddings(self) -> int:
        """Weights of the input embeddings, and as many of the head."""
        return self.vocabulary * self.hidden

    @property
    def weights(self) -> int:
        """All weights as they are stored, but those of norms."""
        return self.body + self.embeddings * (1 if self.tied else 2) + self.beside

    def adapters(self, lora: Lora) -> int:
        """Weights of the adapters."""
        return self.layers * lora.rank * sum(sum(self.linear[name]) for name in self._targets(lora))

    def _targets(self, lora: Lora) -> list[str]:
        return [name for name in self.linear if lora.targets == ALL_LINEAR or name in lora.targets]

    def trained(self, lora: Lora | None) -> int:
        """Weights that training changes."""
        if lora is None:
            return self.weights - self.beside
        return self.adapters(lora) + (self.embeddings if lora.train_head else 0)

    def sizes(self, lora: Lora | None) -> Sizes:
        """What the formulas of `flops` take. Without adapters all weights are trained."""
        common = {
            "hidden": self.hidden,
            "vocabulary": self.vocabulary,
            "attention_width": self.heads * self.head_size,
            "windows": self.windows,
        }
        if lora is None:
            return Sizes(body=0, adapters=self.body, body_first=0, adapters_first=0, **common)  # type: ignore[arg-type]
        reading = [self.linear[name] for name in FIRST_TO_READ]
        return Sizes(
            body=self.body,
            adapters=self.adapters(lora),
            body_first=sum(read * written for read, written in reading),
            adapters_first=lora.rank * self.hidden * sum(name in self._targets(lora) for name in FIRST_TO_READ),
            **common,  # type: ignore[arg-type]
        )


def _gemma_windows(layers: int, window: int, every: int = 6) -> tuple[int | None, ...]:
    return tuple(None if (layer + 1) % every == 0 else window for layer in range(layers))


_LLAMA_3B = ModelShape(
    source="the known shape of Llama 3.2 3B", model_type="llama", hidden=3072, layers=28, heads=24, key_heads=8,
    head_size=128, intermediate=8192, vocabulary=128256, windows=(None,) * 28,
)  # fmt: skip
_QWEN3_4B = ModelShape(
    source="the known shape of Qwen3 4B", model_type="qwen3", hidden=2560, layers=36, heads=32, key_heads=8,
    head_size=128, intermediate=9728, vocabulary=151936, windows=(None,) * 36,
)  # fmt: skip
_GEMMA3_4B = ModelShape(
    source="the known shape of Gemma 3 4B", model_type="gemma3_text", hidden=2560, layers=34, heads=8, key_heads=4,
    head_size=256, intermediate=10240, vocabulary=262208, windows=_gemma_windows(34, 1024), beside=419_000_000,
)  # fmt: skip
KNOWN = {
    "meta-llama/llama-3.2-3b": _LLAMA_3B,
    "meta-llama/llama-3.2-3b-instruct": _LLAMA_3B,
    "qwen/qwen3-4b": _QWEN3_4B,
    "qwen/qwen3-4b-base": _QWEN3_4B,
    "google/gemma-3-4b-it": _GEMMA3_4B,
    "google/gemma-3-4b-pt": _GEMMA3_4B,
}
"""Shapes of hub models as their public config.json gives them; Gemma's vision tower stands beside."""


def find_shape(model: Model) -> ModelShape:
    """The shape of the settings' model. Raises InputError where it is not known here, with the way out."""
    from slime_ray.model.decoder import empty_model, matrix_weights, settings_of
    from slime_ray.model.loading import load_config

    config = load_config(model)
    if config is not None:
        shape, lm = shape_of(settings_of(config)), empty_model(config)
        weights = matrix_weights(lm) if lm is not None else shape.weights
        if abs(weights - shape.weights) > SLACK * weights:
            raise InputError(
                f"model.source {model.source}: a model of type {shape.model_type} has {weights / 1e6:,.1f} M weights, "
                f"and the formula counts {shape.weights / 1e6:,.1f} M: its layers are built otherwise, which the "
                "formula does not know."
            )
        return replace(shape, source=f"the configuration of {model.source}")
    known = KNOWN.get(model.source.lower())
    if known is None:
        raise InputError(
            f"model.source {model.source}: its shape is not known here: it is neither a local model nor in this "
            f"machine's cache, and not one of {', '.join(KNOWN)}. Download its config.json first "
            f"(hf download {model.source} config.json), or give a local folder."
        )
    return known


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a complete configuration of transformers says, as a dictionary. Raises InputError for a model
    that is no dense decoder with gated feed-forward layers."""
    text: Mapping[str, Any] = config.get("text_config") or config
    kind = str(text.get("model_type"))
    if any(text.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts")):
        raise InputError(f"A model of type {kind} has experts, whose cost the formula does not know.")
    try:
        heads, hidden, layers = text["num_attention_heads"], text["hidden_size"], text["num_hidden_layers"]
        kinds = text.get("layer_types") or ["full_attention"] * layers
        return ModelShape(
            source="a configuration",
            model_type=kind,
            hidden=hidden,
            layers=layers,
            heads=heads,
            key_heads=text.get("num_key_value_heads") or heads,
            head_size=text.get("head_dim") or hidden // heads,
            intermediate=text["intermediate_size"],
            vocabulary=text["vocab_size"],
            windows=tuple(text.get("sliding_window") if kind == "sliding_attention" else None for kind in kinds),
            tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", True))),
            beside=_vision(config.get("vision_config")),
        )
    except KeyError as error:
        raise InputError(
            f"A model of type {kind} has no {error.args[0]} in its configuration: the formula does not know it."
        ) from None


def _vision(config: Mapping[str, Any] | None) -> int:
    """Weights of a vision tower, about: attention and feed-forward layers, without patches and projection."""
    if not config or not {"hidden_size", "intermediate_size", "num_hidden_layers"} <= config.keys():
        return 0
    hidden = config["hidden_size"]
    return int(config["num_hidden_layers"] * (4 * hidden**2 + 2 * hidden * config["intermediate_size"]))
